"""regctl (regclient): anonymous mounts, chunked pushes, referrers, and tag deletes."""

import json
from math import ceil
from pathlib import Path

import pytest

from tests.clients.programs import Run, as_bytes, client
from tests.images import make_bytes, make_image, make_index, write_layout
from tests.servers import Registry
from tests.witness import Witness

pytestmark = pytest.mark.long

CHUNK = 4 << 20
"""The least that the registry asks for (OCI-Chunk-Min-Length)."""


@pytest.fixture
def regctl(registry: Registry, witness: Witness, tmp_path: Path) -> Run:
    regctl = client("regctl", tmp_path)
    chunked = (f"--blob-max={CHUNK}", f"--blob-chunk={CHUNK}")
    for host in (registry.host, witness.host):
        regctl("registry", "set", "--tls=disabled", *chunked, host)
    return regctl


def test_copy_from_a_layout_and_between_repositories(
    regctl: Run, registry: Registry, tmp_path: Path
) -> None:
    images = [make_image((1000, CHUNK + 1000), name, name) for name in ("amd64", "arm64")]
    index = make_index(images)
    layout = write_layout(tmp_path / "layout", images, index)
    one, two = (f"{registry.host}/regctl/copy-{name}" for name in ("one", "two"))
    regctl("image", "copy", f"ocidir://{layout}:latest", f"{one}:1")
    regctl("image", "copy", f"{one}:1", f"{two}:1")
    for name in (one, two):
        assert regctl("manifest", "get", "--format=raw-body", f"{name}:1").encode() == index.data
        assert regctl("image", "digest", f"{name}:1").strip() == index.digest
        digest = regctl("image", "digest", "--platform=linux/arm64", f"{name}:1").strip()
        assert digest == images[1].manifest.digest


def test_anonymous_mount(regctl: Run, registry: Registry, witness: Witness, tmp_path: Path) -> None:
    """Blobs that the registry has in another repository are not sent again."""
    image = make_image((1000, 350_000), "anonymous mount")
    layout = f"ocidir://{write_layout(tmp_path / 'layout', [image])}:latest"
    regctl("image", "copy", layout, f"{registry.host}/regctl/mount-one:1")
    regctl("image", "copy", layout, f"{witness.host}/regctl/mount-two:1")
    mounts = [path for path in witness.asked("POST", "mount=") if "from=" not in path]
    assert len(mounts) == len(image.blobs)
    assert not witness.asked("PATCH")
    assert not witness.asked("PUT", "/blobs/")
    digest = regctl("image", "digest", f"{registry.host}/regctl/mount-two:1").strip()
    assert digest == image.manifest.digest


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 17])
def test_chunked_blob(regctl: Run, witness: Witness, size: int) -> None:
    repository = f"{witness.host}/regctl/blob-{size}"
    data = make_bytes(size, "regctl")
    # Read from a pipe, its size is unknown: it goes in chunks whatever its size.
    digest = regctl("blob", "put", repository, stdin=data).strip()
    assert len(witness.asked("PATCH")) == ceil(size / CHUNK)
    assert f"Content-Length: {size}\n" in regctl("blob", "head", repository, digest)
    assert as_bytes(regctl("blob", "get", repository, digest)) == data


def test_index_create(regctl: Run, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/regctl/index"
    digests = []
    for architecture in ("amd64", "arm64"):
        image = make_image(seed=architecture, architecture=architecture)
        layout = write_layout(tmp_path / architecture, [image])
        regctl("image", "copy", f"ocidir://{layout}:latest", f"{name}:{architecture}")
        digests.append(image.manifest.digest)
    regctl("index", "create", f"{name}:all", f"--ref={name}:amd64")
    regctl("index", "add", f"{name}:all", f"--ref={name}:arm64")
    index = json.loads(regctl("manifest", "get", "--format=raw-body", f"{name}:all"))
    assert [entry["digest"] for entry in index["manifests"]] == digests


def test_referrers(regctl: Run, registry: Registry, tmp_path: Path) -> None:
    image = make_image(seed="regctl referrers")
    layout = write_layout(tmp_path / "layout", [image])
    name = f"{registry.host}/regctl/referrers:1"
    regctl("image", "copy", f"ocidir://{layout}:latest", name)
    for kind in ("sbom", "signature"):
        artifact_type = f"--artifact-type=application/vnd.example.{kind}"
        regctl("artifact", "put", artifact_type, f"--subject={name}", stdin=kind.encode())

    def referrers(*options: str) -> list[str]:
        found = json.loads(regctl("artifact", "list", "--format=body", *options, name))
        return sorted(entry["artifactType"] for entry in found["manifests"])

    assert referrers() == ["application/vnd.example.sbom", "application/vnd.example.signature"]
    wanted = "application/vnd.example.signature"
    assert referrers(f"--filter-artifact-type={wanted}") == [wanted]
    get = regctl("artifact", "get", f"--subject={name}", f"--filter-artifact-type={wanted}")
    assert get == "signature"
    # No fallback tag was needed.
    assert regctl("tag", "ls", name.removesuffix(":1")).split() == ["1"]


def test_delete_a_tag_and_a_manifest(regctl: Run, registry: Registry, tmp_path: Path) -> None:
    image = make_image(seed="regctl delete")
    layout = write_layout(tmp_path / "layout", [image])
    name = f"{registry.host}/regctl/delete"
    for tag in ("1", "2", "3"):
        regctl("image", "copy", f"ocidir://{layout}:latest", f"{name}:{tag}")
    regctl("tag", "delete", f"{name}:2")
    assert regctl("tag", "ls", name).split() == ["1", "3"]
    assert regctl("image", "digest", f"{name}:1").strip() == image.manifest.digest
    regctl("manifest", "delete", f"{name}@{image.manifest.digest}")
    assert regctl("tag", "ls", name).split() == []
