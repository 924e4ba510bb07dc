"""An OCI image layout: what is in it is whole, and images stay beside each other."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chalicelib.client.layout import FULL_NAME, TAG, Layout, LayoutError, Mismatch, Partial
from tests.client import sha256, sha512
from tests.images import layout_contents, make_bytes, make_image, write_layout

DATA = make_bytes(300_000, "layout")
DIGEST = sha256(DATA)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "layout")
    layout.open()
    return layout


def descriptor(name: str) -> dict[str, Any]:
    return make_image(seed=name).manifest.descriptor


def index(layout: Layout) -> list[dict[str, Any]]:
    manifests: list[dict[str, Any]] = json.loads((layout.folder / "index.json").read_bytes())[
        "manifests"
    ]
    return manifests


def named(layout: Layout) -> dict[str, str]:
    """The digest of each image by its name."""
    return {each["annotations"][TAG]: each["digest"] for each in index(layout)}


def entered(partial: Partial | None) -> Partial:
    assert partial is not None
    return partial


def test_an_empty_layout(layout: Layout) -> None:
    layout.close()
    assert {each.name for each in layout.folder.iterdir()} == {"oci-layout", "index.json", "blobs"}
    assert json.loads((layout.folder / "oci-layout").read_bytes()) == {
        "imageLayoutVersion": "1.0.0"
    }
    assert index(layout) == []


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(LayoutError, match="something else than an image layout"):
        Layout(tmp_path).open()
    with pytest.raises(LayoutError, match=r"letter\.txt cannot be written: .*(exists|directory)"):
        Layout(tmp_path / "letter.txt").open()
    (tmp_path / "letter.txt").unlink()
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(LayoutError, match=r"another version: 2\.0\.0"):
        Layout(tmp_path).open()


def test_a_blob_is_there_when_it_is_whole(layout: Layout) -> None:
    with layout.receive(DIGEST, len(DATA)) as partial:
        entered(partial).write(DATA[:1000])
        assert layout_contents_of(layout) == {}
        entered(partial).write(memoryview(DATA)[1000:])
        assert layout_contents_of(layout) == {}
        entered(partial).finish()
    assert layout_contents_of(layout) == {DIGEST: DATA}
    assert layout.holds(DIGEST, len(DATA))
    with layout.receive(DIGEST, len(DATA)) as partial:
        assert partial is None
    layout.close()
    assert not (layout.folder / ".partial").exists()


def layout_contents_of(layout: Layout) -> dict[str, bytes]:
    return layout_contents(layout.folder) if (layout.folder / "blobs" / "sha256").exists() else {}


def test_the_other_algorithm(layout: Layout) -> None:
    layout.put(sha512(DATA), DATA)
    assert (layout.folder / "blobs" / "sha512" / sha512(DATA)[7:]).read_bytes() == DATA
    with pytest.raises(LayoutError, match="no digest that can be verified"):
        layout.put("md5:" + "0" * 32, b"")


def test_a_blob_goes_on_where_it_was(layout: Layout) -> None:
    with layout.receive(DIGEST, len(DATA)) as partial:
        entered(partial).write(DATA[:12345])
    with layout.receive(DIGEST, len(DATA)) as partial:
        assert entered(partial).length == 12345
        assert entered(partial).resumed
        entered(partial).write(DATA[12345:])
        entered(partial).finish()
    assert layout_contents_of(layout) == {DIGEST: DATA}


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA[:-1] + b"?"])
def test_other_bytes_never_are_there(layout: Layout, wrong: bytes) -> None:
    with layout.receive(DIGEST, len(DATA)) as partial:
        entered(partial).write(wrong)
        with pytest.raises(Mismatch):
            entered(partial).finish()
    with pytest.raises(Mismatch), layout.receive(DIGEST, len(DATA)) as partial:
        entered(partial).write(DATA + b"?")
    assert layout_contents_of(layout) == {}
    with layout.receive(DIGEST, len(DATA)) as partial:
        assert entered(partial).length == 0


def test_a_blob_of_another_size_is_replaced(layout: Layout) -> None:
    layout.put(DIGEST, DATA)
    layout.path(DIGEST).write_bytes(DATA[:-1])
    assert not layout.holds(DIGEST, len(DATA))
    layout.put(DIGEST, DATA)
    assert layout_contents_of(layout) == {DIGEST: DATA}


def test_one_process_at_a_time(layout: Layout) -> None:
    """Who waited finds the blob there, and writes nothing."""
    program = (
        "import sys; from pathlib import Path; from chalicelib.client.layout import Layout\n"
        f"with Layout(Path(sys.argv[1])).receive('{DIGEST}', {len(DATA)}) as partial:\n"
        "    print(partial and partial.length)\n"
    )
    with layout.receive(DIGEST, len(DATA)) as partial:
        entered(partial).write(DATA[:10])
        other = subprocess.Popen(
            [sys.executable, "-c", program, layout.folder], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
        entered(partial).write(DATA[10:])
        entered(partial).finish()
    assert other.communicate(timeout=20)[0] == "None\n"
    layout.close()
    assert not (layout.folder / ".partial").exists()


def test_names(layout: Layout) -> None:
    one, two, three = map(descriptor, "abc")
    assert layout.name(one, "1", "r.example.org/app:1") == "1"
    assert layout.name(two, "2", "r.example.org/app:2") == "2"
    assert named(layout) == {"1": one["digest"], "2": two["digest"]}
    # Pulled anew, it takes the place of what had its name.
    assert layout.name(three, "1", "r.example.org/app:1") == "1"
    assert named(layout) == {"2": two["digest"], "1": three["digest"]}
    assert index(layout)[1]["annotations"][FULL_NAME] == "r.example.org/app:1"


def test_one_tag_in_two_repositories(layout: Layout) -> None:
    one, two, three = map(descriptor, "abc")
    layout.name(one, "1", "r.example.org/app:1")
    assert layout.name(two, "1", "r.example.org/other:1") == "r.example.org/other:1"
    assert layout.name(three, "1", "r.example.org/other:1") == "r.example.org/other:1"
    assert named(layout) == {"1": one["digest"], "r.example.org/other:1": three["digest"]}


def test_an_image_without_a_tag(layout: Layout) -> None:
    one, two = map(descriptor, "ab")
    layout.name(one, "1", "r.example.org/app:1")
    for _ in range(2):
        assert layout.name(two, None, "r.example.org/app") == ""
    assert [each["digest"] for each in index(layout)] == [one["digest"], two["digest"]]
    assert "annotations" not in index(layout)[1]


def test_others_layouts(tmp_path: Path) -> None:
    """Images that another program has put there stay, with all that it wrote about them."""
    image = make_image(seed="another")
    layout = Layout(write_layout(tmp_path / "layout", [image], tag="theirs"))
    before = json.loads((layout.folder / "index.json").read_bytes())
    before |= {"annotations": {"kept": "yes"}}
    (layout.folder / "index.json").write_text(json.dumps(before))
    layout.open()
    layout.name(descriptor("ours"), "ours", "r.example.org/app:ours")
    after = json.loads((layout.folder / "index.json").read_bytes())
    assert after["annotations"] == {"kept": "yes"}
    assert after["manifests"][0] == before["manifests"][0]
    # A name that nobody says whose it is, is taken over, as skopeo does.
    layout.name(descriptor("ours"), "theirs", "r.example.org/app:theirs")
    assert named(layout)["theirs"] == descriptor("ours")["digest"]

    (layout.folder / "index.json").write_text("[]")
    with pytest.raises(LayoutError, match=r"index\.json is damaged"):
        layout.name(descriptor("ours"), "ours", "r.example.org/app:ours")


def test_many_are_named_at_once(layout: Layout) -> None:
    threads = [
        threading.Thread(
            target=layout.name, args=(descriptor(str(n)), str(n), f"r.example.org/app:{n}")
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(named(layout)) == set("01234567")
