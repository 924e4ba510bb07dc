"""What is pushed where a network was chosen comes there, once; and goes when nobody wants it."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import Job, resolving
from chalicelib.metadata import blocks, jobs, repositories, resolver_copies
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.resolver_copies import DERIVE, IMAGE, PUT, UNPIN, Task
from chalicelib.resolvers.unixfs import Cid
from tests.client import CoreClient, push_blob, push_image, push_manifest, sha512
from tests.hosts.wire import until
from tests.images import MANIFEST, Content, Image, make_image, make_index
from tests.resolvers.copies import (
    client,
    content_of,
    context,
    delete,
    kept,
    left,
    let_go,
    perform,
    states,
    work,
)
from tests.resolvers.memory import Memory

__all__ = ["client", "context"]


def test_what_is_pushed_is_put(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([100, 2000], seed="put")
    push_image(client, "a/b", image, "latest")
    work(context)
    assert kept(memory, image) == content_of(image)
    assert states(database) == dict.fromkeys(content_of(image), "there")
    for copy in resolver_copies.there(database, [digests.pack(image.layers[0].digest)]):
        cid = Cid()
        cid.update(image.layers[0].data)
        assert copy.cid == cid.finish()
    # Another image with the same layers brings its manifest alone.
    before = len(memory.puts)
    other = Content(MANIFEST, image.manifest.data + b"\n")
    push_manifest(client, "a/b", other, "other")
    work(context)
    assert {name for name in memory.puts[before:] if "." not in name} == {other.digest}


def test_workers_that_sleep_are_woken(context: Context, database: Database, memory: Memory) -> None:
    woken: list[bool] = []
    client = CoreClient(replace(context, wake=lambda: woken.append(True)))
    push_image(client, "a/b", make_image([10], seed="wake"))
    assert woken == [True]
    database.run("DELETE FROM resolver_choices")
    push_image(client, "c/d", make_image([10], seed="sleep"))
    assert woken == [True]


def test_private_images_stay_here_unless_somebody_insists(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    images = [make_image([10], seed=name) for name in ("private", "insisted", "encrypted")]
    for image in images:
        push_image(client, "a/b", image)
    database.run("UPDATE repositories SET public = false")
    work(context)
    assert (memory.kept, states(database)) == ({}, {})
    database.run(
        "UPDATE manifests SET encrypted = true WHERE digest = :digest",
        digest=digests.pack(images[2].manifest.digest),
    )
    resolver_copies.fill(database)
    work(context)
    assert kept(memory, *images) == content_of(images[2])
    database.run("UPDATE repositories SET insisted = true")
    resolver_copies.fill(database)
    work(context)
    assert kept(memory, *images) == content_of(*images)


def test_what_may_not_be_there_any_more_goes_at_once(
    jobs_context: Context, context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="hidden")
    push_image(client, "a/b", image)
    work(context)
    database.run("UPDATE repositories SET public = false")
    resolver_copies.fill(
        database, [number for (number,) in database.run("SELECT id FROM repositories")]
    )
    work(jobs_context)
    assert (memory.kept, states(database)) == ({}, {})
    database.run("UPDATE repositories SET public = true")
    resolver_copies.fill(database)
    work(jobs_context)
    assert kept(memory, image) == content_of(image)
    database.run("UPDATE repositories SET resolvers = '{}'")
    resolver_copies.fill(
        database, [number for (number,) in database.run("SELECT id FROM repositories")]
    )
    work(jobs_context)
    assert (memory.kept, states(database), left(database)) == ({}, {}, [])


def test_it_goes_when_nobody_of_any_account_wants_it(
    jobs_context: Context, context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="shared")
    other = Image(Content(MANIFEST, image.manifest.data + b"\n"), image.config, image.layers, {})
    push_image(client, "a/b", image)
    push_image(client, "c/d", other)
    work(context)
    delete(client, "a/b", image.manifest.digest)
    # The grace of a day.
    let_go(jobs_context)
    assert kept(memory, image, other) == content_of(image, other)
    let_go(context)
    assert kept(memory, image, other) == content_of(other)
    assert set(states(database)) == content_of(other)
    # Those that others want are not judged again and again.
    assert database.run("SELECT FROM resolver_copies WHERE doubted_since IS NOT NULL") == []
    delete(client, "c/d", other.manifest.digest)
    let_go(context)
    assert (memory.kept, states(database)) == ({}, {})


def test_a_repository_that_is_deleted_leaves_nothing_there(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    push_image(client, "a/b", make_image([10], seed="deleted"))
    work(context)
    [[number]] = database.run("SELECT id FROM repositories")
    database.transaction(lambda transaction: repositories.delete(transaction, number, "a/b"))
    let_go(context)
    assert (memory.kept, states(database)) == ({}, {})


def test_what_is_blocked_goes_at_once_and_comes_back(
    jobs_context: Context, context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10, 20], seed="blocked")
    push_image(client, "a/b", image)
    work(context)
    digest = digests.pack(image.layers[0].digest)
    blocks.add(database, digest, "malware", public=False, by="test")
    let_go(jobs_context)
    assert kept(memory, image) == content_of(image) - {image.layers[0].digest}
    database.run("DELETE FROM blocked_digests")
    work(jobs_context)
    assert kept(memory, image) == content_of(image)


@pytest.mark.parametrize("stage", ["doubted", "leaving", "gone"])
def test_a_put_that_ends_too_late_is_taken_back(
    context: Context, client: CoreClient, database: Database, memory: Memory, stage: str
) -> None:
    """Nobody wants it any more when the network has it: however far that has come."""
    image = make_image([10], seed=stage)
    push_image(client, "a/b", image)
    work(context, IMAGE)
    once = threading.Lock()

    def vanish(name: str) -> None:
        if not once.acquire(blocking=False):
            return
        delete(client, "a/b", image.manifest.digest)
        if stage != "doubted":
            perform(context, resolving.release)
        if stage == "gone":
            for _ in until(30):
                work(context, UNPIN)
                if not states(database):
                    break

    memory.before = vanish
    work(context)
    let_go(context)
    assert (memory.kept, states(database), left(database)) == ({}, {}, [])


def test_what_is_put_while_it_is_taken_away_is_taken_away_too(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    """Who takes it away has looked at the row before the other's put has ended."""
    image = make_image([], seed="meanwhile")
    push_image(client, "a/b", image)
    work(context, IMAGE)
    ends: list[Callable[[Transaction], None]] = []

    def vanish(name: str) -> None:
        if name == image.config.digest:
            delete(client, "a/b", image.manifest.digest)
            perform(context, resolving.release)
            [entry] = [
                entry
                for entry in jobs.page(database, 0, 1000, kind=UNPIN)
                if entry.data["digest"] == digests.pack(name).hex()
            ]
            later = resolving.unpin(context, Job(entry.id, UNPIN, "", entry.data, 1, 1))
            assert later is not None
            ends.append(later)

    memory.before = vanish
    work(context, PUT)
    [end] = ends
    database.transaction(end)
    assert states(database)[image.config.digest] == "leaving"
    work(context)
    assert (memory.kept, states(database)) == ({}, {})


def test_what_is_not_wanted_any_more_is_not_put(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    push_image(client, "a/b", make_image([10], seed="unwanted"))
    work(context, IMAGE)
    database.run("UPDATE repositories SET public = false")
    database.run("DELETE FROM jobs WHERE kind = :kind", kind=resolver_copies.FILL)
    work(context, PUT)
    assert memory.puts == []
    work(context)
    assert (states(database), left(database)) == ({}, [])


def test_a_put_that_another_has_let_go_of_meanwhile_ends(
    context: Context,
    client: CoreClient,
    database: Database,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = make_image([10], seed="let go")
    push_image(client, "a/b", image)
    work(context, IMAGE)
    delete(client, "a/b", image.manifest.digest)
    find = resolver_copies.find

    def late(database: Database, digest: bytes, name: str, store: str) -> Task | None:
        found = find(database, digest, name, store)
        perform(context, resolving.release)
        return found

    monkeypatch.setattr(resolver_copies, "find", late)
    work(context, PUT)
    assert left(database) == [(UNPIN, "waiting")] * 3
    assert memory.puts == []


def test_what_is_pushed_again_while_it_leaves_is_there_in_the_end(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="again")
    push_image(client, "a/b", image)
    work(context)
    delete(client, "a/b", image.manifest.digest)
    perform(context, resolving.release)
    assert set(states(database).values()) == {"leaving"}
    push_image(client, "a/b", image)
    work(context, IMAGE)
    work(context)
    assert kept(memory, image) == content_of(image)
    assert set(states(database).values()) == {"there"}
    assert left(database) == []


def test_who_comes_to_want_it_waits_for_who_judges(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    """Else one would leave the row to the other, which deletes it."""
    image = make_image([10], seed="race")
    push_image(client, "a/b", image)
    work(context)
    delete(client, "a/b", image.manifest.digest)
    perform(context, resolving.release)
    digest = digests.pack(image.manifest.digest)
    held, pushed = threading.Event(), threading.Event()

    def end(transaction: Transaction) -> None:
        resolver_copies.lock(transaction, digest, "memory")
        held.set()
        pushed.wait(30)
        resolver_copies.end(transaction, digest, "memory")

    ending = threading.Thread(target=database.transaction, args=[end])
    ending.start()
    held.wait(30)
    push_image(client, "a/b", image)
    wanting = threading.Thread(target=work, args=[context, IMAGE])
    wanting.start()
    wanting.join(0.3)
    assert wanting.is_alive()
    pushed.set()
    ending.join()
    wanting.join()
    work(context)
    assert kept(memory, image) == content_of(image)


def test_two_digests_of_one_content_share_what_is_there(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="twice")
    layer = image.layers[0]
    document = json.loads(image.manifest.data)
    document["layers"][0]["digest"] = sha512(layer.data)
    push_blob(client, "a/b", layer.data, sha512(layer.data))
    push_image(client, "a/b", image)
    other = Content(MANIFEST, json.dumps(document).encode())
    push_manifest(client, "a/b", other)
    work(context)
    [[cid]] = database.run("SELECT cid FROM resolver_copies GROUP BY 1 HAVING count(*) = 2")
    delete(client, "a/b", image.manifest.digest)
    let_go(context)
    assert layer.digest not in states(database)
    assert cid in memory.kept
    delete(client, "a/b", other.digest)
    let_go(context)
    assert memory.kept == {}


# Which images are whole.


def derivations(database: Database) -> list[str]:
    """The manifests of which images are to be derived."""
    rows = database.run(
        "SELECT data ->> 'digest' FROM jobs WHERE kind = :kind ORDER BY id", kind=DERIVE
    )
    return [digests.unpack(bytes.fromhex(text)) for (text,) in rows]


def pretend_derived(database: Database, image: Content) -> None:
    digest = digests.pack(image.digest)
    database.run("DELETE FROM jobs WHERE kind = :kind", kind=DERIVE)
    assert resolver_copies.record_derived(database, digest, "memory", "derived", "root")
    resolver_copies.complete(database, "memory", [digest])


def test_each_image_is_derived_once_when_all_of_it_is_there(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    images = [make_image([10, 20, 30], seed=f"whole{number}") for number in range(12)]
    for image in images:
        push_image(client, "a/b", image)
    # All at once, and the manifest last or first, as it comes.
    work(context, IMAGE, PUT)
    assert sorted(derivations(database)) == sorted(image.manifest.digest for image in images)


def test_an_index_is_derived_after_what_it_holds(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    images = [make_image([10], seed=f"index{number}") for number in range(2)]
    for image in images:
        push_image(client, "a/b", image)
    index = make_index(images)
    push_manifest(client, "a/b", index, "latest")
    work(context, IMAGE, PUT)
    assert set(derivations(database)) == {image.manifest.digest for image in images}
    pretend_derived(database, images[0].manifest)
    assert derivations(database) == []
    pretend_derived(database, images[1].manifest)
    assert derivations(database) == [index.digest]
    pretend_derived(database, index)
    # An image that is another one then makes the index another one too.
    resolver_copies.record_derived(
        database, digests.pack(images[0].manifest.digest), "memory", "other", "other root"
    )
    resolver_copies.complete(database, "memory", [digests.pack(images[0].manifest.digest)])
    assert derivations(database) == [index.digest]


def test_what_the_repository_lacks_is_not_waited_for(
    context: Context, database: Database, memory: Memory
) -> None:
    context = replace(context, settings=replace(context.settings, sparse_manifests=True))
    client = CoreClient(context)
    image, absent = make_image([10, 20], seed="sparse"), make_image([10], seed="absent child")
    for blob in image.blobs[:-1]:
        push_blob(client, "a/b", blob.data)
    assert push_manifest(client, "a/b", image.manifest).status == 201
    index = make_index([image, absent])
    assert push_manifest(client, "a/b", index).status == 201
    work(context, IMAGE, PUT)
    assert derivations(database) == [image.manifest.digest]
    pretend_derived(database, image.manifest)
    assert derivations(database) == [index.digest]
    database.run("DELETE FROM jobs")
    # It comes later.
    push_blob(client, "a/b", image.layers[-1].data)
    perform(context, resolving.catch_up)
    work(context, resolver_copies.FILL, PUT)
    assert kept(memory, image) == content_of(image)
    assert derivations(database) == [image.manifest.digest]


def test_what_is_blocked_is_not_waited_for(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10, 20], seed="blocked layer")
    push_image(client, "a/b", image)
    blocks.add(database, digests.pack(image.layers[0].digest), "no", public=False, by="test")
    work(context, IMAGE, PUT)
    assert kept(memory, image) == content_of(image) - {image.layers[0].digest}
    assert derivations(database) == [image.manifest.digest]


def test_an_image_that_nothing_told_to_be_whole_is_found(
    context: Context, client: CoreClient, database: Database, memory: Memory
) -> None:
    image = make_image([10], seed="found")
    push_image(client, "a/b", image)
    work(context, IMAGE, PUT)
    database.run("DELETE FROM jobs")
    database.run("UPDATE resolver_copies SET complete = false")
    perform(context, resolving.catch_up)
    assert derivations(database) == [image.manifest.digest]
    # And one whose job was dropped.
    database.run("DELETE FROM jobs")
    database.run("UPDATE resolver_copies SET changed_at = now() - interval '1 hour'")
    perform(context, resolving.catch_up)
    assert derivations(database) == [image.manifest.digest]
