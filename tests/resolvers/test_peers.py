"""One registry pulls from a network what another has put there, if it trusts that one's key."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.http import Denied, ManifestInvalid
from chalicelib.identity.keys import Keys
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blobs, blocks, resolver_copies
from chalicelib.metadata.database import Runner
from chalicelib.resolvers import NotThere, ResolverError, images, peers, signing
from chalicelib.resolvers.peers import Pulled, Refused
from chalicelib.resolvers.placing import Bytes, Corrupt
from chalicelib.resolvers.publishing import ipns_name, publish
from chalicelib.resolvers.signing import NotTrusted
from tests.client import CoreClient, push_image, push_manifest
from tests.images import Content, Image, make_image, make_index
from tests.resolvers.memory import Memory
from tests.servers import Postgres

IMAGE = make_image(sizes=(1000, 300_000))
ARM = make_image(seed=1, architecture="arm64")


class Named(Memory):
    """A network with names."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}
        self.published: dict[str, str] = {}
        self.name = "memory"

    def import_key(self, key: str, seed: bytes) -> str:
        self.keys[key] = "k"
        return "k"

    def publish(self, cid: str, key: str) -> str:
        self.published[self.ipns] = cid
        return self.ipns

    def resolve(self, name: str) -> str:
        if name not in self.published:
            raise NotThere("There is no such name.")
        return self.published[name]

    ipns = ""


@pytest.fixture
def network() -> Named:
    return Named()


@pytest.fixture
def here(jobs_context: Context, network: Named) -> Context:
    """A registry whose images are put on the network."""
    jobs_context.resolvers.own["memory"] = network
    network.ipns = ipns_name(jobs_context.keys)
    jobs_context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{memory}', 'test')"
    )
    settings = replace(jobs_context.settings, new_repositories="public")
    return replace(jobs_context, settings=settings)


@pytest.fixture
def there(here: Context, network: Named, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    """Another registry on the same network."""
    with ExitStack() as stack:
        settings = replace(
            here.settings,
            database_url=stack.enter_context(postgres.migrated_database()),
            storage_url=(tmp_path / "there").as_uri(),
            secret_key="the secret of another registry",
        )
        made = build_context(settings)
        stack.callback(made.database.close)
        made.resolvers.own["memory"] = network
        yield made


def put(context: Context) -> None:
    """Have what was pushed put on the network, and its images derived."""
    names = ("resolve", "resolve.image", "resolve.derive")
    Worker(context, [kind for kind in KINDS if kind.name in names]).drain()


def root_of(context: Context, digest: str) -> str:
    rows = context.database.run(
        "SELECT root_cid FROM resolver_copies WHERE digest = :digest", digest=digests.pack(digest)
    )
    assert rows[0][0] is not None
    return str(rows[0][0])


def trusted(context: Context) -> list[str]:
    return signing.public_keys(context.keys)


def pull(here: Context, there: Context, root: str, tag: str = "latest") -> Pulled:
    return peers.pull(there, f"ipfs://{root}", "from/afar", tag, trusted(here))


def assert_there(context: Context, reference: str, image: Image) -> None:
    client = CoreClient(context)
    answer = client.request("GET", f"/v2/from/afar/manifests/{reference}")
    assert (answer.status, answer.body) == (200, image.manifest.data)
    assert answer.headers["Content-Type"] == image.manifest.media_type
    for blob in image.blobs:
        found = blobs.find(
            context.database, "from/afar", digests.pack(blob.digest), context.store.name
        )
        assert found is not None
        assert b"".join(map(bytes, context.store.read(found.key, 0, found.size))) == blob.data


def assert_nothing(context: Context) -> None:
    assert CoreClient(context).request("GET", "/v2/from/afar/manifests/latest").status == 404


def test_pulled_by_its_root(here: Context, there: Context) -> None:
    push_image(CoreClient(here), "some/image", IMAGE, "latest")
    put(here)
    pulled = pull(here, there, root_of(here, IMAGE.manifest.digest))
    assert (pulled.digest, pulled.key) == (IMAGE.manifest.digest, trusted(here)[0])
    assert (pulled.manifests, pulled.blobs) == (1, len(IMAGE.blobs))
    assert pulled.size == sum(len(blob.data) for blob in IMAGE.blobs)
    assert_there(there, "latest", IMAGE)
    again = pull(here, there, root_of(here, IMAGE.manifest.digest), "again")
    assert (again.blobs, again.blobs_there) == (0, len(IMAGE.blobs))
    assert_there(there, "again", IMAGE)


def test_index_of_images(here: Context, there: Context) -> None:
    client = CoreClient(here)
    push_image(client, "some/image", IMAGE, "a")
    push_image(client, "some/image", ARM, "b")
    every = make_index([IMAGE, ARM])
    push_manifest(client, "some/image", every, "latest")
    put(here)
    pulled = pull(here, there, root_of(here, every.digest))
    assert (pulled.digest, pulled.manifests) == (every.digest, 3)
    answer = CoreClient(there).request("GET", "/v2/from/afar/manifests/latest")
    assert answer.body == every.data
    for image in (IMAGE, ARM):
        assert_there(there, image.manifest.digest, image)


def test_indexes_that_name_each_other_over_and_over(
    here: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at each level, which both name both below: 256 paths lead down from the top."""
    image = make_image()
    client, level = CoreClient(here), [image.manifest]
    push_image(client, "some/image", image, "latest")
    for _ in range(8):
        child = [each.descriptor for each in level]
        level = []
        for name in "ab":
            fields = {"manifests": child, "annotations": {"name": name}}
            data = json.dumps({**json.loads(make_index([]).data), **fields}).encode()
            level.append(Content(make_index([]).media_type, data))
            assert push_manifest(client, "some/image", level[-1], name).status == 201
    put(here)
    digest = digests.pack(level[0].digest)
    asked: list[bytes] = []
    manifest = resolver_copies.manifest

    def count(runner: Runner, digest: bytes) -> tuple[bytes, str]:
        asked.append(digest)
        return manifest(runner, digest)

    monkeypatch.setattr(resolver_copies, "manifest", count)
    derived = images.derive(here, here.resolvers.own["memory"], digest)
    assert derived.root_cid == root_of(here, level[0].digest)
    assert len(asked) == 1 + 2 * 7 + 1


def test_pulled_by_the_name_of_the_index(here: Context, there: Context, network: Named) -> None:
    push_image(CoreClient(here), "some/image", IMAGE, "v1")
    put(here)
    report = publish(here)
    assert (report.failures, report.name) == ({}, ipns_name(here.keys))
    source = f"ipns://{report.name}#some/image:v1"
    pulled = peers.pull(there, source, "from/afar", "latest", trusted(here))
    assert pulled.digest == IMAGE.manifest.digest
    assert_there(there, "latest", IMAGE)
    with pytest.raises(Refused, match="does not tell of some/image:v2"):
        peers.pull(there, f"{source[:-1]}2", "from/afar", "latest", trusted(here))
    with pytest.raises(NotTrusted, match="not trusted here"):
        peers.pull(there, source, "from/afar", "latest", trusted(there))


def test_key_that_is_not_trusted(here: Context, there: Context) -> None:
    push_image(CoreClient(here), "some/image", IMAGE, "latest")
    put(here)
    root = root_of(here, IMAGE.manifest.digest)
    with pytest.raises(NotTrusted, match=f"by the key {trusted(here)[0]}, which is not trusted"):
        peers.pull(there, f"ipfs://{root}", "from/afar", "latest", trusted(there))
    assert_nothing(there)


def forge(network: Memory, root: str, **changes: object) -> str:
    """The CID of a root in which something was changed."""
    value = {**json.loads(network.kept[root]), **changes}
    return network.put(Bytes("forged", json.dumps(value).encode()))


def test_forged_roots(here: Context, there: Context, network: Named) -> None:
    """Whatever somebody else puts on the network is refused, and nothing of it is kept."""
    client = CoreClient(here)
    push_image(client, "some/image", IMAGE, "latest")
    push_image(client, "some/image", ARM, "arm")
    put(here)
    root = root_of(here, IMAGE.manifest.digest)
    annotations = json.loads(network.kept[root])["annotations"]
    other = json.loads(network.kept[root_of(here, ARM.manifest.digest)])
    stranger = Keys("the secret of a stranger")
    said = json.dumps({"digest": ARM.manifest.digest, "mediaType": "x", "size": 1}).encode()

    def refused(error: type[Exception], **changes: object) -> None:
        with pytest.raises(error):
            pull(here, there, forge(network, root, **changes))
        assert_nothing(there)

    refused(NotTrusted, annotations=None)
    refused(NotTrusted, annotations={images.MANIFEST: annotations[images.MANIFEST]})
    signed = {**annotations, images.SIGNATURE: signing.sign(stranger, signing.MANIFEST, said)}
    refused(NotTrusted, annotations=signed)
    # The signature of one image on the content of another.
    refused(
        Corrupt, annotations={**annotations, images.MANIFEST: other["annotations"][images.MANIFEST]}
    )
    # Signed as something else.
    signed = {**annotations, images.SIGNATURE: signing.sign(here.keys, signing.INDEX, said)}
    refused(NotTrusted, annotations=signed)
    refused(NotTrusted, urls=[])
    # Addresses that lead elsewhere.
    refused(ResolverError, urls=other["urls"])
    with pytest.raises(ResolverError, match="is of no image"):
        pull(here, there, network.put(Bytes("none", b"no root")))


def test_blob_that_was_changed(here: Context, there: Context, network: Named) -> None:
    """What is derived is signed by nobody: addresses in it are tried, and the digest decides."""
    push_image(CoreClient(here), "some/image", IMAGE, "latest")
    put(here)
    root = root_of(here, IMAGE.manifest.digest)
    value = json.loads(network.kept[root])
    derived = json.loads(network.kept[value["urls"][0].removeprefix("ipfs://")])
    size = derived["layers"][0]["size"]
    evil = network.put(Bytes("evil", b"x" * size))
    derived["layers"][0]["urls"] = [f"ipfs://{evil}"]
    changed = network.put(Bytes("derived", json.dumps(derived).encode()))
    with pytest.raises(Corrupt, match="other ones"):
        pull(here, there, forge(network, root, urls=[f"ipfs://{changed}"]))
    assert_nothing(there)


def test_blocked_here(here: Context, there: Context) -> None:
    push_image(CoreClient(here), "some/image", IMAGE, "latest")
    put(here)
    layer = digests.pack(IMAGE.layers[0].digest)
    blocks.add(there.database, layer, "malware", public=True, by="test")
    with pytest.raises(Denied):
        pull(here, there, root_of(here, IMAGE.manifest.digest))
    assert_nothing(there)


@pytest.mark.parametrize("source", ["x", "ipns://name", "ipns://name#image", "docker://a/b:c"])
def test_sources_that_are_none(there: Context, source: str) -> None:
    with pytest.raises(Refused, match="not at"):
        peers.pull(there, source, "from/afar", "latest", [])


def test_names_that_are_none(there: Context) -> None:
    with pytest.raises(ManifestInvalid):
        peers.pull(there, "ipfs://x", "from/afar", "not a tag", [])
    with pytest.raises(ResolverError, match="no CID"):
        peers.pull(there, "ipfs://x", "from/afar", "latest", [])
