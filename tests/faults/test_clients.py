"""Clients that go away, are slow, or fall silent, while others are served."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.client import HTTPClient, begin, pieces, push_blob, push_image, sha256, with_query
from tests.faults.conftest import Place
from tests.faults.crowd import blob, whole
from tests.hosts.program import children, pss
from tests.hosts.wire import Wire, until
from tests.images import make_bytes, make_image
from tests.servers import Registry

MIB = 1 << 20
FIRST = make_bytes(100_000, "first")
DATA = make_bytes(7 * MIB, "clients")


def port(registry: Registry) -> int:
    return int(registry.host.rpartition(":")[2])


def upload(registry: Registry, repository: str, data: bytes = FIRST) -> str:
    """The Location of an upload that has these bytes already."""
    client = HTTPClient(registry.host)
    return client.request("PATCH", begin(client, repository), data).location


def stands(registry: Registry, location: str, length: int = len(FIRST)) -> bool:
    """Whether the upload is open, with so many bytes."""
    answer = HTTPClient(registry.host).request("GET", location)
    return (answer.status, answer.headers["Range"]) == (204, f"0-{length - 1}")


# Bodies that break off.

Break = Callable[[Wire, str, str], None]


def with_a_length(wire: Wire, method: str, target: str) -> None:
    wire.head(method, target, f"Content-Length: {len(DATA)}").send(DATA[:-1])


def in_chunks(wire: Wire, method: str, target: str) -> None:
    """All bytes are there, and only the last chunk, which says so, is missing."""
    wire.head(method, target, "Transfer-Encoding: chunked").chunk(DATA)


def within_a_chunk(wire: Wire, method: str, target: str) -> None:
    wire.head(method, target, "Transfer-Encoding: chunked").send("10000\r\n", DATA[:100])


def within_the_last_chunk(wire: Wire, method: str, target: str) -> None:
    wire.head(method, target, "Transfer-Encoding: chunked").chunk(DATA).send("0\r\n")


def before_the_body(wire: Wire, method: str, target: str) -> None:
    wire.head(method, target, f"Content-Length: {len(DATA)}")


BREAKS = with_a_length, in_chunks, within_a_chunk, within_the_last_chunk, before_the_body


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_clients_that_vanish(either: Registry, repository: str, method: str) -> None:
    """Nothing of what they sent counts."""
    digest = sha256(FIRST + DATA)
    for how in BREAKS:
        for goodbye in (Wire.close, Wire.reset):
            location = upload(either, repository)
            target = with_query(location, digest=digest)
            wire = Wire(port(either))
            how(wire, method, target)
            goodbye(wire)
            # The next request takes the upload over, whether or not the end was noticed yet.
            assert stands(either, location), how
            time.sleep(0.05)
            assert stands(either, location), how
            assert blob(either.host, repository, digest) is None
    client = HTTPClient(either.host)
    assert client.request("PUT", target, DATA).status == 201
    assert blob(either.host, repository, digest) == FIRST + DATA


@pytest.mark.parametrize(
    "sent", [b"xyz\r\n", b"3\r\nabcdef\r\n", b"-1\r\n", b"f" * 17 + b"\r\n", b"\r\n", b"\xff" * 99]
)
def test_malformed_chunks(either: Registry, repository: str, sent: bytes) -> None:
    location = upload(either, repository)
    target = with_query(location, digest=sha256(FIRST + DATA))
    for method in ("PATCH", "PUT"):
        with Wire(port(either)) as wire:
            wire.head(method, target, "Transfer-Encoding: chunked").chunk(DATA).send(sent)
            answer = wire.answer()
            assert answer.status == 400
            assert answer.json()["errors"][0]["message"].endswith(".")
            assert wire.closed()
        assert stands(either, location)
    assert HTTPClient(either.host).request("PUT", target, DATA).status == 201


def test_wrong_lengths(either: Registry, repository: str) -> None:
    """More or less than the header says is never taken."""
    location = upload(either, repository)
    digest = sha256(FIRST + DATA)
    start, end = len(FIRST), len(FIRST) + len(DATA) - 1
    for first, last, status, code in (
        (start, end - 1, 400, "SIZE_INVALID"),
        (start, end + 1, 400, "SIZE_INVALID"),
        (start + 1, end + 1, 416, "BLOB_UPLOAD_INVALID"),
        (0, len(DATA) - 1, 416, "BLOB_UPLOAD_INVALID"),
        (end, start, 400, "BLOB_UPLOAD_INVALID"),
    ):
        for chunked in (False, True):
            for method in ("PATCH", "PUT"):
                body = pieces(DATA, 1 << 20) if chunked else DATA
                target = with_query(location, digest=digest)
                fields = {"Content-Range": f"{first}-{last}"}
                answer = HTTPClient(either.host).request(method, target, body, fields)
                assert (answer.status, answer.code) == (status, code), (first, last, method)
                assert stands(either, location)
    target = with_query(location, digest=digest)
    fields = {"Content-Range": f"{start}-{end}"}
    assert HTTPClient(either.host).request("PUT", target, DATA, fields).status == 201


def test_a_put_whose_digest_is_wrong_keeps_the_upload(either: Registry, repository: str) -> None:
    location = upload(either, repository)
    for target in (
        with_query(location, digest=sha256(DATA)),
        with_query(location, digest=sha256(FIRST + DATA)[:-1]),
        with_query(location, digest="sha256:" + "A" * 64),
        location,
    ):
        answer = HTTPClient(either.host).request("PUT", target, DATA)
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        assert stands(either, location)


# Manifests that are too large.


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversize_manifest(registry: Registry, repository: str, chunked: bool) -> None:
    target = f"/v2/{repository}/manifests/large"
    body = b'{"schemaVersion": 2, "filler": "' + b"x" * (30 * MIB) + b'"}'
    client = HTTPClient(registry.host)
    answer = client.request("PUT", target, pieces(body, 1 << 16) if chunked else body)
    assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    assert str(4 * MIB) in answer.json["errors"][0]["message"]
    assert client.request("GET", target).status == 404
    # What only claims to be that large is refused as well, once it has gone too far.
    with Wire(port(registry)) as wire:
        wire.head("PUT", target, "Content-Length: 9000000000").send(body[: 5 * MIB])
        assert wire.answer().status == 413


# Slow and silent clients.


def test_a_trickle(either: Registry, repository: str) -> None:
    """Few bytes at a time are taken like many."""
    data = DATA[:300]
    location = begin(HTTPClient(either.host), repository)
    with Wire(port(either)) as wire:
        wire.head("PATCH", location, "Transfer-Encoding: chunked")
        for start in range(0, 300, 30):
            wire.chunk(data[start : start + 30])
            time.sleep(0.05)
        answer = wire.send("0\r\n\r\n").answer()
        assert answer.status == 202
    target = with_query(answer["location"] or "", digest=sha256(data))
    assert HTTPClient(either.host).request("PUT", target).status == 201


def test_a_silent_body_is_ended(place_in_short: Place, serve: Callable[..., Registry]) -> None:
    registry = serve(**place_in_short.settings, OPENREGISTRY_BODY_TIMEOUT="2")
    location = upload(registry, "silent")
    target = with_query(location, digest=sha256(FIRST + DATA))
    begun = time.monotonic()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port(registry))) for _ in range(4)]
        wires[0].head("PUT", target, f"Content-Length: {len(DATA)}").send(DATA[: 6 * MIB])
        wires[1].head("PATCH", upload(registry, "silent"), "Transfer-Encoding: chunked").chunk(b"x")
        wires[2].head("PUT", "/v2/silent/manifests/a", "Content-Length: 9").send("{")
        wires[3].head("POST", f"/v2/silent/blobs/uploads/?digest={sha256(DATA)}",
                      f"Content-Length: {len(DATA)}")  # fmt: skip
        for wire in wires:
            answer = wire.answer()
            assert answer.status == 408
            assert "2 seconds" in answer.json()["errors"][0]["message"]
            assert wire.closed()
    assert 1.5 < time.monotonic() - begun < 30
    assert stands(registry, location)
    assert HTTPClient(registry.host).request("PUT", target, DATA).status == 201
    place_in_short.holds_nothing_but_blobs(registry)


STALLED = 500


@pytest.fixture
def stalled(registry_for_stalled: Registry) -> Iterator[list[tuple[Wire, str]]]:
    """Uploads that have sent 100 KB of 300 KB, and send no more."""
    registry = registry_for_stalled
    with ThreadPoolExecutor(8) as threads:
        locations = list(
            threads.map(lambda n: begin(HTTPClient(registry.host), f"stalled/{n}"), range(STALLED))
        )
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port(registry), 60)) for _ in range(STALLED)]
        for wire, location in zip(wires, locations, strict=True):
            wire.head("PATCH", location, "Content-Length: 300000").send(FIRST)
        yield list(zip(wires, locations, strict=True))


@pytest.fixture
def registry_for_stalled(place_in_short: Place, serve: Callable[..., Registry]) -> Registry:
    return serve(**place_in_short.settings)


def test_five_hundred_stalled_uploads(
    registry_for_stalled: Registry, stalled: list[tuple[Wire, str]]
) -> None:
    """Everybody else is served as if they were not there."""
    registry = registry_for_stalled
    processes = [registry.pid, *children(registry.pid)]
    image = make_image((5 * MIB, 1000), "among the stalled")

    def healthy() -> float:
        begun = time.monotonic()
        with Wire(port(registry)) as wire:
            assert wire.get("/health").status == 200
        return time.monotonic() - begun

    with ThreadPoolExecutor(1) as threads:
        push = threads.submit(
            push_image, HTTPClient(registry.host), "among/stalled", image, "latest"
        )
        slowest = max(healthy() for _ in range(20))
        push.result(60)
        pull = threads.submit(whole, registry.host, "among/stalled", image, "latest")
        slowest = max(slowest, *(healthy() for _ in range(20)))
        assert pull.result(60)
    assert slowest < 3
    assert HTTPClient(registry.host).request("GET", "/ready").status == 200
    assert sum(map(pss, processes)) < 300 * MIB
    # They are alive all the same: those that go on come to their end.
    for wire, location in (stalled[0], stalled[-1]):
        answer = wire.send(bytes(200_000)).answer()
        assert answer.status == 202
        assert stands(registry, location, 300_000)


@pytest.mark.long
def test_five_hundred_stalled_uploads_are_ended(
    filesystem_place: Place, serve: Callable[..., Registry]
) -> None:
    registry = serve(**filesystem_place.settings, OPENREGISTRY_BODY_TIMEOUT="5")
    locations = [begin(HTTPClient(registry.host), "ended") for _ in range(STALLED)]
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port(registry), 60)) for _ in range(STALLED)]
        for wire, location in zip(wires, locations, strict=True):
            wire.head("PATCH", location, "Content-Length: 300000").send(FIRST)
        assert {wire.answer().status for wire in wires} == {408}
    image = make_image(seed="after them")
    push_image(HTTPClient(registry.host), "after", image, "latest")
    filesystem_place.holds_nothing_but_blobs(registry)


def readers_that_do_not_read(registry: Registry, repository: str) -> None:
    """A hundred pulls stand still; others go on, and so do they."""
    large = make_bytes(20 * MIB, "readers")
    digest = push_blob(HTTPClient(registry.host), repository, large)
    target = f"/v2/{repository}/blobs/{digest}"
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port(registry))) for _ in range(100)]
        for wire in wires:
            wire.head("GET", target)
        assert blob(registry.host, repository, digest) == large
        image = make_image(seed=repository)
        push_image(HTTPClient(registry.host), repository, image, "latest")
        assert whole(registry.host, repository, image, "latest")
        answer = wires[99].answer()
        assert sha256(answer.body) == digest


def test_readers_that_do_not_read(registry: Registry, repository: str) -> None:
    readers_that_do_not_read(registry, repository)


@pytest.mark.long
def test_readers_that_do_not_read_what_comes_from_s3(
    s3_place: Place, serve: Callable[..., Registry]
) -> None:
    registry = serve(**s3_place.settings, OPENREGISTRY_DOWNLOADS="stream")
    readers_that_do_not_read(registry, "readers")


# The end.


def test_a_push_that_runs_finishes(place_in_short: Place, serve: Callable[..., Registry]) -> None:
    """With a Postgres of its own: that must not end before."""
    registry = serve(**place_in_short.settings | {"OPENREGISTRY_DATABASE_URL": ""})
    image = make_image((6 * MIB,), "finishes")
    config, layer = image.blobs
    client = HTTPClient(registry.host)
    push_blob(client, "finishes", config.data)
    location = begin(client, "finishes")
    data = layer.data
    with Wire(port(registry)) as wire:
        wire.head("PATCH", location, "Transfer-Encoding: chunked", "Expect: 100-continue")
        assert wire.answer().status == 100
        wire.chunk(data[: 3 * MIB])
        registry.signal(signal.SIGTERM)
        for _ in until():
            try:
                Wire(port(registry)).close()
            except ConnectionRefusedError:
                break
        wire.chunk(data[3 * MIB :]).send("0\r\n\r\n")
        answer = wire.answer()
        assert answer.status == 202
        target = with_query(answer["location"] or "", digest=layer.digest)
        assert wire.put(target, b"").status == 201
        manifest = image.manifest
        target = "/v2/finishes/manifests/latest"
        answer = wire.put(target, manifest.data, f"Content-Type: {manifest.media_type}")
        assert answer.status == 201
    assert registry.process is not None
    assert registry.process.wait(30) == 0
    registry.start()
    assert whole(registry.host, "finishes", image, "latest")
