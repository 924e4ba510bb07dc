"""crane (go-containerregistry): push, pull, copy, index append, delete, lists."""

import json
from pathlib import Path

import pytest

from tests.clients.programs import Run, client
from tests.images import layout_contents, make_image, make_index, write_layout
from tests.servers import Registry
from tests.witness import Witness

pytestmark = pytest.mark.long


@pytest.fixture
def crane(tmp_path: Path) -> Run:
    return client("crane", tmp_path)


def test_push_and_pull(crane: Run, registry: Registry, tmp_path: Path) -> None:
    image = make_image((1000, 0, 300_000), seed="crane")
    name = f"{registry.host}/crane/push-and-pull"
    pushed = crane("push", write_layout(tmp_path / "layout", [image]), f"{name}:1").strip()
    assert pushed == f"{name}@{image.manifest.digest}"
    assert crane("digest", f"{name}:1").strip() == image.manifest.digest
    assert crane("manifest", f"{name}:1").encode() == image.manifest.data
    assert crane("config", f"{name}:1").encode() == image.config.data

    crane("pull", "--format=oci", f"{name}@{image.manifest.digest}", "pulled")
    contents = {content.digest: content.data for content in (image.manifest, *image.blobs)}
    assert layout_contents(tmp_path / "pulled") == contents
    crane("validate", "--remote", f"{name}:1")


def test_index(crane: Run, registry: Registry, tmp_path: Path) -> None:
    images = [make_image(seed=name, architecture=name) for name in ("amd64", "arm64")]
    index = make_index(images)
    name = f"{registry.host}/crane/index"
    crane("push", "--index", write_layout(tmp_path / "layout", images, index), f"{name}:all")
    # crane wraps the layout's own index.json, which names ours.
    [entry] = json.loads(crane("manifest", f"{name}:all"))["manifests"]
    assert crane("manifest", f"{name}@{entry['digest']}").encode() == index.data

    more = make_image(seed="riscv64", architecture="riscv64")
    crane("push", write_layout(tmp_path / "more", [more]), f"{name}:riscv64")
    crane("index", "append", f"{name}@{index.digest}", "-m", f"{name}:riscv64", "-t", f"{name}:all")
    manifests = json.loads(crane("manifest", f"{name}:all"))["manifests"]
    assert [entry["platform"]["architecture"] for entry in manifests] == [
        "amd64",
        "arm64",
        "riscv64",
    ]
    digest = crane("digest", "--platform=linux/arm64", f"{name}:all").strip()
    assert digest == images[1].manifest.digest


def test_copy_mounts_blobs_across_repositories(
    crane: Run, witness: Witness, tmp_path: Path
) -> None:
    images = [make_image((5000,), name, name) for name in ("amd64", "arm64")]
    index = make_index(images)
    source, target = (f"{witness.host}/crane/{name}" for name in ("source", "target"))
    crane("push", "--index", write_layout(tmp_path / "layout", images, index), f"{source}:1")
    crane("copy", f"{source}@{index.digest}", f"{target}:copied")
    blobs = {blob.digest for image in images for blob in image.blobs}
    assert len(witness.asked("POST", "/crane/target/")) == len(blobs)
    assert len(witness.asked("POST", "mount=")) == len(blobs)
    assert not witness.asked("PATCH", "/crane/target/")
    assert crane("digest", f"{target}:copied").strip() == index.digest
    for image in images:
        crane("validate", "--remote", f"{target}@{image.manifest.digest}")


def test_append_layer(crane: Run, registry: Registry, tmp_path: Path) -> None:
    image, layer = make_image(seed="base"), make_image((70_000,), seed="added").layers[0]
    name = f"{registry.host}/crane/append"
    crane("push", write_layout(tmp_path / "layout", [image]), f"{name}:base")
    (tmp_path / "layer.tar.gz").write_bytes(layer.data)
    crane("append", "-b", f"{name}:base", "-f", "layer.tar.gz", "-t", f"{name}:more")
    layers = json.loads(crane("manifest", f"{name}:more"))["layers"]
    assert [entry["digest"] for entry in layers] == [image.layers[0].digest, layer.digest]
    crane("validate", "--remote", f"{name}:more")


def test_tags_and_catalog(crane: Run, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/crane/tags/deeply/nested"
    crane("push", write_layout(tmp_path / "layout", [make_image(seed="tags")]), f"{name}:1.0")
    for tag in ("latest", "v1.0-rc.1_A", "1"):
        crane("tag", f"{name}:1.0", tag)
    assert crane("ls", name).split() == ["1", "1.0", "latest", "v1.0-rc.1_A"]
    assert "crane/tags/deeply/nested" in crane("catalog", registry.host).split()


def test_delete(crane: Run, registry: Registry, tmp_path: Path) -> None:
    image = make_image(seed="delete")
    name = f"{registry.host}/crane/delete"
    crane("push", write_layout(tmp_path / "layout", [image]), f"{name}:1")
    crane("tag", f"{name}:1", "2")
    crane("delete", f"{name}:2")
    assert crane("ls", name).split() == ["1"]
    crane("delete", f"{name}@{image.manifest.digest}")
    with pytest.raises(AssertionError, match="MANIFEST_UNKNOWN"):
        crane("digest", f"{name}:1")
