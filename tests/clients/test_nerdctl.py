"""nerdctl pulls images from IPFS alone, while the registry that has put them there is stopped."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from chalicelib.resolvers import images
from tests.clients.programs import Run, as_bytes, client
from tests.clients.test_containerd import Containerd
from tests.clients.test_skopeo import contents, pull, push
from tests.conftest import need
from tests.images import Content, Image, hashes, make_image, make_index, write_layout
from tests.resolvers.test_peers_ipfs import Serve, command, on_ipfs, root_of
from tests.servers import Kubo, Postgres, stopping

pytestmark = pytest.mark.long

SIZES = (1000, 0, 3_000_000)


@pytest.fixture
def containerd(directory: Path) -> Iterator[Containerd]:
    # Its sockets lie there: paths of tests are too long.
    server = Containerd(Path(tempfile.mkdtemp(prefix="nerdctl-", dir=directory)))
    with stopping(server):
        yield server.start()


@pytest.fixture
def ctr(containerd: Containerd, tmp_path: Path) -> Run:
    return client("ctr", tmp_path, CONTAINERD_ADDRESS=str(containerd.socket))


@pytest.fixture
def nerdctl(containerd: Containerd, tmp_path: Path) -> Callable[..., str]:
    """Runs nerdctl with what it keeps in the test's folder, and a node's repository."""

    def run(node: Kubo, *arguments: str) -> str:
        run = client("nerdctl", tmp_path, IPFS_PATH=node.environment()["IPFS_PATH"])
        options = {
            "address": containerd.socket,
            "namespace": "default",
            "snapshotter": "native",
            "data-root": tmp_path / "nerdctl",
            "cni-path": tmp_path / "cni",
            "cni-netconfpath": tmp_path / "cni.d",
        }
        return run(*(f"--{name}={value}" for name, value in options.items()), *arguments)

    return run


def assert_pulled(ctr: Run, node: Kubo, root: str, pushed: Sequence[Image], top: Content) -> None:
    """containerd has every blob of the images byte by byte, and the node tells where the very
    manifest is."""
    for blob in (blob for image in pushed for blob in image.blobs):
        assert as_bytes(ctr("content", "get", blob.digest)) == blob.data
    descriptor = json.loads(node.run("cat", root, api=True).stdout)
    cid = descriptor["annotations"][images.MANIFEST].removeprefix("ipfs://")
    assert node.run("cat", cid, api=True).stdout.encode() == top.data


def test_pull(
    serve: Serve,
    postgres: Postgres,
    new_kubo: Callable[[], Kubo],
    nerdctl: Callable[..., str],
    ctr: Run,
    tmp_path: Path,
) -> None:
    need("skopeo", "skopeo")
    image = make_image(SIZES, "nerdctl")
    node, other = new_kubo(), new_kubo()
    node.connect(other)
    registry = on_ipfs(serve, postgres, node, "the secret of the registry")
    push(write_layout(tmp_path / "layout", [image]), registry, "nerdctl/image:1")
    root = root_of(postgres, registry, image)
    registry.stop()

    # By a node that was given nothing, and asks the registry's.
    nerdctl(other, "pull", f"ipfs://{root}")
    assert_pulled(ctr, other, root, [image], image.manifest)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    [name] = ctr("images", "ls", "--quiet").split()
    ctr("images", "mount", "--snapshotter=native", name, mounted)
    try:
        files = hashes({file.name: file.read_bytes() for file in mounted.iterdir()})
    finally:
        ctr("images", "unmount", mounted)
    assert files == image.files


def test_pull_of_many_architectures(
    serve: Serve,
    postgres: Postgres,
    new_kubo: Callable[[], Kubo],
    nerdctl: Callable[..., str],
    ctr: Run,
    tmp_path: Path,
) -> None:
    need("skopeo", "skopeo")
    pushed = [make_image(SIZES, f"nerdctl {name}", name) for name in ("amd64", "arm64")]
    index = make_index(pushed)
    node = new_kubo()
    registry = on_ipfs(serve, postgres, node, "the secret of the registry")
    push(write_layout(tmp_path / "layout", pushed, index), registry, "nerdctl/index:1", "--all")
    root = root_of(postgres, registry, index)
    registry.stop()

    nerdctl(node, "pull", "--all-platforms", "--unpack=false", f"ipfs://{root}")
    assert_pulled(ctr, node, root, pushed, index)


def test_archive(
    serve: Serve,
    postgres: Postgres,
    new_kubo: Callable[[], Kubo],
    nerdctl: Callable[..., str],
    ctr: Run,
    tmp_path: Path,
) -> None:
    """A registry that knows no network writes a file; a node that has imported it is enough, and
    gives the image to another registry."""
    need("skopeo", "skopeo")
    pushed = [make_image(SIZES, f"archive {name}", name) for name in ("amd64", "arm64")]
    index = make_index(pushed)
    registry = serve()
    push(write_layout(tmp_path / "layout", pushed, index), registry, "some/index:1", "--all")
    file = tmp_path / "index.car"
    said = json.loads(command(registry, "car", "export", "some/index:1", str(file), "--json"))
    assert (said["digest"], said["manifests"], said["size"]) == (
        index.digest,
        3,
        file.stat().st_size,
    )
    registry.stop()

    node = new_kubo()
    node.run("dag", "import", file, api=True)
    # All of it is kept, not only the root.
    node.run("repo", "gc", api=True)
    nerdctl(node, "pull", "--all-platforms", "--unpack=false", f"ipfs://{said['root']}")
    assert_pulled(ctr, node, said["root"], pushed, index)

    other = serve(OPENREGISTRY_IPFS_NODES=node.url)
    dumped = tmp_path / "root.car"
    dumped.write_bytes(
        as_bytes(
            client("ipfs", tmp_path, **node.environment())(
                "--api",
                "/ip4/127.0.0.1/tcp/" + node.url.rpartition(":")[2],
                "dag",
                "export",
                "--progress=false",
                said["root"],
            )
        )
    )
    for number, source in enumerate((str(file), str(dumped), f"ipfs://{said['root']}")):
        words = command(other, "car", "import", source, f"from/{number}:1")
        assert f"from/{number}:1: {index.digest}" in words
        assert "whom nobody was asked to trust" in words
        layout = tmp_path / f"layout-{number}"
        found = pull(other, f"from/{number}:1", layout, "--all")
        assert found == contents(*pushed, index=index)
    refused = command(other, "car", "import", str(file), "x/y", "--trust", "A" * 43, check=False)
    assert "which is not trusted here" in refused

    # What nerdctl itself puts on IPFS is an image too, though nobody has signed it.
    name = f"{other.host}/from/0:1"
    nerdctl(node, "--insecure-registry", "pull", "--all-platforms", "--unpack=false", name)
    pushed_root = nerdctl(node, "push", "--all-platforms", f"ipfs://{name}").split()[-1]
    words = command(other, "car", "import", f"ipfs://{pushed_root}", "from/nerdctl:1")
    assert "signed by nobody\n3 manifests and 7 blobs" in words
