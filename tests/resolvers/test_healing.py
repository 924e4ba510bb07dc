"""Blobs that object storage has lost, and that a network still has."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import GiveUp, Job, TryAgain
from chalicelib.jobs import healing as jobs_healing
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blobs
from chalicelib.registry import uploads
from chalicelib.resolvers import healing, placing
from chalicelib.resolvers.placing import Corrupt
from chalicelib.storage import StorageError
from tests.client import CoreClient, push_blob
from tests.contract.stores import Kept, content, kept, kept_in_filesystem, kept_in_s3, s3, s3_stores
from tests.resolvers.memory import Memory

__all__ = ["kept", "kept_in_filesystem", "kept_in_s3", "s3", "s3_stores"]

DATA = content(300_000, 4)
in_a_folder = pytest.mark.parametrize("kept", ["filesystem"], indirect=True)
"""For what no store can make different."""


@pytest.fixture
def context(jobs_context: Context, kept: Kept) -> Context:
    """The functions over an empty database and each kind of store, empty."""
    return replace(jobs_context, store=kept.store)


@pytest.fixture
def digest(context: Context, memory: Memory) -> bytes:
    """A blob that is on the network too, and that storage has lost."""
    digest = digests.pack(push_blob(CoreClient(context), "a/b", DATA))
    context.database.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid)"
        " VALUES (:digest, 'memory', :size, 'there', :cid)",
        digest=digest,
        size=len(DATA),
        cid=placing.place(memory, placing.Bytes("blob", DATA), digest),
    )
    lose(context, digest)
    return digest


def place(context: Context, digest: bytes) -> blobs.Place:
    found = blobs.copy(context.database, digest, context.store.name)
    assert found is not None
    return found


def lose(context: Context, digest: bytes) -> None:
    context.store.delete([place(context, digest).key])


def content_of(context: Context, digest: bytes) -> bytes:
    found = place(context, digest)
    assert not found.missing
    return b"".join(context.store.read(found.key, 0, found.size))


def objects(context: Context) -> int:
    return sum(1 for _ in context.store.list()) + sum(1 for _ in context.store.list_staged())


def job(digest: bytes) -> Job:
    return Job(1, healing.KIND, "", {"digest": digests.unpack(digest)}, 1, 1)


def test_a_job_puts_it_back_once(context: Context, digest: bytes) -> None:
    before = place(context, digest).key
    for _ in range(3):
        healing.ask(context, digest)
    assert context.database.run("SELECT count(*) FROM jobs WHERE kind = 'heal'") == [[1]]
    Worker(context, [kind for kind in KINDS if kind.name == healing.KIND]).drain()
    assert content_of(context, digest) == DATA
    after = place(context, digest).key
    assert after != before
    jobs_healing.perform(context, job(digest))
    assert place(context, digest).key == after
    assert objects(context) == 1


@in_a_folder
def test_what_was_given_up_is_tried_again_an_hour_later(context: Context, digest: bytes) -> None:
    def jobs() -> list[list[object]]:
        return context.database.run("SELECT id, dead_at IS NOT NULL FROM jobs WHERE kind = 'heal'")

    context.database.run("DELETE FROM resolver_copies")
    healing.ask(context, digest)
    Worker(context, [kind for kind in KINDS if kind.name == healing.KIND]).drain()
    [[first, dead]] = jobs()
    assert dead
    healing.ask(context, digest)
    assert jobs() == [[first, True]]
    context.database.run("UPDATE jobs SET dead_at = dead_at - interval '2 hours'")
    healing.ask(context, digest)
    [[second, dead]] = jobs()
    assert (second != first, dead) == (True, False)


@in_a_folder
def test_any_number_may_heal_at_once(context: Context, digest: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(lambda _: healing.put_back(context, digest, len(DATA), [DATA]), range(4))
        )
    assert done.count(True) == 1
    assert content_of(context, digest) == DATA
    assert objects(context) == 1, "nothing is left of those that came second"


@in_a_folder
@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", b"x" + DATA[1:], b""])
def test_other_bytes_are_not_put_back(context: Context, digest: bytes, wrong: bytes) -> None:
    with pytest.raises(Corrupt):
        healing.put_back(context, digest, len(DATA), [wrong])
    assert place(context, digest).missing
    assert objects(context) == 0


@in_a_folder
def test_an_object_that_is_back_is_left_alone(context: Context, memory: Memory) -> None:
    digest = digests.pack(push_blob(CoreClient(context), "a/b", DATA))
    before = place(context, digest)
    blobs.mark(context.database, digest, context.store.name, before.key, missing=True)
    assert not healing.put_back(context, digest, len(DATA), [DATA])
    assert place(context, digest) == before


@in_a_folder
def test_an_object_that_is_back_meanwhile_is_left_alone(context: Context, digest: bytes) -> None:
    before = place(context, digest)

    def pieces() -> Iterator[bytes]:
        yield DATA
        blobs.mark(context.database, digest, context.store.name, before.key, missing=False)

    assert not healing.put_back(context, digest, len(DATA), pieces())
    assert place(context, digest) == before._replace(missing=False)
    assert objects(context) == 0


@in_a_folder
def test_a_blob_that_is_pushed_again_meanwhile(context: Context, digest: bytes) -> None:
    def pieces() -> Iterator[bytes]:
        yield DATA[:10]
        push_blob(CoreClient(context), "a/b", DATA)
        yield DATA[10:]

    assert not healing.put_back(context, digest, len(DATA), pieces())
    assert content_of(context, digest) == DATA
    assert objects(context) == 1


@in_a_folder
def test_an_upload_that_expires_meanwhile_puts_nothing_back(
    context: Context, digest: bytes
) -> None:
    def pieces() -> Iterator[bytes]:
        yield DATA
        context.database.run("UPDATE uploads SET expires_at = now() - interval '1 second'")
        uploads.expire(context)

    with pytest.raises(StorageError):
        healing.put_back(context, digest, len(DATA), pieces())
    assert place(context, digest).missing
    assert objects(context) == 0


@in_a_folder
def test_what_no_network_has_or_gives(context: Context, digest: bytes, memory: Memory) -> None:
    memory.down = True
    with pytest.raises(TryAgain, match="out of reach"):
        jobs_healing.perform(context, job(digest))
    context.database.run("DELETE FROM resolver_copies")
    with pytest.raises(GiveUp, match="push it"):
        jobs_healing.perform(context, job(digest))
    context.database.run("DELETE FROM repository_blobs")
    context.database.run("DELETE FROM blobs")
    jobs_healing.perform(context, job(digest))
