"""`openregistry fsck`: what is wrong is found and nothing else, and repairs lose nothing."""

import json
import os
import signal
import subprocess
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.fsck import Finding, Refused, contents, manifests, objects, uploads
from chalicelib.jobs import orphans
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blobs, fsck
from chalicelib.metadata import orphans as orphan_rows
from chalicelib.metadata.database import Database
from chalicelib.storage import ObjectStore, StorageError, new_key
from tests.client import CoreClient, HTTPClient, begin, push_blob, push_image, push_manifest
from tests.contract.stores import content, everything
from tests.fsck.busy import Busy, run_jobs
from tests.images import Content, make_image, make_index
from tests.resolvers.memory import Memory
from tests.servers import OPENREGISTRY, Registry, wait_until

IMAGE = make_image(sizes=(1000, 300_000))
OTHER = make_image(seed=1, architecture="arm64")
NAME = "library/checked"
in_a_folder = pytest.mark.parametrize("kept", ["filesystem"], indirect=True)
"""For what no store can make different."""


def quiet(what: str, done: int, most: int) -> None:
    assert 0 <= done <= most


def found(context: Context, *, repair: bool = False, read: bool = False) -> list[Finding]:
    """All that the command finds."""
    result = [
        *objects.admit(context, repair=repair),
        *objects.compare(context, repair=repair, tell=quiet),
        *objects.compare_staged(context),
        *manifests.check(context, repair=repair, tell=quiet),
        *uploads.check(context, repair=repair),
    ]
    if read:
        pace = contents.Pace(0)
        looked = list(contents.read_all(context, b"", pace, repair=repair))
        assert [blob.digest for blob, _ in looked] == sorted(blob.digest for blob, _ in looked)
        result += [finding for _, finding in looked if finding is not None]
    return result


def kinds(findings: list[Finding]) -> Counter[str]:
    return Counter(each.kind for each in findings)


def push_all(client: CoreClient) -> None:
    push_image(client, NAME, IMAGE, "amd64")
    push_image(client, NAME, OTHER, "arm64")
    assert push_manifest(client, NAME, make_index([IMAGE, OTHER]), "latest").status == 201


def place(context: Context, digest: str) -> blobs.Place:
    row = blobs.copy(context.database, digests.pack(digest), context.store.name)
    assert row is not None
    return row


def put(store: ObjectStore, key: str, data: bytes) -> None:
    """Make an object, behind the registry's back."""
    store.delete([key])
    writer = store.writer(None, key, lambda _: 1)
    writer.write([data])
    store.complete(writer.close(final=True))


def pulled(context: Context, digest: str) -> bytes | int:
    """A blob as it is pulled; or the status of a refusal."""
    answer = CoreClient(replace(context, settings=replace(context.settings, downloads="stream")))
    reply = answer.request("GET", f"/v2/{NAME}/blobs/{digest}")
    return reply.body if reply.status == 200 else reply.status


def test_a_registry_that_is_whole(context: Context, client: CoreClient) -> None:
    push_all(client)
    assert found(context, read=True) == []
    assert found(context, repair=True, read=True) == []


def test_a_lost_blob_is_pushed_again(context: Context, client: CoreClient) -> None:
    push_all(client)
    layer = IMAGE.layers[1]
    lost = place(context, layer.digest)
    context.store.delete([lost.key])
    [finding] = found(context)
    assert (finding.kind, finding.digest, finding.key) == ("lost", layer.digest, lost.key)
    assert NAME in finding.sentence
    assert not place(context, layer.digest).missing  # nothing is changed
    [finding] = found(context, repair=True)
    assert finding.repair
    assert client.request("HEAD", f"/v2/{NAME}/blobs/{layer.digest}").status == 404
    assert kinds(found(context)) == {"lost": 1}
    push_blob(client, NAME, layer.data)
    assert found(context, read=True) == []
    assert pulled(context, layer.digest) == layer.data


def test_a_lost_object_that_is_back(context: Context, client: CoreClient) -> None:
    push_all(client)
    layer = IMAGE.layers[0]
    row = place(context, layer.digest)
    blobs.mark(context.database, digests.pack(layer.digest), context.store.name, row.key, True)
    assert kinds(found(context)) == {"found": 1}
    assert place(context, layer.digest).missing
    assert kinds(found(context, repair=True)) == {"found": 1}
    assert found(context) == []


@pytest.mark.parametrize("length", [10, 2000])
def test_an_object_of_another_size(context: Context, client: CoreClient, length: int) -> None:
    push_all(client)
    layer = IMAGE.layers[0]
    row = place(context, layer.digest)
    put(context.store, row.key, content(length))
    [finding] = found(context)
    assert (finding.kind, finding.key) == ("damaged", row.key)
    check_set_aside(context, client, layer, content(length), read=False)


def test_an_object_with_other_bytes(context: Context, client: CoreClient) -> None:
    """Only reading finds it."""
    push_all(client)
    layer = IMAGE.layers[1]
    row = place(context, layer.digest)
    wrong = layer.data[:-1] + bytes([layer.data[-1] ^ 1])
    put(context.store, row.key, wrong)
    assert found(context) == []
    [finding] = found(context, read=True)
    assert (finding.kind, finding.digest, finding.key) == ("damaged", layer.digest, row.key)
    assert pulled(context, layer.digest) == wrong
    check_set_aside(context, client, layer, wrong, read=True)


def check_set_aside(
    context: Context, client: CoreClient, layer: Content, wrong: bytes, *, read: bool
) -> None:
    """A repair keeps the object for a person to look at, and the blob is pushed again; in a month
    collection deletes the object, and no sweep or upload before."""
    old = place(context, layer.digest)
    [finding] = found(context, repair=True, read=read)
    assert "30 days" in finding.repair
    assert everything(context.store, old.key) == wrong
    assert place(context, layer.digest).key != old.key
    assert client.request("HEAD", f"/v2/{NAME}/blobs/{layer.digest}").status == 404
    assert pulled(context, layer.digest) == 404
    assert kinds(found(context, read=True)) == {"lost": 1}
    push_blob(client, NAME, layer.data)
    assert pulled(context, layer.digest) == layer.data
    assert found(context, read=True) == []

    context.database.run("UPDATE uploads SET expires_at = now() - interval '1 minute'")
    names = ("uploads.expire", "collect", "sweep")
    run_jobs(context, names)
    assert everything(context.store, old.key) == wrong
    context.database.run("UPDATE doomed_objects SET doomed_at = doomed_at - interval '31 days'")
    run_jobs(context, names)
    assert context.store.size(old.key) is None
    assert pulled(context, layer.digest) == layer.data


@in_a_folder
def test_networks_put_back_what_is_damaged(
    context: Context, client: CoreClient, memory: Memory
) -> None:
    push_all(client)
    Worker(context, [kind for kind in KINDS if kind.name.startswith("resolve")]).drain()
    for layer in IMAGE.layers[:1]:
        context.store.delete([place(context, layer.digest).key])
    damaged = IMAGE.layers[1]
    put(context.store, place(context, damaged.digest).key, content(len(damaged.data)))
    repaired = found(context, repair=True, read=True)
    assert kinds(repaired) == {"lost": 1, "damaged": 1}
    assert all("from a network" in each.repair for each in repaired)
    assert found(context, read=True) == []
    assert [pulled(context, layer.digest) for layer in IMAGE.layers] == [
        layer.data for layer in IMAGE.layers
    ]


def test_a_blob_without_a_copy(context: Context, client: CoreClient, rows: Database) -> None:
    push_all(client)
    layer = IMAGE.layers[0]
    rows.run("DELETE FROM blob_copies WHERE digest = :digest", digest=digests.pack(layer.digest))
    rows.run("DELETE FROM uploads")
    assert kinds(found(context)) == {"lost": 1, "orphan": 1}
    assert kinds(found(context, repair=True)) == {"lost": 1, "orphan": 1}
    push_blob(client, NAME, layer.data)
    assert kinds(found(context, read=True)) == {"orphan": 1}
    assert pulled(context, layer.digest) == layer.data


def test_objects_without_a_row(context: Context, client: CoreClient) -> None:
    """They are told of with their age; the sweep's own guards decide when they go."""
    push_all(client)
    key = new_key()
    put(context.store, key, content(10))
    context.store.writer(None, staged := new_key(), lambda _: 1).write([content(12 << 20)])
    told = {each.key: each for each in found(context)}
    assert {each.kind for each in told.values()} == {"orphan"}
    assert told.keys() == {key, staged}
    assert "10 bytes, last changed" in told[key].sentence
    orphans.run(context, dry_run=False, force=False)
    assert "a sweep deletes it 7 days after" in found(context)[0].sentence
    context.database.run("UPDATE suspects SET first_seen_at = now() - interval '8 days'")
    assert "the next sweep deletes it" in found(context)[0].sentence


def test_uploads_are_left_alone(context: Context, client: CoreClient) -> None:
    """Those under way are no findings, nor is what they have staged; those long expired are."""
    push_all(client)
    location = begin(client, NAME)
    assert client.request("PATCH", location, content(12 << 20)).status == 202
    assert found(context) == []
    context.database.run("UPDATE uploads SET expires_at = now() - interval '2 hours'")
    [*late] = found(context)
    assert {each.kind for each in late} == {"upload"}
    assert any("(open) expired 2 h ago" in each.sentence for each in late)
    found(context, repair=True)
    assert found(context, read=True) == []
    assert list(context.store.list_staged()) == []


# Manifests: no store makes a difference.


@in_a_folder
def test_a_manifest_with_other_bytes(context: Context, client: CoreClient, rows: Database) -> None:
    """Another repository has the right ones, or nobody has them."""
    push_all(client)
    digest = digests.pack(OTHER.manifest.digest)
    rows.run("UPDATE manifests SET payload = '{}' WHERE digest = :digest", digest=digest)
    [finding] = found(context, repair=True)
    assert (finding.kind, finding.repair) == ("manifest", "")
    assert f"{NAME}@{OTHER.manifest.digest} has other bytes" in finding.sentence
    push_image(client, "library/elsewhere", OTHER)
    [finding] = found(context, repair=True)
    assert finding.repair == "its bytes were taken from another repository"
    assert found(context) == []
    answer = client.request("GET", f"/v2/{NAME}/manifests/arm64")
    assert answer.body == OTHER.manifest.data


@in_a_folder
def test_a_manifest_that_a_network_has(
    context: Context, client: CoreClient, rows: Database, memory: Memory
) -> None:
    push_all(client)
    Worker(context, [kind for kind in KINDS if kind.name.startswith("resolve")]).drain()
    rows.run(
        "UPDATE manifests SET payload = '{}' WHERE digest = :digest",
        digest=digests.pack(OTHER.manifest.digest),
    )
    [finding] = found(context, repair=True)
    assert finding.repair == "its bytes were taken from a network"
    assert found(context) == []


@in_a_folder
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM manifest_references WHERE digest = :layer",
        "DELETE FROM manifest_references WHERE digest = :child",
        "UPDATE manifest_references SET blob = NULL WHERE digest = :layer",
        "UPDATE manifest_references SET child = NULL WHERE digest = :child",
        "INSERT INTO manifest_references (repository_id, manifest, digest, is_manifest) SELECT"  # noqa: ISC004
        " repository_id, :child, :child, true FROM manifests WHERE digest = :child",
        "UPDATE manifests SET subject = :child WHERE digest = :child",
    ],
)
def test_rows_of_manifests(
    context: Context, client: CoreClient, rows: Database, damage: str
) -> None:
    """After a repair nothing can be deleted from under a manifest."""
    push_all(client)
    names = {"layer": digests.pack(IMAGE.layers[0].digest)}
    names["child"] = digests.pack(IMAGE.manifest.digest)
    rows.run(damage, **{name: value for name, value in names.items() if f":{name}" in damage})
    assert kinds(found(context)) == {"reference": 1}
    assert kinds(found(context)) == {"reference": 1}
    [finding] = found(context, repair=True)
    assert finding.repair
    assert found(context) == []
    for path in (
        f"/v2/{NAME}/blobs/{IMAGE.layers[0].digest}",
        f"/v2/{NAME}/manifests/{IMAGE.manifest.digest}",
    ):
        assert client.request("DELETE", path).status == 405


@in_a_folder
def test_a_cache_of_buildkit(context: Context, client: CoreClient, rows: Database) -> None:
    """An index that names layers."""
    layer = IMAGE.layers[0]
    push_blob(client, NAME, layer.data)
    kind = "application/vnd.oci.image.index.v1+json"
    value = {"schemaVersion": 2, "mediaType": kind, "manifests": [layer.descriptor]}
    assert push_manifest(client, NAME, Content(kind, json.dumps(value).encode()), "c").status == 201
    assert found(context) == []
    rows.run("DELETE FROM manifest_references")
    assert kinds(found(context, repair=True)) == {"reference": 1}
    assert found(context) == []
    assert client.request("DELETE", f"/v2/{NAME}/blobs/{layer.digest}").status == 405


@in_a_folder
def test_a_manifest_that_is_incomplete(
    context: Context, client: CoreClient, rows: Database
) -> None:
    push_all(client)
    layer = digests.pack(IMAGE.layers[0].digest)
    rows.run("UPDATE manifest_references SET blob = NULL WHERE digest = :layer", layer=layer)
    rows.run("DELETE FROM repository_blobs WHERE digest = :layer", layer=layer)
    [finding] = found(context, repair=True)
    assert finding.kind == "incomplete"
    assert IMAGE.layers[0].digest in finding.sentence
    sparse = replace(context, settings=replace(context.settings, sparse_manifests=True))
    assert found(sparse) == []
    push_image(client, NAME, IMAGE)
    assert found(context) == []


# Whose store it is


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep is waited for that may be under way."""
    monkeypatch.setattr(objects, "_MARKED_WITHIN", 0.0)


@in_a_folder
def test_a_sweep_that_begins(context: Context, client: CoreClient) -> None:
    """It writes its number down, and then marks the store."""
    push_all(client)
    begun = context.database.transaction(
        lambda transaction: orphan_rows.begin(transaction, 0, forget=False)
    )
    marking = threading.Timer(0.7, orphans._mark, (context.store, begun))
    marking.start()
    assert list(objects.admit(context, repair=True)) == []
    marking.join()


@in_a_folder
@pytest.mark.usefixtures("at_once")
def test_the_store_of_another_database(
    context: Context, client: CoreClient, rows: Database
) -> None:
    push_all(client)
    orphans.run(context, dry_run=False, force=False)
    rows.run("UPDATE sweep_marker SET database_id = gen_random_uuid()")
    assert kinds(found(context))["store"] == 1
    with pytest.raises(Refused, match="another database"):
        found(context, repair=True)


@in_a_folder
@pytest.mark.usefixtures("at_once")
def test_a_store_that_is_not_mounted(context: Context, client: CoreClient, tmp_path: Path) -> None:
    push_all(client)
    orphans.run(context, dry_run=False, force=False)
    context.store.delete([key for key, _, _ in context.store.list()])
    with pytest.raises(Refused, match="not mounted"):
        found(context, repair=True)
    assert not place(context, IMAGE.layers[0].digest).missing


@in_a_folder
@pytest.mark.usefixtures("at_once")
def test_a_database_that_was_restored(context: Context, client: CoreClient, rows: Database) -> None:
    push_all(client)
    orphans.run(context, dry_run=False, force=False)
    orphans.run(context, dry_run=False, force=False)
    rows.run("UPDATE sweep_marker SET number = 1")
    [finding] = found(context, repair=True)
    assert "restored from a backup" in finding.sentence


# Races: what two listings do not agree about is looked at again.


@in_a_folder
def test_a_push_between_the_listings(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come after the objects were listed, and objects after the rows."""
    push_all(client)
    pushed = []

    def push(seed: int) -> None:
        pushed.append(push_blob(client, NAME, content(100, seed)))

    listed, copies = context.store.list, fsck.copies

    def objects_then_push(after: str = "") -> Iterator[tuple[str, int, float]]:
        seen = list(listed(after))
        push(1)
        yield from seen

    def rows_then_push(database: Database, store: str) -> Iterator[fsck.Copy]:
        seen = list(copies(database, store))
        push(2)
        yield from seen

    monkeypatch.setattr(context.store, "list", objects_then_push)
    assert list(objects.compare(context, repair=True, tell=quiet)) == []
    monkeypatch.undo()
    monkeypatch.setattr(fsck, "copies", rows_then_push)
    assert list(objects.compare(context, repair=True, tell=quiet)) == []
    assert len(pushed) == 2


@in_a_folder
def test_a_collection_between_the_listings(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was seen, whose blob is collected before its object is looked for."""
    push_all(client)
    digest = push_blob(client, NAME, content(100, 7))
    copies = fsck.copies

    def rows_then_collect(database: Database, store: str) -> Iterator[fsck.Copy]:
        seen = list(copies(database, store))
        [row] = [each for each in seen if each.digest == digests.pack(digest)]
        assert client.request("DELETE", f"/v2/{NAME}/blobs/{digest}").status == 202
        database.run("DELETE FROM blobs WHERE digest = :digest", digest=row.digest)
        context.store.delete([row.key])
        yield from seen

    monkeypatch.setattr(fsck, "copies", rows_then_collect)
    assert list(objects.compare(context, repair=True, tell=quiet)) == []


@in_a_folder
def test_a_blob_that_is_healed_while_it_is_read(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged object that is not its blob's any more once it was read is none of ours."""
    push_all(client)
    layer = IMAGE.layers[0]
    row = place(context, layer.digest)
    put(context.store, row.key, content(len(layer.data)))
    matches = contents._matches

    def read_then_heal(*arguments: object) -> bool:
        same = matches(*arguments)  # type: ignore[arg-type]
        if not same:
            other = new_key()
            put(context.store, other, layer.data)
            context.database.run(
                "UPDATE blob_copies SET key = :other WHERE digest = :digest",
                other=other,
                digest=digests.pack(layer.digest),
            )
        return same

    monkeypatch.setattr(contents, "_matches", read_then_heal)
    looked = list(contents.read_all(context, b"", contents.Pace(0), repair=True))
    assert [finding for _, finding in looked if finding is not None] == []
    assert pulled(context, layer.digest) == layer.data


@in_a_folder
def test_one_bad_read_damns_nobody(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_all(client)
    matches, failed = contents._matches, threading.Event()

    def fail_once(*arguments: object) -> bool:
        same = matches(*arguments)  # type: ignore[arg-type]
        if failed.is_set():
            return same
        failed.set()
        return False

    monkeypatch.setattr(contents, "_matches", fail_once)
    looked = list(contents.read_all(context, b"", contents.Pace(0), repair=True))
    assert all(finding is None for _, finding in looked)
    assert failed.is_set()


@in_a_folder
def test_an_object_that_cannot_be_read(
    context: Context, client: CoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector is a finding; a store that is down ends the check."""
    push_all(client)
    bad = place(context, IMAGE.layers[0].digest)
    read = context.store.read

    def failing(key: str, offset: int, length: int) -> object:
        if key == bad.key:
            raise StorageError("The folder of blobs cannot be used: Input/output error.")
        return read(key, offset, length)

    monkeypatch.setattr(context.store, "read", failing)
    [finding] = found(context, read=True, repair=True)
    assert (finding.kind, finding.key) == ("unreadable", bad.key)
    assert "Input/output error" in finding.sentence

    def down() -> None:
        raise StorageError("It is down.")

    monkeypatch.setattr(context.store, "check", down)
    with pytest.raises(StorageError, match="down"):
        found(context, read=True)


def test_pace() -> None:
    pace = contents.Pace(10_000_000)
    began = time.monotonic()
    threads = [threading.Thread(target=pace.take, args=(1_000_000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.39 < time.monotonic() - began < 2


@in_a_folder
@pytest.mark.long
@pytest.mark.alone
def test_memory(context: Context, rows: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays flat, however many blobs there are. The last object is not there."""
    count, step = 60_000, 10_000
    for first in range(1, count, step):
        rows.run(
            "WITH made AS (INSERT INTO blobs (digest, size)"
            " SELECT '\\x12' || sha256(int8send(n)), n"
            " FROM generate_series(CAST(:first AS bigint), :first + :step - 1) n"
            " RETURNING digest, size)"
            " INSERT INTO blob_copies (digest, store, key)"
            " SELECT digest, :store, lpad(to_hex(size), 32, '0') FROM made",
            first=first,
            step=step,
            store=context.store.name,
        )

    def listed(after: str = "") -> Iterator[tuple[str, int, float]]:
        return ((f"{n:032x}", n, 1.0) for n in range(1, count) if f"{n:032x}" > after)

    monkeypatch.setattr(context.store, "list", listed)
    tracemalloc.start()
    try:
        [finding] = objects.compare(context, repair=False, tell=quiet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert finding.key == f"{count:032x}"
    assert peak < 8 << 20


@pytest.mark.long
def test_a_busy_registry(context: Context) -> None:
    """Pushes, deletions, uploads that are given up and collections go on while it is checked and
    repaired: nothing is found, and nothing is lost that was acknowledged."""
    settings = replace(context.settings, grace=2, downloads="stream")
    busy = Busy(replace(context, settings=settings))
    checks = 0
    with busy.working():
        end = time.monotonic() + 30
        while time.monotonic() < end and not busy.failures:
            assert found(busy.context, repair=True, read=True) == []
            checks += 1
    assert busy.failures == []
    assert checks > 3
    assert len(busy.pushed) > 10
    busy.collect(0)
    assert found(busy.context, read=True) == []
    busy.check_pushed()


# The command


def command(registry: Registry, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [OPENREGISTRY, "fsck", *options],
        env={**os.environ, **registry.settings},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def running(serve: Callable[..., Registry]) -> Registry:
    """A registry that runs meanwhile."""
    return serve()


@pytest.mark.long
def test_command(running: Registry, tmp_path: Path) -> None:
    """Statuses, sentences, JSON, and a check that goes on."""
    client = HTTPClient(running.host)
    push_image(client, NAME, IMAGE, "latest")
    done = command(running, "--digests")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing is wrong"), done.stdout
    assert "read: 3 objects" in done.stdout

    folder = running.data_dir / "blobs"
    [lost, *_] = sorted(file for file in folder.glob("*/*") if file.stat().st_size > 300_000)
    lost.unlink()
    done = command(running, "--digests", "--json")
    assert done.returncode == 1
    *findings, summary = map(json.loads, done.stdout.splitlines())
    assert [each["kind"] for each in findings] == ["lost"]
    assert summary["summary"]["findings"] == {"lost": 1}
    done = command(running, "--repair")
    assert done.returncode == 1
    assert "Repaired: clients are told that it is absent" in done.stdout
    push_image(client, NAME, IMAGE, "latest")
    assert command(running, "--digests").returncode == 0

    orphans = [folder / f"{n}a" / f"{n}a{n:030x}" for n in range(8)]
    for file in orphans:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"nobody's")
    done = command(running, "--repair", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["summary"]["findings"] == {"orphan": 8}
    assert "not swept: No row knows 8 of 11 objects" in done.stderr
    for file in orphans:
        file.unlink()

    assert command(running, "--rate", "5").returncode == 1
    wrong = subprocess.run(
        [OPENREGISTRY, "fsck"],
        env={**os.environ, **running.settings, "OPENREGISTRY_STORAGE_URL": "ftp://x"},
        capture_output=True,
    )
    assert wrong.returncode == 2


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_check_that_is_ended(running: Registry, tmp_path: Path, number: int) -> None:
    """Another one reads the rest."""
    client = HTTPClient(running.host)
    for seed in range(30):
        push_blob(client, NAME, content(1_000_000, seed))
    file = tmp_path / "state"
    process = subprocess.Popen(
        [OPENREGISTRY, "fsck", "--digests", "--rate", "1", "--resume", str(file)],
        env={**os.environ, **running.settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if number == signal.SIGINT:
        time.sleep(5)
        wait_until(lambda: process.poll() is None, 1, lambda: "it to run")
    else:
        wait_until(file.exists, 60, lambda: "its file")
    process.send_signal(number)
    process.wait()
    before = json.loads(file.read_text())["objects"]
    assert 0 < before < 30
    done = command(running, "--digests", "--resume", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["read"] == {"objects": 30, "bytes": 30_000_000}


@pytest.mark.long
def test_a_check_that_goes_on(running: Registry, tmp_path: Path) -> None:
    """It goes on after what was read, and remembers what was found."""
    client = HTTPClient(running.host)
    push_image(client, NAME, IMAGE, "latest")
    stored = sorted(digests.pack(blob.digest) for blob in IMAGE.blobs)
    file = tmp_path / "state"
    database = running.settings["OPENREGISTRY_DATABASE_URL"].rpartition("@")[2]
    state = {
        "database": database,
        "after": digests.unpack(stored[0]),
        "objects": 1,
        "bytes": 10,
        "found": {"damaged": 1},
    }
    file.write_text(json.dumps(state))
    done = command(running, "--digests", "--resume", str(file), "--json")
    assert done.returncode == 1, done.stderr  # what was found before
    summary = json.loads(done.stdout.splitlines()[-1])["summary"]
    assert summary["read"]["objects"] == len(stored)
    assert summary["findings"] == {"damaged": 1}
    assert not file.exists()
    file.write_text(json.dumps({**state, "database": "another"}))
    done = command(running, "--digests", "--resume", str(file))
    assert "another registry" in done.stderr
    file.write_text("{")
    assert "no file of --resume" in command(running, "--digests", "--resume", str(file)).stderr
