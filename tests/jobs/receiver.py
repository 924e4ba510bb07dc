"""A server that is told of events: well-behaved, or as a test wants it."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Behaviour = Callable[["Handler"], None]


class Received(NamedTuple):
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """What a behaviour is given."""

    protocol_version = "HTTP/1.1"
    server: "Receiver"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.received.append(Received(self.path, headers, body))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            with suppress(OSError):
                self.server.behave(self)
        finally:
            with self.server.lock:
                self.server.open -= 1

    def answer(self, status: int, body: bytes = b"", **fields: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, and answers as ``behave`` does: at first with 204."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.received: list[Received] = []
        self.released = threading.Event()
        self.open = 0
        self.most_open = 0
        self.behave: Behaviour = lambda handler: handler.answer(204)
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def wait(self, count: int, seconds: float = 30) -> list[Received]:
        """What came, once it is so much."""
        end = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < end, f"{len(self.received)} of {count} came"
            time.sleep(0.02)
        return self.received

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent: whoever asked may be gone."""

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


def status(code: int, body: bytes = b"") -> Behaviour:
    """Answers with a status."""
    return lambda handler: handler.answer(code, body)


def first(behaviour: Behaviour, then: Behaviour, times: int = 1) -> Behaviour:
    """One behaviour so many times, and then another."""
    left = iter([behaviour] * times)

    def behave(handler: Handler) -> None:
        next(left, then)(handler)

    return behave


def hang(handler: Handler) -> None:
    """Answers nothing until it is released."""
    handler.server.released.wait(60)
    handler.close_connection = True


def false_length(handler: Handler) -> None:
    """Announces more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"short")
    handler.close_connection = True


def swollen(handler: Handler) -> None:
    """Sends 100 MB."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(100 << 20))
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"a" * (1 << 20))


def drip(handler: Handler) -> None:
    """Sends its status line a byte at a time."""
    for byte in b"HTTP/1.1 200 " + b"O" * 1000:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def garbage(handler: Handler) -> None:
    """Speaks something else than HTTP."""
    handler.wfile.write(b"\x00\x01 hello\r\n\r\n")
    handler.close_connection = True
