"""HTTP/1.1 to the byte, for tests that send what no client library would."""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """A response as it was read."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """The first value of a header field."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the specification's error body."""
        return str(self.json()["errors"][0]["code"])


class Wire:
    """One connection, from this address of loopback."""

    def __init__(
        self,
        port: int,
        timeout: float = 20,
        tls: ssl.SSLContext | None = None,
        address: str = "",
    ) -> None:
        # Bound only where it must be: a port that is bound is not used again for a minute.
        source = (address, 0) if address else None
        self.socket = socket.create_connection(("127.0.0.1", port), timeout, source)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Go away without a goodbye (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, *parts: str | bytes) -> Self:
        for part in parts:
            self.socket.sendall(part.encode("latin-1") if isinstance(part, str) else part)
        return self

    def head(self, method: str, target: str, *fields: str) -> Self:
        """A request's line and header fields."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields, "", ""]
        return self.send("\r\n".join(lines))

    def chunk(self, data: bytes) -> Self:
        return self.send(f"{len(data):x}\r\n", data, "\r\n")

    def get(self, target: str, *fields: str, method: str = "GET") -> Answer:
        return self.head(method, target, *fields).answer(head_only=method == "HEAD")

    def put(self, target: str, body: bytes, *fields: str) -> Answer:
        self.head("PUT", target, f"Content-Length: {len(body)}", *fields)
        return self.send(body).answer()

    def line(self) -> bytes:
        while b"\r\n" not in self._read:
            self._more()
        line, _, self._read = self._read.partition(b"\r\n")
        return line

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next response, whole; interim ones come by themselves."""
        status = int(self.line().split()[1])
        headers = []
        while line := self.line().decode("latin-1"):
            name, _, value = line.partition(": ")
            headers.append((name, value))
        found = Answer(status, headers, b"")
        length = 0 if head_only or status in (100, 204, 304) else int(found["content-length"] or 0)
        return Answer(status, headers, self.take(length))

    def take(self, length: int) -> bytes:
        """So many bytes of a body."""
        data = bytearray(self._read)
        while len(data) < length:
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise ConnectionError(f"closed after {len(data)} bytes")
            data += piece
        self._read = bytes(data[length:])
        return bytes(data[:length])

    def rest(self) -> bytes:
        """Everything up to the connection's end."""
        while True:
            try:
                self._more()
            except ConnectionError:
                rest, self._read = self._read, b""
                return rest

    def closed(self) -> bool:
        """Whether the server closes, without another byte."""
        return self.rest() == b""

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"closed after {self._read[:200]!r}")
        self._read += data


def until(seconds: float = 30, pause: float = 0.02) -> Iterator[None]:
    """Try again until a condition holds: `for _ in until(): if …: break`, else AssertionError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(pause)
    raise AssertionError(f"it did not come about in {seconds} s")
