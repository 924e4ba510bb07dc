"""podman pushes and pulls from a storage of its own."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import need
from tests.images import layout_files, make_image, write_layout
from tests.servers import Registry, run
from tests.witness import Witness

Podman = Callable[..., "CompletedProcess[str]"]

SIZES = (1000, 20, 300_000)


@pytest.fixture
def podman(directory: Path) -> Iterator[Podman]:
    """Run podman with a storage that is empty when the test begins and gone when it ends."""
    need("podman", "podman")
    home = Path(tempfile.mkdtemp(prefix="p-", dir=directory))
    storage = (
        *("--root", home / "root", "--runroot", home / "run", "--tmpdir", home / "tmp"),
        *("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"),
    )

    def podman(*arguments: str | Path, check: bool = True) -> "CompletedProcess[str]":
        return run("podman", *storage, *arguments, check=check)

    yield podman
    podman("rmi", "--all", "--force")


def load(podman: Podman, layout: Path, tag: str) -> None:
    """Bring a layout's image into the storage, under a tag."""
    podman("tag", podman("pull", "--quiet", f"oci:{layout}:latest").stdout.split()[-1], tag)


def files_of(podman: Podman, tag: str, layout: Path) -> dict[str, str]:
    """The files in all layers of an image in the storage."""
    podman("push", tag, f"oci:{layout}:latest")
    return layout_files(layout)


def test_push_and_pull(podman: Podman, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/podman/push-and-pull:1"
    image = make_image(SIZES, "podman")
    load(podman, write_layout(tmp_path / "layout", [image]), tag)
    podman("push", "--tls-verify=false", tag)

    podman("rmi", "--all", "--force")
    pulled = podman("pull", "--quiet", "--tls-verify=false", tag).stdout.strip()
    assert f"sha256:{pulled}" == image.config.digest
    assert files_of(podman, tag, tmp_path / "pulled") == image.files


def test_push_again_skips_layers(podman: Podman, witness: Witness, tmp_path: Path) -> None:
    tag = f"{witness.host}/podman/again:1"
    image = make_image(SIZES, "podman again")
    load(podman, write_layout(tmp_path / "layout", [image]), tag)
    podman("push", "--tls-verify=false", tag)
    assert len(witness.asked("PATCH")) == len(image.blobs)

    witness.requests.clear()
    podman("push", "--tls-verify=false", tag)
    assert witness.asked("POST") == []
    assert len(witness.asked("PUT")) == 1


def test_second_repository_mounts_layers(podman: Podman, witness: Witness, tmp_path: Path) -> None:
    tag = f"{witness.host}/podman/first:1"
    image = make_image(SIZES, "podman mount")
    load(podman, write_layout(tmp_path / "layout", [image]), tag)
    podman("push", "--tls-verify=false", tag)

    witness.requests.clear()
    second = f"{witness.host}/podman/deeper/second:1"
    podman("push", "--tls-verify=false", tag, second)
    assert len(witness.asked("POST", "from=podman%2Ffirst&mount=")) == len(image.layers)
    assert len(witness.asked("PATCH")) == 1, "only the config is sent again"

    podman("rmi", "--all", "--force")
    podman("pull", "--tls-verify=false", second)
    assert files_of(podman, second, tmp_path / "pulled") == image.files


def test_manifest_list(podman: Podman, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/podman/list:all"
    images = {name: make_image(SIZES, f"podman {name}", name) for name in ("amd64", "arm64")}
    podman("manifest", "create", tag)
    for architecture, image in images.items():
        layout = write_layout(tmp_path / architecture, [image])
        podman("manifest", "add", "--arch", architecture, tag, f"oci:{layout}:latest")
    podman("manifest", "push", "--all", "--tls-verify=false", tag, f"docker://{tag}")

    for architecture, image in images.items():
        podman("rmi", "--all", "--force")
        podman("pull", "--tls-verify=false", "--arch", architecture, tag)
        assert files_of(podman, tag, tmp_path / f"pulled-{architecture}") == image.files


@pytest.mark.long
def test_large_layer(podman: Podman, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/podman/large:1"
    image = make_image((200_000_000,), "podman large")
    load(podman, write_layout(tmp_path / "layout", [image]), tag)
    podman("push", "--tls-verify=false", tag)

    podman("rmi", "--all", "--force")
    podman("pull", "--tls-verify=false", tag)
    assert files_of(podman, tag, tmp_path / "pulled") == image.files


@pytest.mark.long
def test_many_layers(podman: Podman, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/podman/many:1"
    image = make_image(range(20_000, 20_060), "podman many")
    load(podman, write_layout(tmp_path / "layout", [image]), tag)
    podman("push", "--tls-verify=false", tag)

    podman("rmi", "--all", "--force")
    podman("pull", "--tls-verify=false", tag)
    assert files_of(podman, tag, tmp_path / "pulled") == image.files
