"""What is pushed where a network was chosen comes there, once; and goes when nobody wants it."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import Job, resolving
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blocks, jobs, repositories, resolver_copies, resolver_progress
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.resolver_copies import DERIVE, IMAGE, PUT, UNPIN, Task
from chalicelib.resolvers import Status
from chalicelib.resolvers.unixfs import Cid
from tests.client import CoreClient, push_blob, push_image, push_manifest, sha512
from tests.hosts.wire import until
from tests.images import MANIFEST, Content, Image, make_image, make_index
from tests.resolvers.memory import Memory

RESOLVING = [kind for kind in KINDS if kind.name.startswith("resolve") and kind.every is None]
"""What is done once it is written."""


@pytest.fixture
def context(jobs_context: Context) -> Context:
    """New repositories are public, and there is no grace."""
    settings = replace(jobs_context.settings, new_repositories="public", grace=0)
    return replace(jobs_context, settings=settings)


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


def work(context: Context, *kinds: str) -> None:
    """Do the jobs of these kinds that are due; of all that were written where none is named."""
    Worker(context, [k for k in RESOLVING if not kinds or k.name in kinds]).drain()


def perform(context: Context, function: Callable[[Context, Job], object]) -> None:
    """Do what recurs."""
    function(context, Job(0, "test", "", {}, 1, 1))


def hurry(database: Database) -> None:
    """Let what was put off be due."""
    database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")


def states(database: Database) -> dict[str, str]:
    """The state of each copy, by digest."""
    rows = database.run("SELECT digest, state FROM resolver_copies")
    return {digests.unpack(digest): state for digest, state in rows}


def errors(database: Database) -> list[str]:
    return [error for (error,) in database.run("SELECT error FROM resolver_copies") if error]


def left(database: Database) -> list[tuple[str, str]]:
    """(kind, state) of the jobs that put copies and take them away."""
    found = jobs.page(database, 0, 1000)
    return [(entry.kind, entry.state) for entry in found if entry.kind in (IMAGE, PUT, UNPIN)]


def content_of(*images: Image) -> set[str]:
    return {each.digest for image in images for each in (*image.blobs, image.manifest)}


def kept(memory: Memory, *images: Image) -> set[str]:
    """What the network has of these."""
    return memory.digests() & content_of(*images)


def delete(client: CoreClient, repository: str, digest: str) -> None:
    answer = client.request("DELETE", f"/v2/{repository}/manifests/{digest}")
    assert answer.status == 202, answer


def let_go(context: Context) -> None:
    """Judge what is doubted, and tell the network."""
    perform(context, resolving.release)
    work(context, UNPIN)


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
