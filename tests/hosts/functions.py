"""A small program of functions, which the tests of the harness run instead of the registry.

`python -m tests.hosts.functions DIRECTORY PORT WORKERS NAME=VALUE…`: the pairs set constants of the
harness, like `connection.HEAD_SECONDS=1`, and settings, like `body_timeout=1`. The directory holds
what the functions note, and the gates that the tests open (`tests.hosts.program`).
"""

import hashlib
import importlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from chalicelib.endpoints import Body
from chalicelib.hosts.harness import certificates, log, supervisor
from chalicelib.hosts.harness.functions import Turn
from chalicelib.http import FileRegion, Piece, Query, Receiver, RegistryError, Request, Response
from chalicelib.settings import Address, Settings

PATTERN = bytes(range(251))


def content(size: int) -> bytes:
    """What /file and /pieces are made of: no two regions of a file look alike."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


class Pieces:
    """A stream that tells whether it was closed."""

    def __init__(self, size: int, piece: int, fail_after: int, note: Callable[[str], None]) -> None:
        self._size = size
        self._piece = piece
        self._fail_after = fail_after
        self._note = note

    def __iter__(self) -> Iterator[bytes]:
        block = content(self._piece + len(PATTERN))
        for start in range(0, self._size, self._piece):
            if start >= self._fail_after:
                raise OSError("storage broke")
            first = start % len(PATTERN)
            yield block[first : first + min(self._piece, self._size - start)]

    def close(self) -> None:
        self._note("closed")


class Hashing:
    """A receiver that counts and hashes, and tells what was called."""

    def __init__(self, request: Request, note: Callable[[str], None]) -> None:
        query = request.query
        self._pause = float(query.get("pause", 0))
        self._refuse_after = int(query.get("refuse_after", 1 << 60))
        self._note = note
        self._hash = hashlib.sha256()
        self._size = 0
        self._feeds = 0
        self._most = 0
        self._busy = threading.Lock()

    def feed(self, pieces: Sequence[Piece]) -> None:
        if not self._busy.acquire(blocking=False):
            self._note("OVERLAP")
        self._note("feed")
        time.sleep(self._pause)
        self._feeds += 1
        size = sum(map(len, pieces))
        self._most = max(self._most, size)
        self._size += size
        for piece in pieces:
            self._hash.update(piece)
        self._busy.release()
        if self._size > self._refuse_after:
            raise RegistryError("Too much.", code="TOO_MUCH", status=416)

    def finish(self) -> Response:
        self._note(f"finished {self._size}")
        result = {
            "size": self._size,
            "sha256": self._hash.hexdigest(),
            "feeds": self._feeds,
            "most": self._most,
        }
        return Response(201, [("Content-Type", "application/json")], json.dumps(result).encode())

    def abort(self) -> None:
        if self._busy.locked():
            self._note("OVERLAP")
        self._note(f"aborted {self._size}")


class Program:
    """Functions whose paths say what they do."""

    limit = 100_000

    def __init__(self, directory: Path, file: Path) -> None:
        self._directory = directory
        self._file = file
        self._file.write_bytes(content(200_000_000))

    def wants(self, request: Request) -> Body:
        if request.path.startswith("/whole"):
            return Body.BUFFERED
        return Body.STREAMED if request.path.startswith("/stream") else Body.NONE

    def turn(self, request: Request) -> Turn:
        if request.path in ("/health", "/ready"):
            return Turn(request.path[1:])
        return Turn.BULK if "/blobs/" in request.path else Turn.QUICK

    def health(self, _request: Request) -> Response:
        return Response(200, body=b"healthy")

    def ready(self, _request: Request) -> Response:
        time.sleep(float(os.environ.get("READY_PAUSE", "0")))
        return Response(200, body=b"ready")

    def act(self, request: Request) -> Response:
        query, path = request.query, request.path
        if path.startswith("/file"):
            offset, length = int(query.get("offset", 0)), int(query["length"])
            file = self._file.open("rb")
            return Response(200, _length(length), FileRegion(file, offset, length))
        if path.startswith("/pieces"):
            size = int(query["size"])
            fail_after = int(query.get("fail_after", size))
            pieces = Pieces(size, int(query["piece"]), fail_after, partial(self._note, request))
            return Response(200, _length(size + int(query.get("more", 0))), pieces)
        if path.startswith("/sleep") or "/blobs/" in path:
            self._wait(request)
        if path.startswith("/status"):
            return Response(int(query["status"]), body=query.get("body", "").encode())
        if path.startswith("/header"):
            return Response(200, [("X-Value", query["value"]), ("X-Value", "again")])
        if path.startswith("/broken"):
            raise RuntimeError("a function that raises after all")
        if path.startswith("/kill"):
            os.kill(os.getpid(), 9)
        return self._seen(request)

    def answer(self, request: Request) -> Response:
        if "/blobs/" in request.path:
            self._wait(request)
        return self._seen(request)

    def receive(self, request: Request) -> Receiver | Response:
        if "refuse" in request.query:
            return RegistryError("Not you.", code="DENIED", status=403).response()
        self._note(request, "received")
        return Hashing(request, partial(self._note, request))

    def flush(self) -> None:
        self._note(Request("-", "-", Query("name=flush")), "flushed")

    def end(self) -> None:
        self.flush()

    def work(self, stop: Event) -> None:
        self._note(Request("-", "-"), f"works {os.getpid()}")
        # A job that hangs is not ended by being told to.
        if (self._directory / "hangs").exists():
            time.sleep(60)
        stop.wait()
        self._note(Request("-", "-"), "stopped")

    def _note(self, request: Request, event: str) -> None:
        """Tell the test that gave the request its name."""
        with (self._directory / "events").open("a") as events:
            events.write(json.dumps([request.query.get("name", ""), event]) + "\n")

    def _wait(self, request: Request) -> None:
        """For so many seconds, or until the test opens the gate of that name."""
        self._note(request, "waits")
        if seconds := request.query.get("seconds"):
            time.sleep(float(seconds))
            return
        gate = self._directory / f"gate-{request.query['gate']}"
        while not gate.exists():
            time.sleep(0.02)

    def _seen(self, request: Request) -> Response:
        seen = {
            "method": request.method,
            "path": request.path,
            "query": {name: request.query.all(name) for name in request.query},
            "headers": dict(request.headers),
            "client": request.client,
            "secure": request.secure,
            "size": len(request.body),
            "sha256": hashlib.sha256(request.body).hexdigest(),
            "worker": os.getpid(),
        }
        body = json.dumps(seen).encode()
        if request.method == "HEAD":
            return Response(200, _length(len(body)))
        return Response(200, [("Content-Type", "application/json")], body)


def _length(size: int) -> list[tuple[str, str]]:
    return [("Content-Length", str(size))]


def main(directory: Path, port: int, workers: int, pairs: Sequence[str]) -> None:
    """Serve the program."""
    values: dict[str, object] = {"body_timeout": 60, "shutdown_timeout": 20, "work": False}
    for pair in pairs:
        name, _, value = pair.partition("=")
        module, dot, constant = name.partition(".")
        if dot:
            target = importlib.import_module(f"chalicelib.hosts.harness.{module}")
            setattr(target, constant, type(getattr(target, constant))(value))
        elif name == "trusted_proxies":
            values[name] = tuple(value.split(","))
        else:
            values[name] = Path(value) if name.startswith("tls") else int(value)
    log.configure("info")
    settings = Settings(listen=Address("127.0.0.1", port), **values)  # type: ignore[arg-type]
    with (
        tempfile.TemporaryDirectory() as temporary,
        supervisor.listen(settings.listen) as listener,
    ):
        program = Program(directory, Path(temporary, "file"))
        supervisor.Supervisor(
            program, settings, listener, workers, certificates=certificates.from_files(settings)
        ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
