"""How the harness takes bodies: whole, streamed, refused, slow, cut off."""

import concurrent.futures
import contextlib
import hashlib
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.functions import content
from tests.hosts.program import Program
from tests.hosts.wire import Wire, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def program(directory: Path) -> Iterator[Program]:
    # Longer than any test waits: what ends sooner did not end for that.
    with Program(directory / "bodies", 1, "connection.LINGER_SECONDS=60").started() as running:
        yield running


@pytest.fixture
def wire(program: Program) -> Iterator[Wire]:
    with Wire(program.port) as connection:
        yield connection


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def end(program: Program, name: str) -> str:
    """What became of the streamed body of the one request of that name, once it is known."""
    for _ in until():
        events = program.events(name)
        if events and events[-1].startswith(("aborted", "finished")):
            break
    assert events[0] == "received"
    assert set(events[1:-1]) <= {"feed"}
    return events[-1]


# Streamed.


@pytest.mark.parametrize("size", [1, 1000, 300_000, 5_000_000, 100_000_000])
def test_stream_with_a_length(wire: Wire, size: int) -> None:
    data = content(size)
    answer = wire.put("/stream", data)
    assert answer.status == 201
    assert answer.json()["size"] == size
    assert answer.json()["sha256"] == digest(data)
    assert wire.get("/a").json()["path"] == "/a"


@pytest.mark.parametrize("chunk", [1, 999, 32_768, 3_000_000])
def test_stream_in_chunks(wire: Wire, chunk: int) -> None:
    data = content(2000 if chunk == 1 else 10_000_000)
    wire.head("PATCH", "/stream", "Transfer-Encoding: chunked")
    for start in range(0, len(data), chunk):
        wire.chunk(data[start : start + chunk])
    answer = wire.send("0\r\n\r\n").answer()
    assert answer.json()["sha256"] == digest(data)
    assert wire.get("/a").json()["path"] == "/a"


def test_an_empty_chunked_stream(wire: Wire) -> None:
    answer = wire.head("PATCH", "/stream", "Transfer-Encoding: chunked").send("0\r\n\r\n").answer()
    assert answer.json()["sha256"] == digest(b"")


def test_small_pieces_are_gathered(wire: Wire) -> None:
    wire.head("PATCH", "/stream", "Transfer-Encoding: chunked")
    chunk = b"400\r\n" + bytes(1024) + b"\r\n"
    for _ in range(100):
        wire.send(chunk * 100)
    result = wire.send("0\r\n\r\n").answer().json()
    assert result["size"] == 10_240_000
    assert result["feeds"] < 100


def test_what_a_slow_client_sends_is_handed_over(program: Program, wire: Wire, name: str) -> None:
    wire.head("PUT", f"/stream?name={name}", "Content-Length: 30")
    for number in (1, 2, 3):
        wire.send(bytes(10))
        program.wait_for(name, "feed", number)
    assert wire.answer().json()["feeds"] == 3


def test_slow_storage_slows_the_client(program: Program) -> None:
    """What waits in memory stays small."""
    before = program.memory()
    with Wire(program.port, timeout=2) as wire:
        wire.head("PUT", "/stream?pause=1", "Content-Length: 500000000")
        with pytest.raises(TimeoutError):
            wire.send(bytes(50 * MIB))
        assert program.memory() - before < 8 * MIB


def test_one_feed_at_a_time(program: Program) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(push, program, 20_000_000) for _ in range(4)]
        for job in jobs:
            job.result()
    assert "OVERLAP" not in program.events()


def push(program: Program, size: int) -> None:
    with Wire(program.port) as wire:
        data = content(size)
        assert wire.put("/stream?pause=0.01", data).json()["sha256"] == digest(data)


def test_expectation(wire: Wire) -> None:
    wire.head("PUT", "/stream", "Content-Length: 3", "Expect: 100-continue")
    assert wire.answer().status == 100
    assert wire.send("abc").answer().json()["size"] == 3
    wire.head("PUT", "/whole", "Content-Length: 3", "Expect: 100-continue")
    assert wire.answer().status == 100
    assert wire.send("abc").answer().json()["size"] == 3


def test_expectation_that_nobody_waits_for(wire: Wire) -> None:
    wire.send(
        "PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"
    )
    assert wire.answer().json()["size"] == 3


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
"""What Java's client sends with its first request, whatever that is."""
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_an_upgrade_that_is_declined_keeps_its_body(
    wire: Wire, chunked: bool, together: bool
) -> None:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(SMUGGLED)}"
    lines = ["PUT /whole?x=1 HTTP/1.1", "Host: a", "X-One:", *UPGRADE, framing, "X-Two: \xe9"]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    if together:
        wire.send(head + body)
    else:
        for byte in head + body:
            wire.send(bytes([byte]))
    seen = wire.answer().json()
    assert (seen["method"], seen["path"], seen["query"]) == ("PUT", "/whole", {"x": ["1"]})
    assert seen["sha256"] == digest(SMUGGLED)
    assert (seen["headers"]["x-one"], seen["headers"]["x-two"]) == ("", "\xe9")
    assert wire.put("/stream", content(3_000_000), *UPGRADE).json()["size"] == 3_000_000
    assert wire.get("/b", *UPGRADE).json()["path"] == "/b"
    assert wire.put("/whole", b"abc", *UPGRADE, "Connection: close").json()["size"] == 3
    assert wire.closed()


def test_http_1_0_knows_no_interim_answer(wire: Wire) -> None:
    wire.send("PUT /whole HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    time.sleep(0.1)
    assert wire.send("abc").answer().json()["size"] == 3


def test_nobody_is_invited_to_send_too_much(wire: Wire) -> None:
    wire.head("PUT", "/whole", "Content-Length: 100000", "Expect: 100-continue")
    assert wire.answer().status == 100
    assert wire.send(bytes(100_000)).answer().status == 200
    wire.head("PUT", "/whole", "Content-Length: 100001", "Expect: 100-continue")
    answer = wire.answer()
    assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    assert wire.closed()


# Refused.


def test_refusal_before_the_body(wire: Wire) -> None:
    wire.head("PUT", "/stream?refuse", "Content-Length: 1000", "Expect: 100-continue")
    answer = wire.answer()
    assert (answer.status, answer.code) == (403, "DENIED")
    assert wire.closed()


def test_refusal_of_a_body_that_is_here(wire: Wire) -> None:
    wire.send("PUT /stream?refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    assert wire.answer().status == 403
    assert wire.get("/a").status == 200


@pytest.mark.parametrize("target", ["/stream?refuse", "/stream?refuse_after=1000000", "/none"])
def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(
    program: Program, target: str
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=20)
    connection.request("PUT", target, body=bytes(50_000_000))
    assert connection.getresponse().status in (403, 416, 200)
    connection.close()


def test_refusal_in_the_midst(program: Program, wire: Wire, name: str) -> None:
    wire.head("PUT", f"/stream?refuse_after=1000000&name={name}", "Content-Length: 500000000")
    wire.send(bytes(2_000_000))
    answer = wire.answer()
    assert (answer.status, answer.code) == (416, "TOO_MUCH")
    assert answer["connection"] == "close"
    assert end(program, name).startswith("aborted")


def test_someone_who_never_stops_sending_is_cut_off(directory: Path) -> None:
    program = Program(directory / "linger", 1, "connection.LINGER_BYTES=1000000")
    with program.started(), Wire(program.port) as wire:
        wire.head("PUT", "/stream?refuse", "Content-Length: 5000000000")
        with pytest.raises(ConnectionError):
            wire.send(bytes(200 * MIB))


def test_a_refused_body_that_falls_silent_is_cut_off(directory: Path) -> None:
    program = Program(directory / "silent-linger", 1, "connection.LINGER_SECONDS=1")
    with program.started(), Wire(program.port) as wire:
        wire.head("PUT", "/stream?refuse", "Content-Length: 5000")
        assert wire.answer().status == 403
        for _ in until():
            if not accepts(wire):
                break


def accepts(wire: Wire) -> bool:
    try:
        wire.send("x")
    except ConnectionError:
        return False
    return True


# Whole, and unwanted.


def test_whole(wire: Wire) -> None:
    data = content(100_000)
    assert wire.put("/whole", data).json()["sha256"] == digest(data)
    assert wire.put("/whole", b"").json()["size"] == 0


def test_a_body_over_the_limit_shows_that_it_is(wire: Wire) -> None:
    answer = wire.put("/whole", content(5_000_000))
    assert 100_000 < answer.json()["size"] < 1_000_000


def test_a_body_that_nobody_wants(wire: Wire) -> None:
    wire.send("GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    assert wire.answer().json()["size"] == 0


@pytest.mark.parametrize("target", ["/stream", "/whole"])
def test_a_client_that_ends_its_side_too_early_is_told(wire: Wire, target: str) -> None:
    wire.head("PUT", target, "Content-Length: 100").send(bytes(50))
    wire.socket.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert (answer.status, answer.code) == (400, "BODY_INCOMPLETE")
    assert wire.closed(), "at once: nothing more can come"


# Cut off. A body that does not come to its end is never taken for one that did.


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("framing", ["Content-Length: 3000000", "Transfer-Encoding: chunked"])
def test_a_client_that_vanishes(program: Program, framing: str, reset: bool, name: str) -> None:
    with Wire(program.port) as wire:
        wire.head("PUT", f"/stream?name={name}", framing)
        if "chunked" in framing:
            wire.chunk(bytes(1_000_000)).chunk(bytes(1_000_000))
        else:
            wire.send(bytes(2_000_000))
        if reset:
            program.wait_for(name, "received")
            wire.reset()
    assert end(program, name).startswith("aborted")


def test_a_client_that_vanishes_within_a_chunk(program: Program, name: str) -> None:
    with Wire(program.port) as wire:
        wire.head("PUT", f"/stream?name={name}", "Transfer-Encoding: chunked").send("100\r\nabc")
    assert end(program, name).startswith("aborted")


def test_a_client_that_vanishes_while_storage_is_slow(program: Program, name: str) -> None:
    with Wire(program.port) as wire:
        wire.head("PUT", f"/stream?pause=0.5&name={name}", "Content-Length: 9000000")
        wire.send(bytes(2_000_000))
        program.wait_for(name, "feed")
    assert end(program, name).startswith("aborted")


def test_a_client_that_vanishes_after_the_whole_body(program: Program, name: str) -> None:
    with Wire(program.port) as wire:
        wire.head("PUT", f"/stream?pause=0.3&name={name}", "Content-Length: 1000").send(bytes(1000))
    assert end(program, name) == "finished 1000"


def test_a_whole_body_that_is_cut_off_is_not_looked_at(program: Program, name: str) -> None:
    fields = "Content-Length: 100", "Expect: 100-continue", f"X-Request-Id: {name}"
    with Wire(program.port) as wire:
        assert wire.head("PUT", "/whole", *fields).answer().status == 100
        wire.send(bytes(50)).reset()
    for _ in until():
        logged = [line for line in program.output().splitlines() if name in line]
        if logged:
            break
    assert '"status": 499' in logged[0]


@pytest.mark.parametrize("sent", ["xyz\r\n", "3\r\nabcdef\r\n", "-1\r\n", "1" * 30 + "\r\n"])
def test_malformed_chunks(program: Program, wire: Wire, sent: str, name: str) -> None:
    target = f"/stream?name={name}"
    wire.head("PUT", target, "Transfer-Encoding: chunked").chunk(bytes(1000)).send(sent)
    answer = wire.answer()
    assert answer.status == 400
    assert answer.json()["errors"]
    assert wire.closed()
    assert end(program, name).startswith("aborted")


@pytest.mark.parametrize("begin", ["0\r\n", "0\r\nX: ", "5;x="])
@pytest.mark.parametrize("target", ["/stream", "/whole", "/stream?refuse"])
def test_trailers_that_never_end(program: Program, target: str, begin: str) -> None:
    memory = program.memory()
    with Wire(program.port) as wire:
        wire.head("PUT", target, "Transfer-Encoding: chunked").chunk(bytes(1000)).send(begin)
        piece = ("a" * 1000 if begin.endswith(("=", ": ")) else "X: y\r\n" * 200).encode()
        with contextlib.suppress(ConnectionError):
            wire.send(piece * 100)
            for _ in range(50):
                wire.send(piece * 300)
            pytest.fail("all of it was taken")
        assert program.memory() - memory < 8 * MIB
        with contextlib.suppress(ConnectionError):
            assert wire.answer().status == (403 if "refuse" in target else 400)


def test_trailers_change_no_header_field(wire: Wire) -> None:
    wire.head("PUT", "/whole", "X: 1", "Transfer-Encoding: chunked").chunk(b"abc")
    seen = wire.send("0\r\nX: 2\r\nY: ", "y" * 7000, "\r\n\r\n").answer().json()
    assert (seen["size"], seen["headers"]["x"]) == (3, "1")
    assert wire.get("/a").status == 200


# Silent.


def test_a_body_that_falls_silent(directory: Path) -> None:
    with Program(directory / "silent", 1, "body_timeout=1").started() as program:
        with Wire(program.port) as stream, Wire(program.port) as whole, Wire(program.port) as none:
            stream.head("PUT", "/stream?name=some", "Content-Length: 9").send("abc")
            whole.head("PUT", "/whole", "Transfer-Encoding: chunked").chunk(b"abc")
            none.head("PUT", "/stream?name=none", "Content-Length: 9")
            for wire in (stream, whole, none):
                answer = wire.answer()
                assert answer.status == 408
                assert answer["connection"] == "close"
        assert (end(program, "some"), end(program, "none")) == ("aborted 3", "aborted 0")


def test_a_body_that_trickles_is_not_silent(directory: Path) -> None:
    program = Program(directory / "trickle", 1, "body_timeout=3")
    with program.started(), Wire(program.port) as wire:
        wire.head("PUT", "/stream", "Content-Length: 13")
        for _ in range(13):
            wire.send("x")
            time.sleep(0.4)
        assert wire.answer().json()["size"] == 13


def test_storage_that_is_slow_is_not_the_clients_silence(directory: Path) -> None:
    program = Program(directory / "slow-storage", 1, "body_timeout=1")
    with program.started(), Wire(program.port) as wire:
        data = content(1_500_000)
        assert wire.put("/stream?pause=1.5", data).json()["sha256"] == digest(data)


@pytest.mark.parametrize("sent", [0, 100_000])
def test_five_hundred_stalled_uploads(program: Program, sent: int, name: str) -> None:
    """Everybody else is served as if they were not there."""
    memory = program.memory()
    stalled = [Wire(program.port) for _ in range(500)]
    try:
        for wire in stalled:
            wire.head("PUT", f"/stream?name={name}", "Content-Length: 900000").send(bytes(sent))
        program.wait_for(name, "received", 500)
        assert program.threads() < 64
        assert program.memory() - memory < 100 * MIB
        begun = time.monotonic()
        with Wire(program.port) as other:
            assert other.get("/health").status == 200
            assert other.get("/a").status == 200
            assert other.get("/file?length=10000000").body == content(10_000_000)
            assert other.put("/whole", b"manifest").status == 200
            assert other.put("/stream", content(10_000_000)).json()["size"] == 10_000_000
        assert time.monotonic() - begun < 15
        last = stalled[-1].send(bytes(900_000 - sent)).answer()
        assert last.json()["size"] == 900_000
    finally:
        for wire in stalled:
            wire.close()
    program.wait_for(name, f"aborted {sent}", 499)


def test_five_hundred_unfinished_heads(program: Program) -> None:
    stalled = [Wire(program.port).send("GET /a HTTP/1.1\r\nX: ") for _ in range(500)]
    try:
        with Wire(program.port) as other:
            assert other.get("/health").status == 200
            assert other.put("/stream", content(1_000_000)).json()["size"] == 1_000_000
    finally:
        for wire in stalled:
            wire.close()
