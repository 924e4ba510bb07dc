"""Images that are on this machine, in every form that programs write, and in forms that nobody
should: what is read of them, and what is refused.

The long tests ask real programs; those of clients (``tests/clients``) say how they are run.
"""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.client.progress import Progress
from chalicelib.client.sources import Descriptor, Missing, Source, SourceError, images, verified
from chalicelib.client.sources.cars import ANNOTATION
from chalicelib.client.sources.images import Image as Found
from chalicelib.client.sources.members import Tar
from chalicelib.client.sources.opening import opened
from chalicelib.context import Context
from chalicelib.resolvers.archives import export
from chalicelib.resolvers.images import MANIFEST as MANIFEST_ANNOTATION
from tests.client import CoreClient, push_image, push_manifest, sha256
from tests.conftest import need
from tests.images import Content, Image, make_image, make_index, write_docker_archive, write_layout
from tests.registry_client import forms
from tests.servers import run

IMAGE = make_image((1000, 20, 300_000), "sources")
OTHER = make_image((700,), "sources, another")
ARM = make_image((500, 900), "sources, arm", "arm64")
INDEX = make_index([IMAGE, ARM])


def read(source: Path | str) -> tuple[Source, Found]:
    """What is found, and where. The source stays open."""
    context = opened(str(source), Progress(quiet=True))
    found, reference = context.__enter__()
    _open.append(context)
    return found, images.read(found, found.choose(reference))


_open: list[object] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while _open:
        _open.pop().__exit__(None, None, None)  # type: ignore[attr-defined]


def refusal(source: Path | str) -> str:
    """Why there is no image to be had, when all of it is read."""
    with pytest.raises(SourceError) as refused:
        check(*read(source))
    return str(refused.value)


def check(source: Source, found: Found) -> None:
    """Read all blobs."""
    for blob in found.blobs:
        for _ in verified(source, blob.digest, blob.size):
            pass


def top(found: Found) -> str:
    return list(found.manifests)[-1]


def assert_as_it_is(named: Path | str, *expected: Image, index: Content | None = None) -> None:
    """The very manifests and blobs are found, and none is to be compressed."""
    source, found = read(named)
    assert top(found) == (index or expected[0].manifest).digest
    manifests = [image.manifest for image in expected] + ([index] if index else [])
    assert {name: each.payload for name, each in found.manifests.items()} == {
        each.digest: each.data for each in manifests
    }
    blobs = {blob.digest: blob.data for image in expected for blob in image.blobs}
    assert {blob.digest for blob in found.blobs} == set(blobs)
    for blob in found.blobs:
        assert not blob.plain
        assert b"".join(verified(source, blob.digest, blob.size)) == blobs[blob.digest]


def assert_plain(named: Path | str, image: Image) -> None:
    """The image is found by its config, with layers that are to be compressed."""
    source, found = read(named)
    [manifest] = found.manifests.values()
    document = json.loads(manifest.payload)
    assert document["config"]["digest"] == image.config.digest
    layers = [each["digest"] for each in document["layers"]]
    assert layers == [sha256(layer) for layer in forms.plain_layers(image)]
    assert {blob.digest for blob in found.blobs if blob.plain} == set(layers)
    assert {blob.digest for blob in found.blobs if not blob.plain} == {image.config.digest}
    check(source, found)


# The forms.


def test_a_layout(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE])
    assert_as_it_is(layout, IMAGE)
    assert_as_it_is(forms.tar_of(layout, tmp_path / "layout.tar"), IMAGE)


def test_a_layout_with_an_index(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE, ARM], INDEX)
    assert_as_it_is(layout, IMAGE, ARM, index=INDEX)
    assert top(read(layout)[1]) == INDEX.digest, "children come first"


def test_a_folder_of_skopeo(tmp_path: Path) -> None:
    assert_as_it_is(forms.write_dir(tmp_path / "one", [IMAGE]), IMAGE)
    assert_as_it_is(forms.write_dir(tmp_path / "all", [IMAGE, ARM], INDEX), IMAGE, ARM, index=INDEX)


def test_archives_of_docker(tmp_path: Path) -> None:
    tag = "example.org/app:1"
    assert_plain(write_docker_archive(tmp_path / "one.tar", IMAGE, tag), IMAGE)
    assert_plain(forms.write_tar(tmp_path / "two.tar", forms.saved({tag: IMAGE})), IMAGE)


def test_archives_of_docker_25(tmp_path: Path) -> None:
    folder = forms.write_saved_25(tmp_path / "folder", {"library/app:1": IMAGE})
    assert_plain(folder, IMAGE)
    assert_plain(forms.tar_of(folder, tmp_path / "archive.tar"), IMAGE)


def test_an_archive_of_compressed_layers(tmp_path: Path) -> None:
    """As crane writes it. The layers go as they are."""
    members = {f"{layer.digest[7:]}.tar.gz": layer.data for layer in IMAGE.layers}
    entry = {"Config": IMAGE.config.digest, "RepoTags": ["app:1"], "Layers": list(members)}
    members[IMAGE.config.digest] = IMAGE.config.data
    members["manifest.json"] = json.dumps([entry]).encode()
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    source, found = read(archive)
    assert {blob.digest for blob in found.blobs} == {blob.digest for blob in IMAGE.blobs}
    assert not any(blob.plain for blob in found.blobs)
    assert f"{forms.DOCKER_LAYER}" in next(iter(found.manifests.values())).payload.decode()
    check(source, found)

    members[f"{IMAGE.layers[0].digest[7:]}.tar.gz"] = OTHER.layers[0].data
    forms.write_tar(archive, members)
    assert "is not the layer that the image's config names" in refusal(archive)
    members[f"{IMAGE.layers[0].digest[7:]}.tar.gz"] = IMAGE.layers[0].data[:-20]
    forms.write_tar(archive, members)
    assert "is damaged" in refusal(archive)


@pytest.mark.parametrize("module", ["gzip", "bz2", "lzma"])
def test_an_archive_that_was_compressed(tmp_path: Path, module: str) -> None:
    tar = write_docker_archive(tmp_path / "archive.tar", IMAGE, "app:1")
    packed = tmp_path / "archive.packed"
    packed.write_bytes(__import__(module).compress(tar.read_bytes()))
    assert_plain(packed, IMAGE)
    packed.write_bytes(packed.read_bytes()[:-100])
    assert "cannot be unpacked" in refusal(packed)


def exported(context: Context, reference: str) -> bytes:
    file = io.BytesIO()
    export(context, "sources/image", reference, file, lambda *_: None)
    return file.getvalue()


def test_a_car_file(file_context: Context, tmp_path: Path) -> None:
    assert ANNOTATION == MANIFEST_ANNOTATION
    client = CoreClient(file_context)
    large = make_image((2_500_000,), "sources, large")
    for image in (large, ARM):
        push_image(client, "sources/image", image)
    index = make_index([large, ARM])
    assert push_manifest(client, "sources/image", index, "all").status == 201
    car = tmp_path / "image.car"
    car.write_bytes(exported(file_context, "all"))
    assert_as_it_is(car, large, ARM, index=index)
    car.write_bytes(exported(file_context, large.manifest.digest))
    assert_as_it_is(car, large)
    assert "has no root bafy" in refusal(f"{car}#bafy")

    whole = car.read_bytes()
    car.write_bytes(whole[:-1000])
    assert "is no CAR file, or a broken one" in refusal(car)
    car.write_bytes(whole[:2_000_000] + b"x" + whole[2_000_001:])
    assert "other bytes" in refusal(car)


def test_a_layer_whose_media_type_is_wrong(tmp_path: Path) -> None:
    """`podman save --format docker-dir` says that plain layers are compressed."""
    image = forms.plain(IMAGE)
    manifest = json.loads(image.manifest.data)
    manifest["mediaType"] = forms.DOCKER_MANIFEST
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = forms.DOCKER_LAYER
    content = Content(forms.DOCKER_MANIFEST, json.dumps(manifest).encode())
    wrong = Image(content, image.config, image.layers, image.files)
    assert_plain(forms.write_dir(tmp_path / "dir", [wrong]), IMAGE)


# Which image.


def test_several_in_a_layout(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "a#layout", [IMAGE], tag="1.0")
    for content in (*OTHER.blobs, OTHER.manifest, *ARM.blobs, ARM.manifest):
        (layout / "blobs" / "sha256" / content.digest[7:]).write_bytes(content.data)
    index = json.loads((layout / "index.json").read_bytes())
    names = {"org.opencontainers.image.ref.name": "1.0", "io.containerd.image.name": "x.org/b:1.0"}
    index["manifests"] += [
        {**OTHER.manifest.descriptor, "annotations": names},
        ARM.manifest.descriptor,
    ]
    forms.write_json(layout / "index.json", index)

    said = refusal(layout)
    assert "several images" in said
    for shown in ("1.0", "x.org/b:1.0", ARM.manifest.digest):
        assert shown in said
    assert f"Choose one: {layout}#1.0" in said
    assert "Several images" in refusal(f"{layout}#1.0")
    assert "no image 2.0" in refusal(f"{layout}#2.0")
    assert_as_it_is(f"{layout}#x.org/b:1.0", OTHER)
    assert_as_it_is(f"{layout}#{ARM.manifest.digest}", ARM)


def test_one_image_with_several_names(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE], tag="1.0")
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"].append(IMAGE.manifest.descriptor)
    forms.write_json(layout / "index.json", index)
    assert_as_it_is(layout, IMAGE)


@pytest.mark.parametrize("since_25", [False, True])
def test_several_in_an_archive_of_docker(tmp_path: Path, since_25: bool) -> None:
    several = {"library/app:1": IMAGE, "x.org/app:2": OTHER, "library/app:latest": ARM}
    archive = tmp_path / "archive.tar"
    if since_25:
        forms.tar_of(forms.write_saved_25(tmp_path / "folder", several), archive)
    else:
        forms.write_tar(archive, forms.saved(several))
    said = refusal(archive)
    for tag in several:
        assert tag in said
    for name, image in (
        ("library/app:1", IMAGE),
        ("app:1", IMAGE),
        ("1", IMAGE),
        ("x.org/app:2", OTHER),
        ("app", ARM),
    ):
        assert_plain(f"{archive}#{name}", image)
    assert "no image app:3" in refusal(f"{archive}#app:3")


# What is there in part.


def test_one_platform_of_an_index(tmp_path: Path) -> None:
    """As an engine has it that has pulled one platform."""
    index, others = forms.with_attestation(IMAGE)
    layout = write_layout(tmp_path / "layout", [IMAGE], index)
    found = read(layout)[1]
    assert top(found) == IMAGE.manifest.digest
    assert found.notes[0].endswith("only the image for linux/amd64 is pushed, without the index.")
    forms.write_blobs(layout, others)
    found = read(layout)[1]
    assert top(found) == index.digest
    assert found.notes == []

    two = json.loads(index.data)
    two["manifests"].append(ARM.manifest.descriptor)
    content = Content(index.media_type, json.dumps(two).encode())
    layout = write_layout(tmp_path / "another", [IMAGE], content)
    forms.write_blobs(layout, others)
    assert top(read(layout)[1]) == IMAGE.manifest.digest


def test_an_index_of_two_that_lacks_a_third(tmp_path: Path) -> None:
    index = make_index([IMAGE, ARM, OTHER])
    layout = write_layout(tmp_path / "layout", [IMAGE, ARM], index)
    assert f"It lacks {OTHER.manifest.digest}" in refusal(layout)


def test_a_missing_layer(tmp_path: Path) -> None:
    gone = IMAGE.layers[1].digest
    layout = write_layout(tmp_path / "layout", [IMAGE])
    (layout / "blobs" / "sha256" / gone[7:]).unlink()
    assert f"It lacks {gone}" in refusal(layout)
    members = forms.saved({"app:1": IMAGE})
    del members[1]
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    assert "lacks a layer of the image" in refusal(archive)
    folder = forms.write_dir(tmp_path / "dir", [IMAGE])
    (folder / gone[7:]).unlink()
    assert f"It lacks {gone}" in refusal(folder)


def test_foreign_layers_may_be_missing(tmp_path: Path) -> None:
    manifest = json.loads(IMAGE.manifest.data)
    manifest["layers"][0]["mediaType"] = (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    )
    content = Content(IMAGE.manifest.media_type, json.dumps(manifest).encode())
    image = Image(content, IMAGE.config, IMAGE.layers, IMAGE.files)
    layout = write_layout(tmp_path / "layout", [image])
    assert len(read(layout)[1].blobs) == 4
    (layout / "blobs" / "sha256" / IMAGE.layers[0].digest[7:]).unlink()
    assert len(read(layout)[1].blobs) == 3


# What is damaged, or lies.


def test_damaged_blobs(tmp_path: Path) -> None:
    for number, content in enumerate((IMAGE.layers[2], IMAGE.manifest)):
        layout = write_layout(tmp_path / str(number), [IMAGE])
        path = layout / "blobs" / "sha256" / content.digest[7:]
        path.write_bytes(b"x" + content.data[1:])
        assert content.digest in refusal(layout)
    path.write_bytes(IMAGE.manifest.data + b" ")
    assert IMAGE.manifest.digest in refusal(layout)
    layout = write_layout(tmp_path / "longer", [IMAGE])
    path = layout / "blobs" / "sha256" / IMAGE.layers[2].digest[7:]
    path.write_bytes(IMAGE.layers[2].data + b"x")
    assert "by its manifest: it is damaged" in refusal(layout)


def test_a_damaged_archive_of_docker(tmp_path: Path) -> None:
    good = forms.saved({"app:1": IMAGE})
    for number, word in ((0, "are not those of its digest"), (3, "is not what its name says")):
        members = list(good)
        member, data = members[number]
        members[number] = member, data[:5] + b"?" + data[6:]
        assert word in refusal(forms.write_tar(tmp_path / "archive.tar", members))


def test_layers_of_another_image(tmp_path: Path) -> None:
    """A plain layer that is not the one in the config: an image that could not be run."""
    image = forms.plain(IMAGE)
    manifest = json.loads(image.manifest.data)
    manifest["layers"].reverse()
    content = Content(image.manifest.media_type, json.dumps(manifest).encode())
    layout = write_layout(
        tmp_path / "layout", [Image(content, image.config, image.layers, image.files)]
    )
    assert "is not the one that the image's config names" in refusal(layout)
    members = forms.saved({"app:1": IMAGE})
    entry = json.loads(members[-1][1])
    entry[0]["Layers"].pop()
    members[-1] = forms.file("manifest.json", json.dumps(entry).encode())
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    assert "does not know of its 2 layers" in refusal(archive)


def test_names_lead_to_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(IMAGE.config.data)
    for number, outside in enumerate(("../secret", str(tmp_path / "secret"), "/etc/hostname")):
        place = tmp_path / str(number)
        place.mkdir()
        members = forms.saved({"app:1": IMAGE})
        entry = json.loads(members[-1][1])
        entry[0]["Config"] = outside
        listed = forms.file("manifest.json", json.dumps(entry).encode())
        archive = forms.write_tar(place / "name.tar", [*members[:-1], listed])
        assert f"has no {outside}" in refusal(archive)
        entry[0]["Config"] = "config"
        listed = forms.file("manifest.json", json.dumps(entry).encode())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            linked = [*members[:-1], forms.link("config", outside, kind), listed]
            assert "has no config" in refusal(forms.write_tar(place / "link.tar", linked))


def test_digests_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(IMAGE.manifest.data)
    layout = write_layout(tmp_path / "layout", [IMAGE])
    for digest in ("sha256:../../../../secret", "../../secret:x", "sha256:" + "A" * 64, "md5:00"):
        entry = {**IMAGE.manifest.descriptor, "digest": digest}
        forms.write_json(layout / "index.json", {"schemaVersion": 2, "manifests": [entry]})
        assert "A digest is neither" in refusal(layout)


def test_links_within_an_archive(tmp_path: Path) -> None:
    """podman and skopeo write such, and old engines did for layers that come twice."""
    members = forms.saved({"app:1": IMAGE})
    entry = json.loads(members[-1][1])
    names = entry[0]["Layers"]
    entry[0]["Layers"] = ["a/layer.tar", "b/layer.tar", names[2]]
    links = [
        forms.link("a/layer.tar", f"../{names[0]}"),
        forms.link("b/layer.tar", names[1], tarfile.LNKTYPE),
    ]
    listed = forms.file("manifest.json", json.dumps(entry).encode())
    assert_plain(forms.write_tar(tmp_path / "a.tar", [*members[:-1], *links, listed]), IMAGE)
    links[0] = forms.link("a/layer.tar", "../a/layer.tar")
    archive = forms.write_tar(tmp_path / "b.tar", [*members[:-1], *links, listed])
    assert "lacks a layer" in refusal(archive)


def test_archives_that_are_cut_off(tmp_path: Path) -> None:
    whole = write_docker_archive(tmp_path / "archive.tar", IMAGE, "app:1").read_bytes()
    cut = tmp_path / "cut.tar"
    for size, words in {
        100: "is no tar archive",
        600: "is cut off",
        5_000: "is cut off",
        200_000: "is cut off",
    }.items():
        cut.write_bytes(whole[:size])
        assert words in refusal(cut)


def test_headers_that_claim_to_be_huge(tmp_path: Path) -> None:
    """A long name is read into memory: but not one of a gigabyte."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    archive = tmp_path / "archive.tar"
    with archive.open("wb") as file:
        file.write(member.tobuf())
        file.truncate(2 << 30)  # takes no disk
    assert "a header is too long" in refusal(archive)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").touch()
    os.truncate(tmp_path / "layer.tar", 1 << 20)
    run("tar", "--sparse", "-cf", tmp_path / "archive.tar", "-C", tmp_path, "layer.tar")
    assert "has a sparse file" in refusal(tmp_path / "archive.tar")


def test_a_file_that_is_a_pipe_is_none(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE])
    path = layout / "blobs" / "sha256" / IMAGE.layers[0].digest[7:]
    path.unlink()
    os.mkfifo(path)
    assert "It lacks" in refusal(layout)


def test_members_are_read_from_many_places_at_once(tmp_path: Path) -> None:
    members = {str(number): bytes([number]) * (3 << 20) for number in range(4)}
    path = forms.write_tar(tmp_path / "archive.tar", members)
    with path.open("rb") as file:
        tar = Tar(file, "archive")
        streams = {name: tar.open(name) for name in members}
        whole = dict.fromkeys(members, b"")
        for _ in range(3):
            for name, stream in streams.items():
                whole[name] += next(stream)
        assert whole == members
        with pytest.raises(Missing):
            next(tar.open("4"))


# What is no image.


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no image")
    forms.write_tar(tmp_path / "other.tar", {"a": b"b"})
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "manifest.json").write_text("[]")
    forms.write_tar(tmp_path / "none.tar", {"manifest.json": b"[]"})
    (tmp_path / "zstd").write_bytes(b"\x28\xb5\x2f\xfd rest")
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "empty": "it has no index.json",
        "text": "is no tar archive",
        "other.tar": "a tar archive without manifest.json",
        "unpacked": "an archive that was unpacked",
        "none.tar": "There is no image in",
        "zstd": "unpack it first (zstd -d)",
        "pipe": "neither a file nor a folder",
        "missing": "There is no file or folder",
    }.items():
        assert words in refusal(tmp_path / name)
    if os.geteuid() != 0:
        (tmp_path / "text").chmod(0)
        assert "Permission denied" in refusal(tmp_path / "text")


@pytest.mark.parametrize(
    "index", [b"[]", b"{", b'{"manifests": 1}', b'{"manifests": [1]}', b'{"manifests": [{}]}']
)
def test_indexes_that_are_none(tmp_path: Path, index: bytes) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE])
    (layout / "index.json").write_bytes(index)
    assert str(layout) in refusal(layout)


@pytest.mark.parametrize(
    "entry",
    [
        1,
        {},
        {"Config": 1, "Layers": []},
        {"Config": "c", "Layers": [1]},
        {"Config": "c", "Layers": "layers"},
        {"Config": "c", "Layers": [], "RepoTags": [None]},
    ],
)
def test_lists_of_docker_that_are_none(tmp_path: Path, entry: object) -> None:
    members = {"manifest.json": json.dumps([entry]).encode(), "c": b"{}"}
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    assert str(archive) in refusal(archive)


@pytest.mark.parametrize("document", [{}, {"manifests": [{"digest": "sha256:1"}]}, [], "x"])
def test_manifests_that_are_none(tmp_path: Path, document: object) -> None:
    content = Content(IMAGE.manifest.media_type, json.dumps(document).encode())
    image = Image(content, IMAGE.config, IMAGE.layers, IMAGE.files)
    assert "manifest" in refusal(write_layout(tmp_path / "layout", [image]))


STRANGE: tuple[object, ...] = (
    None,
    0,
    -1,
    1.5,
    1 << 70,
    True,
    "",
    "x",
    [],
    [1],
    [[]],
    {},
    {"a": []},
    "sha256:",
)


def variants(value: object) -> Iterator[object]:
    """The same JSON with something else in one place."""
    yield from STRANGE
    if isinstance(value, dict):
        for name, held in value.items():
            yield {other: held for other, held in value.items() if other != name}
            for variant in variants(held):
                yield {**value, name: variant}
    elif isinstance(value, list):
        for place, held in enumerate(value):
            for variant in variants(held):
                yield [*value[:place], variant, *value[place + 1 :]]


def test_no_document_surprises(tmp_path: Path) -> None:
    """Whatever stands in a document that is read, it is an image, or refused with a sentence."""
    image = forms.plain(make_image((10,), "sources, strange"))
    index, others = forms.with_attestation(image)

    def tried(layout: Path, *changed: Content) -> None:
        forms.write_blobs(layout, changed)
        try:
            source, found = read(layout)
            check(source, found)
        except SourceError:
            return
        layers = {
            blob.digest: Descriptor(image.config.digest, size=1)
            for blob in found.blobs
            if blob.plain
        }
        become: dict[str, images.Manifest] = {}
        for digest, manifest in found.manifests.items():
            become[digest] = manifest.rewritten(layers, become)

    layout = write_layout(tmp_path / "layout", [image], index)
    forms.write_blobs(layout, others)
    top = json.loads((layout / "index.json").read_bytes())
    tries = 0
    for variant in variants(top):
        forms.write_json(layout / "index.json", variant)
        tried(layout)
        tries += 1
    for content in (index, image.manifest):
        for variant in variants(json.loads(content.data)):
            changed = Content(content.media_type, json.dumps(variant).encode())
            entry = {"schemaVersion": 2, "manifests": [changed.descriptor]}
            forms.write_json(layout / "index.json", entry)
            tried(layout, changed)
            tries += 1
    for variant in variants(json.loads(image.config.data)):
        config = Content(image.config.media_type, json.dumps(variant).encode())
        manifest = json.loads(image.manifest.data)
        manifest["config"] = config.descriptor
        changed = Content(image.manifest.media_type, json.dumps(manifest).encode())
        entry = {"schemaVersion": 2, "manifests": [changed.descriptor]}
        forms.write_json(layout / "index.json", entry)
        tried(layout, config, changed)
        tries += 1
    assert tries > 700


def test_names_move_no_cursor(tmp_path: Path) -> None:
    several = {"a:1\x1b[2J": IMAGE, "b:1": OTHER}
    archive = forms.write_tar(tmp_path / "archive.tar", forms.saved(several))
    said = refusal(archive)
    assert "a:1?[2J" in said
    assert said.isprintable()


def test_indexes_that_are_too_deep(tmp_path: Path) -> None:
    contents, child = [], IMAGE.manifest
    for _ in range(10):
        value = {"schemaVersion": 2, "mediaType": INDEX.media_type, "manifests": [child.descriptor]}
        child = Content(INDEX.media_type, json.dumps(value).encode())
        contents.append(child)
    layout = write_layout(tmp_path / "layout", [IMAGE], child)
    forms.write_blobs(layout, contents)
    assert "too deep" in refusal(layout)


def test_a_cache_of_buildkit(tmp_path: Path) -> None:
    """An index whose "manifests" are layers."""
    value = {
        "schemaVersion": 2,
        "mediaType": INDEX.media_type,
        "manifests": [layer.descriptor for layer in IMAGE.layers]
        + [{**IMAGE.config.descriptor, "mediaType": "application/vnd.buildkit.cacheconfig.v0"}],
    }
    cache = Content(INDEX.media_type, json.dumps(value).encode())
    found = read(write_layout(tmp_path / "layout", [IMAGE], cache))[1]
    assert list(found.manifests) == [cache.digest]
    assert {blob.digest for blob in found.blobs} == {blob.digest for blob in IMAGE.blobs}


def test_sha_512(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [IMAGE])
    digest = digests.unpack(digests.of(IMAGE.manifest.data, "sha512"))
    (layout / "blobs" / "sha512").mkdir()
    path = layout / "blobs" / "sha512" / digest[7:]
    path.write_bytes(IMAGE.manifest.data)
    entry = {**IMAGE.manifest.descriptor, "digest": digest}
    forms.write_json(layout / "index.json", {"schemaVersion": 2, "manifests": [entry]})
    assert top(read(layout)[1]) == digest
    path.write_bytes(IMAGE.manifest.data[:-1] + b" ")
    assert digest in refusal(layout)


# What programs write.


@pytest.mark.parametrize("form", ["oci", "oci-archive", "dir"])
def test_what_skopeo_writes(tmp_path: Path, form: str) -> None:
    need("skopeo", "skopeo")
    layout = write_layout(tmp_path / "layout", [IMAGE, ARM], INDEX)
    target = tmp_path / "target"
    run("skopeo", "copy", "--all", f"oci:{layout}:latest", f"{form}:{target}")
    assert_as_it_is(target, IMAGE, ARM, index=INDEX)


def test_archives_of_skopeo(tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    layout = write_layout(tmp_path / "layout", [IMAGE])
    target = tmp_path / "target"
    run("skopeo", "copy", f"oci:{layout}:latest", f"docker-archive:{target}:x.org/app:1")
    assert_plain(target, IMAGE)
    assert_plain(f"{target}#x.org/app:1", IMAGE)
    forms.write_plain_layout(tmp_path / "plain", IMAGE)
    run("skopeo", "copy", f"oci:{tmp_path}/plain:latest", f"dir:{tmp_path}/dir")
    assert_plain(tmp_path / "dir", IMAGE)


def test_damage_is_found_before_the_last_byte_is_given(tmp_path: Path) -> None:
    """Nobody is given all bytes of a blob that is another one."""
    layout = write_layout(tmp_path / "layout", [IMAGE])
    layer = IMAGE.layers[2]
    path = layout / "blobs" / "sha256" / layer.digest[7:]
    path.write_bytes(layer.data[:-1] + bytes([layer.data[-1] ^ 1]))
    source, _ = read(layout)
    given: list[bytes] = []
    with pytest.raises(SourceError):
        given.extend(map(bytes, verified(source, layer.digest, len(layer.data))))
    assert len(b"".join(given)) < len(layer.data)


@pytest.mark.long
def test_gzip_bombs_do_not_fill_memory(tmp_path: Path) -> None:
    """A compressed layer is checked in pieces, however long it becomes."""
    layer = gzip.compress(bytes(512 << 20), 9)
    config = {"rootfs": {"type": "layers", "diff_ids": [IMAGE.layers[0].digest]}}
    entry = {"Config": "config", "RepoTags": None, "Layers": ["layer"]}
    members = {
        "config": json.dumps(config).encode(),
        "layer": layer,
        "manifest.json": json.dumps([entry]).encode(),
    }
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "from chalicelib.client.progress import Progress\n"
        "from chalicelib.client.sources.opening import opened\n"
        "with opened(sys.argv[1], Progress(quiet=True)) as (source, _):\n"
        "    try: source.choose(None)\n"
        "    except Exception as error: print(error)\n"
    )
    said = run(sys.executable, "-c", script, archive, PYTHONPATH=str(Path(__file__).parents[2]))
    assert "is not the layer that the image's config names" in said.stdout
