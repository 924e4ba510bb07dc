"""Direct uploads: what a client does after docs/direct-uploads.md, and what a liar does."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import requests

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import Denied
from chalicelib.identity.open import Open
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import uploads
from chalicelib.registry import direct, verifying
from chalicelib.registry.uploads import expire
from chalicelib.storage import NoSuchObject, Refused, StorageError
from tests.client import Answer, CoreClient, begin, push_blob, sha256, sha512, with_query
from tests.images import make_bytes

PART = 5 << 20
LARGE = make_bytes(4 * PART + 77, 1)
OTHER = make_bytes(4 * PART + 77, 2)
JOBS = [kind for kind in KINDS if kind.name in (direct.VERIFY, direct.COMMIT)]


@pytest.fixture
def context(s3_context: Context) -> Context:
    return s3_context


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


@pytest.fixture
def piecewise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is larger than two parts is verified by jobs, two parts by each."""
    for module in (verifying, direct):
        monkeypatch.setattr(module, "PIECE", 2 * PART)


class Direct:
    """A client in the middle of a direct upload."""

    def __init__(self, client: CoreClient, repository: str, **wanted: Any) -> None:
        self.client = client
        self.repository = repository
        self.began = self.ask("POST", f"/v2/{repository}/_openregistry/uploads/direct", wanted)

    def ask(self, method: str, target: str, body: Any = None) -> Answer:
        sent = b"" if body is None else json.dumps(body).encode()
        answer = self.client.request(method, target, sent)
        if "/uploads/" in answer.headers.get("Location", ""):
            self.location = answer.location
        return answer

    def urls(self, sizes: Mapping[int, int], **more: Any) -> Answer:
        parts = [{"number": number, "size": size} for number, size in sizes.items()]
        return self.ask("POST", self.location, {"parts": parts, **more})

    def send(self, parts: Mapping[int, bytes], **more: Any) -> dict[int, str]:
        """Send parts; gives their URLs."""
        answer = self.urls({number: len(part) for number, part in parts.items()}, **more)
        assert answer.status == 200, answer
        urls = {part["number"]: part["url"] for part in answer.json["parts"]}
        for number, url in urls.items():
            assert requests.put(url, parts[number], timeout=30).status_code == 200
        return urls

    def commit(self, data: bytes, digest: str = "", **said: Any) -> Answer:
        digest = digest or sha256(data)
        told = {"size": len(data), "states": states(data, digest), **said}
        return self.ask("PUT", with_query(self.location, digest=digest), told)

    def status(self) -> Answer:
        return self.ask("GET", self.location)


def cut(data: bytes) -> dict[int, bytes]:
    """The parts of some bytes, by number."""
    return {n // PART + 1: data[n : n + PART] for n in range(0, len(data), PART)}


def states(data: bytes, digest: str = "sha256:") -> list[str]:
    """The states at the ends of all parts but the last."""
    hashing, found = Hash(digest.partition(":")[0]), []
    for part in list(cut(data).values())[:-1]:
        hashing.update(part)
        found.append(hashing.words().hex())
    return found


def work(context: Context) -> None:
    """Do what has to be done to verify uploads."""
    Worker(context, JOBS).drain()


def stored(context: Context, repository: str, digest: str) -> bytes | None:
    answer = CoreClient(context).request("GET", f"/v2/{repository}/blobs/{digest}")
    if answer.status == 404:
        return None
    assert answer.status == 307
    return requests.get(answer.location, timeout=30).content


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


def test_it_is_discovered(client: CoreClient, file_context: Context, context: Context) -> None:
    [extension] = client.request("GET", "/v2/_oci/ext/discover").json["extensions"]
    assert extension["name"] == "_openregistry"
    assert extension["endpoints"] == ["_openregistry/uploads/direct"]
    settings = replace(context.settings, downloads="stream")
    for other in (file_context, replace(context, settings=settings)):
        elsewhere = CoreClient(other)
        assert elsewhere.request("GET", "/v2/_oci/ext/discover").json == {"extensions": []}
        refused = Direct(elsewhere, "test/direct").began
        assert error(refused) == (405, "UNSUPPORTED")


def test_a_small_blob_is_there_at_once(
    context: Context, client: CoreClient, repository: str
) -> None:
    upload = Direct(client, repository, size=len(LARGE), digest=sha256(LARGE))
    assert upload.began.status == 201
    assert upload.began.json["partSize"] == PART
    upload.send(cut(LARGE))
    assert stored(context, repository, sha256(LARGE)) is None
    answer = upload.commit(LARGE)
    assert answer.status == 201
    assert answer.headers["Docker-Content-Digest"] == sha256(LARGE)
    assert stored(context, repository, sha256(LARGE)) == LARGE
    assert upload.status().json["state"] == "committed"
    assert upload.commit(LARGE).status == 201
    again = Direct(client, repository, digest=sha256(LARGE)).began
    assert (again.status, again.json["state"]) == (200, "committed")


@pytest.mark.usefixtures("piecewise")
def test_a_large_blob_is_verified_by_jobs(
    context: Context, client: CoreClient, repository: str
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    answer = upload.commit(LARGE)
    assert (answer.status, answer.json["state"], answer.json["verified"]) == (202, "verifying", 0)
    assert upload.commit(LARGE).status == 202
    assert stored(context, repository, sha256(LARGE)) is None
    work(context)
    assert upload.status().json["state"] == "committed"
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


@pytest.mark.long
@pytest.mark.usefixtures("piecewise")
@pytest.mark.parametrize("size", [2 * PART + 1, 3 * PART, 4 * PART, 4 * PART + 1])
@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_sizes(context: Context, client: CoreClient, repository: str, size: int, name: str) -> None:
    data = make_bytes(size, 3)
    digest = sha256(data) if name == "sha256" else sha512(data)
    upload = Direct(client, repository, algorithm=name)
    upload.send(cut(data))
    assert upload.commit(data, digest).status == 202
    work(context)
    assert upload.commit(data, digest).status == 201
    assert stored(context, repository, digest) == data


def lie_last(told: list[str]) -> list[str]:
    return [*told[:-1], "00" * 32]


def lie_within_a_piece(told: list[str]) -> list[str]:
    return ["00" * 32, *told[1:]]


def lie_at_a_piece(told: list[str]) -> list[str]:
    return [told[0], "00" * 32, *told[2:]]


def other_content(_: list[str]) -> list[str]:
    return states(OTHER)


@pytest.mark.usefixtures("piecewise")
@pytest.mark.parametrize("lie", [lie_last, lie_within_a_piece, lie_at_a_piece, other_content])
def test_wrong_states(
    context: Context,
    client: CoreClient,
    repository: str,
    lie: Callable[[list[str]], list[str]],
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert upload.commit(LARGE, states=lie(states(LARGE))).status == 202
    work(context)
    refused(context, upload, LARGE)


def refused(context: Context, upload: Direct, data: bytes) -> None:
    """Nothing has come of an upload, and its client is told why."""
    told = upload.status().json
    assert (told["state"], told["error"]["code"]) == ("refused", "DIGEST_INVALID")
    assert error(upload.commit(data)) == (400, "DIGEST_INVALID")
    assert stored(context, upload.repository, sha256(data)) is None
    assert not list(context.store.list_staged())
    work(context)


@pytest.mark.usefixtures("piecewise")
def test_pieces_stay_what_they_were(
    context: Context, client: CoreClient, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with other ideas of a piece's size leaves nothing out."""
    data = LARGE[: 3 * PART] + OTHER[3 * PART :]
    upload = Direct(client, repository)
    upload.send(cut(data))
    assert upload.commit(data, states=states(LARGE), digest=sha256(LARGE)).status == 202
    monkeypatch.setattr(verifying, "PIECE", PART)
    work(context)
    refused(context, upload, LARGE)


@pytest.mark.usefixtures("piecewise")
@pytest.mark.parametrize("swapped", [(1, 2), (2, 3), (1, 4), (3, 4)])
def test_swapped_parts(
    context: Context, client: CoreClient, repository: str, swapped: tuple[int, int]
) -> None:
    upload = Direct(client, repository)
    parts = cut(LARGE)
    first, second = swapped
    upload.send({**parts, first: parts[second], second: parts[first]})
    assert upload.commit(LARGE).status == 202
    work(context)
    refused(context, upload, LARGE)


@pytest.mark.usefixtures("piecewise")
def test_the_digest_of_something_else(
    context: Context, client: CoreClient, repository: str
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert upload.commit(LARGE, sha256(OTHER)).status == 202
    work(context)
    assert upload.status().json["error"]["code"] == "DIGEST_INVALID"
    assert stored(context, repository, sha256(OTHER)) is None
    small = Direct(client, repository)
    small.send(cut(LARGE[: PART + 1]))
    answer = small.commit(LARGE[: PART + 1], sha256(OTHER))
    assert error(answer) == (400, "DIGEST_INVALID")
    assert small.status().json["state"] == "refused"


def test_what_is_missing_or_short(context: Context, client: CoreClient, repository: str) -> None:
    upload = Direct(client, repository)
    parts = cut(LARGE)
    upload.send({1: parts[1], 3: parts[3], 4: parts[4], 5: parts[5]})
    assert error(upload.commit(LARGE)) == (400, "SIZE_INVALID")
    upload.send({2: parts[2][:-1]})
    assert error(upload.commit(LARGE)) == (400, "SIZE_INVALID")
    time.sleep(1)  # SeaweedFS tells seconds
    upload.send({2: parts[2], 5: parts[5] + b"more"})
    assert error(upload.commit(LARGE)) == (400, "SIZE_INVALID")
    assert error(upload.commit(LARGE, size=len(LARGE) + 1)) == (400, "SIZE_INVALID")
    time.sleep(1)
    upload.send({5: parts[5]})
    assert error(upload.commit(LARGE, states=states(LARGE)[1:])) == (400, "BLOB_UPLOAD_INVALID")
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


def test_a_url_is_for_one_part_of_one_size(client: CoreClient, repository: str) -> None:
    upload = Direct(client, repository)
    [part] = upload.urls({1: 100}).json["parts"]
    for body in (b"x" * 99, b"x" * 101):
        assert requests.put(part["url"], body, timeout=30).status_code == 403
    elsewhere = part["url"].replace("partNumber=1", "partNumber=2")
    assert requests.put(elsewhere, b"x" * 100, timeout=30).status_code == 403
    assert requests.put(part["url"], b"x" * 100, timeout=30).status_code == 200


@pytest.mark.usefixtures("piecewise")
@pytest.mark.parametrize("verified", [False, True])
def test_a_url_that_is_used_again(
    context: Context, client: CoreClient, repository: str, verified: bool
) -> None:
    """Neither before the bytes are verified nor afterwards are they replaced."""
    upload = Direct(client, repository)
    urls = upload.send(cut(LARGE))
    assert upload.commit(LARGE).status == 202
    if verified:
        work(context)
    for number, part in cut(OTHER).items():
        assert requests.put(urls[number], part, timeout=30).status_code == 404
    work(context)
    assert stored(context, repository, sha256(LARGE)) == LARGE


def test_a_part_may_be_sent_again(context: Context, client: CoreClient, repository: str) -> None:
    upload = Direct(client, repository)
    upload.send({**cut(LARGE), 2: cut(OTHER)[2]})
    time.sleep(1)  # SeaweedFS tells seconds
    upload.send({2: cut(LARGE)[2]})
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


@pytest.mark.usefixtures("piecewise")
def test_racing_commits(context: Context, client: CoreClient, repository: str) -> None:
    """With one digest all succeed; with two, one does."""
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    for answer in at_once(lambda: upload.commit(LARGE), 4):
        assert answer.status == 202
    work(context)
    assert {answer.status for answer in at_once(lambda: upload.commit(LARGE), 4)} == {201}

    upload = Direct(client, repository)
    upload.send(cut(OTHER))
    turns = iter([sha256(OTHER), sha256(b"other"), sha256(OTHER), sha256(b"other")])
    answers = at_once(lambda: upload.commit(OTHER, next(turns)), 4)
    assert {answer.status for answer in answers} == {202, 404}
    work(context)
    assert upload.status().json["state"] in ("committed", "refused")
    assert stored(context, repository, sha256(b"other")) is None


def test_racing_commits_of_a_small_one(
    context: Context, client: CoreClient, repository: str
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert {answer.status for answer in at_once(lambda: upload.commit(LARGE), 4)} <= {201, 202}
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


@pytest.mark.parametrize("gone", ["parts", "object"])
def test_a_commit_that_comes_second(
    context: Context,
    client: CoreClient,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
    gone: str,
) -> None:
    """What it is about to look at has gone: the first one has done it all."""
    upload = Direct(client, repository)
    upload.send(cut(LARGE))

    def late(*_: object) -> list[Any]:
        patch.undo()
        assert upload.commit(LARGE).status == 201
        if gone == "object":
            raise NoSuchObject("There is no object.")
        return []

    with monkeypatch.context() as patch:
        looking = context.store.client_parts if gone == "parts" else context.store
        patch.setattr(looking, "list" if gone == "parts" else "read", late)
        assert upload.commit(LARGE).status == 201


def at_once(ask: Callable[[], Answer], count: int) -> list[Answer]:
    answers: list[Answer] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        answers.append(ask())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == count
    return answers


@pytest.mark.usefixtures("piecewise")
def test_the_same_blob_twice(context: Context, client: CoreClient, repository: str) -> None:
    """Who comes second keeps what is there, and drops the own object."""
    data = make_bytes(3 * PART + 1, 4)
    first, second = Direct(client, repository), Direct(client, repository)
    for upload in (first, second):
        upload.send(cut(data))
        assert upload.commit(data).status == 202
    work(context)
    for upload in (first, second):
        assert upload.commit(data).status == 201
    keys = {key for key, _, _ in context.store.list()}
    assert len(keys & set(keys_of(context, first, second))) == 1


def keys_of(context: Context, *made: Direct) -> list[str]:
    ids = [upload.location.partition("?")[0].rpartition("/")[2] for upload in made]
    return [key for each in ids for key, _ in uploads.keys(context.database, each, "s3")]


@pytest.mark.usefixtures("piecewise")
def test_it_goes_on_after_a_crash_in_the_commit(
    context: Context, client: CoreClient, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    with monkeypatch.context() as patch:
        patch.setattr(direct, "_begin_verifying", _die)
        assert upload.commit(LARGE).status == 500
    assert upload.status().json["state"] == "verifying"
    assert upload.commit(LARGE).status == 202
    work(context)
    assert upload.commit(LARGE).status == 201


def _die(*_: object) -> None:
    raise RuntimeError("killed")


def test_parts_that_storage_does_not_know(
    context: Context, client: CoreClient, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))

    def refuse(_: object) -> None:
        raise Refused("Object storage answered with 400 InvalidPart.", "InvalidPart")

    monkeypatch.setattr(context.store, "complete", refuse)
    assert error(upload.commit(LARGE)) == (400, "BLOB_UPLOAD_INVALID")
    assert upload.status().json["state"] == "refused"


def let_go(context: Context) -> None:
    """As if nobody had asked for a minute."""
    context.database.run("UPDATE direct_uploads SET held_until = now() - interval '1 second'")


@pytest.mark.parametrize("by", ["digest", "state"])
def test_it_goes_on_elsewhere(
    context: Context, client: CoreClient, repository: str, by: str
) -> None:
    told = dict(enumerate(states(LARGE), 1))
    known: dict[str, Any] = {"digest": sha256(LARGE)} if by == "digest" else {}
    cut_off = Direct(client, repository, **known)
    cut_off.send({n: cut(LARGE)[n] for n in (1, 2)}, states={1: told[1], 2: told[2]})
    known = known or {"states": [told[1]]}
    held = Direct(client, repository, **known)
    assert held.began.json["parts"] == []
    assert held.ask("DELETE", held.location).status == 204

    let_go(context)
    upload = Direct(client, repository, **known)
    assert upload.began.json["parts"] == [
        {"number": n, "size": PART, "state": told[n]} for n in (1, 2)
    ]
    for answer in (
        cut_off.status(),
        cut_off.urls({3: PART}),
        cut_off.commit(LARGE),
        cut_off.ask("DELETE", cut_off.location),
    ):
        assert error(answer) == (409, "BLOB_UPLOAD_INVALID")
    upload.send({n: cut(LARGE)[n] for n in (3, 4, 5)})
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


def test_it_begins_with_urls(context: Context, client: CoreClient, repository: str) -> None:
    data = LARGE[: 2 * PART + 5]
    upload = Direct(client, repository, size=len(data), digest=sha256(data))
    urls = upload.began.json["urls"]
    assert [(part["number"], part["size"]) for part in urls] == [(1, PART), (2, PART), (3, 5)]
    for part in urls:
        body = cut(data)[part["number"]]
        assert requests.put(part["url"], body, timeout=30).status_code == 200
    assert upload.ask("POST", upload.location, {"release": True}).status == 200
    again = Direct(client, repository, size=len(data), digest=sha256(data))
    assert len(again.began.json["parts"]) == 3
    assert again.began.json["urls"] == []
    assert again.commit(data).status == 201
    unknown = Direct(client, repository).began.json["urls"]
    assert [(part["number"], part["size"]) for part in unknown] == [(n, PART) for n in range(1, 9)]


@pytest.mark.usefixtures("piecewise")
@pytest.mark.parametrize("died", [False, True])
def test_who_left_while_it_was_verified(
    context: Context,
    client: CoreClient,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
    died: bool,
) -> None:
    """Or the registry did: nothing is sent again."""
    data = make_bytes(2 * PART + 9, f"left {died}")
    upload = Direct(client, repository)
    upload.send(cut(data))
    with monkeypatch.context() as patch:
        if died:
            patch.setattr(direct, "_begin_verifying", _die)
        assert upload.commit(data).status == (500 if died else 202)
    elsewhere = Direct(client, repository + "/other", digest=sha256(data)).began
    assert elsewhere.json["state"] == "open"
    again = Direct(client, repository, digest=sha256(data))
    assert (again.began.status, again.began.json["state"]) == (200, "verifying")
    work(context)
    assert again.status().json["state"] == "committed"
    assert stored(context, repository, sha256(data)) == data


def test_it_is_let_go_of(client: CoreClient, repository: str) -> None:
    first = Direct(client, repository, digest=sha256(LARGE))
    first.send({1: cut(LARGE)[1]})
    assert first.ask("POST", first.location, {"release": True}).status == 200
    assert len(Direct(client, repository, digest=sha256(LARGE)).began.json["parts"]) == 1


def test_nobody_goes_on_with_another_blob(
    context: Context, client: CoreClient, repository: str
) -> None:
    first = Direct(client, repository, digest=sha256(LARGE), size=len(LARGE))
    first.send({1: cut(LARGE)[1]}, states={1: states(LARGE)[0]})
    let_go(context)
    for wanted in (
        {"digest": sha256(OTHER)},
        {"digest": sha256(LARGE), "size": len(LARGE) + 1},
        {"states": [states(OTHER)[0]]},
        {"states": [states(LARGE)[0]], "size": len(LARGE) - 1},
        {"algorithm": "sha512", "states": [states(LARGE, "sha512:")[0]]},
        {},
    ):
        assert Direct(client, repository, **wanted).began.json["parts"] == []
    elsewhere = Direct(client, repository + "/other", digest=sha256(LARGE))
    assert elsewhere.began.json["parts"] == []


def test_what_was_more_than_the_end_is_left_out(
    context: Context, client: CoreClient, repository: str
) -> None:
    """A shorter blob with the same beginning."""
    data = LARGE[: 2 * PART + 5]
    first = Direct(client, repository)
    first.send(cut(LARGE), states={1: states(LARGE)[0]})
    let_go(context)
    upload = Direct(client, repository, states=states(data)[:1])
    assert len(upload.began.json["parts"]) == 5
    time.sleep(1)  # SeaweedFS tells seconds
    upload.send({3: data[2 * PART :]})
    assert upload.commit(data).status == 201
    assert stored(context, repository, sha256(data)) == data


def test_what_was_known_of_one_is_not_so_of_another(
    context: Context, client: CoreClient, repository: str
) -> None:
    """A longer blob with the same beginning as one whose digest and size were known."""
    data = LARGE[: 2 * PART + 5]
    first = Direct(client, repository, digest=sha256(data), size=len(data))
    first.send({1: cut(LARGE)[1]}, states={1: states(LARGE)[0]})
    let_go(context)
    upload = Direct(client, repository, states=states(LARGE)[:1])
    assert len(upload.began.json["parts"]) == 1
    upload.send({n: part for n, part in cut(LARGE).items() if n > 1})
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE


def test_only_what_was_sent_is_known(context: Context, client: CoreClient, repository: str) -> None:
    """States are those of the bytes that are there: not those that whoever goes on will send, nor
    those of bytes that were sent again."""
    mine, data = states(LARGE), cut(LARGE)[1] + OTHER[PART:]
    first = Direct(client, repository)
    first.send({n: cut(LARGE)[n] for n in (1, 2)}, states={1: mine[0], 2: mine[1]})
    let_go(context)
    second = Direct(client, repository, states=states(data)[:2])
    assert second.began.json["parts"][1] == {"number": 2, "size": PART, "state": mine[1]}
    second.send({2: cut(data)[2]})
    assert second.status().json["parts"] == [
        {"number": 1, "size": PART, "state": mine[0]},
        {"number": 2, "size": PART},
    ]


def test_one_whose_parts_are_too_small_is_not_gone_on_with(
    context: Context, client: CoreClient, repository: str
) -> None:
    told = states(LARGE)[:1]
    Direct(client, repository, states=told)
    let_go(context)
    upload = Direct(client, repository, states=told, size=10_000 * PART + 1)
    assert upload.began.json["partSize"] > PART


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"size": 0}, 400, "SIZE_INVALID"),
        ({"size": 1 << 50}, 413, "SIZE_INVALID"),
        ({"digest": "sha256:1"}, 400, "DIGEST_INVALID"),
        ({"algorithm": "md5"}, 400, "DIGEST_INVALID"),
        ({"states": ["00"]}, 400, "BLOB_UPLOAD_INVALID"),
        ({"size": "much"}, 400, "BLOB_UPLOAD_INVALID"),
        ([], 400, "BLOB_UPLOAD_INVALID"),
    ],
)
def test_what_cannot_be_begun(
    client: CoreClient, repository: str, body: Any, status: int, code: str
) -> None:
    target = f"/v2/{repository}/_openregistry/uploads/direct"
    assert error(client.request("POST", target, json.dumps(body).encode())) == (status, code)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([{"number": 0, "size": PART}], "BLOB_UPLOAD_INVALID"),
        ([{"number": 10_001, "size": 1}], "BLOB_UPLOAD_INVALID"),
        ([{"number": 1, "size": PART + 1}], "BLOB_UPLOAD_INVALID"),
        ([{"number": 1, "size": 0}], "BLOB_UPLOAD_INVALID"),
        ([{"number": 1, "size": 1}] * 101, "BLOB_UPLOAD_INVALID"),
        ([{"number": 5, "size": 78}], "SIZE_INVALID"),
        ([{"number": 6, "size": 1}], "SIZE_INVALID"),
    ],
)
def test_parts_that_cannot_be(
    client: CoreClient, repository: str, parts: Sequence[Any], code: str
) -> None:
    upload = Direct(client, repository, size=len(LARGE))
    assert error(upload.ask("POST", upload.location, {"parts": parts})) == (400, code)


@pytest.mark.parametrize("body", [b'{"digest": "\xff"}', b'{"x": ' + 100_000 * b"["])
def test_what_is_no_json(client: CoreClient, repository: str, body: bytes) -> None:
    target = f"/v2/{repository}/_openregistry/uploads/direct"
    assert error(client.request("POST", target, body)) == (400, "BLOB_UPLOAD_INVALID")


def test_parts_are_as_large_as_they_must_be(client: CoreClient, repository: str) -> None:
    for wanted, size in (
        ({"size": 100}, PART),
        ({"partSize": 1}, PART),
        ({"partSize": (9 << 20) + 1}, 10 << 20),
        ({"partSize": 1 << 40}, 128 << 20),
        ({"size": 10_000 * PART + 1}, 6 << 20),
    ):
        assert Direct(client, repository, **wanted).began.json["partSize"] == size


def test_it_is_cancelled(context: Context, client: CoreClient, repository: str) -> None:
    upload = Direct(client, repository)
    [url] = upload.send({1: cut(LARGE)[1]}).values()
    assert upload.ask("DELETE", upload.location).status == 204
    assert requests.put(url, cut(LARGE)[1], timeout=30).status_code == 404
    for answer in (upload.status(), upload.commit(LARGE), upload.ask("DELETE", upload.location)):
        assert error(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert not set(keys_of(context, upload)) & set(context.store.list_staged())


def test_it_is_asked_for_by_get_alone(client: CoreClient, repository: str) -> None:
    """A HEAD must not wait for storage, nor help to verify: hosts take it for a quick one."""
    upload = Direct(client, repository)
    assert client.request("HEAD", upload.location).status == 405


def test_it_expires(context: Context, client: CoreClient, repository: str) -> None:
    upload = Direct(client, repository)
    upload.send({1: cut(LARGE)[1]})
    keys = keys_of(context, upload)
    context.database.run(
        "UPDATE uploads SET expires_at = now() - interval '1 second' WHERE repository = :name",
        name=repository,
    )
    assert error(upload.status()) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert expire(context) >= 1
    assert keys
    assert not set(keys) & set(context.store.list_staged())


def test_a_capability_is_for_one_upload(client: CoreClient, repository: str) -> None:
    one, other = Direct(client, repository), Direct(client, repository)
    path = one.location.partition("?")[0]
    query = other.location.partition("?")[2]
    for target in (path, f"{path}?{query}"):
        assert client.request("GET", target).status == 404


def test_an_ordinary_request_takes_it_over(
    context: Context, client: CoreClient, repository: str
) -> None:
    """The upload is one and the same: the newest request wins."""
    upload = Direct(client, repository)
    upload.send({1: cut(LARGE)[1]})
    path, _, query = upload.location.partition("?")
    ordinary = f"/v2/{repository}/blobs/uploads/{path.rpartition('/')[2]}?{query}"
    answer = client.request("PATCH", ordinary, b"bytes")
    assert answer.status == 202
    assert error(upload.urls({2: PART})) == (409, "BLOB_UPLOAD_INVALID")
    assert client.request("PUT", with_query(answer.location, digest=sha256(b"bytes"))).status == 201
    assert stored(context, repository, sha256(b"bytes")) == b"bytes"
    assert not set(keys_of(context, upload)) & set(context.store.list_staged())


def test_ordinary_uploads_are_not_direct(client: CoreClient, repository: str) -> None:
    path, _, query = begin(client, repository).partition("?")
    target = f"/uploads/{repository}/{path.rpartition('/')[2]}?{query}"
    assert error(client.request("GET", target)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.usefixtures("piecewise")
def test_a_quota(context: Context, client: CoreClient, repository: str) -> None:
    from chalicelib.registry import quotas

    namespace = repository.replace("test/", "n")
    quotas.put(context.database, namespace, 3 * PART, None, by="")
    target = f"{namespace}/image"
    assert error(Direct(client, target, size=4 * PART).began) == (403, "DENIED")
    upload = Direct(client, target)
    assert [part["number"] for part in upload.began.json["urls"]] == [1, 2, 3]
    given = upload.urls({2: PART, 3: PART, 4: PART, 5: 1})
    assert [part["number"] for part in given.json["parts"]] == [2, 3]
    refused = upload.urls({4: 1})
    assert error(refused) == (403, "DENIED")
    assert refused.json["errors"][0]["detail"]["quota"]
    assert upload.status().json["error"]["code"] == "DENIED"

    # What is allowed when it is committed may have become too much.
    data = make_bytes(2 * PART + 9, 5)
    upload = Direct(client, target)
    upload.send(cut(data))
    assert upload.commit(data).status == 202
    push_blob(client, target, make_bytes(PART, 6))
    work(context)
    assert upload.status().json["error"]["code"] == "DENIED"
    assert stored(context, target, sha256(data)) is None


@pytest.mark.usefixtures("piecewise")
def test_a_blocked_digest(context: Context, client: CoreClient, repository: str) -> None:
    from chalicelib.registry import blocks

    data = make_bytes(2 * PART + 9, 7)
    early, late = Direct(client, repository), Direct(client, repository)
    for upload in (early, late):
        upload.send(cut(data))
    assert late.commit(data).status == 202
    blocks.add(context.database, digests.pack(sha256(data)), "malware", public=True, by="")
    assert error(Direct(client, repository, digest=sha256(data)).began) == (403, "DENIED")
    for _ in range(2):
        assert error(early.commit(data)) == (403, "DENIED")
    work(context)
    assert late.status().json["error"]["code"] == "DENIED"
    assert error(late.commit(data)) == (403, "DENIED")


@pytest.mark.usefixtures("piecewise")
def test_whose_right_is_gone(context: Context, client: CoreClient, repository: str) -> None:
    """It is asked for again when the bytes are verified, by whatever road."""

    class Revoked(Open):
        def permits(self, *_: object) -> bool:
            return False

    later = replace(context, access=Revoked(context.database))
    large, small = Direct(client, repository), Direct(client, repository)
    large.send(cut(LARGE))
    assert large.commit(LARGE).status == 202
    work(later)
    assert large.status().json["error"]["code"] == "DENIED"
    small.send(cut(OTHER[: PART + 9]))
    small.client = CoreClient(later)
    for _ in range(2):
        assert error(small.commit(OTHER[: PART + 9])) == (403, "DENIED")
    for upload in (large, small):
        assert not set(keys_of(context, upload)) & {key for key, _, _ in context.store.list()}


def test_a_blob_that_is_blocked_or_lost_is_not_there(
    context: Context, client: CoreClient, repository: str
) -> None:
    from chalicelib.registry import blocks

    blocked, lost = make_bytes(1000, 8), make_bytes(1000, 9)
    for data in (blocked, lost):
        push_blob(client, repository, data)
    blocks.add(context.database, digests.pack(sha256(blocked)), "malware", public=True, by="")
    assert error(Direct(client, repository, digest=sha256(blocked)).began) == (403, "DENIED")
    [[key]] = context.database.run(
        "UPDATE blob_copies SET missing = true WHERE digest = :digest RETURNING key",
        digest=digests.pack(sha256(lost)),
    )
    context.store.delete([key])
    upload = Direct(client, repository, digest=sha256(lost))
    assert upload.began.status == 201
    upload.send({1: lost})
    assert upload.commit(lost).status == 201
    assert stored(context, repository, sha256(lost)) == lost


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchUpload"])
def test_storage_that_refuses_for_now(
    context: Context,
    client: CoreClient,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    """What was sent is kept."""
    upload = Direct(client, repository)
    upload.send(cut(LARGE))

    def refuse(_: object) -> None:
        raise Refused(f"Object storage answered with 403 {code}.", code)

    with monkeypatch.context() as patch:
        patch.setattr(context.store, "complete", refuse)
        assert upload.commit(LARGE).status == 503
    assert upload.commit(LARGE).status == 201


@pytest.mark.usefixtures("piecewise")
def test_storage_that_is_down_for_long(
    context: Context, client: CoreClient, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert upload.commit(LARGE).status == 202

    def fail(*_: object) -> None:
        raise StorageError("Object storage is out of reach.")

    with monkeypatch.context() as patch:
        patch.setattr(context.store, "read", fail)
        for _ in range(40):  # more than half an hour
            context.database.run("UPDATE jobs SET due_at = now() WHERE kind = 'direct.verify'")
            work(context)
    context.database.run("UPDATE jobs SET due_at = now() WHERE kind = 'direct.verify'")
    work(context)
    assert upload.commit(LARGE).status == 201


def test_a_refusal_that_comes_late(context: Context, client: CoreClient, repository: str) -> None:
    """What one of two racing requests has made a blob, the other does not refuse; and the first
    reason stays."""
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert upload.commit(LARGE).status == 201
    direct.refuse(context, found(context, upload), Denied("You may no longer push."))
    assert upload.status().json["state"] == "committed"
    assert upload.commit(LARGE).status == 201
    assert stored(context, repository, sha256(LARGE)) == LARGE

    upload = Direct(client, repository)
    for reason in ("first", "second"):
        direct.refuse(context, found(context, upload), Denied(reason))
    assert upload.status().json["error"]["message"] == "first"


def found(context: Context, upload: Direct) -> uploads.Upload:
    upload_id = upload.location.partition("?")[0].rpartition("/")[2]
    known = uploads.find(context.database, upload_id, upload.repository)
    assert known is not None
    return known


@pytest.mark.usefixtures("piecewise")
def test_an_object_that_ends_early(
    context: Context, client: CoreClient, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a store says: bytes that were not read are not verified."""
    upload = Direct(client, repository)
    upload.send(cut(LARGE))
    assert upload.commit(LARGE).status == 202
    read = context.store.read

    def short(key: str, offset: int, length: int) -> Any:
        return read(key, offset, max(length - 1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(context.store, "read", short)
        work(context)
    assert stored(context, repository, sha256(LARGE)) is None
    context.database.run("UPDATE jobs SET due_at = now() WHERE kind = 'direct.verify'")
    work(context)
    assert upload.commit(LARGE).status == 201


@pytest.mark.usefixtures("piecewise")
def test_who_asks_helps(context: Context, repository: str) -> None:
    """No worker need be awake."""
    upload = Direct(CoreClient(context), repository)
    upload.send(cut(LARGE))
    answer = upload.commit(LARGE)
    assert answer.json["pollers"] > 1
    for _ in range(3):
        if upload.status().json["state"] == "committed":
            return
    pytest.fail("whoever asks does not help")
