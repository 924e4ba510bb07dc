"""HTTP/1.1 as the harness speaks it, with small functions behind it."""

import contextlib
import hashlib
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.hosts.harness.worker import BULK, QUICK
from tests.hosts.functions import content
from tests.hosts.program import Program
from tests.hosts.wire import Wire, until


@pytest.fixture(scope="module")
def program(directory: Path) -> Iterator[Program]:
    with Program(directory / "http", workers=1).started() as running:
        yield running


@pytest.fixture
def wire(program: Program) -> Iterator[Wire]:
    with Wire(program.port) as connection:
        yield connection


# Requests.


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b", "/a/b", {}),
        ("//a//b/", "//a//b/", {}),
        ("/a%2Fb%20c%C3%A9", "/a/b cé", {}),
        ("/a%FF%zz", "/a\N{REPLACEMENT CHARACTER}%zz", {}),
        ("/a?b=1&b=2&c=%26&d", "/a", {"b": ["1", "2"], "c": ["&"], "d": [""]}),
        ("/a?b=x?y/z", "/a", {"b": ["x?y/z"]}),
        ("/a?", "/a", {}),
        ("http://localhost:1/a/b?c=d", "/a/b", {"c": ["d"]}),
        ("http://localhost:1", "/", {}),
    ],
)
def test_target(wire: Wire, target: str, path: str, query: dict[str, list[str]]) -> None:
    seen = wire.get(target).json()
    assert (seen["path"], seen["query"]) == (path, query)


def test_header_fields(wire: Wire) -> None:
    seen = wire.get("/a", "X-ONE: 1", "x-two:  2  ", "X-Two: 3", "X-Empty:").json()
    assert seen["headers"]["x-one"] == "1"
    assert seen["headers"]["x-two"] == "2, 3"
    assert seen["headers"]["x-empty"] == ""
    assert seen["client"] == "127.0.0.1"
    assert seen["method"] == "GET"


def test_forwarding_fields_change_nothing(wire: Wire) -> None:
    seen = wire.get("/a", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https").json()
    assert seen["client"] == "127.0.0.1"


def test_byte_by_byte(wire: Wire) -> None:
    for byte in b"PUT /whole HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n":
        wire.send(bytes([byte]))
    for byte in b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n":
        wire.send(bytes([byte]))
    answer = wire.answer()
    assert answer.json()["sha256"] == hashlib.sha256(b"abcde").hexdigest()


def test_requests_one_after_another_on_one_connection(wire: Wire) -> None:
    workers = {wire.get(f"/{number}").json()["path"] for number in range(20)}
    assert len(workers) == 20


def test_pipelined_requests_are_answered_in_order(wire: Wire) -> None:
    requests = [f"GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n" for n in range(50)]
    requests[3] = "GET /sleep?seconds=0.2 HTTP/1.1\r\nHost: a\r\n\r\n"
    requests[7] = "PUT /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    requests[9] = "PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    requests[11] = "GET /file?length=100000 HTTP/1.1\r\nHost: a\r\n\r\n"
    wire.send("".join(requests))
    for number in range(50):
        answer = wire.answer()
        assert answer.status in (200, 201)
        if number in (7, 9):
            assert answer.json()["size"] == 3
        elif number == 11:
            assert answer.body == content(100_000)
        else:
            assert answer.json()["path"] == ("/sleep" if number == 3 else f"/{number}")


def test_someone_who_pipelines_and_does_not_read_costs_little(program: Program) -> None:
    before = program.memory()
    with Wire(program.port, timeout=1) as wire:
        request = b"GET /pieces?size=1000000&piece=1000000 HTTP/1.1\r\nHost: a\r\n\r\n"
        with pytest.raises(TimeoutError):
            wire.send(request * 1_000_000)
        assert program.memory() - before < 50 << 20


def test_head_has_no_body(wire: Wire) -> None:
    head = wire.get("/a", method="HEAD")
    assert head.status == 200
    assert int(head["content-length"] or 0) > 0
    assert wire.get("/a").json()["path"] == "/a"


def test_head_of_a_file_has_no_body(wire: Wire) -> None:
    assert wire.get("/file?length=1000000", method="HEAD")["content-length"] == "1000000"
    assert wire.get("/a").json()["path"] == "/a"


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(wire: Wire, status: int) -> None:
    answer = wire.get(f"/status?status={status}&body=x")
    assert answer.status == status
    assert answer["content-length"] is None
    assert wire.get("/a").json()["path"] == "/a"


def test_a_status_of_no_class_is_passed_on(wire: Wire) -> None:
    """As a proxy's functions may have it of another registry."""
    assert wire.get("/status?status=799").status == 799
    assert wire.get("/a").json()["path"] == "/a"


def test_an_answer_without_bytes_says_so(wire: Wire) -> None:
    assert wire.get("/status?status=202")["content-length"] == "0"


def test_repeated_fields_of_an_answer(wire: Wire) -> None:
    answer = wire.get("/header?value=one")
    assert [value for name, value in answer.headers if name == "X-Value"] == ["one", "again"]
    assert answer["date"]


def test_a_field_cannot_smuggle_another(wire: Wire) -> None:
    answer = wire.get("/header?value=one%0D%0AX-Evil:%20yes")
    assert answer.status == 500
    assert answer["x-evil"] is None


def test_request_ids(wire: Wire) -> None:
    first, second = wire.get("/a"), wire.get("/a")
    assert first["x-request-id"]
    assert first["x-request-id"] != second["x-request-id"]
    assert wire.get("/a", "X-Request-Id: of-the-proxy")["x-request-id"] == "of-the-proxy"
    assert wire.get("/a", f"X-Request-Id: {'x' * 100}")["x-request-id"] != "x" * 100


def test_connection_close(wire: Wire) -> None:
    answer = wire.get("/a", "Connection: close")
    assert answer["connection"] == "close"
    assert wire.closed()


def test_http_1_0(wire: Wire) -> None:
    answer = wire.send("GET /a HTTP/1.0\r\n\r\n").answer()
    assert answer.json()["path"] == "/a"
    assert wire.closed()


def test_a_client_that_sends_no_more_still_gets_its_answer(wire: Wire) -> None:
    wire.head("GET", "/sleep?seconds=0.2")
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.answer().json()["path"] == "/sleep"
    assert wire.closed()


def test_upgrades_are_declined(wire: Wire) -> None:
    fields = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    assert wire.get("/a", *fields).json()["path"] == "/a"
    assert wire.get("/b").json()["path"] == "/b"


def test_a_function_that_raises(wire: Wire) -> None:
    answer = wire.get("/broken")
    assert answer.status == 500
    assert answer.json()["errors"]
    assert wire.get("/a").status == 200


# What is not HTTP, or too much of it.


PUT = "PUT /whole HTTP/1.1\r\nHost: a\r\n"
FIELD = "X: a\r\n"


REFUSED = [
    ("nonsense\r\n\r\n", 400),
    ("GET /a HTTP/1.1\r\n\r\n", 400),
    ("GET /a HTTP/3.0\r\nHost: a\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
    ("GET /a HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
    (f"{PUT}Content-Length: x\r\n\r\n", 400),
    (f"{PUT}Content-Length: -1\r\n\r\n", 400),
    (f"{PUT}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    (f"{PUT}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (f"{PUT}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", 400),
    (f"{PUT}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("GET /a HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("GET http://[::1/a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (f"{PUT}Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    (f"GET /{'a' * 20_000} HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (f"GET /a HTTP/1.1\r\nHost: a\r\nX: {'a' * 70_000}\r\n\r\n", 431),
    (f"GET /a HTTP/1.1\r\nHost: a\r\n{FIELD * 20_000}\r\n", 431),
    (f"GET /{'a' * 500_000}", 431),
    (f"GET /a HTTP/1.1\r\nHost: a\r\n{FIELD * 100_000}", 431),
]


@pytest.mark.parametrize(("sent", "status"), REFUSED, ids=str)
def test_refused_heads(wire: Wire, sent: str, status: int) -> None:
    try:
        wire.send(sent)
    except ConnectionError:
        assert len(sent) > 300_000
    refused(wire, status)


def refused(wire: Wire, status: int) -> None:
    answer = wire.answer()
    message = answer.json()["errors"][0]["message"]
    assert answer.status == status
    assert message.endswith(".")
    assert "callback" not in message
    assert answer["connection"] == "close"
    assert wire.closed()


@pytest.mark.parametrize(("sent", "status"), REFUSED[:-2], ids=str)
def test_refused_heads_behind_another_request(wire: Wire, sent: str, status: int) -> None:
    """What is no HTTP ends the connection after the answer that comes before it."""
    answer = wire.send("GET /sleep?seconds=0.05 HTTP/1.1\r\nHost: a\r\n\r\n", sent).answer()
    assert answer.json()["path"] == "/sleep"
    if answer["connection"] == "close":
        assert status == 400
        assert wire.closed()
    else:
        refused(wire, status)


@pytest.mark.parametrize("before", ["", "GET /sleep?seconds=2 HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("field", [True, False])
def test_a_field_that_never_ends(program: Program, before: str, field: bool) -> None:
    """Also of a request that waits for the one before it."""
    memory = program.memory()
    with Wire(program.port) as wire:
        wire.send(before, "GET /a HTTP/1.1\r\nHost: a\r\n" + "X: " * field)
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                wire.socket.settimeout(1)
                with contextlib.suppress(TimeoutError):
                    wire.send("a" * 100_000)
                    continue
                break
        assert program.memory() - memory < 8 << 20
        wire.socket.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert wire.answer().status == (200 if before else 431)
            assert wire.closed()


def test_a_head_just_within_the_limit(wire: Wire) -> None:
    for _ in range(2):
        head = f"GET /a HTTP/1.1\r\nHost: a\r\nX: {'x' * 65_000}\r\n\r\n"
        for start in range(0, len(head), 1000):
            wire.send(head[start : start + 1000])
        assert len(wire.answer().json()["headers"]["x"]) == 65_000


def test_a_head_that_never_ends_is_ended(directory: Path) -> None:
    program = Program(directory / "heads", 1, "connection.HEAD_SECONDS=1")
    with program.started(), Wire(program.port) as slow, Wire(program.port) as silent:
        slow.send("GET /a HTTP/1.1\r\n")
        for _ in until(pause=0.3):
            if select.select([slow.socket], [], [], 0)[0]:
                break
            slow.send("X: y\r\n")
        assert slow.answer().status == 408
        assert silent.closed()


def test_an_idle_connection_is_closed(directory: Path) -> None:
    program = Program(directory / "idle", 1, "connection.IDLE_SECONDS=1")
    with program.started(), Wire(program.port) as wire:
        assert wire.get("/a").status == 200
        assert wire.closed()


# Answers with long bodies.


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 65_536), (0, 65_537), (1, 1_000_000), (12_345, 150_000_000), (199_999_999, 1)],
)
def test_regions_of_a_file(wire: Wire, offset: int, length: int) -> None:
    answer = wire.get(f"/file?offset={offset}&length={length}")
    assert answer["content-length"] == str(length)
    assert answer.body == content(offset + length)[offset:]
    assert wire.get("/a").json()["path"] == "/a"


def test_an_empty_region(wire: Wire) -> None:
    assert wire.get("/file?length=0").body == b""
    assert wire.get("/a").status == 200


@pytest.mark.parametrize(("size", "piece"), [(1, 1), (1_000_000, 1_000), (50_000_000, 1 << 20)])
def test_streams(program: Program, wire: Wire, size: int, piece: int, name: str) -> None:
    assert wire.get(f"/pieces?size={size}&piece={piece}&name={name}").body == content(size)
    assert wire.get("/a").json()["path"] == "/a"
    assert program.events(name) == ["closed"]


def test_a_stream_that_breaks_cuts_the_connection(program: Program, wire: Wire, name: str) -> None:
    wire.head("GET", f"/pieces?size=1000000&piece=1000&fail_after=500000&name={name}")
    with pytest.raises(ConnectionError):
        wire.answer()
    assert program.events(name) == ["closed"]


def test_a_stream_that_is_too_short_cuts_the_connection(wire: Wire) -> None:
    wire.head("GET", "/pieces?size=1000&piece=1000&more=1")
    with pytest.raises(ConnectionError):
        wire.answer()


def test_a_file_that_is_too_short_cuts_the_connection(wire: Wire) -> None:
    wire.head("GET", "/file?offset=199000000&length=2000000")
    with pytest.raises(ConnectionError):
        wire.answer()


@pytest.mark.parametrize("target", ["/file?length=150000000", "/pieces?size=150000000&piece=65536"])
def test_a_reader_that_goes_away_leaves_nothing(program: Program, target: str) -> None:
    before = program.open_files()
    for number in range(20):
        with Wire(program.port) as wire:
            wire.head("GET", target)
            assert wire.socket.recv(1000)
            if number % 2:
                wire.reset()
    for _ in until():
        if program.open_files() <= before:
            break


@pytest.mark.parametrize("target", ["/file?length=150000000", "/pieces?size=150000000&piece=65536"])
def test_slow_readers_hold_no_thread(program: Program, target: str) -> None:
    """More of them than there are threads; others are served, and each gets its bytes."""
    slow = [Wire(program.port).head("GET", target) for _ in range(50)]
    try:
        for wire in slow:
            assert wire.line() == b"HTTP/1.1 200 OK"
        with Wire(program.port) as other:
            assert other.get("/file?length=1000000").body == content(1_000_000)
            assert other.get("/pieces?size=1000000&piece=1000").body == content(1_000_000)
            assert other.get("/a/blobs/b?seconds=0").status == 200
        last = slow[-1]
        while last.line():
            pass
        assert last.take(150_000_000) == content(150_000_000)
    finally:
        for wire in slow:
            wire.close()


def test_storage_that_hangs_leaves_the_rest_alone(program: Program, name: str) -> None:
    target = f"/a/blobs/b?gate={name}&name={name}"
    hanging = [Wire(program.port).head("GET", target) for _ in range(BULK + 8)]
    try:
        program.wait_for(name, "waits", BULK)
        with Wire(program.port) as other:
            assert other.get("/health").status == 200
            assert other.get("/a/manifests/b").status == 200
            assert other.put("/whole", b"manifest").status == 200
        program.open_gate(name)
        for wire in hanging:
            assert wire.answer().status == 200
    finally:
        program.open_gate(name)
        for wire in hanging:
            wire.close()


def test_bodies_that_are_to_wait_leave_small_reads_alone(program: Program, name: str) -> None:
    target = f"/a/blobs/b?gate={name}&name={name}"
    hanging = [Wire(program.port) for _ in range(QUICK + 1)]
    try:
        for wire in hanging:
            wire.head("PUT", target, "Content-Length: 1").send(b"x")
        program.wait_for(name, "waits", QUICK + 1)
        with Wire(program.port) as other:
            assert other.get("/a/manifests/b").status == 200
        program.open_gate(name)
        for wire in hanging:
            assert wire.answer().status == 200
    finally:
        program.open_gate(name)
        for wire in hanging:
            wire.close()


@pytest.mark.parametrize("target", ["/sleep", "/a/blobs/b"])
def test_one_request_that_blocks_keeps_no_other_waiting(directory: Path, target: str) -> None:
    """Exactly one, before there is a second thread, and nobody else who comes."""
    program = Program(directory / "one-blocked", 1)
    with program.started(), Wire(program.port) as blocked, Wire(program.port) as other:
        blocked.head("GET", f"{target}?gate=a&name=blocked")
        program.wait_for("blocked", "waits")
        assert other.get(f"{target}?seconds=0").status == 200
        program.open_gate("a")
        assert blocked.answer().status == 200


# /health and /ready.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health(wire: Wire, method: str) -> None:
    answer = wire.get("/health", method=method)
    assert answer.status == 200
    assert answer["content-length"] == "7"
    assert answer.body == (b"healthy" if method == "GET" else b"")


def test_ready(wire: Wire) -> None:
    assert wire.get("/ready").body == b"ready"


def test_ready_does_not_wait_for_long(directory: Path) -> None:
    with Program(
        directory / "ready", 1, "connection.READY_SECONDS=1", READY_PAUSE="60"
    ).started() as program:
        asking = [Wire(program.port).head("GET", "/ready") for _ in range(20)]
        for wire in asking:
            with wire:
                assert wire.answer().status == 503
        with Wire(program.port) as wire:
            assert wire.get("/health").status == 200


# The log.


@pytest.mark.parametrize("name", ["_state", "%5Fstate", "_st%61te", "%5f%73%74%61%74%65", "code"])
def test_the_log(program: Program, wire: Wire, name: str) -> None:
    wire.get(f"/a?x=1&{name}=secret.token&y=2", f"X-Request-Id: find{name}")
    for _ in until():
        lines = [line for line in program.output().splitlines() if f"find{name}" in line]
        if lines:
            break
    [entry] = map(json.loads, lines)
    assert entry["method"] == "GET"
    assert entry["path"] == f"/a?x=1&{name}=***&y=2"
    assert entry["status"] == 200
    assert entry["bytes"] > 0
    assert entry["client"] == "127.0.0.1"
    assert 0 <= entry["ms"] < 5000
