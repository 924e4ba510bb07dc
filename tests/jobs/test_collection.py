"""Collection: each rule, each race with a push, a mount, a HEAD or a deletion, and `gc`."""

import importlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chalicelib import digests
from chalicelib.cli import main
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.jobs import collection
from chalicelib.jobs.collection import BATCH, Removed, Report
from chalicelib.metadata import blobs
from chalicelib.metadata import collection as rows
from chalicelib.metadata.collection import BEGINNING
from chalicelib.metadata.database import Database, Transaction
from chalicelib.registry import uploads
from chalicelib.settings import Settings
from chalicelib.storage import StorageError
from tests.client import (
    Answer,
    CoreClient,
    HTTPClient,
    begin,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.images import MANIFEST, Content, Image, make_image, make_index
from tests.servers import OPENREGISTRY, S3, Postgres, Registry

GRACE = 86400
APP, OTHER = "test/app", "test/other"


@pytest.fixture(params=["file", "s3"])
def context(
    request: pytest.FixtureRequest, core_settings: Settings, postgres: Postgres, tmp_path: Path
) -> Iterator[Context]:
    """The functions over each kind of storage, and a database with nothing in it."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.migrated_database())
        settings = replace(core_settings, database_url=url, storage_url=tmp_path.as_uri())
        if request.param == "s3":
            server: S3 = request.getfixturevalue("s3_server")
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in server.environment().items():
                patch.setenv(name, value)
            settings = replace(settings, storage_url=server.new_storage_url(), part_size=5 << 20)
        built = build_context(settings)
        stack.callback(built.database.close)
        yield built


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


def pass_time(database: Database, seconds: float) -> None:
    """Let everything have happened so much earlier."""
    for table, column in (
        ("repository_blobs", "unreferenced_since"),
        ("manifests", "unreferenced_since"),
        ("unlinked_blobs", "since"),
        ("doomed_objects", "doomed_at"),
    ):
        database.run(
            f"UPDATE {table} SET {column} ="
            f" {column} - CAST(:seconds AS double precision) * interval '1 second'",
            seconds=seconds,
        )


def collect(context: Context, age: float = GRACE) -> list[tuple[str, str]]:
    """What a worker collects, kinds and digests; URLs of the objects have run out."""
    removed: list[Removed] = []
    report = Report()
    collection.collect(context, age, report, removed.append)
    collection.delete_objects(context, 0, report)
    return sorted((each.kind, each.digest) for each in removed)


def objects(context: Context) -> int:
    return sum(1 for _ in context.store.list())


def get(client: CoreClient, repository: str, digest: str, method: str = "GET") -> int:
    """The status of a blob."""
    return client.request(method, f"/v2/{repository}/blobs/{digest}").status


def get_manifest(client: CoreClient, repository: str, name: str, method: str = "GET") -> int:
    return client.request(method, f"/v2/{repository}/manifests/{name}").status


def delete(client: CoreClient, repository: str, kind: str, name: str) -> None:
    assert client.request("DELETE", f"/v2/{repository}/{kind}/{name}").status == 202


def pulls(context: Context, client: CoreClient, repository: str, image: Image, name: str) -> None:
    """Pull an image completely."""
    answer = client.request("GET", f"/v2/{repository}/manifests/{name}")
    assert (answer.status, answer.body) == (200, image.manifest.data)
    direct = CoreClient(replace(context, settings=replace(context.settings, downloads="stream")))
    for blob in image.blobs:
        answer = direct.request("GET", f"/v2/{repository}/blobs/{blob.digest}")
        assert (answer.status, answer.body) == (200, blob.data)


def referrer(subject: Content, name: str = "") -> Content:
    """A manifest that refers to another. Its config is the empty blob."""
    empty = Content("application/vnd.oci.empty.v1+json", b"{}")
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/x-test",
        "config": empty.descriptor,
        "layers": [empty.descriptor],
        "subject": subject.descriptor,
        "annotations": {"name": name},
    }
    return Content(MANIFEST, json.dumps(value).encode())


def test_a_blob_that_nothing_names_goes_after_the_grace(
    context: Context, client: CoreClient
) -> None:
    digest = push_blob(client, APP, b"data")
    assert collect(context) == []
    pass_time(context.database, GRACE - 60)
    assert collect(context) == []
    assert get(client, APP, digest) in (200, 307)
    pass_time(context.database, 60)
    assert collect(context) == [("blob", digest), ("link", digest)]
    assert get(client, APP, digest) == 404
    assert objects(context) == 0
    assert collect(context) == []
    image = make_image((10,))
    push_image(client, APP, image, "v1")
    push_blob(client, APP, b"data")
    assert get(client, APP, digest) in (200, 307)


def test_bytes_outlive_the_urls_that_clients_hold(context: Context, client: CoreClient) -> None:
    push_blob(client, APP, b"data")
    wait = collection.patience(context)
    presigns = context.store.name == "s3"
    assert wait == (context.settings.presign_expiry + 60 if presigns else 0)
    report = Report()
    collection.collect(context, 0, report)
    assert report.blobs == 1
    collection.delete_objects(context, wait, report)
    assert objects(context) == (1 if presigns else 0)
    pass_time(context.database, wait)
    collection.delete_objects(context, wait, report)
    assert (objects(context), report.objects, report.freed) == (0, 1, 4)
    streamed = replace(context, settings=replace(context.settings, downloads="stream"))
    assert collection.patience(streamed) == 0


def test_a_blob_that_a_manifest_names_stays(context: Context, client: CoreClient) -> None:
    image = make_image((10, 10))
    push_image(client, APP, image, "v1")
    pass_time(context.database, 2 * GRACE)
    assert collect(context) == []
    [[left]] = context.database.run(
        "SELECT count(*) FROM repository_blobs WHERE unreferenced_since IS NOT NULL"
    )
    assert left == 0, "it is not looked at again"
    delete(client, APP, "manifests", image.manifest.digest)
    assert collect(context) == [], "the grace begins anew"
    pass_time(context.database, GRACE)
    assert [kind for kind, _ in collect(context)] == 3 * ["blob"] + 3 * ["link"]
    assert objects(context) == 0


def test_a_blob_stays_as_long_as_any_repository_has_it(
    context: Context, client: CoreClient
) -> None:
    digest = push_blob(client, APP, b"data")
    assert push_blob(client, OTHER, b"data") == digest
    image = Content(
        MANIFEST,
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": Content("application/x-test", b"data").descriptor,
                "layers": [],
            }
        ).encode(),
    )
    assert push_manifest(client, OTHER, image, "v1").status == 201
    delete(client, APP, "blobs", digest)
    pass_time(context.database, GRACE)
    assert collect(context) == []
    assert get(client, OTHER, digest) in (200, 307)
    delete(client, OTHER, "manifests", image.digest)
    delete(client, OTHER, "blobs", digest)
    pass_time(context.database, GRACE)
    assert collect(context) == [("blob", digest)]


def test_deleted_repositories_leave_nothing(context: Context, client: CoreClient) -> None:
    from chalicelib.identity import repositories

    push_image(client, APP, make_image((10, 10)), "v1")
    repositories.delete(context.database, APP, by="operator")
    assert collect(context) == []
    pass_time(context.database, GRACE)
    assert [kind for kind, _ in collect(context)] == 3 * ["blob"]
    assert objects(context) == 0


def with_untagged(context: Context, seconds: int) -> Context:
    return replace(context, settings=replace(context.settings, collect_untagged=seconds))


def test_untagged_manifests_go_where_the_operator_says_so(
    context: Context, client: CoreClient
) -> None:
    first, second = make_image((10,), 1), make_image((10,), 2)
    push_image(client, APP, first, "v1")
    push_image(client, APP, second, "v1")
    pass_time(context.database, 10 * GRACE)
    assert collect(context) == []
    weekly = with_untagged(context, 7 * GRACE)
    assert ("manifest", first.manifest.digest) in collect(weekly)
    assert get_manifest(client, APP, first.manifest.digest) == 404
    pulls(context, client, APP, second, "v1")
    pass_time(context.database, 10 * GRACE)
    assert [kind for kind, _ in collect(weekly)] == ["blob", "blob", "link", "link"]

    delete(client, APP, "manifests", "v1")
    pass_time(context.database, 6 * GRACE)
    assert collect(weekly) == []
    pass_time(context.database, GRACE)
    assert collect(weekly) == [("manifest", second.manifest.digest)]
    rows = context.database.run("SELECT event, subject, detail FROM audit ORDER BY id DESC LIMIT 1")
    reason = {"digest": second.manifest.digest, "reason": "untagged"}
    assert rows == [["manifest.delete", "system", reason]]


def test_the_grace_holds_for_untagged_manifests_too(context: Context, client: CoreClient) -> None:
    image = make_image((10,))
    push_image(client, APP, image)
    pass_time(context.database, GRACE / 2)
    assert collect(with_untagged(context, 0)) == []


def test_children_stay_with_their_index(context: Context, client: CoreClient) -> None:
    weekly = with_untagged(context, 7 * GRACE)
    images = [make_image((10,), n) for n in range(2)]
    index = make_index(images)
    for image in images:
        push_image(client, APP, image)
    assert push_manifest(client, APP, index, "v1").status == 201
    pass_time(context.database, 10 * GRACE)
    assert collect(weekly) == []
    for image in images:
        pulls(context, client, APP, image, image.manifest.digest)
    delete(client, APP, "manifests", index.digest)
    pass_time(context.database, 6 * GRACE)
    assert collect(weekly) == []
    pass_time(context.database, GRACE)
    assert sorted(collect(weekly)) == sorted(("manifest", i.manifest.digest) for i in images)


def test_referrers_go_with_their_subject(context: Context, client: CoreClient) -> None:
    image = make_image((10,))
    signature = referrer(image.manifest, "signature")
    signed = referrer(signature, "of the signature")
    tagged = referrer(image.manifest, "tagged")
    push_image(client, APP, image, "v1")
    push_blob(client, APP, b"{}")
    assert push_manifest(client, APP, signature).status == 201
    assert push_manifest(client, APP, signed).status == 201
    assert push_manifest(client, APP, tagged, "kept").status == 201
    pass_time(context.database, 10 * GRACE)
    assert collect(context) == []
    delete(client, APP, "manifests", image.manifest.digest)
    pass_time(context.database, GRACE - 60)
    assert collect(context) == []
    pass_time(context.database, 60)
    assert ("manifest", signature.digest) in collect(context)
    assert get_manifest(client, APP, "kept") == 200
    pass_time(context.database, GRACE)
    assert ("manifest", signed.digest) in collect(context)


def test_a_referrer_that_came_first_is_an_untagged_manifest(
    context: Context, client: CoreClient
) -> None:
    image = make_image((10,))
    signature = referrer(image.manifest)
    push_blob(client, APP, b"{}")
    assert push_manifest(client, APP, signature).status == 201
    pass_time(context.database, 10 * GRACE)
    assert collect(context) == []
    push_image(client, APP, image)
    pass_time(context.database, 10 * GRACE)
    assert ("manifest", signature.digest) not in collect(context)
    delete(client, APP, "manifests", image.manifest.digest)
    pass_time(context.database, GRACE)
    assert ("manifest", signature.digest) in collect(context)


def unreferenced(context: Context, table: str) -> list[float | None]:
    """For how many seconds each has been so, in the order of pushes."""
    rows = context.database.run(
        f"SELECT CAST(extract(epoch FROM now() - unreferenced_since) AS double precision)"
        f" FROM {table}"
    )
    return [None if seconds is None else round(seconds, -2) for (seconds,) in rows]


def test_what_is_asked_for_begins_its_grace_anew(context: Context, client: CoreClient) -> None:
    digest = push_blob(client, APP, b"data")
    pass_time(context.database, 40_000)
    assert get(client, APP, digest, "HEAD") in (200, 307)
    assert unreferenced(context, "repository_blobs") == [40_000], "most of it is left"
    pass_time(context.database, 10_000)
    assert get(client, APP, digest) in (200, 307)
    assert unreferenced(context, "repository_blobs") == [50_000], "a pull names nothing"
    assert get(client, APP, digest, "HEAD") in (200, 307)
    assert unreferenced(context, "repository_blobs") == [0]

    image = make_image((10,))
    push_image(client, APP, image)
    pass_time(context.database, 50_000)
    assert get_manifest(client, APP, image.manifest.digest) == 200
    assert unreferenced(context, "manifests") == [50_000]
    assert get_manifest(client, APP, image.manifest.digest, "HEAD") == 200
    assert unreferenced(context, "manifests") == [0]
    pass_time(context.database, 2 * GRACE)
    assert collect(context) == [("blob", digest), ("link", digest)]
    for blob in image.blobs:
        assert get(client, APP, blob.digest, "HEAD") in (200, 307)
    assert unreferenced(context, "repository_blobs") == [None, None], "a manifest names it"


def test_what_is_pushed_again_begins_its_grace_anew(context: Context, client: CoreClient) -> None:
    digest = push_blob(client, OTHER, b"data")
    mount = f"/v2/{APP}/blobs/uploads/?mount={digest}&from={OTHER}"
    assert client.request("POST", mount).status == 201
    ended = with_query(begin(client, APP), digest=digest)
    ways = {
        "mounted": ("POST", mount, b""),
        "pushed": ("PUT", ended, b"data"),
        "repeated": ("PUT", ended, b""),
        "in one request": ("POST", f"/v2/{APP}/blobs/uploads/?digest={digest}", b"data"),
    }
    for way, asked in ways.items():
        pass_time(context.database, 50_000)
        assert client.request(*asked).status == 201, way
        assert 0 in unreferenced(context, "repository_blobs"), way

    image = make_image((10,))
    push_image(client, APP, image)
    pass_time(context.database, 50_000)
    assert push_manifest(client, APP, image.manifest).status == 201
    assert unreferenced(context, "manifests") == [0]


def test_a_put_repeated_after_the_blob_was_collected_begins_again(
    context: Context, client: CoreClient
) -> None:
    digest = sha256(b"data")
    location = with_query(begin(client, APP), digest=digest)
    assert client.request("PUT", location, b"data").status == 201
    collect(context, 0)
    assert client.request("PUT", location, b"data").status == 404
    assert push_blob(client, APP, b"data") == digest


# Races. Each side is once the first, and holds its transaction open while the other begins.


@contextmanager
def paused(name: str, work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Begin work that is held up once it has called a function; its result is there afterwards."""
    holding, end = threading.Event(), threading.Event()
    results: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        module, _, function = name.rpartition(".")
        real = getattr(importlib.import_module(module), function)

        def slow(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            holding.set()
            assert end.wait(30)
            return result

        patch.setattr(name, slow)
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        assert holding.wait(10), results
        patch.undo()
        try:
            yield results
        finally:
            end.set()
            thread.join()


def race(
    database: Database,
    lock: Callable[[Transaction], Any],
    work: Callable[[], Any],
    finish: Callable[[Transaction, Any], Any] = lambda _transaction, _held: None,
) -> Any:
    """What work gives that waits for a lock of another transaction, which is had, used and given
    back."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))

    def transaction(transaction: Transaction) -> None:
        held = lock(transaction)
        thread.start()
        end = time.monotonic() + 10
        while not database.run(
            "SELECT FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            assert thread.is_alive(), results
            assert time.monotonic() < end
            time.sleep(0.01)
        finish(transaction, held)

    database.transaction(transaction)
    thread.join()
    [result] = results
    return result


def lock_links(transaction: Transaction) -> rows.Due:
    due = rows.lock_links(transaction, 0, BEGINNING, BATCH)
    assert due.rows
    return due


def lock_manifests(transaction: Transaction) -> rows.Due:
    due = rows.lock_manifests(transaction, 0, BEGINNING, BATCH, orphans=False)
    assert due.rows
    return due


def remove_manifests(transaction: Transaction, due: rows.Due) -> None:
    for item in rows.judge_manifests(transaction, due):
        collection.remove_manifests(
            transaction, item.repository_id, item.repository, [item.digest], "test"
        )


def lock_blobs(transaction: Transaction) -> list[bytes]:
    _, locked = rows.take_unlinked(transaction, 0, BEGINNING, BATCH)
    assert locked
    return locked


def test_a_blob_that_is_named_meanwhile_stays(context: Context, client: CoreClient) -> None:
    image = make_image((10,))
    for blob in image.blobs:
        push_blob(client, APP, blob.data)
    with paused(
        "chalicelib.metadata.manifests.add",
        lambda: push_manifest(client, APP, image.manifest, "v1"),
    ) as results:
        assert collect(context, 0) == []
    assert [answer.status for answer in results] == [201]
    assert collect(context, 0) == []
    pulls(context, client, APP, image, "v1")


def test_a_manifest_is_refused_whose_blobs_are_collected_meanwhile(
    context: Context, client: CoreClient
) -> None:
    image = make_image((10,))
    for blob in image.blobs:
        push_blob(client, APP, blob.data)
    answer = race(
        context.database,
        lock_links,
        lambda: push_manifest(client, APP, image.manifest, "v1"),
        rows.judge_links,
    )
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    collect(context, 0)
    push_image(client, APP, image, "v1")
    pulls(context, client, APP, image, "v1")


def test_a_blob_whose_grace_is_renewed_meanwhile_stays(
    context: Context, client: CoreClient
) -> None:
    digest = push_blob(client, APP, b"data")
    pass_time(context.database, GRACE)
    with paused("chalicelib.metadata.uploads.commit", lambda: push_blob(client, APP, b"data")):
        assert collect(context) == []
    assert collect(context) == []
    assert get(client, APP, digest, "HEAD") in (200, 307)


@pytest.mark.parametrize("renewal", ["head", "push", "mount"])
def test_who_comes_after_the_collector_is_told_the_truth(
    context: Context, client: CoreClient, renewal: str
) -> None:
    digest = push_blob(client, APP, b"data")
    push_blob(client, OTHER, b"data")
    pass_time(context.database, GRACE)
    context.database.run(
        "UPDATE repository_blobs SET unreferenced_since = now() FROM repositories"
        " WHERE id = repository_id AND name = :name",
        name=OTHER,
    )
    mount = f"/v2/{APP}/blobs/uploads/?mount={digest}&from={OTHER}"
    ways: Mapping[str, Callable[[], int]] = {
        "head": lambda: get(client, APP, digest, "HEAD"),
        "push": lambda: 201 if push_blob(client, APP, b"data") else 0,
        "mount": lambda: client.request("POST", mount).status,
    }
    status = race(
        context.database,
        lambda transaction: rows.lock_links(transaction, GRACE, BEGINNING, BATCH),
        ways[renewal],
        rows.judge_links,
    )
    assert status == (404 if renewal == "head" else 201)
    assert collect(context) == []
    assert get(client, APP, digest) == (404 if renewal == "head" else get(client, OTHER, digest))


def test_a_link_that_loses_its_manifest_while_it_is_judged_is_judged_again(
    context: Context, client: CoreClient
) -> None:
    image = make_image((10,))
    push_image(client, APP, image, "v1")
    target = f"/v2/{APP}/manifests/{image.manifest.digest}"
    answer = race(
        context.database, lock_links, lambda: client.request("DELETE", target), rows.judge_links
    )
    assert answer.status == 202
    assert len(collect(context, 0)) == 4
    assert objects(context) == 0


def without_links(context: Context, client: CoreClient) -> str:
    digest = push_blob(client, APP, b"data")
    delete(client, APP, "blobs", digest)
    return digest


def reads(context: Context, repository: str, digest: str) -> bytes:
    """A blob's bytes, through the registry."""
    settings = replace(context.settings, downloads="stream")
    client = CoreClient(replace(context, settings=settings))
    return client.request("GET", f"/v2/{repository}/blobs/{digest}").body


def test_a_blob_that_is_pushed_meanwhile_stays(context: Context, client: CoreClient) -> None:
    digest = without_links(context, client)
    with paused("chalicelib.metadata.uploads.commit", lambda: push_blob(client, OTHER, b"data")):
        assert collect(context, 0) == []
    assert [kind for kind, _ in collect(context)] == []
    assert reads(context, OTHER, digest) == b"data"
    assert objects(context) == 1


def test_a_blob_is_pushed_anew_after_the_collector(context: Context, client: CoreClient) -> None:
    digest = without_links(context, client)
    race(
        context.database,
        lock_blobs,
        lambda: push_blob(client, OTHER, b"data"),
        rows.remove_unlinked,
    )
    assert collect(context) == []
    assert reads(context, OTHER, digest) == b"data"
    assert objects(context) == 1


def test_a_push_that_found_the_blob_there_keeps_its_own_bytes_where_it_goes(
    context: Context, client: CoreClient
) -> None:
    """Between its two transactions a push looks whether the earlier object is there."""
    digest = without_links(context, client)
    sizes = context.store.size

    def size(key: str) -> int | None:
        found = sizes(key)
        assert collect(context, 0) == [("blob", digest)]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.store, "size", size)
        push_blob(client, OTHER, b"data")
    assert reads(context, OTHER, digest) == b"data"
    assert objects(context) == 1


def test_a_blob_that_loses_its_last_link_meanwhile_goes_later(
    context: Context, client: CoreClient
) -> None:
    """Both links are of one moment, as all are that a migration found."""
    for repository in (APP, OTHER):
        digest = push_blob(client, repository, b"data")
    context.database.run("UPDATE repository_blobs SET unreferenced_since = now()")
    delete(client, APP, "blobs", digest)
    with paused(
        "chalicelib.metadata.blobs.unlink",
        lambda: context.database.transaction(
            lambda transaction: blobs.unlink(transaction, OTHER, digests.pack(digest))
        ),
    ) as results:
        assert collect(context, 0) == []
    assert results == [True]
    assert collect(context, 0) == [("blob", digest)]
    assert objects(context) == 0


def test_a_blob_that_is_mounted_meanwhile_stays(context: Context, client: CoreClient) -> None:
    digest = push_blob(client, APP, b"data")
    mount = f"/v2/{OTHER}/blobs/uploads/?mount={digest}&from={APP}"
    with paused("chalicelib.metadata.blobs.lock", lambda: client.request("POST", mount)) as results:
        delete(client, APP, "blobs", digest)
        assert collect(context, 0) == []
    assert [answer.status for answer in results] == [201]
    assert collect(context) == []
    assert reads(context, OTHER, digest) == b"data"


def test_a_mount_after_the_collector_is_an_upload(context: Context, client: CoreClient) -> None:
    """The mount has found the link in its snapshot, and waits for the blob."""
    digest = push_blob(client, APP, b"data")
    mount = f"/v2/{OTHER}/blobs/uploads/?mount={digest}&from={APP}"

    def lock(transaction: Transaction) -> None:
        transaction.run("SELECT FROM blobs FOR UPDATE")

    def finish(transaction: Transaction, _: None) -> None:
        rows.judge_links(transaction, lock_links(transaction))
        assert len(rows.remove_unlinked(transaction, [digests.pack(digest)])) == 0
        assert len(rows.remove_unlinked(transaction, lock_blobs(transaction))) == 1

    answer = race(context.database, lock, lambda: client.request("POST", mount), finish)
    assert answer.status == 202


def test_a_manifest_that_is_tagged_meanwhile_stays(context: Context, client: CoreClient) -> None:
    image = make_image((10,))
    push_image(client, APP, image)
    untagged = with_untagged(context, 0)
    with paused(
        "chalicelib.metadata.tags.move",
        lambda: push_manifest(client, APP, image.manifest, "v1"),
    ):
        assert collect(untagged, 0) == []
    assert collect(untagged, 0) == []
    pulls(context, client, APP, image, "v1")


def test_a_manifest_is_pushed_anew_after_the_collector(
    context: Context, client: CoreClient
) -> None:
    image = make_image((10,))
    push_image(client, APP, image)
    answer = race(
        context.database,
        lock_manifests,
        lambda: push_manifest(client, APP, image.manifest, "v1"),
        remove_manifests,
    )
    assert answer.status == 201
    assert collect(with_untagged(context, 0), 0) == []
    pulls(context, client, APP, image, "v1")


def test_an_index_after_the_collector_is_refused(context: Context, client: CoreClient) -> None:
    image = make_image((10,))
    index = make_index([image])
    push_image(client, APP, image)
    answer = race(
        context.database,
        lock_manifests,
        lambda: push_manifest(client, APP, index, "v1"),
        remove_manifests,
    )
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_a_manifest_asked_for_after_the_collector_is_not_there(
    context: Context, client: CoreClient
) -> None:
    image = make_image((10,))
    push_image(client, APP, image)
    pass_time(context.database, GRACE)
    status = race(
        context.database,
        lock_manifests,
        lambda: get_manifest(client, APP, image.manifest.digest, "HEAD"),
        remove_manifests,
    )
    assert status == 404


def test_a_manifest_that_is_pushed_while_it_is_deleted_keeps_its_references(
    context: Context, client: CoreClient
) -> None:
    """The deletion is held up between the manifest's row and its references'."""
    image = make_image((10,))
    push_image(client, APP, image)
    context.database.run(
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_advisory_xact_lock(4); RETURN OLD; END$$"
    )
    context.database.run(
        "CREATE TRIGGER hold_up BEFORE DELETE ON manifest_references FOR EACH ROW"
        " EXECUTE FUNCTION hold_up()"
    )
    try:
        target = f"/v2/{APP}/manifests/{image.manifest.digest}"
        results: list[Answer] = []
        push = threading.Thread(
            target=lambda: results.append(push_manifest(client, APP, image.manifest, "v1"))
        )

        def waiters() -> int:
            [[count]] = context.database.run(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return int(count)

        def finish(_: Transaction, __: None) -> None:
            push.start()
            end = time.monotonic() + 10
            while waiters() < 2:
                assert time.monotonic() < end
                time.sleep(0.01)

        answer = race(
            context.database,
            lambda transaction: transaction.run("SELECT pg_advisory_xact_lock(4)") and None,
            lambda: client.request("DELETE", target),
            finish,
        )
        push.join()
    finally:
        context.database.run("DROP FUNCTION hold_up CASCADE")
    assert answer.status == 202
    assert [each.status for each in results] == [201]
    collect(context, 0)
    pulls(context, client, APP, image, "v1")


def foreign(image: Image) -> Content:
    """A manifest of the same blobs whose last layer may be had elsewhere."""
    value = json.loads(image.manifest.data)
    value["layers"][-1] |= {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "urls": ["https://example.org/layer"],
    }
    return Content(MANIFEST, json.dumps(value).encode())


@pytest.mark.parametrize("repeated", [False, True])
def test_a_layer_that_comes_while_a_manifest_is_pushed_without_it_stays(
    context: Context, client: CoreClient, *, repeated: bool
) -> None:
    """Of the two transactions neither sees the other's row."""
    image = make_image((10, 20))
    last = image.layers[-1]
    for blob in image.blobs:
        if blob != last:
            push_blob(client, APP, blob.data)
    manifest = foreign(image)
    with paused(
        "chalicelib.metadata.manifests.add", lambda: push_manifest(client, APP, manifest, "v1")
    ) as results:
        push_blob(client, APP, last.data)
    assert [answer.status for answer in results] == [201]
    if repeated:
        assert push_manifest(client, APP, manifest, "v1").status == 201
        target = f"/v2/{APP}/blobs/{last.digest}"
        assert client.request("DELETE", target).status == 405
    assert collect(context, 0) == []
    assert reads(context, APP, last.digest) == last.data
    delete(client, APP, "manifests", manifest.digest)
    collect(context, 0)
    assert objects(context) == 0


def test_a_child_that_comes_while_its_index_is_pushed_without_it_stays(context: Context) -> None:
    settings = replace(context.settings, sparse_manifests=True, collect_untagged=0)
    context = replace(context, settings=settings)
    client = CoreClient(context)
    image = make_image((10,))
    index = make_index([image])
    push_blob(client, APP, image.config.data)
    with paused(
        "chalicelib.metadata.manifests.add", lambda: push_manifest(client, APP, index, "v1")
    ):
        push_image(client, APP, image)
    assert collect(context, 0) == []
    pulls(context, client, APP, image, image.manifest.digest)
    delete(client, APP, "manifests", index.digest)
    collect(context, 0)
    assert objects(context) == 0


# What dies half-way, and what is elsewhere.


def test_bytes_of_a_collector_that_died_are_deleted_by_the_next(
    context: Context, client: CoreClient
) -> None:
    push_blob(client, APP, b"data")
    collection.collect(context, 0, Report())
    assert objects(context) == 1
    report = collection.run(context, 0, lambda _: None)
    assert (report.blobs, report.objects, report.freed) == (0, 1, 4)
    assert objects(context) == 0


def test_an_object_that_cannot_be_deleted_keeps_no_other_waiting(
    context: Context, client: CoreClient
) -> None:
    for number in range(20):
        push_blob(client, APP, b"data %d" % number)
    real = context.store.delete
    stuck, *_ = (key for key, _, _ in context.store.list())

    def refuse(keys: list[str]) -> None:
        if stuck in keys:
            raise StorageError("It is stuck.")
        real(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.store, "delete", refuse)
        with pytest.raises(StorageError, match="stuck"):
            collection.run(context, 0, lambda _: None)
    assert objects(context) == 1
    assert collection.run(context, 0, lambda _: None).objects == 1
    assert objects(context) == 0


def test_objects_of_other_stores_are_left_to_these(context: Context, client: CoreClient) -> None:
    digest = push_blob(client, APP, b"data")
    context.database.run(
        "INSERT INTO blob_copies (digest, store, key) VALUES (:digest, 'elsewhere', 'abc')",
        digest=digests.pack(digest),
    )
    assert collection.run(context, 0, lambda _: None).objects == 1
    assert [each.key for each in rows.doomed(context.database, "elsewhere", 0, BEGINNING, 9)] == [
        "abc"
    ]


def test_an_upload_that_expires_leaves_what_clients_may_still_read(
    context: Context, client: CoreClient
) -> None:
    push_blob(client, APP, b"data")
    collection.collect(context, 0, Report())
    context.database.run("UPDATE uploads SET expires_at = now() - interval '1 second'")
    assert uploads.expire(context) == 1
    assert objects(context) == 1


def test_more_than_one_batch(context: Context, client: CoreClient) -> None:
    context.database.run("INSERT INTO repositories (name) VALUES ('test/app')")
    context.database.run(
        "INSERT INTO blobs (digest, size)"
        " SELECT '\\x12'::bytea || sha256(n::text::bytea), 1 FROM generate_series(1, 1100) n"
    )
    context.database.run(
        "INSERT INTO repository_blobs (repository_id, digest)"
        " SELECT id, digest FROM blobs, repositories"
    )
    report = collection.run(context, 0, lambda _: None)
    assert (report.links, report.blobs) == (1100, 1100)


def test_a_dry_run_says_what_goes_and_why(context: Context, client: CoreClient) -> None:
    old, new = make_image((10,), 1), make_image((10,), 2)
    for image in (old, new):
        push_image(client, APP, image, "v1")
    lone = push_blob(client, APP, b"data")
    push_blob(client, OTHER, b"data")
    untagged = with_untagged(context, 0)

    def foresee(age: float) -> list[tuple[str, str]]:
        told: list[Removed] = []
        collection.foresee(untagged, age, told.append)
        return sorted((each.kind, each.digest) for each in told)

    assert foresee(GRACE) == []
    for age in (0.0, float(GRACE)):
        before = context.database.run("TABLE manifests"), objects(context)
        foreseen = foresee(age)
        assert ("manifest", old.manifest.digest) in foreseen
        assert foreseen.count(("link", lone)) == 2
        assert foreseen.count(("blob", lone)) == 1
        assert (context.database.run("TABLE manifests"), objects(context)) == before
        pass_time(context.database, GRACE)
    assert foresee(0) == collect(untagged, 0)
    pulls(context, client, APP, new, "v1")


def test_jobs_collect(context: Context, client: CoreClient) -> None:
    from chalicelib.jobs.kinds import KINDS
    from chalicelib.jobs.worker import Worker

    push_blob(client, APP, b"data")
    pass_time(context.database, GRACE)
    Worker(context, [kind for kind in KINDS if kind.name == "collect"]).drain()
    pass_time(context.database, collection.patience(context))
    context.database.run("DELETE FROM schedules")
    Worker(context, [kind for kind in KINDS if kind.name == "collect"]).drain()
    assert objects(context) == 0


@pytest.mark.parametrize("seconds", ["-1", "x", "nan", "inf", "1e12"])
def test_a_grace_that_cannot_be(seconds: str) -> None:
    with pytest.raises(SystemExit):
        main(["gc", "--grace", seconds])


def test_gc_beside_a_registry(serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_WORKERS="1")
    client = HTTPClient(registry.host)
    image = make_image((1000,))
    push_image(client, APP, image, "v1")
    push_blob(client, APP, b"lone")
    push_blob(client, APP, b"another")

    def gc(*options: str) -> dict[str, Any]:
        done = subprocess.run(
            [OPENREGISTRY, "gc", "--json", *options],
            env={**os.environ, **registry.environment()},
            capture_output=True,
            text=True,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    assert gc()["blobs"] == 0
    foreseen = gc("--dry-run", "--grace", "0")
    assert (foreseen["dry_run"], foreseen["blobs"], foreseen["freed"]) == (True, 2, 11)
    done = gc("--grace", "0")
    assert all(each["reason"] for each in done["removed"])
    for answer in (done, foreseen):
        answer["removed"] = sorted(each["digest"] for each in answer["removed"])
    assert done == {**foreseen, "dry_run": False}
    # The sweep of orphans has left its marker there.
    files = (registry.data_dir / "blobs").rglob("*")
    kept = [each for each in files if each.is_file() and each.parent.name != "op"]
    assert len(kept) == len(image.blobs)
    assert client.request("GET", f"/v2/{APP}/manifests/v1").body == image.manifest.data
    for blob in image.blobs:
        assert client.request("GET", f"/v2/{APP}/blobs/{blob.digest}").body == blob.data
    push_blob(client, APP, b"lone")
