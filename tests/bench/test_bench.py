"""The benchmark measures what it says: its bodies, its load generator, its accounts."""

import hashlib
import itertools
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.bench import blobs, load, processes, table
from tests.bench.load import Address, Reply, Request, Script
from tests.bench.servers import OURS, PEER, Cpu
from tests.bench.table import Row
from tests.bench.workloads import WORKLOADS, Measure

MIB = 1 << 20


class Echo(BaseHTTPRequestHandler):
    """Answers with the hash of the body it got, or with what the path asks for."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(hashlib.sha256(body).hexdigest().encode())

    def do_GET(self) -> None:
        if self.path == "/vanish":
            self.close_connection = True
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"5\r\nhello\r\n", b"6\r\n world\r\n", b"0\r\n\r\n"):
                self.wfile.write(piece)
                time.sleep(0.01)
        else:
            self.answer(bytes(int(self.path[1:])))

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[Address]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ("127.0.0.1", server.server_port)
        server.shutdown()


def get(path: str, seen: list[Reply] | None = None) -> Script:
    reply = yield Request(f"GET {path} HTTP/1.1\r\n\r\n".encode(), label="get", keep=True)
    if seen is not None:
        seen.append(reply)
    reply.expect(200)


@pytest.mark.parametrize("size", [1024, blobs.FRAME, MIB, blobs.BLOCK + 3 * MIB])
def test_a_blob_has_its_size_and_digest_however_it_is_sent(size: int) -> None:
    blob = blobs.new(size)
    plain = b"".join(blob.plain())
    assert len(plain) == size
    assert "sha256:" + hashlib.sha256(plain).hexdigest() == blob.digest
    assert load.dechunk(b"".join(blob.chunked())) == plain
    assert blobs.new(size).digest != blob.digest


def test_the_generator_sends_large_bodies_whole(echo: Address) -> None:
    blob = blobs.new(20 * MIB)
    seen: list[Reply] = []

    def put() -> Script:
        head = f"PUT / HTTP/1.1\r\nContent-Length: {blob.size}\r\n\r\n".encode()
        seen.append((yield Request(head, blob.plain(), keep=True)))

    outcome = load.run(echo, iter([put(), put()]), connections=2)
    assert (outcome.done, outcome.errors) == (2, [])
    assert {"sha256:" + reply.body.decode() for reply in seen} == {blob.digest}


def test_the_generator_reads_lengths_and_chunks(echo: Address) -> None:
    seen: list[Reply] = []
    outcome = load.run(echo, iter([get("/chunked", seen), get("/300000", seen)]), connections=1)
    assert (outcome.done, outcome.errors) == (2, [])
    assert [len(reply.body) for reply in seen] == [11, 300_000]
    assert len(outcome.latencies["get"]) == 2
    assert min(outcome.latencies["get"]) > 0


def test_the_generator_drops_bodies_that_nobody_keeps(echo: Address) -> None:
    def drop() -> Script:
        reply = yield Request(b"GET /5000000 HTTP/1.1\r\n\r\n")
        assert reply.body == b""

    outcome = load.run(echo, (drop() for _ in range(3)), connections=2)
    assert (outcome.done, outcome.errors) == (3, [])


def test_the_generator_counts_failures_and_goes_on(echo: Address) -> None:
    def refuse() -> Script:
        (yield Request(b"GET /1 HTTP/1.1\r\n\r\n")).expect(404)

    outcome = load.run(echo, iter([get("/vanish"), refuse(), get("/1")]), connections=1)
    assert outcome.done == 1
    assert "closed the connection" in outcome.errors[0]
    assert "200 instead of (404,)" in outcome.errors[1]


def test_the_generator_gives_up_on_a_server_that_is_gone() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = ("127.0.0.1", bound.getsockname()[1])
        outcome = load.run(address, (get("/1") for _ in itertools.count()), connections=2)
    assert outcome.done == 0
    assert len(outcome.errors) >= load.ENOUGH
    assert "refused" in outcome.errors[0]


def test_the_generator_stops_in_time(echo: Address) -> None:
    outcome = load.run(echo, (get("/1") for _ in itertools.count()), connections=2, seconds=0.2)
    assert outcome.done > 1
    assert 0.2 <= outcome.seconds < 5


def test_processes_are_charged_for_their_time_and_memory() -> None:
    code = "import time; x = bytearray(50 << 20); [i for i in range(4_000_000)]; time.sleep(60)"
    shell = subprocess.Popen(["sh", "-c", f"{sys.executable} -c '{code}'; true"])
    try:
        with processes.MemoryWatch(shell.pid, interval=0.02) as watch:
            deadline = time.monotonic() + 20
            while watch.peak < 50 << 20 or processes.cpu_seconds(processes.tree(shell.pid)) < 0.05:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert len(processes.tree(shell.pid)) == 2
    finally:
        for pid in processes.tree(shell.pid):
            os.kill(pid, 9)
        shell.wait()


def measured(value: float, error: str = "") -> Measure:
    return Measure(value, 10, 1.0, Cpu(0.1, 0.1, 0.0), 0.0, [error] if error else [])


def row(name: str, ours: list[float], peer: list[float]) -> Row:
    (workload,) = (one for one in WORKLOADS if one.name == name)
    runs = {OURS: [measured(one) for one in ours], PEER: [measured(one) for one in peer]}
    return Row(workload, "s3", runs)


def test_a_rate_is_held_against_the_peers_median() -> None:
    assert row("manifest-get-tag-c1", [90, 500, 900], [100]).met() is True
    assert row("manifest-get-tag-c1", [90, 499, 900], [100]).met() is False
    assert row("manifest-get-tag-c1", [500], []).met() is None
    assert row("manifest-get-tag-c1", [500], [100]).ratio() == pytest.approx(5)


def test_a_limit_holds_without_the_peer() -> None:
    assert row("commit-1G", [49.0], []).met() is True
    assert row("commit-1G", [51.0], [900.0]).met() is False


def test_a_run_that_did_nothing_meets_no_target() -> None:
    assert row("manifest-get-tag-c1", [math.nan], [100]).met() is False


def test_a_run_with_failures_does_not_count() -> None:
    one = row("manifest-get-tag-c1", [500], [100])
    one.runs[PEER].append(measured(900, error="refused"))
    assert one.ratio() == pytest.approx(5)
    assert one.errors(PEER) == ["refused"]
    one.runs[OURS] = [measured(900, error="refused")]
    assert one.met() is False


def test_the_table_is_put_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"Before\n{table.BEGIN}\nold\n{table.END}\nAfter\n")
    rows = [row("manifest-get-tag-c1", [600], [100])]
    table.put_into(document, table.markdown({"s3": rows}, ["A note."]))
    content = document.read_text()
    assert content.startswith("Before\n")
    assert content.endswith("\nAfter\n")
    assert "old" not in content
    assert "| manifest-get-tag-c1 | /s | 100 | 600 | 6.00 | ≥ 5x | yes |" in content
