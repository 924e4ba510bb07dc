"""buildah builds, pushes and pulls from a storage of its own."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import need
from tests.images import hashes, layout_files, make_bytes
from tests.servers import Registry, run
from tests.witness import Witness

Buildah = Callable[..., "CompletedProcess[str]"]

SIZES = (1000, 20, 300_000)


@pytest.fixture
def buildah(directory: Path) -> Iterator[Buildah]:
    """Run buildah with a storage that is empty when the test begins and gone when it ends."""
    need("buildah", "buildah")
    home = Path(tempfile.mkdtemp(prefix="b-", dir=directory))
    storage = ("--root", home / "root", "--runroot", home / "run", "--storage-driver", "vfs")

    def buildah(*arguments: str | Path, check: bool = True) -> "CompletedProcess[str]":
        return run("buildah", *storage, *arguments, check=check)

    yield buildah
    buildah("rmi", "--all", "--force")


def build(
    buildah: Buildah,
    context: Path,
    tag: str,
    sizes: tuple[int, ...] = SIZES,
    architecture: str = "amd64",
) -> dict[str, str]:
    """Build an image with a layer and a file for each size; give its files."""
    files = {
        f"layer-{number}": make_bytes(size, f"{tag} {number}") for number, size in enumerate(sizes)
    }
    context.mkdir()
    for name, data in files.items():
        (context / name).write_bytes(data)
    copies = "".join(f"COPY {name} /\n" for name in files)
    (context / "Containerfile").write_text(f"FROM scratch\n{copies}")
    buildah("build", "--layers", "--arch", architecture, "--tag", tag, context)
    return hashes(files)


def files_of(buildah: Buildah, tag: str, layout: Path) -> dict[str, str]:
    """The files in all layers of an image in the storage."""
    buildah("push", tag, f"oci:{layout}:latest")
    return layout_files(layout)


def test_push_and_pull(buildah: Buildah, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/buildah/push-and-pull:1"
    files = build(buildah, tmp_path / "context", tag)
    buildah("push", "--tls-verify=false", tag)

    buildah("rmi", "--all", "--force")
    buildah("pull", "--tls-verify=false", tag)
    assert files_of(buildah, tag, tmp_path / "pulled") == files


def test_build_on_a_pushed_image(buildah: Buildah, registry: Registry, tmp_path: Path) -> None:
    base = f"{registry.host}/buildah/base:1"
    files = build(buildah, tmp_path / "context", base)
    buildah("push", "--tls-verify=false", base)
    buildah("rmi", "--all", "--force")

    child = f"{registry.host}/buildah/child:1"
    (tmp_path / "Containerfile").write_text(f"FROM {base}\nCOPY Containerfile /\n")
    buildah("build", "--tls-verify=false", "--tag", child, tmp_path)
    buildah("push", "--tls-verify=false", child)
    buildah("rmi", "--all", "--force")
    buildah("pull", "--tls-verify=false", child)
    added = hashes({"Containerfile": (tmp_path / "Containerfile").read_bytes()})
    assert files_of(buildah, child, tmp_path / "pulled") == files | added


def test_push_again_skips_layers(buildah: Buildah, witness: Witness, tmp_path: Path) -> None:
    tag = f"{witness.host}/buildah/again:1"
    build(buildah, tmp_path / "context", tag)
    buildah("push", "--tls-verify=false", tag)
    assert len(witness.asked("PATCH")) == len(SIZES) + 1

    witness.requests.clear()
    buildah("push", "--tls-verify=false", tag)
    assert witness.asked("POST") == []


def test_second_repository_mounts_layers(
    buildah: Buildah, witness: Witness, tmp_path: Path
) -> None:
    tag = f"{witness.host}/buildah/first:1"
    files = build(buildah, tmp_path / "context", tag)
    buildah("push", "--tls-verify=false", tag)

    witness.requests.clear()
    second = f"{witness.host}/buildah/deeper/second:1"
    buildah("push", "--tls-verify=false", tag, f"docker://{second}")
    assert len(witness.asked("POST", "from=buildah%2Ffirst&mount=")) == len(SIZES)
    assert len(witness.asked("PATCH")) == 1, "only the config is sent again"

    buildah("rmi", "--all", "--force")
    buildah("pull", "--tls-verify=false", second)
    assert files_of(buildah, second, tmp_path / "pulled") == files


def test_manifest_list(buildah: Buildah, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/buildah/list:all"
    files = {}
    buildah("manifest", "create", tag)
    for architecture in ("amd64", "arm64"):
        one = f"{registry.host}/buildah/list:{architecture}"
        files[architecture] = build(
            buildah, tmp_path / architecture, one, architecture=architecture
        )
        buildah("manifest", "add", "--arch", architecture, tag, f"containers-storage:{one}")
    buildah("manifest", "push", "--all", "--tls-verify=false", tag, f"docker://{tag}")

    for architecture, pushed in files.items():
        buildah("rmi", "--all", "--force")
        buildah("pull", "--tls-verify=false", "--arch", architecture, tag)
        assert files_of(buildah, tag, tmp_path / f"pulled-{architecture}") == pushed


@pytest.mark.long
def test_large_layer(buildah: Buildah, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/buildah/large:1"
    files = build(buildah, tmp_path / "context", tag, (200_000_000,))
    buildah("push", "--tls-verify=false", tag)

    buildah("rmi", "--all", "--force")
    buildah("pull", "--tls-verify=false", tag)
    assert files_of(buildah, tag, tmp_path / "pulled") == files
