"""Uploads: what clients do, what they do wrong, and what happens to two at once."""

import json
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import jwt
import pytest

from chalicelib import endpoints
from chalicelib.context import Context
from chalicelib.http import Headers, Query, Receiver, RegistryError, Request, Response
from chalicelib.identity.capabilities import Capabilities
from chalicelib.identity.keys import Keys
from chalicelib.identity.open import Open
from chalicelib.registry import uploads
from chalicelib.storage import StorageError
from chalicelib.storage.filesystem import FileStore
from tests.client import (
    Client,
    CoreClient,
    begin,
    pieces,
    push_blob,
    sha256,
    sha512,
    with_query,
)
from tests.images import make_bytes

DATA = make_bytes(100_000)
LARGE = make_bytes(23 << 20)


def get(client: Client, repository: str, digest: str) -> bytes | None:
    """A blob's bytes, None where there is none."""
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}")
    if answer.status == 404:
        return None
    if answer.status == 307:
        import requests

        return requests.get(answer.location, timeout=30).content
    assert answer.status == 200, answer
    return answer.body


def test_one_put(client: Client, repository: str) -> None:
    digest = push_blob(client, repository, DATA)
    assert get(client, repository, digest) == DATA


def test_one_stream_and_an_empty_put(client: Client, repository: str) -> None:
    answer = client.request("PATCH", begin(client, repository), pieces(DATA))
    assert (answer.status, answer.headers["Range"]) == (202, "0-99999")
    answer = client.request("PUT", with_query(answer.location, digest=sha256(DATA)))
    assert answer.status == 201
    assert answer.headers["Docker-Content-Digest"] == sha256(DATA)
    assert urlsplit(answer.location).path == f"/v2/{repository}/blobs/{sha256(DATA)}"
    assert get(client, repository, sha256(DATA)) == DATA


def test_one_post(client: Client, repository: str) -> None:
    answer = client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={sha256(DATA)}", DATA)
    assert answer.status == 201
    assert get(client, repository, sha256(DATA)) == DATA


@pytest.mark.parametrize("last_in_put", [False, True])
def test_chunks(client: Client, repository: str, last_in_put: bool) -> None:
    answer = client.request("POST", f"/v2/{repository}/blobs/uploads/")
    assert int(answer.headers["OCI-Chunk-Min-Length"]) > 0
    location, offset = answer.location, 0
    chunks = list(pieces(DATA, 33_333))
    last = chunks.pop() if last_in_put else b""
    for chunk in chunks:
        fields = {"Content-Range": f"{offset}-{offset + len(chunk) - 1}"}
        answer = client.request("PATCH", location, chunk, fields)
        offset += len(chunk)
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{offset - 1}")
        location = answer.location
    answer = client.request("PUT", with_query(location, digest=sha256(DATA)), last)
    assert answer.status == 201
    assert get(client, repository, sha256(DATA)) == DATA


def test_the_empty_blob(client: Client, repository: str) -> None:
    push_blob(client, repository, b"")
    assert get(client, repository, sha256(b"")) == b""


def test_a_large_blob_by_each_road(core: Client, repository: str) -> None:
    answer = core.request("PATCH", begin(core, repository), pieces(LARGE, 1 << 20))
    answer = core.request("PUT", with_query(answer.location, digest=sha256(LARGE)))
    assert answer.status == 201
    assert get(core, repository, sha256(LARGE)) == LARGE

    other = LARGE[::-1]
    location = begin(core, repository)
    for chunk in pieces(other, 4 << 20):
        location = core.request("PATCH", location, chunk).location
    answer = core.request("PUT", with_query(location, digest=sha256(other)))
    assert answer.status == 201
    assert get(core, repository, sha256(other)) == other


@pytest.mark.parametrize("named", ["at the end", "by the POST", "in the POST's digest"])
def test_sha512(core: Client, repository: str, named: str) -> None:
    digest = sha512(DATA)
    if named == "in the POST's digest":
        target = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        answer = core.request("POST", target, DATA)
    else:
        parameters = "?digest-algorithm=sha512" if named == "by the POST" else ""
        location = begin(core, repository, parameters)
        location = core.request("PATCH", location, DATA[:60_000]).location
        location = core.request("PATCH", location, DATA[60_000:]).location
        answer = core.request("PUT", with_query(location, digest=digest))
    assert answer.status == 201
    assert answer.headers["Docker-Content-Digest"] == digest
    assert get(core, repository, digest) == DATA


def test_a_sha512_named_at_the_end_is_verified(core: Client, repository: str) -> None:
    location = core.request("PATCH", begin(core, repository), LARGE).location
    answer = core.request("PUT", with_query(location, digest=sha512(DATA)))
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert get(core, repository, sha512(DATA)) is None
    # Parts that had to be completed for it are no upload any more; a whole object still is.
    again = core.request("PUT", with_query(location, digest=sha512(LARGE)))
    ended = "begin another" in answer.json["errors"][0]["message"]
    assert again.status == (404 if ended else 201)


@pytest.mark.parametrize(
    ("digest", "code"),
    [
        (sha256(b"something else"), "DIGEST_INVALID"),
        ("sha256:abc", "DIGEST_INVALID"),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", "DIGEST_INVALID"),
        ("", "DIGEST_INVALID"),
    ],
)
def test_a_wrong_digest(client: Client, repository: str, digest: str, code: str) -> None:
    location = begin(client, repository)
    answer = client.request("PUT", with_query(location, digest=digest), DATA)
    assert (answer.status, answer.code) == (400, code)
    # Nothing is lost: the upload stays where it was.
    answer = client.request("PUT", with_query(location, digest=sha256(DATA)), DATA)
    assert answer.status == 201


def test_a_put_without_a_digest(client: Client, repository: str) -> None:
    answer = client.request("PUT", begin(client, repository), DATA)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


def test_chunks_out_of_order(client: Client, repository: str) -> None:
    location = begin(client, repository)
    early = client.request("PATCH", location, b"late", {"Content-Range": "4-7"})
    assert (early.status, early.headers["Range"]) == (416, "0-0")
    location = client.request("PATCH", location, b"0123", {"Content-Range": "0-3"}).location
    for method in ("PATCH", "PUT"):
        again = client.request(
            method,
            with_query(location, digest=sha256(b"0123")),
            b"0123",
            {"Content-Range": "0-3"},
        )
        assert (again.status, again.code) == (416, "BLOB_UPLOAD_INVALID")
        assert again.headers["Range"] == "0-3"
    status = client.request("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-3")
    done = client.request("PUT", with_query(status.location, digest=sha256(b"0123")))
    assert done.status == 201


@pytest.mark.parametrize("value", ["3-1", "x-y", "bytes", "-5", "0-", "0-99999999999999999999"])
def test_a_content_range_that_is_none(client: Client, repository: str, value: str) -> None:
    answer = client.request("PATCH", begin(client, repository), b"data", {"Content-Range": value})
    assert (answer.status, answer.code) == (400, "BLOB_UPLOAD_INVALID")


def test_a_content_range_of_another_length(client: Client, repository: str) -> None:
    location = begin(client, repository)
    answer = client.request("PATCH", location, b"data", {"Content-Range": "0-9"})
    assert (answer.status, answer.code) == (400, "SIZE_INVALID")
    assert client.request("GET", location).headers["Range"] == "0-0"


def test_cancel(client: Client, repository: str) -> None:
    location = client.request("PATCH", begin(client, repository), DATA).location
    assert client.request("DELETE", location).status == 204
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = client.request(method, with_query(location, digest=sha256(DATA)))
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert get(client, repository, sha256(DATA)) is None


def test_a_put_repeated_after_its_answer_was_lost(client: Client, repository: str) -> None:
    location = begin(client, repository)
    location = client.request("PATCH", location, DATA).location
    done = with_query(location, digest=sha256(DATA))
    for _ in range(3):
        assert client.request("PUT", done).status == 201
    assert client.request("PUT", done, DATA).status == 201


def test_a_replayed_location_changes_nothing(client: Client, repository: str) -> None:
    first = begin(client, repository)
    second = client.request("PATCH", first, DATA).location
    digest = sha256(DATA)
    assert client.request("PUT", with_query(second, digest=digest)).status == 201
    for location in (first, second):
        assert client.request("PATCH", location, b"other bytes").status == 404
        assert client.request("GET", location).status == 404
        assert client.request("DELETE", location).status == 404
        other = with_query(location, digest=sha256(b"other bytes"))
        assert client.request("PUT", other, b"other bytes").status == 404
    assert get(client, repository, digest) == DATA


def test_locations_are_signed(client: Client, repository: str) -> None:
    location = begin(client, repository)
    token = location.partition("_state=")[2]
    head, body, signature = token.split(".")
    claims = json.loads(urlsafe_b64decode(body + "=="))
    forged = [
        "",
        token[:-4] + "AAAA",
        f"{head}.{body}.",
        jwt.encode(claims, "another key" * 3, algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        f"{head}.{jwt.encode(claims | {'upload': 'x'}, 'k' * 32).split('.')[1]}.{signature}",
    ]
    for state in forged:
        answer = client.request("PATCH", location.replace(token, state), DATA)
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    elsewhere = location.replace(repository, f"{repository}/other")
    assert client.request("PATCH", elsewhere, DATA).status == 404
    other = begin(client, repository)
    swapped = f"{other.partition('?')[0]}?_state={token}"
    assert client.request("PATCH", swapped, DATA).status == 404


def test_an_expired_location(file_context: Context, repository: str) -> None:
    client = CoreClient(file_context)
    location = begin(client, repository)
    upload = location.partition("?")[0].rpartition("/")[2]
    old = Capabilities(Keys("a secret for the tests alone"), -1)
    token = old.issue(repository, upload, "")
    answer = client.request("PATCH", f"{location.partition('?')[0]}?_state={token}", DATA)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert "expired" in answer.json["errors"][0]["message"]


def test_upload_url_names_another_host(file_context: Context, repository: str) -> None:
    settings = replace(file_context.settings, upload_url="https://uploads.example.org")
    client = CoreClient(replace(file_context, settings=settings))
    location = begin(client, repository)
    assert location.startswith(f"https://uploads.example.org/v2/{repository}/blobs/uploads/")
    answer = CoreClient(file_context).request(
        "PUT", with_query(location, digest=sha256(DATA)), DATA
    )
    assert answer.status == 201


# Mounts


def test_mount(client: Client, repository: str) -> None:
    digest = push_blob(client, f"{repository}/from", DATA)
    target = f"/v2/{repository}/to/blobs/uploads/?mount={digest}&from={repository}/from"
    answer = client.request("POST", target)
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest)
    assert get(client, f"{repository}/to", digest) == DATA


def test_mount_from_anywhere(client: Client, repository: str) -> None:
    data = make_bytes(5000, repository)
    digest = push_blob(client, f"{repository}/from", data)
    answer = client.request("POST", f"/v2/{repository}/to/blobs/uploads/?mount={digest}")
    assert answer.status == 201
    assert get(client, f"{repository}/to", digest) == data


def test_mount_of_what_is_not_there(client: Client, repository: str) -> None:
    digest = push_blob(client, f"{repository}/elsewhere", DATA)
    data = make_bytes(100, repository)
    for mounted, source in ((digest, f"{repository}/from"), (sha256(data), "")):
        target = f"/v2/{repository}/to/blobs/uploads/?mount={mounted}&from={source}"
        answer = client.request("POST", target)
        assert answer.status == 202
    for query in ("mount=sha384:abc&from=a", f"mount={digest}&from=NO", "mount=&from="):
        assert client.request("POST", f"/v2/{repository}/to/blobs/uploads/?{query}").status == 202
    answer = client.request("PUT", with_query(answer.location, digest=sha256(data)), data)
    assert answer.status == 201


@pytest.mark.parametrize("source", ["%00", "UPPER", "a%FFb", "../a", "x" * 256])
def test_mount_from_what_is_no_name(client: Client, repository: str, source: str) -> None:
    digest = push_blob(client, repository, DATA)
    target = f"/v2/{repository}/to/blobs/uploads/?mount={digest}&from={source}"
    assert client.request("POST", target).status == 202


# Two at once, and crashes. These drive the functions directly, between their steps.


def open_body(context: Context, method: str, location: str, **fields: str) -> Receiver:
    """A request whose body is on its way."""
    path, _, query = location.partition("?")
    request = Request(method, path, Query(query), Headers({"Transfer-Encoding": "x"} | fields))
    receiver = endpoints.receive(context, request)
    assert not isinstance(receiver, Response), receiver
    return receiver


def test_of_two_patches_the_newer_wins(context: Context, repository: str) -> None:
    client = CoreClient(context)
    location = begin(client, repository)
    old = open_body(context, "PATCH", location)
    old.feed([LARGE[: 12 << 20]])
    new = open_body(context, "PATCH", location)
    new.feed([LARGE])
    assert new.finish().status == 202
    # On S3 the older one learns of it when it asks for its next part's number.
    try:
        old.feed([LARGE[: 12 << 20]])
        status = old.finish().status
    except RegistryError as error:
        status = error.status
        old.abort()
    assert status == 416
    done = client.request("PUT", with_query(location, digest=sha256(LARGE)))
    assert done.status == 201
    assert get(client, repository, sha256(LARGE)) == LARGE


def test_concurrent_patches_never_mix(context: Context, repository: str) -> None:
    client = CoreClient(context)
    location = begin(client, repository)
    bodies = [make_bytes(9 << 20, seed) for seed in range(4)]
    answers: list[int] = []

    def patch(body: bytes) -> None:
        answers.append(client.request("PATCH", location, pieces(body, 1 << 20)).status)

    threads = [threading.Thread(target=patch, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received = int(client.request("GET", location).headers["Range"].partition("-")[2]) + 1
    assert set(answers) <= {202, 416}
    assert received == answers.count(202) * (9 << 20)
    if answers.count(202) == 1:
        outcomes = [
            client.request("PUT", with_query(location, digest=sha256(body))).status
            for body in bodies
        ]
        assert sorted(outcomes) == [201, 400, 400, 400] or outcomes.count(201) == 1
        winner = bodies[outcomes.index(201)]
        assert get(client, repository, sha256(winner)) == winner


def test_concurrent_puts_of_one_upload(context: Context, repository: str) -> None:
    client = CoreClient(context)
    location = client.request("PATCH", begin(client, repository), LARGE).location
    target = with_query(location, digest=sha256(LARGE))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.request("PUT", target).status))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [201] * 4
    assert get(client, repository, sha256(LARGE)) == LARGE


def test_a_race_for_one_digest_keeps_one_object(context: Context, repository: str) -> None:
    client = CoreClient(context)
    data = make_bytes(1 << 20, repository)
    before = set(context.store.list())
    for number in range(3):
        push_blob(client, f"{repository}/{number}", data)
    assert len({key for key, _, _ in context.store.list()} - {key for key, _, _ in before}) == 1


def test_a_lost_object_is_replaced(context: Context, repository: str) -> None:
    client = CoreClient(context)
    data = make_bytes(1 << 20, repository)
    before = {key for key, _, _ in context.store.list()}
    digest = push_blob(client, repository, data)
    [key] = {key for key, _, _ in context.store.list()} - before
    context.store.delete([key])
    push_blob(client, repository, data)
    assert get(client, repository, digest) == data


def test_a_lost_object_is_absent_until_it_is_back(file_context: Context, repository: str) -> None:
    """So that clients which ask first push it again, and storage mounted wrongly for a while loses
    nothing."""
    client, store = CoreClient(file_context), file_context.store
    data = make_bytes(1000, repository)
    before = {key for key, _, _ in store.list()}
    digest = push_blob(client, repository, data)
    [key] = {key for key, _, _ in store.list()} - before
    assert isinstance(store, FileStore)
    away = store.path(key).rename(store.path(key).with_suffix(".away"))
    path = f"/v2/{repository}/blobs/{digest}"
    assert client.request("GET", path).status == 404
    assert client.request("HEAD", path).status == 404
    target = f"/v2/{repository}/to/blobs/uploads/?mount={digest}&from={repository}"
    assert client.request("POST", target).status == 202
    away.rename(store.path(key))
    assert client.request("HEAD", path).status == 200
    assert get(client, repository, digest) == data
    store.delete([key])
    assert client.request("GET", path).status == 404
    push_blob(client, repository, data)
    assert client.request("HEAD", path).status == 200
    assert client.request("POST", target).status == 201


def test_chunks_leave_nothing_but_the_object(context: Context, repository: str) -> None:
    client = CoreClient(context)
    data = make_bytes(12 << 20, repository)
    before = set(files(context))
    location = begin(client, repository)
    for chunk in pieces(data, 5 << 20):
        location = client.request("PATCH", location, chunk).location
    assert client.request("PUT", with_query(location, digest=sha256(data))).status == 201
    assert [size for _, size in set(files(context)) - before] == [len(data)]


def files(context: Context) -> list[tuple[str, int]]:
    """All that is in the store, objects and what is staged."""
    if not isinstance(context.store, FileStore):
        client = context.store.client  # type: ignore[attr-defined]
        found = client.s3.list_objects_v2(Bucket=context.store.bucket.name)  # type: ignore[attr-defined]
        return [(item["Key"], item["Size"]) for item in found.get("Contents", ())]
    folder = context.settings.data_dir / "blobs"
    return [(file.name, file.stat().st_size) for file in folder.rglob("*") if file.is_file()]


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_around_completing_the_object(context: Context, repository: str, step: str) -> None:
    """The transaction did not happen: the same PUT, to another process, goes on."""

    class Dying:
        def __getattr__(self, name: str) -> object:
            return getattr(context.store, name)

        def complete(self, staged: object) -> None:
            if step == "after":
                context.store.complete(staged)  # type: ignore[arg-type]
            raise Crash

    client = CoreClient(context)
    location = begin(client, repository)
    for chunk in pieces(LARGE, 8 << 20):
        location = client.request("PATCH", location, chunk).location
    dying = CoreClient(replace(context, store=Dying()))  # type: ignore[arg-type]
    target = with_query(location, digest=sha256(LARGE))
    assert dying.request("PUT", target).status == 500
    assert get(client, repository, sha256(LARGE)) is None
    other = with_query(location, digest=sha256(DATA))
    assert client.request("PUT", other, DATA).status == 404
    assert client.request("PATCH", location, DATA).status == 404
    assert client.request("PUT", target).status == 201
    assert get(client, repository, sha256(LARGE)) == LARGE


def test_a_commit_whose_permission_is_gone(file_context: Context, repository: str) -> None:
    class Revoked(Open):
        def permits(self, *_: object) -> bool:
            return False

    client = CoreClient(file_context)
    location = begin(client, repository)
    revoked = CoreClient(replace(file_context, access=Revoked(file_context.database)))
    answer = revoked.request("PUT", with_query(location, digest=sha256(DATA)), DATA)
    assert (answer.status, answer.code) == (403, "DENIED")
    assert get(client, repository, sha256(DATA)) is None


# Expiry


def age(context: Context) -> None:
    """Let all uploads' capabilities have expired."""
    context.database.run("UPDATE uploads SET expires_at = now() - interval '1 second'")


def staged(context: Context) -> Sequence[tuple[str, int]]:
    """All objects of the store."""
    return [(key, size) for key, size, _ in context.store.list()]


def test_expiry_clears_what_was_staged_and_keeps_what_was_committed(
    context: Context, repository: str
) -> None:
    client = CoreClient(context)
    age(context)
    uploads.expire(context)
    before = staged(context)
    kept = make_bytes(9 << 20, repository)
    location = client.request("PATCH", begin(client, repository), kept).location
    assert client.request("PUT", with_query(location, digest=sha256(kept))).status == 201
    for size in (1000, 12 << 20):
        begin(client, repository)
        client.request("PATCH", begin(client, repository), make_bytes(size))
    broken = open_body(context, "PATCH", begin(client, repository))
    broken.feed([LARGE])
    broken.abort()
    age(context)
    assert uploads.expire(context) == 6
    assert uploads.expire(context) == 0
    left = set(staged(context)) - set(before)
    assert [size for _, size in left] == [len(kept)]
    assert get(client, repository, sha256(kept)) == kept
    assert context.database.run("SELECT count(*) FROM upload_keys") == [[0]]


def test_expiry_goes_on_past_what_cannot_be_cleared(file_context: Context, repository: str) -> None:
    class Stuck:
        def __getattr__(self, name: str) -> object:
            return getattr(file_context.store, name)

        def discard(self, key: str) -> None:
            if not stuck:
                stuck.append(key)
            if key == stuck[0]:
                raise StorageError("It cannot be deleted.")
            file_context.store.discard(key)

    stuck: list[str] = []
    client = CoreClient(file_context)
    age(file_context)
    uploads.expire(file_context)
    before = staged(file_context)
    for _ in range(3):
        client.request("PATCH", begin(client, repository), DATA)
    age(file_context)
    assert uploads.expire(replace(file_context, store=Stuck())) == 2  # type: ignore[arg-type]
    assert len(staged(file_context)) == len(before) + 1
    age(file_context)
    assert uploads.expire(file_context) == 1
    assert staged(file_context) == before


def test_a_commit_that_outlives_its_upload_leaves_the_blob(
    context: Context, repository: str
) -> None:
    """Another request has committed what this one was about to, and that is long ago."""

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(context.store, name)

        def complete(self, staged: object) -> None:
            context.store.complete(staged)  # type: ignore[arg-type]
            assert client.request("PUT", target).status == 201
            age(context)
            uploads.expire(context)

    client = CoreClient(context)
    location = client.request("PATCH", begin(client, repository), LARGE[:-10]).location
    target = with_query(location, digest=sha256(LARGE))
    slow = CoreClient(replace(context, store=Slow()))  # type: ignore[arg-type]
    assert slow.request("PUT", target, LARGE[-10:]).status == 404
    assert get(client, repository, sha256(LARGE)) == LARGE


def test_a_request_that_outlives_its_upload_fails(context: Context, repository: str) -> None:
    client = CoreClient(context)
    body = open_body(context, "PUT", with_query(begin(client, repository), digest=sha256(DATA)))
    body.feed([DATA])
    age(context)
    uploads.expire(context)
    assert body.finish().status == 404
    assert get(client, repository, sha256(DATA)) is None


def test_a_long_request_puts_off_the_expiry(context: Context, repository: str) -> None:
    client = CoreClient(context)
    short = replace(context, settings=replace(context.settings, upload_expiry=0))
    body = open_body(short, "PATCH", begin(client, repository))
    age(context)
    time.sleep(0.01)
    body.feed([DATA])
    uploads.expire(context)
    assert body.finish().status == 202
