"""HTTP connections to servers that settings name, kept open between requests. Whatever the server
does, a request ends in bounded time. Credentials of a URL are sent, and never told."""

import errno
import select
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from chalicelib import tracing
from chalicelib.resolvers import ResolverError

if TYPE_CHECKING:
    from http.client import HTTPConnection

CONNECT_SECONDS = 3.0
STALLED_SECONDS = 20.0
"""A server that takes none of a megabyte for so long is down."""
PIECE = 1 << 20
"""Bytes that are sent at once, at most."""
_IDLE = 16
"""How many connections to a server wait for the next request, at most."""


class Answer(NamedTuple):
    """Of a server, to one request."""

    status: int
    body: bytes


class Server:
    """A server, at the URL before the paths that it is asked for. Threads may share it. ``name``
    tells people what it is (``kind``) and where."""

    def __init__(self, kind: str, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/")
        self.name = f"{kind} {parts.netloc.rpartition('@')[2]}"
        self._headers = {"User-Agent": "openregistry", "Accept": "*/*", **(headers or {})}
        if parts.username is not None:
            account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(account.encode()).decode()}"
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []

    def ask(
        self,
        method: str,
        target: str,
        *,
        seconds: float,
        limit: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, and read its answer of at most ``limit`` bytes, in so many seconds.
        Raises ``ResolverError``."""
        return self.send(
            method,
            target,
            iter([body] if body else []),
            len(body),
            seconds=seconds,
            limit=limit,
            headers=headers,
        )

    def send(
        self,
        method: str,
        target: str,
        pieces: Iterator[bytes | memoryview],
        length: int,
        *,
        seconds: float,
        limit: int,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request whose body has so many bytes, in pieces of ``PIECE`` at most, and read its
        answer. The server must take each piece in ``STALLED_SECONDS``, and answer within
        ``seconds`` of the last. What iterating raises is raised, and then the server has got no
        whole body. Raises ``ResolverError``."""
        path = target.partition("?")[0]
        with tracing.span(f"{method} {path}", **{"server.address": self._host}) as span:
            answer = self._exchange(
                method, target, pieces, length, seconds=seconds, limit=limit, headers=headers
            )
            span.set_attribute("http.response.status_code", answer.status)
            return answer

    def _exchange(
        self,
        method: str,
        target: str,
        pieces: Iterator[bytes | memoryview],
        length: int,
        *,
        seconds: float,
        limit: int,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        from http.client import HTTPException

        try:
            connection = self._connection(min(CONNECT_SECONDS, seconds))
        except OSError as error:
            raise ResolverError(f"{self.name} is out of reach: {_told(error)}.") from error
        whole = early = False
        late = threading.Event()
        timer = threading.Timer(seconds, _hang_up, [connection.sock, late])
        timer.daemon = True
        try:
            try:
                self._send(connection, method, target, pieces, length, headers or {})
            except _AnsweredEarly:
                early = True
            connection.sock.settimeout(seconds)
            timer.start()
            with connection.getresponse() as response:
                received = response.read(limit + 1)
                whole = response.isclosed() and not response.will_close and not early
                short = bool(response.length)
            if len(received) > limit:
                raise ResolverError(f"{self.name} answered with more than {limit} bytes.")
            if short:
                raise ConnectionResetError(errno.ECONNRESET, "the answer is not whole")
            return Answer(response.status, received)
        except (OSError, HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise ResolverError(f"{self.name} did not answer in time.") from error
            raise ResolverError(f"{self.name} broke off: {_told(error)}.") from error
        finally:
            timer.cancel()
            if whole:
                self._keep(connection)
            else:
                connection.close()

    def _send(
        self,
        connection: "HTTPConnection",
        method: str,
        target: str,
        pieces: Iterator[bytes | memoryview],
        length: int,
        headers: Mapping[str, str],
    ) -> None:
        connection.sock.settimeout(STALLED_SECONDS)
        connection.putrequest(method, self._path + target, skip_accept_encoding=True)
        for name, value in {**self._headers, **headers, "Content-Length": str(length)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for piece in pieces:
            # A server that refuses says so at once, and reads no further.
            if not self._secure and _readable(connection.sock):
                raise _AnsweredEarly
            connection.send(piece)

    def _connection(self, seconds: float) -> "HTTPConnection":
        from http.client import HTTPConnection, HTTPSConnection

        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not _readable(connection.sock):
                return connection
            connection.close()  # as the server has done
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self._host, self._port, timeout=seconds)
        connection.connect()
        return connection

    def _keep(self, connection: "HTTPConnection") -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()


class _AnsweredEarly(Exception):
    """Nothing more need be sent."""


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    """End both directions below TLS, which another thread may be using."""
    late.set()
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _told(error: Exception) -> str:
    """What went wrong, without what was sent."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
