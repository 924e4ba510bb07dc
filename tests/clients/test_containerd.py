"""containerd pushes and pulls, as Kubernetes' nodes and nerdctl do; driven by ctr."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import Run, as_bytes, built, client
from tests.images import hashes, make_image, make_index, write_layout
from tests.servers import Registry, Server, run, stopping
from tests.witness import Witness

pytestmark = pytest.mark.long

CONFIGURATION = """
version = 3
root = "{directory}/root"
state = "{directory}/state"
imports = []
disabled_plugins = [
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
]

[grpc]
address = "{socket}"

[ttrpc]
address = "{socket}.ttrpc"

# Content that one namespace has, another one fetches for itself.
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"

[plugins."io.containerd.transfer.v1.local"]
unpack_config = [{{platform = "linux/amd64", snapshotter = "native"}}]
"""


class Containerd(Server):
    """A containerd with nothing in it."""

    name = "containerd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = directory / "containerd.sock"
        self.configuration = directory / "config.toml"
        settings = CONFIGURATION.format(directory=directory, socket=self.socket)
        self.configuration.write_text(settings)

    def command(self) -> list[str]:
        return [str(built("containerd")), "--config", str(self.configuration)]

    def ready(self) -> bool:
        return "successfully booted" in self.output()

    def stop(self, within: float = 30) -> None:
        """Stop it, and take down the mounts that it leaves."""
        super().stop(within)
        for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = mount.split()[1]
            if target.startswith(f"{self.directory}/"):
                run("umount", target)


@pytest.fixture(scope="module")
def containerd(directory: Path) -> Iterator[Containerd]:
    server = Containerd(directory / "containerd")
    with stopping(server):
        yield server.start()


@pytest.fixture
def ctr(containerd: Containerd, tmp_path: Path) -> Run:
    environment = {"CONTAINERD_SNAPSHOTTER": "native", "GRPC_GO_LOG_SEVERITY_LEVEL": "error"}
    return client("ctr", tmp_path, CONTAINERD_ADDRESS=str(containerd.socket), **environment)


def archive(layout: Path) -> Path:
    """An OCI layout as the tar file that ctr imports."""
    file = layout.with_suffix(".tar")
    with tarfile.open(file, "w") as tar:
        tar.add(layout, ".")
    return file


@pytest.mark.parametrize("local", [(), ("--local",)], ids=["daemon", "client"])
def test_push_and_pull(
    ctr: Run, registry: Registry, tmp_path: Path, local: tuple[str, ...]
) -> None:
    """Both ways: the daemon's transfer service does it, or the client itself."""
    kind = "client" if local else "daemon"
    image = make_image((1000, 0, 300_000), f"containerd {kind}")
    name = f"{registry.host}/containerd/{kind}:1"
    push, pull = f"push-{kind}", f"pull-{kind}"
    tar = archive(write_layout(tmp_path / "layout", [image]))
    ctr("-n", push, "images", "import", "--no-unpack", f"--index-name={name}", tar)
    ctr("-n", push, "images", "push", "--plain-http", *local, name)

    ctr("-n", pull, "images", "pull", "--plain-http", *local, name)
    assert f"{name} " in ctr("-n", pull, "images", "ls")
    for content in (image.manifest, *image.blobs):
        assert as_bytes(ctr("-n", pull, "content", "get", content.digest)) == content.data
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    ctr("-n", pull, "images", "mount", name, mounted)
    try:
        files = hashes({file.name: file.read_bytes() for file in mounted.iterdir()})
    finally:
        ctr("-n", pull, "images", "unmount", mounted)
    assert files == image.files


def test_index_and_mounts(ctr: Run, witness: Witness, tmp_path: Path) -> None:
    images = [make_image((2000,), f"containerd {name}", name) for name in ("amd64", "arm64")]
    index = make_index(images)
    names = [f"{witness.host}/containerd/{repository}:1" for repository in ("index", "mounted")]
    tar = archive(write_layout(tmp_path / "layout", images, index))
    imports = ("images", "import", "--all-platforms", "--no-unpack")
    ctr("-n", "pushed", *imports, f"--index-name={names[0]}", tar)
    ctr("-n", "pushed", "images", "push", "--plain-http", names[0])

    ctr("-n", "pulled", "images", "pull", "--plain-http", "--all-platforms", names[0])
    blobs = [blob for image in images for blob in image.blobs]
    for content in (index, *(image.manifest for image in images), *blobs):
        assert as_bytes(ctr("-n", "pulled", "content", "get", content.digest)) == content.data

    # What it pulled from one repository it asks the registry to mount in another.
    ctr("-n", "pulled", "images", "tag", *names)
    ctr("-n", "pulled", "images", "push", "--plain-http", names[1])
    assert len(witness.asked("POST", "from=containerd/index")) == len(blobs)
    assert not witness.asked("PUT", "/mounted/blobs/")
    ctr("-n", "again", "images", "pull", "--plain-http", "--all-platforms", names[1])
