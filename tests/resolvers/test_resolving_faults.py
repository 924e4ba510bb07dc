"""Copies whose network, storage or job fails: what is told of them, and that they come there all
the same. And what is looked at again, in case that nobody noticed."""

import hashlib
import time
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import resolving
from chalicelib.metadata import jobs, resolver_progress
from chalicelib.metadata.database import Database
from chalicelib.metadata.resolver_copies import IMAGE, PUT
from chalicelib.resolvers import Status
from tests.client import CoreClient, push_image
from tests.hosts.wire import until
from tests.images import make_image
from tests.resolvers.copies import (
    client,
    content_of,
    context,
    errors,
    hurry,
    kept,
    left,
    let_go,
    perform,
    states,
    work,
)
from tests.resolvers.memory import Memory

__all__ = ["client", "context"]


def test_another_cid_is_told_and_not_tried_again(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="lie")
    push_image(client, "a/b", image)
    memory.lie = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    work(context)
    assert set(states(database).values()) == {"waiting"}
    assert left(database) == [(PUT, "dead")] * 3
    for sentence in (*errors(database), *(e.error for e in jobs.page(database, 0, 9))):
        assert "says that sha256:" in sentence
        assert memory.lie in sentence
    assert all(each.given_up for each in resolver_progress.failures(database))
    memory.lie = ""
    assert resolver_progress.retry(database) == 3
    work(context)
    assert kept(memory, image) == content_of(image)
    assert errors(database) == []


def object_of(context: Context, digest: str) -> Path:
    """The file of a blob."""
    [[key]] = context.database.run(
        "SELECT key FROM blob_copies WHERE digest = :digest", digest=digests.pack(digest)
    )
    [found] = Path(context.settings.storage_url.removeprefix("file://")).rglob(key)
    return found


def test_bytes_that_have_changed_are_told_and_not_put(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="corrupt")
    push_image(client, "a/b", image)
    file = object_of(context, image.layers[0].digest)
    file.write_bytes(b"x" * len(image.layers[0].data))
    work(context)
    assert kept(memory, image) == content_of(image) - {image.layers[0].digest}
    assert hashlib.sha256(file.read_bytes()).hexdigest() not in str(memory.digests())
    [error] = errors(database)
    assert "are not those of its digest" in error
    assert left(database) == [(PUT, "dead")]


def test_bytes_that_storage_has_lost_are_waited_for(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="lost")
    push_image(client, "a/b", image)
    file = object_of(context, image.layers[0].digest)
    file.unlink()
    work(context)
    assert kept(memory, image) == content_of(image) - {image.layers[0].digest}
    [error] = errors(database)
    assert "Object storage" in error
    assert left(database) == [(PUT, "waiting")]
    file.write_bytes(image.layers[0].data)
    hurry(database)
    work(context)
    assert kept(memory, image) == content_of(image)
    assert errors(database) == []


def test_a_network_that_is_down_is_waited_for(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    images = [make_image([10], seed=f"down{number}") for number in range(20)]
    for image in images:
        push_image(client, "a/b", image)
    memory.down = True
    work(context)
    for _ in range(30):
        # An hour, as far as the circuit is concerned.
        for circuit in resolving._circuits[context.resolvers].values():
            circuit._until = 0.0
        database.run("UPDATE jobs SET due_at = now() WHERE id = (SELECT min(id) FROM jobs)")
        work(context)
    assert memory.checks < 50
    found = jobs.page(database, 0, 1000)
    assert {(entry.state, entry.tries) for entry in found} == {("waiting", 0)}
    assert set(errors(database)) == {"The network is out of reach."}
    [[soonest, latest]] = database.run(
        "SELECT min(extract(epoch FROM due_at - now())), max(extract(epoch FROM due_at - now()))"
        " FROM jobs"
    )
    assert 250 < soonest < latest < 310
    memory.down = False
    for circuit in resolving._circuits[context.resolvers].values():
        circuit._until = 0.0
    hurry(database)
    work(context)
    assert kept(memory, *images) == content_of(*images)
    assert (errors(database), left(database)) == ([], [])


def test_jobs_that_fail_at_once_wait_no_longer_than_one(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    for number in range(8):
        push_image(client, "a/b", make_image([10], seed=f"at once{number}"))
    memory.down = True
    work(context)
    [[latest]] = database.run("SELECT max(extract(epoch FROM due_at - now())) FROM jobs")
    assert latest < 7


def test_a_person_has_a_network_tried_that_is_back(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    images = [make_image([10], seed=f"back{number}") for number in range(3)]
    for image in images:
        push_image(client, "a/b", image)
    memory.down = True
    work(context)
    for circuit in resolving._circuits[context.resolvers].values():
        # It has been down for long, and was tried a while ago.
        circuit._until, circuit._tried = time.monotonic() + 300, time.monotonic() - 10
    memory.down = False
    database.run("UPDATE jobs SET due_at = now() + interval '300 seconds'")
    assert resolver_progress.retry(database) == 9
    for _ in until():
        work(context)
        if kept(memory, *images) == content_of(*images):
            break


def test_what_a_network_refuses_is_tried_again(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="refused")
    push_image(client, "a/b", image)
    memory.refuse = "The disk is full."
    work(context)
    assert set(errors(database)) == {"The disk is full."}
    assert {(entry.tries, entry.error) for entry in jobs.page(database, 0, 9)} == {
        (1, "The disk is full.")
    }
    memory.refuse = ""
    assert resolver_progress.retry(database) == 3
    work(context)
    assert kept(memory, image) == content_of(image)


def test_a_resolver_that_is_not_there_is_waited_for(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="absent")
    push_image(client, "a/b", image)
    network = context.resolvers.own.pop("memory")
    work(context)
    assert set(errors(database)) == {"There is no resolver memory here now."}
    context.resolvers.own["memory"] = network
    hurry(database)
    work(context)
    assert kept(memory, image) == content_of(image)


def test_what_a_network_has_lost_is_put_there_again(
    context: Context,
    client: CoreClient,
    database: Database,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "_BATCH", 3)
    images = [make_image([10], seed=f"kept{number}") for number in range(3)]
    for image in images:
        push_image(client, "a/b", image)
    work(context)
    memory.kept.clear()
    perform(context, resolving.check)
    assert set(states(database).values()) == {"there"}
    database.run("UPDATE resolver_copies SET checked_at = now() - interval '2 days'")
    perform(context, resolving.check)
    assert set(states(database).values()) == {"waiting"}
    work(context)
    assert kept(memory, *images) == content_of(*images)
    assert set(states(database).values()) == {"there"}
    assert errors(database) == []


def test_the_network_that_was_asked_longest_ago_comes_first(
    context: Context,
    client: CoreClient,
    database: Database,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that has more than can be asked about in time keeps no other waiting."""
    monkeypatch.setattr(resolving, "_BATCH", 1)
    monkeypatch.setattr(resolving, "_CHECK_SECONDS", 1.0)
    push_image(client, "a/b", make_image([10], seed="asked"))
    work(context)
    database.run("UPDATE resolver_copies SET checked_at = now() - interval '3 days'")
    # The same is there, too, on a network that is slow; it was asked about later.
    slow = Memory()

    def status(name: str, cid: str) -> Status:
        time.sleep(1.5)
        return Status("there")

    monkeypatch.setattr(slow, "status", status)
    context.resolvers.own["a slow one"] = slow
    database.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid, checked_at)"
        " SELECT digest, 'a slow one', size, state, cid, now() - interval '2 days'"
        " FROM resolver_copies"
    )
    perform(context, resolving.check)
    unchecked = database.run(
        "SELECT DISTINCT resolver FROM resolver_copies WHERE checked_at < now() - interval '1 day'"
    )
    assert unchecked == [["a slow one"]]


def test_what_some_nodes_of_a_network_lack_is_put_there(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="lacking")
    push_image(client, "a/b", image)
    work(context)
    memory.lacking.update(memory.kept)
    puts = len(memory.puts)
    database.run("UPDATE resolver_copies SET checked_at = now() - interval '2 days'")
    perform(context, resolving.check)
    assert memory.lacking == set()
    assert len(memory.puts) == puts
    assert set(states(database).values()) == {"there"}
    assert errors(database) == []


def test_what_nobody_noticed_is_mended(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    """Jobs that were dropped, rows that are not there, and wishes that ended in silence."""
    images = [make_image([10], seed=f"mend{number}") for number in range(3)]
    for image in images:
        push_image(client, "a/b", image)
    work(context, IMAGE)
    database.run("DELETE FROM jobs")
    perform(context, resolving.catch_up)
    work(context)
    assert memory.kept == {}
    database.run("UPDATE resolver_copies SET changed_at = now() - interval '1 hour'")
    database.run(
        "DELETE FROM resolver_copies WHERE digest = :digest",
        digest=digests.pack(images[0].manifest.digest),
    )
    perform(context, resolving.catch_up)
    work(context)
    assert kept(memory, *images) == content_of(*images)
    database.run("UPDATE repositories SET public = false")
    database.run("UPDATE resolver_copies SET checked_at = now() - interval '2 days'")
    perform(context, resolving.check)
    let_go(context)
    assert (memory.kept, states(database)) == ({}, {})


def test_a_repository_is_looked_through_in_several_jobs(
    context: Context,
    client: CoreClient,
    database: Database,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "_BATCH", 2)
    database.run("DELETE FROM resolver_choices")
    images = [make_image([10], seed=f"fill{number}") for number in range(5)]
    for image in images:
        push_image(client, "a/b", image)
    work(context)
    assert left(database) == []
    database.run("UPDATE repositories SET resolvers = '{memory}'")
    assert resolver_progress.outstanding(database) == 1
    work(context)
    assert kept(memory, *images) == content_of(*images)
    [total] = resolver_progress.totals(database)
    assert total[:3] == ("memory", "there", 15)
    assert total.size == sum(
        len(each.data) for image in images for each in (*image.blobs, image.manifest)
    )
