"""What was lost comes back from the networks: objects of storage, rows of the database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity.keys import Keys
from chalicelib.jobs import GiveUp, orphans
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blobs
from chalicelib.metadata.indexes import LeftOut
from chalicelib.resolvers import NotThere, finding, index, publishing, signing
from chalicelib.resolvers.publishing import publish
from chalicelib.resolvers.restoring import Blobs, restore_blobs
from chalicelib.resolvers.restoring_metadata import Metadata, restore_metadata
from chalicelib.resolvers.signing import NotTrusted
from tests.client import CoreClient, push_image, push_manifest
from tests.images import Image, make_image, make_index
from tests.resolvers.memory import Memory
from tests.servers import Postgres

IMAGE = make_image(sizes=(1000, 300_000))
OTHER = make_image(seed=1, architecture="arm64")


@pytest.fixture
def context(jobs_context: Context, memory: Memory) -> Context:
    """New repositories are public, and go to ``memory``."""
    settings = replace(jobs_context.settings, new_repositories="public")
    return replace(jobs_context, settings=settings)


def work(context: Context) -> None:
    names = ("resolve.image", "resolve", "resolve.derive", "resolve.fill")
    Worker(context, [kind for kind in KINDS if kind.name in names]).drain()


def told(what: str, done: int, most: int) -> None:
    assert 0 < done <= most


def restored_blobs(context: Context, *, check: bool = False) -> Blobs:
    return restore_blobs(context, check=check, tell=told)


def assert_pulled(context: Context, repository: str, reference: str, image: Image) -> None:
    """All of an image is pulled, byte by byte."""
    client = CoreClient(context)
    answer = client.request("GET", f"/v2/{repository}/manifests/{reference}")
    assert (answer.status, answer.body) == (200, image.manifest.data)
    assert answer.headers["Content-Type"] == image.manifest.media_type
    for blob in image.blobs:
        found = blobs.find(
            context.database, repository, digests.pack(blob.digest), context.store.name
        )
        assert found is not None
        assert b"".join(map(bytes, context.store.read(found.key, 0, found.size))) == blob.data


# Blobs


def wipe(context: Context) -> None:
    context.store.delete([key for key, _, _ in context.store.list()])


def test_storage_that_was_wiped(context: Context) -> None:
    push_image(CoreClient(context), "some/image", IMAGE, "latest")
    push_image(CoreClient(context), "some/other", OTHER, "latest")
    work(context)
    wipe(context)
    count = len({blob.digest for image in (IMAGE, OTHER) for blob in image.blobs})
    assert restored_blobs(context).missing == 0  # no read has found out yet
    report = restored_blobs(context, check=True)
    assert (report.checked, report.missing, report.restored) == (count, count, count)
    assert report.failures == []
    assert report.restored_size == report.missing_size > 300_000
    assert_pulled(context, "some/image", "latest", IMAGE)
    assert_pulled(context, "some/other", "latest", OTHER)
    again = restored_blobs(context, check=True)
    assert (again.checked, again.missing, again.restored) == (count, 0, 0)


def test_blobs_that_cannot_be_had(context: Context, memory: Memory) -> None:
    """The others come back; of these it is said why not, and another time they may."""
    push_image(CoreClient(context), "some/image", IMAGE, "latest")
    work(context)
    push_image(CoreClient(context), "some/other", OTHER, "latest")
    wipe(context)
    [cid] = [cid for cid, data in memory.kept.items() if data == IMAGE.layers[0].data]
    kept = memory.kept.pop(cid)
    report = restored_blobs(context, check=True)
    reasons = {digests.unpack(each.digest): each.reason for each in report.failures}
    assert reasons.keys() == {IMAGE.layers[0].digest, *(each.digest for each in OTHER.blobs)}
    assert "not" in reasons[IMAGE.layers[0].digest].lower()
    assert {reasons[each.digest] for each in OTHER.blobs} == {"No network has it."}
    assert report.restored == len(IMAGE.blobs) - 1
    memory.kept[cid] = kept
    work(context)
    again = restored_blobs(context)
    assert (again.missing, again.restored) == (len(report.failures), 1)


def test_network_that_lies(context: Context, memory: Memory) -> None:
    push_image(CoreClient(context), "some/image", OTHER, "latest")
    work(context)
    wipe(context)
    memory.kept = {cid: data[:-1] + b"!" for cid, data in memory.kept.items()}
    report = restored_blobs(context, check=True)
    assert report.restored == 0
    assert len(report.failures) == len(OTHER.blobs)
    assert list(context.store.list()) == []


# Metadata


@pytest.fixture
def lost(
    context: Context, memory: Memory, postgres: Postgres, tmp_path: Path
) -> Iterator[Callable[..., Context]]:
    """The registry with an empty database; and with an empty storage, if that is asked."""
    with ExitStack() as stack:

        def make(*, storage: bool = True) -> Context:
            url = stack.enter_context(postgres.migrated_database())
            place = context.settings.storage_url if storage else (tmp_path / "empty").as_uri()
            made = build_context(replace(context.settings, database_url=url, storage_url=place))
            stack.callback(made.database.close)
            made.resolvers.own["memory"] = memory
            return made

        yield make


def pushed(context: Context) -> None:
    """Two repositories, one of them private; an index of images among what is in the other."""
    client = CoreClient(context)
    push_image(client, "some/image", IMAGE, "latest")
    push_image(client, "some/image", OTHER, "arm")
    every = make_index([IMAGE, OTHER])
    push_manifest(client, "some/image", every, "every")
    context.database.run("UPDATE repositories SET description = 'An image.'")
    context.database.run("UPDATE resolver_choices SET insisted = true")
    settings = replace(context.settings, new_repositories="private")
    push_image(CoreClient(replace(context, settings=settings)), "hidden/image", OTHER, "v1")
    work(context)
    assert publish(context).failures == {}


def restored(context: Context, origin: str = "", *, adopt: bool = False) -> Metadata:
    top = finding.newest(context, origin, signing.public_keys(context.keys))
    return restore_metadata(context, top, adopt=adopt, tell=told)


def test_database_that_was_lost(
    context: Context, memory: Memory, lost: Callable[..., Context]
) -> None:
    """With the storage."""
    pushed(context)
    cid = publish(context).cid
    new = lost(storage=False)
    report = restored(new, f"ipfs://{cid}")
    assert (report.lost, report.repositories, report.manifests, report.tags) == ([], 2, 4, 4)
    assert report.left_out is not None
    assert report.left_out.manifests == 0
    every = make_index([IMAGE, OTHER])
    answer = CoreClient(new).request("GET", "/v2/some/image/manifests/every")
    assert answer.body == every.data
    assert_pulled(new, "some/image", "latest", IMAGE)
    assert_pulled(new, "some/image", "arm", OTHER)
    assert_pulled(new, "hidden/image", "v1", OTHER)
    rows = new.database.run(
        "SELECT name, public, description, resolvers, insisted FROM repositories ORDER BY name"
    )
    assert rows == [
        ["hidden/image", False, "", ["memory"], True],
        ["some/image", True, "An image.", ["memory"], True],
    ]
    # The index of what is there now says the same, and nothing was put there again.
    puts = len(memory.puts)
    Worker(new, [kind for kind in KINDS if kind.name in ("resolve.image", "resolve")]).drain()
    assert len(memory.puts) == puts
    after = publish(new)
    assert (
        index.read_top(memory.kept[after.cid], signing.public_keys(new.keys)).number > report.number
    )


def test_roots_are_had_again(context: Context, lost: Callable[..., Context]) -> None:
    """By the worker's next jobs: who pulls by the index finds them in the one that comes next."""
    query = "SELECT digest, root_cid FROM resolver_copies WHERE root_cid IS NOT NULL ORDER BY 1"
    pushed(context)
    roots = context.database.run(query)
    assert len(roots) == 3
    new = lost()
    assert restored(new, adopt=True).lost == []
    work(new)
    assert new.database.run(query) == roots


def test_objects_are_adopted(context: Context, lost: Callable[..., Context]) -> None:
    """Nothing is fetched that object storage has, though no row tells what its objects are."""
    pushed(context)
    objects = {key for key, _, _ in context.store.list() if not key.startswith("openregistry")}
    new = lost()
    report = restored(new, "bucket", adopt=True)
    assert (report.lost, report.fetched, report.adopted) == ([], 0, len(objects))
    assert_pulled(new, "some/image", "latest", IMAGE)
    assert {key for key, _, _ in new.store.list() if not key.startswith("openregistry")} == objects
    assert orphans.run(new, dry_run=True, force=False).unknown == 0


def test_no_sweep_after_a_restore_without_adopting(
    context: Context, lost: Callable[..., Context]
) -> None:
    """What another database knew is deleted by nobody until somebody has said so."""
    pushed(context)
    orphans.run(context, dry_run=False, force=False)
    new = lost()
    assert restored(new).lost == []
    objects = list(new.store.list())
    with pytest.raises(GiveUp, match="belongs to another database"):
        orphans.run(new, dry_run=False, force=True)
    assert list(new.store.list()) == objects


def test_again(context: Context, lost: Callable[..., Context]) -> None:
    """What is there stays: a tag that was moved since, too."""
    pushed(context)
    new = lost(storage=False)
    cid = publish(context).cid
    restored(new, f"ipfs://{cid}")
    newer = make_image(seed="newer")
    push_image(CoreClient(new), "some/image", newer, "latest")
    CoreClient(new).request("DELETE", "/v2/some/image/manifests/arm")
    again = restored(new, f"ipfs://{cid}")
    assert (again.manifests, again.manifests_there, again.fetched) == (0, 4, 0)
    assert (again.tags, again.tags_kept, again.lost) == (1, 1, [])
    assert_pulled(new, "some/image", "latest", newer)
    assert_pulled(new, "some/image", "arm", OTHER)


def test_what_cannot_be_had(context: Context, memory: Memory, lost: Callable[..., Context]) -> None:
    """All else is restored; and the index that tells of it stays where it is."""
    pushed(context)
    [cid] = [cid for cid, data in memory.kept.items() if data == IMAGE.layers[1].data]
    kept = memory.kept.pop(cid)
    new = lost()
    report = restored(new)
    every = make_index([IMAGE, OTHER])
    missing = {IMAGE.layers[1].digest, IMAGE.manifest.digest, every.digest}
    assert {each.what for each in report.lost} == {f"some/image@{digest}" for digest in missing}
    assert_pulled(new, "some/image", "arm", OTHER)
    with pytest.raises(publishing.Refused):
        publish(new)
    memory.kept[cid] = kept
    assert restored(new).lost == []
    assert_pulled(new, "some/image", "latest", IMAGE)
    publish(new)


def test_page_that_cannot_be_had(
    context: Context, memory: Memory, lost: Callable[..., Context]
) -> None:
    pushed(context)
    cid = publish(context).cid
    [page] = index.read_top(memory.kept[cid], signing.public_keys(context.keys)).pages
    del memory.kept[page.cid]
    report = restored(lost(storage=False), f"ipfs://{cid}")
    assert [each.what for each in report.lost] == [f"a page of the index, ipfs://{page.cid}"]
    assert report.repositories == 1


def test_index_of_a_stranger(
    context: Context, memory: Memory, lost: Callable[..., Context]
) -> None:
    """Is believed only where its key is named; and what it has sealed is not read."""
    pushed(context)
    stranger = replace(lost(storage=False), keys=Keys("the secret of a stranger"))
    cid = publish(context).cid
    with pytest.raises(NotTrusted, match="not trusted here"):
        finding.newest(stranger, f"ipfs://{cid}", signing.public_keys(stranger.keys))
    top = finding.newest(stranger, f"ipfs://{cid}", signing.public_keys(context.keys))
    report = restore_metadata(stranger, top, adopt=False, tell=told)
    assert (report.repositories, report.unread, report.left_out) == (1, 1, None)
    # By which CIDs networks have the bytes of a digest is not for a stranger to say.
    assert stranger.database.run("SELECT FROM resolver_copies WHERE state = 'there'") == []
    assert_pulled(stranger, "some/image", "latest", IMAGE)


def test_no_index(jobs_context: Context) -> None:
    with pytest.raises(NotThere, match="no index in object storage"):
        finding.newest(jobs_context, "", signing.public_keys(jobs_context.keys))


def test_forged_index_in_storage(context: Context) -> None:
    """Who can write to the bucket puts a newer one there: the newest that is ours counts."""
    pushed(context)
    top = finding.newest(context, "bucket", signing.public_keys(context.keys))
    forged = index.top(Keys("the secret of a stranger"), 10**11, "", [], [], LeftOut(0, 0, 0, 0))
    publishing._write(context.store, publishing._top_key(10**11), forged)
    assert finding.newest(context, "bucket", signing.public_keys(context.keys)) == top


def test_repository_in_an_index(context: Context) -> None:
    pushed(context)
    top = finding.newest(context, "bucket", signing.public_keys(context.keys))
    found = finding.public_repository(context, top, "some/image")
    assert found is not None
    assert {tag for each in found.manifests.values() for tag in each.tags} == {
        "latest",
        "arm",
        "every",
    }
    assert finding.public_repository(context, top, "hidden/image") is None
    assert top.registry == ""
