"""Two registries on two IPFS nodes, and a registry that has lost its storage or its database."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chalicelib.resolvers import images
from tests.clients.test_skopeo import pull, push
from tests.conftest import need
from tests.images import Content, Image, layout_contents, make_image, write_layout
from tests.servers import OPENREGISTRY, Kubo, Postgres, Registry, run, wait_until

pytestmark = pytest.mark.long

IMAGE = make_image(sizes=(1000, 3_000_000))
OTHER = make_image(seed=1)
Serve = Callable[..., Registry]


@pytest.fixture(autouse=True)
def installed() -> None:
    need("skopeo", "skopeo")


def command(registry: Registry, *arguments: str, check: bool = True) -> str:
    """What a command says of whom it is about, or why it did not work."""
    environment = registry.environment()
    return run(OPENREGISTRY, *arguments, check=check, within=60, **environment).stdout


def on_ipfs(serve: Serve, postgres: Postgres, node: Kubo, secret: str) -> Registry:
    """A registry that puts all its images on a node."""
    registry = serve(
        OPENREGISTRY_IPFS_NODES=node.url,
        OPENREGISTRY_NEW_REPOSITORIES="public",
        OPENREGISTRY_SECRET_KEY=secret,
    )
    query(
        postgres,
        registry,
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{ipfs}', 'test')",
    )
    return registry


def query(postgres: Postgres, registry: Registry, sql: str) -> list[list[object]]:
    database = registry.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    return postgres.query(sql, database)


def root_of(postgres: Postgres, registry: Registry, image: Image | Content) -> str:
    """The CID by which an image or an index is pulled from the network, once it is there."""
    manifest = image.manifest if isinstance(image, Image) else image
    found: list[list[object]] = []

    def there() -> bool:
        digest = manifest.digest.removeprefix("sha256:")
        found[:] = query(
            postgres,
            registry,
            "SELECT root_cid FROM resolver_copies WHERE root_cid IS NOT NULL"
            f" AND digest = decode('12{digest}', 'hex')",
        )
        return bool(found)

    wait_until(there, 60, lambda: "the image to be on the network")
    return str(found[0][0])


def assert_same(registry: Registry, name: str, image: Image, layout: Path) -> None:
    """What skopeo pulls is what was pushed, byte by byte."""
    pull(registry, name, layout)
    wanted = {each.digest: each.data for each in (*image.blobs, image.manifest)}
    assert layout_contents(layout) == wanted


def test_two_registries(
    serve: Serve, postgres: Postgres, new_kubo: Callable[[], Kubo], tmp_path: Path
) -> None:
    """What is pushed at one is pulled by the other by its CID, while the first is down."""
    node, other_node, attackers = new_kubo(), new_kubo(), new_kubo()
    node.connect(other_node)
    attackers.connect(other_node)
    here = on_ipfs(serve, postgres, node, "the secret of the first registry")
    there = on_ipfs(serve, postgres, other_node, "the secret of the other registry")
    push(write_layout(tmp_path / "image", [IMAGE]), here, "some/image:v1")
    root = root_of(postgres, here, IMAGE)
    key = json.loads(command(here, "resolve", "key", "--json"))["key"]
    name = command(here, "resolve", "publish").splitlines()[1]
    here.stop()

    source = f"ipfs://{root}"
    refused = command(there, "peer", "pull", source, "from/afar:v1", check=False)
    assert f"by the key {key}, which is not trusted" in refused
    said = command(there, "peer", "pull", source, "from/afar:v1", "--key", key, "--json")
    pulled = json.loads(said)
    assert (pulled["digest"], pulled["key"], pulled["blobs"]) == (IMAGE.manifest.digest, key, 3)
    assert_same(there, "from/afar:v1", IMAGE, tmp_path / "pulled")
    inspected = run(
        "skopeo", "inspect", "--tls-verify=false", f"docker://{there.host}/from/afar:v1"
    )
    assert json.loads(inspected.stdout)["Digest"] == IMAGE.manifest.digest
    there.settings["OPENREGISTRY_TRUSTED_KEYS"] = key
    said = command(there, "peer", "pull", f"{name}#some/image:v1", "from/index", "--json")
    assert json.loads(said)["digest"] == IMAGE.manifest.digest
    assert_same(there, "from/index:latest", IMAGE, tmp_path / "named")
    # It is on the other registry's network as its own now, under its own signature.
    assert root_of(postgres, there, IMAGE) != root

    value = json.loads(node.run("cat", root, api=True).stdout)
    evil = tmp_path / "evil"
    evil.write_bytes(OTHER.manifest.data)
    cid = attackers.run("add", "--quieter", evil, api=True).stdout.strip()
    value["annotations"][images.MANIFEST] = f"ipfs://{cid}"
    (tmp_path / "root").write_text(json.dumps(value))
    forged = attackers.run("add", "--quieter", tmp_path / "root", api=True).stdout.strip()
    said = command(
        there, "peer", "pull", f"ipfs://{forged}", "from/afar:v2", "--key", key, check=False
    )
    assert "another manifest than was signed" in said
    answer = run(
        "skopeo",
        "inspect",
        "--tls-verify=false",
        f"docker://{there.host}/from/afar:v2",
        check=False,
    )
    assert "unknown" in answer.stdout


def test_loss(
    serve: Serve, postgres: Postgres, new_kubo: Callable[[], Kubo], tmp_path: Path
) -> None:
    """First the storage goes, then the database and the storage: all comes back from the node."""
    node = new_kubo()
    registry = on_ipfs(serve, postgres, node, "the secret of the registry")
    for name, image in (("a", IMAGE), ("b", OTHER)):
        push(write_layout(tmp_path / name, [image]), registry, f"some/{name}:latest")
        root_of(postgres, registry, image)
    published = command(registry, "resolve", "publish").splitlines()
    own = json.loads(command(registry, "resolve", "key", "--json"))
    assert published[1] == f"ipns://{own['ipns']}"

    blobs = registry.data_dir / "blobs"
    shutil.rmtree(blobs)
    blobs.mkdir()
    said = json.loads(command(registry, "restore", "blobs", "--check", "--json"))
    assert (said["missing"], said["restored"], said["failures"]) == (5, 5, [])
    assert_same(registry, "some/a:latest", IMAGE, tmp_path / "a1")
    assert_same(registry, "some/b:latest", OTHER, tmp_path / "b1")

    registry.stop()
    new = serve(
        OPENREGISTRY_IPFS_NODES=node.url,
        OPENREGISTRY_SECRET_KEY="the secret of the registry",
    )
    for arguments in ((), ("--from", f"ipns://{own['ipns']}"), ("--from", published[0])):
        said = json.loads(command(new, "restore", "metadata", *arguments, "--json"))
        assert (said["lost"], said["repositories"]) == ([], 2)
    assert (said["manifests"], said["manifests_there"], said["blobs_there"]) == (0, 2, 5)
    assert_same(new, "some/a:latest", IMAGE, tmp_path / "a2")
    assert_same(new, "some/b:latest", OTHER, tmp_path / "b2")
    again = command(new, "resolve", "publish").splitlines()
    assert again[1] == published[1]
    found = node.run("name", "resolve", own["ipns"], api=True).stdout.strip()
    assert found == again[0].replace("ipfs://", "/ipfs/")


def test_new_database_takes_no_index_away(
    serve: Serve, postgres: Postgres, new_kubo: Callable[[], Kubo], tmp_path: Path
) -> None:
    """Though storage is empty too, the name tells that there is one."""
    node = new_kubo()
    registry = on_ipfs(serve, postgres, node, "the secret of the registry")
    push(write_layout(tmp_path / "a", [OTHER]), registry, "some/a:latest")
    root_of(postgres, registry, OTHER)
    published = command(registry, "resolve", "publish").splitlines()
    registry.stop()
    new = on_ipfs(serve, postgres, node, "the secret of the registry")
    push(tmp_path / "a", new, "some/other:latest")
    root_of(postgres, new, OTHER)
    assert "restore metadata" in command(new, "resolve", "publish", check=False)
    assert published[0] in command(new, "resolve", "publish", check=False)
