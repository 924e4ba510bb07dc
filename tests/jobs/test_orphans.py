"""The sweep: what no row knows goes, and nothing else, whatever has happened to the database."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.jobs import GiveUp, orphans
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.orphans import Overtaken, Sweep, limit, markers
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs, uploads
from chalicelib.metadata import orphans as rows
from chalicelib.metadata.database import Database
from chalicelib.storage import StorageError, new_key
from tests.client import CoreClient, HTTPClient, begin, push_blob, sha256, with_query
from tests.contract.stores import (
    PART,
    Kept,
    content,
    kept,
    kept_in_filesystem,
    kept_in_s3,
    s3,
    s3_stores,
)
from tests.servers import OPENREGISTRY, Postgres, Registry

__all__ = ["kept", "kept_in_filesystem", "kept_in_s3", "s3", "s3_stores"]

REPOSITORY = "library/swept"
in_a_folder = pytest.mark.parametrize("kept", ["filesystem"], indirect=True)
"""For what no store can make different."""


@pytest.fixture
def context(jobs_context: Context, kept: Kept) -> Context:
    """The functions over an empty database and each kind of store, empty."""
    return replace(jobs_context, store=kept.store)


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


def sweep(context: Context, *, dry_run: bool = False, force: bool = False) -> Sweep:
    return orphans.run(context, dry_run=dry_run, force=force)


def add_orphan(context: Context, size: int = 10) -> str:
    """An object of a key that no row knows."""
    key = new_key()
    writer = context.store.writer(None, key, lambda _: 1)
    writer.write([content(size)])
    context.store.complete(writer.close(final=True))
    return key


def add_remnant(context: Context) -> str:
    """What a killed process staged."""
    key = new_key()
    context.store.writer(None, key, lambda _: 1).write([content(2 * PART)])
    return key


def push_blobs(client: CoreClient, count: int = 8) -> list[str]:
    """Blobs enough for a few orphans to be few."""
    return [push_blob(client, REPOSITORY, content(100, seed)) for seed in range(count)]


def age(database: Database, days: float) -> None:
    """Let time pass for what is suspected."""
    database.run(
        "UPDATE suspects SET first_seen_at = first_seen_at"
        " - CAST(:days AS double precision) * interval '1 day'",
        days=days,
    )


def readable(client: CoreClient, digests: list[str]) -> bool:
    answers = [
        client.request("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}").status for digest in digests
    ]
    stored = {key for key, _, _ in client.context.store.list()}
    copies = client.context.database.run("SELECT key FROM blob_copies")
    return {*answers} <= {200, 307} and {key for (key,) in copies} <= stored


def objects(context: Context) -> set[str]:
    """Keys of the store, but for markers."""
    return {key for key, _, _ in context.store.list() if not key.startswith("openregistry-")}


def test_an_orphan_goes_a_week_after_it_was_seen(
    context: Context, client: CoreClient, database: Database
) -> None:
    digests = push_blobs(client)
    orphan = add_orphan(context, 1000)
    first = sweep(context)
    assert (first.objects, first.size, first.new, first.deleted) == (9, 1800, 1, 0)
    age(database, 6.9)
    assert sweep(context).report() == {
        "sweep": 2,
        "dry_run": False,
        "objects": 9,
        "bytes": 1800,
        "staged": 0,
        "known": 8,
        "suspects": {"new": 0, "waiting": 1, "due": 0},
        "due_bytes": 0,
        "deleted": 0,
        "freed_bytes": 0,
    }
    assert orphan in objects(context)
    age(database, 0.2)
    last = sweep(context)
    assert (last.due, last.due_size, last.deleted, last.freed) == (1, 1000, 1, 1000)
    assert orphan not in objects(context)
    assert readable(client, digests)
    assert database.run("SELECT FROM suspects") == []


def test_what_was_left_staged_goes_too(
    context: Context, client: CoreClient, database: Database, kept: Kept
) -> None:
    push_blobs(client)
    before = kept.names()
    add_remnant(context)
    add_remnant(context)
    first = sweep(context)
    assert (first.staged, first.new) == (2, 2)
    age(database, 8)
    assert sweep(context).deleted == 2
    assert [name for name in kept.names() if not name.startswith("openregistry-")] == before


def test_a_dry_run_changes_nothing(
    context: Context, client: CoreClient, database: Database, kept: Kept
) -> None:
    push_blobs(client)
    add_orphan(context)
    names = kept.names()
    assert sweep(context, dry_run=True).new == 1
    assert kept.names() == names
    assert database.run("SELECT FROM suspects UNION ALL SELECT FROM sweep_marker") == []

    sweep(context)
    age(database, 8)
    names, state = kept.names(), database.run("SELECT * FROM suspects, sweep_marker")
    found = sweep(context, dry_run=True)
    assert (found.due, found.due_size, found.deleted, found.number) == (1, 10, 0, 0)
    assert kept.names() == names
    assert database.run("SELECT * FROM suspects, sweep_marker") == state


def test_an_open_upload_is_known(
    context: Context, client: CoreClient, database: Database, kept: Kept
) -> None:
    """In every state, until its row is gone."""
    push_blobs(client)
    location = begin(client, REPOSITORY)
    answer = client.request("PATCH", location, content(PART + 100))
    assert answer.status == 202
    cancelled = begin(client, REPOSITORY)
    assert client.request("PATCH", cancelled, content(100)).status == 202
    database.run("UPDATE uploads SET state = 'cancelled' WHERE received = 100")
    for _ in range(2):
        assert sweep(context).unknown == 0
        age(database, 100)
    digest = sha256(content(PART + 100))
    assert client.request("PUT", with_query(answer.location, digest=digest)).status == 201
    assert readable(client, [digest])


def test_an_upload_that_begins_while_the_list_is_taken(
    context: Context, client: CoreClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed between the list and the question, it is no suspect."""
    push_blobs(client)
    sweep(context)
    location = client.request("PATCH", begin(client, REPOSITORY), content(500, 99)).location
    digest = sha256(content(500, 99))
    ask = rows.unknown

    def unknown(*arguments: object) -> object:
        if database.run("SELECT FROM uploads WHERE state = 'open'"):
            assert client.request("PUT", with_query(location, digest=digest)).status == 201
            # Its row may be gone too, as long as the copy has one.
            database.run("DELETE FROM uploads")
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "unknown", unknown)
    found = sweep(context)
    assert (found.objects, found.unknown) == (9, 0)
    assert readable(client, [digest])


@in_a_folder
def test_what_waits_to_be_deleted_is_known(
    context: Context, client: CoreClient, database: Database
) -> None:
    push_blobs(client)
    key = add_orphan(context)
    database.run(
        "INSERT INTO doomed_objects (store, key, size) VALUES (:store, :key, 10)",
        store=context.store.name,
        key=key,
    )
    assert sweep(context).unknown == 0


@in_a_folder
def test_a_key_that_a_row_knows_after_all(
    context: Context, client: CoreClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be; should it be, the last question finds it, and so does the next sweep."""
    push_blobs(client)
    key = add_orphan(context)
    sweep(context)
    age(database, 8)
    condemn = rows.condemn

    def know() -> None:
        uploads.create(database, "00000000-0000-4000-8000-000000000000", REPOSITORY, "sha256", 9)
        database.run(
            "INSERT INTO upload_keys (key, upload_id) SELECT :key, id FROM uploads"
            " WHERE id = CAST('00000000-0000-4000-8000-000000000000' AS uuid)",
            key=key,
        )

    def late(*arguments: object) -> object:
        if not database.run("SELECT FROM upload_keys WHERE key = :key", key=key):
            know()
        return condemn(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "condemn", late)
    found = sweep(context)
    assert (found.due, found.deleted) == (1, 0)
    assert key in objects(context)
    assert sweep(context).unknown == 0


@in_a_folder
def test_suspects_that_are_gone_or_known_are_forgotten(
    context: Context, client: CoreClient, database: Database
) -> None:
    push_blobs(client)
    gone, stays = add_orphan(context), add_orphan(context)
    sweep(context)
    context.store.discard(gone)
    sweep(context)
    assert database.run("SELECT key FROM suspects") == [[stays]]


def test_objects_of_others_are_left_alone(
    context: Context, client: CoreClient, database: Database
) -> None:
    push_blobs(client)
    others = ["backup-2026-11-26", "index", "DEADBEEF" * 4, "ab" * 20, "openregistry-notes"]
    for key in others:
        writer = context.store.writer(None, key, lambda _: 1)
        writer.write([b"somebody else's"])
        context.store.complete(writer.close(final=True))
    for _ in range(2):
        found = sweep(context)
        assert (found.objects, found.unknown) == (8, 0)
        age(database, 100)
    assert {*others} <= {key for key, _, _ in context.store.list()}


def test_one_marker_names_the_database(context: Context, client: CoreClient) -> None:
    assert sweep(context).objects == 0
    assert markers(context.store) == []  # there is nothing to be guarded
    push_blobs(client)
    for number in (1, 2, 3):
        sweep(context)
        [marker] = markers(context.store)
        assert marker == rows.find_marker(context.database)
        assert marker.number == number


def test_an_emptied_database(context: Context, client: CoreClient, database: Database) -> None:
    """It knows its id, and no objects."""
    push_blobs(client)
    sweep(context)
    stored = objects(context)
    for table in ("repository_blobs", "blob_copies", "blobs", "upload_keys", "uploads"):
        database.run(f"DELETE FROM {table}")
    for _ in range(2):
        with pytest.raises(GiveUp, match=r"No row knows 8 of 8 objects .* no more than 4"):
            sweep(context)
        age(database, 100)
    assert objects(context) == stored
    assert sweep(context, force=True).deleted == 8


@in_a_folder
def test_an_empty_database_and_a_store_without_a_marker(
    context: Context, database: Database
) -> None:
    for _ in range(3):
        add_orphan(context)
    for dry_run in (False, True):
        with pytest.raises(GiveUp, match="No row knows 3 of 3 objects"):
            sweep(context, dry_run=dry_run)
    assert markers(context.store) == []
    assert database.run("SELECT FROM suspects UNION ALL SELECT FROM sweep_marker") == []
    # Forced it is marked; what is there is suspected from now on.
    assert sweep(context, force=True).deleted == 0
    assert len(markers(context.store)) == 1
    age(database, 8)
    with pytest.raises(GiveUp):
        sweep(context)
    assert sweep(context, force=True).deleted == 3


def test_another_registrys_store(
    context: Context, client: CoreClient, database: Database, other_database: Database
) -> None:
    digests = push_blobs(client)
    sweep(context)
    [marker] = markers(context.store)
    other = replace(context, database=other_database)
    for force in (False, True):
        for dry_run in (False, True):
            with pytest.raises(GiveUp, match=f"another database, {marker.database}"):
                sweep(other, force=force, dry_run=dry_run)
    assert other_database.run("SELECT FROM suspects UNION ALL SELECT FROM sweep_marker") == []
    # Nor once that one has an id too.
    other_database.run("INSERT INTO sweep_marker (number) VALUES (1000)")
    with pytest.raises(GiveUp, match="Nothing was deleted"):
        sweep(other, force=True)
    assert readable(client, digests)
    assert markers(context.store) == [marker]
    # It is handed over by hand, and then too much is unknown.
    context.store.discard(orphans.marker_key(marker))
    with pytest.raises(GiveUp, match="No row knows 8 of 8"):
        sweep(other)


def test_two_registries_that_mark_at_once(
    context: Context,
    client: CoreClient,
    other_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push_blobs(client)
    other_database.run("INSERT INTO sweep_marker (number) VALUES (5)")
    theirs = rows.find_marker(other_database)
    assert theirs
    mark = orphans._mark

    def both(store: object, marker: rows.Marker) -> None:
        mark(context.store, theirs)
        mark(context.store, marker)

    monkeypatch.setattr(orphans, "_mark", both)
    with pytest.raises(GiveUp, match="another database"):
        sweep(context)
    assert context.database.run("SELECT FROM suspects") == []


def test_a_restored_database(
    context: Context,
    client: CoreClient,
    database: Database,
    dumped: Callable[[], Callable[[], Database]],
) -> None:
    digests = push_blobs(client, 20)
    suspected = add_orphan(context)
    sweep(context)
    restore = dumped()
    pushed_since = push_blob(client, REPOSITORY, b"after the backup")
    sweep(context)

    restored = replace(context, database=restore())
    for dry_run in (False, True):
        with pytest.raises(GiveUp, match=r"restored from a backup: it has made 1 .* store 2"):
            sweep(restored, dry_run=dry_run)
    age(restored.database, 100)
    with pytest.raises(GiveUp, match="restored"):
        sweep(restored)
    assert readable(client, [*digests, pushed_since])
    assert suspected in objects(context)

    # Forced, it goes on, and suspects everything anew.
    found = sweep(restored, force=True)
    assert (found.number, found.new, found.deleted) == (3, 2, 0)
    assert sweep(restored).deleted == 0
    assert readable(client, [*digests, pushed_since])
    # The database that it was restored from is now the one that is behind.
    with pytest.raises(GiveUp, match="restored"):
        sweep(context)


@in_a_folder
def test_a_database_that_is_restored_in_the_middle(context: Context, client: CoreClient) -> None:
    push_blobs(client)
    found = Sweep()
    while not found.number or found.stage != orphans.DELETE:
        orphans.proceed(context, found, 0)
    context.database.run("UPDATE sweep_marker SET number = number - 1")
    with pytest.raises(GiveUp, match="restored"):
        orphans.proceed(context, found, 0)


def test_a_marker_that_vanishes_in_the_middle(context: Context, client: CoreClient) -> None:
    """As when the volume is no longer mounted."""
    push_blobs(client)
    found = Sweep()
    while not found.number:
        orphans.proceed(context, found, 0)
    [marker] = markers(context.store)
    context.store.discard(orphans.marker_key(marker))
    with pytest.raises(GiveUp, match="has gone"):
        orphans.proceed(context, found, 0)


@in_a_folder
@pytest.mark.parametrize("orphaned", [4, 5])
def test_the_bound(context: Context, client: CoreClient, database: Database, orphaned: int) -> None:
    push_blobs(client, 4)
    sweep(context)
    keys = {add_orphan(context) for _ in range(orphaned)}
    if orphaned == 4:
        sweep(context)
        age(database, 8)
        assert sweep(context).deleted == 4
    else:
        for _ in range(2):
            with pytest.raises(GiveUp, match="No row knows 5 of 9 objects"):
                sweep(context)
            age(database, 8)
        assert keys <= objects(context)
        assert sweep(context, force=True).deleted == 5


def test_limit() -> None:
    known = [(0, 0), (1, 0), (2, 1), (9, 4), (200, 100), (1000, 100), (1010, 101), (10**6, 10**5)]
    assert [(seen, limit(seen)) for seen, _ in known] == known


def test_a_crash_between_two_markers(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is there first; the highest counts, and the next sweep clears them away."""
    push_blobs(client)
    sweep(context)
    discard = context.store.discard

    def die(key: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(context.store, "discard", die)
    with pytest.raises(KeyboardInterrupt):
        sweep(context)
    monkeypatch.setattr(context.store, "discard", discard)
    assert sorted(marker.number for marker in markers(context.store)) == [1, 2]
    sweep(context)
    assert [marker.number for marker in markers(context.store)] == [3]


@in_a_folder
def test_a_crash_before_the_marker(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_blobs(client)
    sweep(context)
    with monkeypatch.context() as patch:
        patch.setattr(orphans, "_mark", _fail)
        with pytest.raises(StorageError):
            sweep(context)
    assert sweep(context).number == 3
    assert [marker.number for marker in markers(context.store)] == [3]


def _fail(*_: object) -> None:
    raise StorageError("The store is down.")


def test_a_crash_between_the_rows_and_the_objects(
    context: Context, client: CoreClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is seen as if for the first time, and goes a week later."""
    push_blobs(client)
    orphan = add_orphan(context)
    sweep(context)
    age(database, 8)
    with monkeypatch.context() as patch:
        patch.setattr(orphans, "_discarding", lambda _: _fail)
        with pytest.raises(StorageError):
            sweep(context)
    assert database.run("SELECT FROM suspects") == []
    found = sweep(context)
    assert (found.new, found.deleted) == (1, 0)
    age(database, 8)
    assert sweep(context).deleted == 1
    assert orphan not in objects(context)


def test_slice_by_slice(
    context: Context, client: CoreClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker was told by the job before is enough to go on with."""
    monkeypatch.setattr(orphans, "BATCH", 3)
    monkeypatch.setattr(orphans, "_DELETED_AT_ONCE", 2)
    monkeypatch.setattr(orphans, "SLICE_SECONDS", 0)
    digests = push_blobs(client, 10)
    keys = {add_orphan(context) for _ in range(5)} | {add_remnant(context) for _ in range(2)}
    for _ in range(2):
        jobs.add(database, orphans.KIND, {})
        worker = Worker(context, [kind for kind in KINDS if kind.name == orphans.KIND])
        assert worker.drain() > 6
        assert jobs.page(database, 0, 10) == []
        age(database, 8)
    assert not keys & objects(context)
    assert list(context.store.list_staged()) == []
    assert readable(client, digests)


def test_two_sweeps_at_once(
    context: Context, client: CoreClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one goes on. What both would delete is deleted once."""
    monkeypatch.setattr(orphans, "_DELETED_AT_ONCE", 1)
    digests = push_blobs(client, 20)
    for _ in range(10):
        add_orphan(context)
    sweep(context)
    age(database, 8)
    done: list[Sweep] = []
    overtaken: list[Overtaken] = []
    barrier = threading.Barrier(3)

    def run() -> None:
        found = Sweep()
        barrier.wait()
        try:
            while found.stage != orphans.DONE:
                orphans.proceed(context, found, 0)
        except Overtaken as error:
            overtaken.append(error)
        else:
            done.append(found)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done
    assert len(done) + len(overtaken) == 3
    assert len(objects(context)) == 20
    assert readable(client, digests)
    [marker] = markers(context.store)
    assert marker == rows.find_marker(database)


@in_a_folder
def test_an_older_sweep_deletes_nothing_more(
    context: Context, client: CoreClient, database: Database
) -> None:
    push_blobs(client)
    add_orphan(context)
    sweep(context)
    age(database, 8)
    older = Sweep()
    while older.stage != orphans.DELETE:
        orphans.proceed(context, older, 0)
    newer = Sweep()
    orphans.proceed(context, newer, 0)
    name = context.store.name
    assert rows.condemn(database, name, older.number, "", 10, orphans.AGE) == []
    with pytest.raises(Overtaken, match="sweep 3 has begun"):
        orphans.proceed(context, older, 0)


@in_a_folder
def test_an_older_sweep_takes_nothing_from_a_newer(
    context: Context, client: CoreClient, database: Database
) -> None:
    """It may still be looking at what the newer one has seen."""
    push_blobs(client)
    orphan = add_orphan(context)
    older = sweep(context)
    age(database, 8)
    newer = Sweep()
    while newer.stage != orphans.STAGED:
        orphans.proceed(context, newer, 0)
    rows.suspect(database, context.store.name, {orphan: 1}, older.number)
    while newer.stage != orphans.DONE:
        orphans.proceed(context, newer, 0)
    assert newer.deleted == 1
    assert orphan not in objects(context)


@in_a_folder
def test_a_refusal_is_seen_among_the_jobs(context: Context, database: Database) -> None:
    for _ in range(3):
        add_orphan(context)
    jobs.add(database, orphans.KIND, {})
    Worker(context, [kind for kind in KINDS if kind.name == orphans.KIND]).drain()
    dead = jobs.page(database, 0, 10, state="dead")
    assert dead
    assert all(entry.error.startswith("No row knows 3 of 3 objects") for entry in dead)


@pytest.mark.long
def test_beside_a_running_registry(
    serve: Callable[..., Registry], postgres: Postgres, tmp_path: Path
) -> None:
    """As an operator types it."""
    blobs = (tmp_path / "blobs").as_uri()
    registry = serve(OPENREGISTRY_STORAGE_URL=blobs, OPENREGISTRY_WORK="false")
    client = HTTPClient(registry.host)
    for seed in range(4):
        push_blob(client, REPOSITORY, content(100, seed))

    def run(*options: str) -> "subprocess.CompletedProcess[str]":
        others = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
        return subprocess.run(
            [OPENREGISTRY, "sweep", *options],
            env={**others, **registry.settings},
            capture_output=True,
            text=True,
            timeout=60,
        )

    key = "0123456789abcdef" * 2
    orphan = tmp_path / "blobs" / key[:2] / key
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"nobody's")
    assert json.loads(run("--json").stdout)["suspects"] == {"new": 1, "waiting": 0, "due": 0}
    name = urlsplit(registry.settings["OPENREGISTRY_DATABASE_URL"]).path[1:]
    postgres.query("UPDATE suspects SET first_seen_at = now() - interval '8 days'", name)
    done = run("--dry-run")
    assert "a sweep would delete 1, 8 bytes" in done.stdout
    assert orphan.exists()
    assert "deleted: 1, 8 bytes" in run().stdout
    assert not orphan.exists()

    postgres.query("UPDATE sweep_marker SET number = 0", name)
    done = run("--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("openregistry: The database was restored from a backup")
    assert run("--force").returncode == 0


@pytest.fixture
def other_database(core_settings: object, postgres: Postgres) -> Iterator[Database]:
    """Another registry's."""
    with postgres.migrated_database() as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def dumped(
    jobs_context: Context, postgres: Postgres, tmp_path: Path
) -> Iterator[Callable[[], Callable[[], Database]]]:
    """Dump the database; gives what restores it, as another."""
    programs = postgres._server.bin_path
    opened: list[Database] = []

    def dump() -> Callable[[], Database]:
        file = tmp_path / "dump"
        url = jobs_context.settings.database_url
        subprocess.run([programs / "pg_dump", "-Fc", "-f", file, url], check=True)

        def restore() -> Database:
            url = postgres.new_database()
            subprocess.run([programs / "pg_restore", "-d", url, file], check=True)
            opened.append(build_context(replace(jobs_context.settings, database_url=url)).database)
            return opened[-1]

        return restore

    yield dump
    for database in opened:
        database.close()
