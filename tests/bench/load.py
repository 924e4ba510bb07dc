"""The load generator: one thread, one epoll, raw keep-alive sockets.

It shares the machine with the servers that it measures, so it must be cheap: requests are bytes
made beforehand, bodies are views of one block that is never copied in Python, and bytes that come
back are dropped inside the kernel (``MSG_TRUNC``). Its own CPU time is part of every outcome.
"""

import gc
import select
import socket
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

Address = tuple[str, int]
Piece = bytes | memoryview

RECEIVE = 4 << 20
SILENCE = 120.0
ENOUGH = 20
"""Failures after which a run is given up."""
ONE_SEND = 64 << 10
_LENGTH = b"\r\ncontent-length:"


class Failed(Exception):
    """An operation got an answer that its script did not expect."""


@dataclass(slots=True)
class Request:
    """One request: its head as bytes, its body as pieces that are sent as they are."""

    head: bytes
    body: Sequence[Piece] = ()
    label: str = ""
    keep: bool = False
    address: Address | None = None

    @property
    def method(self) -> str:
        """GET, PUT and so on."""
        return self.head[: self.head.index(b" ")].decode()


@dataclass(slots=True)
class Reply:
    """What came back; ``body`` is empty unless the request asked to keep it."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    def header(self, name: str) -> str:
        """The header's value, or an empty string."""
        mark = b"\r\n" + name.lower().encode() + b":"
        start = self.head.lower().find(mark)
        if start < 0:
            return ""
        start += len(mark)
        return self.head[start : self.head.index(b"\r\n", start)].strip().decode()

    def expect(self, *statuses: int) -> "Reply":
        """The reply itself, or :class:`Failed` when its status is another."""
        if self.status not in statuses:
            raise Failed(f"{self.status} instead of {statuses}: {self.head[:300]!r}")
        return self


Script = Generator[Request, Reply, None]


@dataclass(slots=True)
class Outcome:
    """What a run of operations came to; times are in seconds."""

    done: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    errors: list[str] = field(default_factory=list)
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class _Closed(Exception):
    """The connection ended or broke before the reply was whole."""


class _Connection:
    """One keep-alive connection, and what is still to be sent on it."""

    __slots__ = ("address", "index", "offset", "pieces", "sock", "writing")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sock = socket.create_connection(address, timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.pieces: Sequence[Piece] = ()
        self.index = 0
        self.offset = 0
        self.writing = False

    def put(self, pieces: Sequence[Piece]) -> None:
        self.pieces, self.index, self.offset = pieces, 0, 0

    def flush(self) -> bool:
        """Send until all is gone, which is the answer, or the socket is full."""
        pieces = self.pieces
        try:
            while self.index < len(pieces):
                piece = pieces[self.index]
                sent = self.sock.send(memoryview(piece)[self.offset : self.offset + RECEIVE])
                self.offset += sent
                if self.offset == len(piece):
                    self.index += 1
                    self.offset = 0
        except BlockingIOError:
            return False
        return True


class _Exchange:
    """One request under way and what came back of its reply so far."""

    __slots__ = ("chunked", "connection", "data", "head", "left", "request", "started", "status")

    def __init__(self, request: Request, connection: _Connection) -> None:
        self.request = request
        self.connection = connection
        self.started = time.perf_counter()
        self.status = 0
        self.head = b""
        self.data = b""
        self.left = 0
        self.chunked = False

    def receive(self, scratch: bytearray) -> bytes | None:
        """Take what has arrived; the reply's body when the reply is whole, else None."""
        sock = self.connection.sock
        if self.left and not self.request.keep:
            self.left -= self._some(
                sock.recv_into(scratch, min(self.left, RECEIVE), socket.MSG_TRUNC)
            )
            return None if self.left else b""
        data = sock.recv(ONE_SEND)
        self._some(len(data))
        self.data += data
        if not self.head and not self._parse_head():
            return None
        return self._body()

    def _some(self, count: int) -> int:
        if count == 0:
            raise _Closed("the server closed the connection before its reply was whole")
        return count

    def _parse_head(self) -> bool:
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, self.data = self.data[: end + 2], self.data[end + 4 :]
        self.status = int(head[9:12])
        if self.status == 100:
            return self._parse_head()
        self.head = head
        if self.status not in (204, 304) and not self.request.head.startswith(b"HEAD "):
            lower = head.lower()
            at = lower.find(_LENGTH)
            if at >= 0:
                at += len(_LENGTH)
                self.left = int(lower[at : lower.index(b"\r\n", at)])
            else:
                self.chunked = b"\r\ntransfer-encoding: chunked" in lower
        return True

    def _body(self) -> bytes | None:
        if self.chunked:
            return dechunk(self.data) if self.data.endswith(b"0\r\n\r\n") else None
        if self.request.keep:
            return self.data if len(self.data) == self.left else None
        self.left -= len(self.data)
        self.data = b""
        return None if self.left else b""


class _Client:
    """One caller: runs script after script, one request at a time."""

    def __init__(self, loop: "_Loop") -> None:
        self.loop = loop
        self.connections: dict[Address, _Connection] = {}
        self.script: Script | None = None
        self.exchange: _Exchange | None = None

    def next_script(self) -> None:
        """Begin the next script, or leave the loop when there is none."""
        self.script = self.loop.take()
        if self.script is None:
            self.loop.leave(self)
        else:
            self._begin(next(self.script))

    def event(self, connection: _Connection, *, writable: bool, readable: bool) -> None:
        """The socket became ready."""
        exchange = self.exchange
        if exchange is None or exchange.connection is not connection:
            self._drop(connection)  # an idle connection that the server closed
            return
        try:
            if writable:
                self._flush(connection)
            if readable and (body := exchange.receive(self.loop.scratch)) is not None:
                self._finish(exchange, body)
        except BlockingIOError:
            return
        except (_Closed, OSError) as error:
            self._drop(connection)
            self._fail(f"{exchange.request.head[:80]!r}: {error}")

    def close(self) -> None:
        for connection in list(self.connections.values()):
            self._drop(connection)

    def _begin(self, request: Request) -> None:
        address = request.address or self.loop.address
        connection = self.connections.get(address)
        if connection is None:
            try:
                connection = self.connections[address] = _Connection(address)
            except OSError as error:
                self._fail(f"{address[0]}:{address[1]}: {error}")
                return
            self.loop.add(connection, self)
        self.exchange = _Exchange(request, connection)
        if len(request.head) + sum(map(len, request.body)) <= ONE_SEND:
            connection.put((b"".join((request.head, *request.body)),))
        else:
            connection.put((request.head, *request.body))
        # A server may refuse a body before it has read it: then the reply tells, not the send.
        with suppress(ConnectionError):
            self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        if connection.writing != (not connection.flush()):
            connection.writing = not connection.writing
            self.loop.watch(connection)

    def _finish(self, exchange: _Exchange, body: bytes) -> None:
        seconds = time.perf_counter() - exchange.started
        connection, label = exchange.connection, exchange.request.label
        self.exchange = None
        unsent = connection.index < len(connection.pieces)
        if unsent or b"\r\nconnection: close" in exchange.head.lower():
            self._drop(connection)
        assert self.script is not None
        try:
            following = self.script.send(Reply(exchange.status, exchange.head, body, seconds))
        except StopIteration:
            self.loop.outcome.done += 1
            self.next_script()
        except Failed as error:
            self._fail(str(error))
        else:
            self._begin(following)
        if label:
            self.loop.outcome.latencies[label].append(seconds)

    def _fail(self, reason: str) -> None:
        self.exchange = None
        self.loop.outcome.errors.append(reason)
        self.next_script()

    def _drop(self, connection: _Connection) -> None:
        self.loop.remove(connection)
        self.connections.pop(connection.address, None)
        connection.sock.close()


class _Loop:
    def __init__(self, address: Address, work: Iterator[Script], seconds: float | None) -> None:
        self.address = address
        self.work = work
        self.seconds = seconds
        self.deadline = float("inf")
        self.outcome = Outcome()
        self.scratch = bytearray(RECEIVE)
        self.poll = select.epoll()
        self.owners: dict[int, tuple[_Connection, _Client]] = {}
        self.active: set[_Client] = set()

    def take(self) -> Script | None:
        """The next script, until time is over or too much has failed."""
        if time.perf_counter() >= self.deadline or len(self.outcome.errors) >= ENOUGH:
            return None
        return next(self.work, None)

    def add(self, connection: _Connection, client: _Client) -> None:
        self.owners[connection.sock.fileno()] = (connection, client)
        self.poll.register(connection.sock, select.EPOLLIN)

    def watch(self, connection: _Connection) -> None:
        wish = select.EPOLLIN | (select.EPOLLOUT if connection.writing else 0)
        self.poll.modify(connection.sock, wish)

    def remove(self, connection: _Connection) -> None:
        if self.owners.pop(connection.sock.fileno(), None) is not None:
            self.poll.unregister(connection.sock)

    def leave(self, client: _Client) -> None:
        client.close()
        self.active.discard(client)

    def run(self, connections: int) -> Outcome:
        gc.collect()
        gc.disable()
        cpu, started = time.thread_time(), time.perf_counter()
        if self.seconds is not None:
            self.deadline = started + self.seconds
        try:
            self.active = {_Client(self) for _ in range(connections)}
            for client in list(self.active):
                client.next_script()
            while self.active:
                events = self.poll.poll(SILENCE)
                if not events:
                    self.outcome.errors.append(f"no answer for {SILENCE:.0f} s")
                    break
                for number, event in events:
                    owned = self.owners.get(number)
                    if owned is None:
                        continue
                    connection, client = owned
                    client.event(
                        connection,
                        writable=bool(event & select.EPOLLOUT),
                        readable=bool(event & ~select.EPOLLOUT),
                    )
        finally:
            gc.enable()
            for client in list(self.active):
                client.close()
            self.poll.close()
        self.outcome.seconds = time.perf_counter() - started
        self.outcome.cpu = time.thread_time() - cpu
        return self.outcome


def run(
    address: Address, work: Iterator[Script], *, connections: int, seconds: float | None = None
) -> Outcome:
    """Run the scripts over so many connections, until they end or the seconds are over.

    An operation that has begun is finished and counted, so the time is a little longer.
    """
    return _Loop(address, work, seconds).run(connections)


def dechunk(data: bytes) -> bytes | None:
    """The body of a whole chunked message (RFC 9112, section 7.1), or None when it goes on."""
    pieces: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
        if at > len(data):
            return None
