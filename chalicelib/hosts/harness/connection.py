"""HTTP/1.1 on one socket (RFC 9112): requests in, answers out."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import httptools

from chalicelib import addresses, endpoints, logs, tracing
from chalicelib.hosts.harness import sending
from chalicelib.hosts.harness.body import Body, BodyError
from chalicelib.hosts.harness.functions import Functions, Turn
from chalicelib.http import (
    FileRegion,
    Headers,
    Query,
    Receiver,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    Stream,
    Unavailable,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chalicelib.hosts.harness.worker import Worker

_log = logging.getLogger(__name__)

HEAD_LIMIT = 64 << 10
"""Bytes of a request's line and header fields together."""
TRAILER_LIMIT = 8 << 10
"""Bytes in a chunked body that are none of its own, one after another: an extension, trailers."""
TARGET_LIMIT = 16 << 10
"""Bytes of a request's target."""
HEAD_SECONDS = 30
"""How long a request's head may take, from its first byte or the connection's beginning."""
IDLE_SECONDS = 120
"""How long a connection may be idle. Clients leave after 90 s at most (Go's default): whoever
closes first should be they, since a layer's PATCH cannot be sent twice."""
LINGER_SECONDS = 5
LINGER_BYTES = 256 << 20
"""How long, and for how many bytes, a refused body is read on, so that its sender reads the answer
instead of a reset."""
SEND_SECONDS = 300
"""How long a client may take nothing of what is sent to it."""
READY_SECONDS = 5
"""How long Postgres and storage have to show that they are ready."""
DRAIN_SECONDS = 3
"""How long a connection that pushes may be idle while the process is about to end."""
FIRST_SECONDS = 1
"""How long one may be silent then that has just been accepted."""
INLINE = 64 << 10
"""A file's region of at most so many bytes is sent together with the head."""

_FAILED = RegistryError("The registry failed; its log says why.", status=500)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request and its answer."""

    __slots__ = ("begun", "body", "id", "keep", "request", "route", "sent", "span", "status",
                 "subject", "target", "version", "wrong")  # fmt: skip

    def __init__(
        self,
        request: Request,
        target: str,
        identity: str,
        begun: float,
        body: Body | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.request = request
        self.target = target
        self.id = identity
        self.begun = begun
        self.body = body
        self.keep = keep
        self.version = "1.1"
        self.route = ""
        self.span: Span | None = None
        self.wrong: RegistryError | None = None
        self.status = 0
        self.subject = ""
        self.sent = 0

    def bound(self) -> logs.bound:
        """What lines of the log say that are written meanwhile."""
        if self.span is None:
            return logs.bound(request_id=self.id)
        return logs.bound(request_id=self.id, trace_id=self.trace_id)

    @property
    def trace_id(self) -> str:
        """The name of its trace; "" where traces are not wanted."""
        return tracing.trace_id(self.span)


class Connection(asyncio.Protocol):
    """One client's connection. What runs on a thread says so; all else is the loop's."""

    def __init__(self, worker: "Worker", functions: Functions) -> None:
        self._worker = worker
        self._functions = functions
        self._loop = worker.loop
        self._transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._client = ""
        self._secure = False
        self._proxied = False
        # What is being parsed.
        self._target = b""
        self._fields: list[tuple[str, str]] = []
        self._head_size = 0
        # Bytes since a head began, or since the last byte of a body.
        self._overhead = 0
        self._in_head = False
        self._upgrades = False
        self._arriving: Exchange | None = None
        # Requests in the order in which they came; the first is being answered.
        self._exchanges: deque[Exchange] = deque()
        # Held here, since the loop alone does not keep a task from being collected.
        self._task: asyncio.Task[None] | None = None
        self._fresh = True
        self._pushes = False
        self._closing = False
        self._half_closed = False
        self._lingering = False
        self._lost = False
        self._blocked: asyncio.Future[None] | None = None
        # When the present state began: a head, idleness, a piece sent. In the loop's time.
        self._since = self._loop.time()

    @property
    def busy(self) -> int:
        """How many requests are not yet answered. For any thread."""
        return len(self._exchanges)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        self._proxied = addresses.is_in(self._client, self._worker.proxies)
        self._secure = transport.get_extra_info("sslcontext") is not None
        if not self._secure:
            # With no bytes allowed to wait, `_blocked` tells whether any do.
            self._transport.set_write_buffer_limits(high=0)
        self._worker.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost = True
        if not self._exchanges:
            self._worker.forget(self)
        self.resume_writing()
        self._break_off(BodyError("The client went away.", vanished=True))

    def eof_received(self) -> bool:
        """The client sends no more; it may wait for an answer still."""
        self._closing = self._half_closed = True
        self._break_off(BodyError("The body ended too early.", vanished=self._secure))
        return bool(self._exchanges) and not self._secure

    def pause_writing(self) -> None:
        if self._blocked is None:
            self._blocked = self._loop.create_future()
            self._since = self._loop.time()

    def resume_writing(self) -> None:
        if self._blocked is not None:
            self._blocked.set_result(None)
            self._blocked = None

    def data_received(self, data: bytes) -> None:
        if self._closing and not self._lingering:
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An upgrade is the server's to take or leave (RFC 9110, section 7.8).
            rest = data[upgrade.args[0] :]
            if self._upgrades:
                self._upgrades = False
                rest = self._plain_head() + rest
            self._parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)
            return
        except httptools.HttpParserError as error:
            self._malformed(error)
            return
        if self._in_head:
            if max(self._head_size, self._overhead) > HEAD_LIMIT:
                self._transport.pause_reading()
                self._refuse(431, "The header fields are longer than 64 KiB.")
        elif self._arriving is not None and self._arriving.body is not None:
            self._restrain(self._arriving.body)

    def _restrain(self, body: Body) -> None:
        """See that no more of a body comes than is taken, or is allowed."""
        if self._overhead > TRAILER_LIMIT:
            self._malformed("its trailers are too long")
        elif body.full:
            self._transport.pause_reading()
        elif self._lingering and body.received > LINGER_BYTES:
            self._transport.abort()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._target = b""
        self._fields = []
        self._head_size = 0
        self._overhead = 0
        self._in_head = True
        self._fresh = False
        if not self._exchanges:
            self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        self._fields.append((name.decode("latin-1"), value.decode("latin-1").strip(" \t")))
        self._head_size += len(name) + len(value) + len(": \r\n")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._overhead = 0
        if self._closing:
            return
        headers = Headers(self._fields)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        parser = self._parser
        method = parser.get_method().decode("ascii")
        if has_body and parser.should_upgrade() and method != "CONNECT":
            # The parser skips its body; it is given the head again.
            self._upgrades = True
            return
        target = self._target.decode("latin-1")
        malformed = False
        if not target.startswith("/"):
            try:
                target = _origin_form(target)
            except ValueError:
                malformed = True
        path, _, query = target.partition("?")
        if "%" in path:
            path = unquote(path)
        client, secure = self._client, self._secure
        if self._proxied:
            forwarded_for = headers.get("x-forwarded-for")
            client = addresses.client_address(client, forwarded_for, self._worker.proxies)
            if scheme := headers.get("x-forwarded-proto"):
                secure = addresses.is_secure(scheme)
        body = Body(self._loop) if has_body else None
        version = parser.get_http_version()
        exchange = Exchange(
            Request(
                method,
                path,
                Query(query),
                headers,
                client=client,
                secure=secure,
            ),
            target,
            self._worker.identify(headers.get("x-request-id")),
            time.monotonic(),
            body,
            keep=version == "1.1" and parser.should_keep_alive(),
        )
        exchange.version = version
        if malformed:
            exchange.wrong = _error(400, "The request's target is malformed.")
        else:
            exchange.wrong = self._wrong(exchange.request, version)
        self._arriving = exchange
        self._exchanges.append(exchange)
        if len(self._exchanges) > 1:
            # Pipelined (RFC 9112, section 9.3.2): it waits, and no more is read.
            self._transport.pause_reading()
        else:
            self._begin(exchange)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._arriving is not None and self._arriving.body is not None:
            self._arriving.body.put(body)

    def on_message_complete(self) -> None:
        exchange, self._arriving = self._arriving, None
        if exchange is not None and exchange.body is not None:
            exchange.body.end()
        if self._lingering:
            self._transport.close()

    def _plain_head(self) -> bytes:
        """The head that has been parsed, without its wish for another protocol."""
        parser = self._parser
        line = b"%b %b HTTP/%b" % (
            parser.get_method(), self._target, parser.get_http_version().encode(),
        )  # fmt: skip
        fields = [
            f"{name}: {value}".encode("latin-1")
            for name, value in self._fields
            if name.lower() != "upgrade"
        ]
        return b"\r\n".join([line, *fields, b"", b""])

    # A request that is none.

    def _wrong(self, request: Request, version: str) -> RegistryError | None:
        """What forbids to look at a request any further."""
        coding = request.headers.get("transfer-encoding", "chunked").lower()
        if version not in ("1.1", "1.0"):
            return _error(505, "This server speaks HTTP/1.1.")
        if self._head_size > HEAD_LIMIT or len(self._target) > TARGET_LIMIT:
            status = 414 if len(self._target) > TARGET_LIMIT else 431
            return _error(status, "The request's line or its header fields are too long.")
        if version == "1.1" and "host" not in request.headers:
            return _error(400, "A request needs a Host header field.")
        if "," in request.headers.get("host", ""):
            # No host has a comma: there were two fields (RFC 9112, section 3.2).
            return _error(400, "A request has one Host header field.")
        if coding != "chunked":
            return _error(501, "Of transfer codings this server knows chunked alone.")
        if request.method == "CONNECT":
            return _error(405, "This server is no proxy.")
        return None

    def _malformed(self, error: object) -> None:
        """What came is not HTTP."""
        if self._closing:
            self._transport.close()
            return
        self._closing = True
        exchange = self._arriving
        if exchange is not None and exchange.body is not None and not exchange.body.complete:
            # Whoever reads the body answers.
            self._transport.pause_reading()
            self._break_off(BodyError(f"The body is malformed: {error}."))
        else:
            self._refuse(400, f"The request is malformed: {error}.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer a head that is not whole; there is no telling where another request begins."""
        self._closing = True
        if not self._exchanges:
            target = self._target.decode("latin-1")[:512]
            request = Request("-", target, client=self._client)
            exchange = Exchange(request, target, self._worker.identify(None), time.monotonic())
            self._exchanges.append(exchange)
            self._respond(exchange, _error(status, sentence).response())

    def _break_off(self, error: BodyError) -> None:
        """The rest of a body that is arriving will not come."""
        if self._arriving is not None and self._arriving.body is not None:
            self._arriving.body.fail(error)

    # From a request to its answer.

    def _begin(self, exchange: Exchange) -> None:
        request = exchange.request
        worker = self._worker
        if exchange.wrong is not None:
            exchange.keep = False
            self._respond(exchange, endpoints.refusal(request, exchange.wrong))
            return
        if request.method not in ("GET", "HEAD"):
            self._pushes = True
        exchange.span = tracing.request(request)
        if exchange.body is not None:
            self._run(exchange, self._answer_body(exchange, exchange.body))
            return
        turn = self._functions.turn(request)
        if turn is Turn.QUICK:
            worker.quick.put(self._answer, exchange)
        elif turn is Turn.BULK:
            # These may wait for storage, which must not keep the others waiting.
            worker.bulk.put(self._answer, exchange)
        elif turn is Turn.HEALTH:
            self._respond(exchange, self._functions.health(request))
        else:
            self._run(exchange, self._answer_ready(exchange))

    def _answer(self, exchange: Exchange) -> None:
        """Answer a request without a body. Runs on a thread, up to the bytes of the answer: the
        loop has enough to do."""
        with exchange.bound(), tracing.within(exchange.span):
            response, head = self._acted(exchange)
        self._loop.call_soon_threadsafe(self._answered, exchange, response, head)

    def _acted(self, exchange: Exchange) -> tuple[Response, bytes]:
        try:
            response = self._functions.act(exchange.request)
            body = response.body
            if isinstance(body, FileRegion) and body.length <= INLINE:
                response = replace(response, body=b"".join(body))
            head = self._head(exchange, response)
        except Exception:
            _log.exception("%s %s failed", exchange.request.method, exchange.request.path)
            response = endpoints.refusal(exchange.request, _FAILED)
            head = self._head(exchange, response)
        return response, head

    def _head(self, exchange: Exchange, response: Response) -> bytes:
        return sending.head(response, exchange.id, self._worker.date)

    async def _answer_body(self, exchange: Exchange, body: Body) -> None:
        """Answer a request with a body."""
        try:
            response = await self._receive(exchange, body)
        except BodyError as error:
            if error.vanished:
                exchange.status = 499
                self._ended(exchange, keep=False)
                return
            response = endpoints.refusal(exchange.request, error)
        self._respond(exchange, response)

    async def _receive(self, exchange: Exchange, body: Body) -> Response:
        worker, request = self._worker, exchange.request
        wanted = self._functions.wants(request)
        if wanted is not endpoints.Body.STREAMED:
            data: list[bytes] = []
            if wanted is endpoints.Body.BUFFERED:
                if self._expects(exchange, body) and _length(request) > self._functions.limit:
                    sentence = f"The body may have {self._functions.limit} bytes at most."
                    return endpoints.refusal(request, SizeInvalid(sentence, status=413))
                self._invite(exchange, body)
                size = 0
                # What is over the limit, by a little, shows the function that it is too much.
                while size <= self._functions.limit and (pieces := await body.take()):
                    self._transport.resume_reading()
                    data += pieces
                    size += sum(map(len, pieces))
            quick = self._functions.turn(request) is Turn.QUICK
            threads = worker.quick if quick else worker.bulk
            request = replace(request, body=b"".join(data))
            return await threads.call(self._functions.answer, request)
        receiver = await worker.bulk.call(self._functions.receive, request)
        if isinstance(receiver, Response):
            return receiver
        worker.uploads += 1
        try:
            return await self._feed(exchange, body, receiver)
        finally:
            worker.uploads -= 1

    async def _feed(self, exchange: Exchange, body: Body, receiver: Receiver) -> Response:
        worker = self._worker
        try:
            self._invite(exchange, body)
            while pieces := await body.take():
                self._transport.resume_reading()
                if body.complete and not body.size:
                    return await worker.bulk.call(_end, receiver, pieces)
                await worker.bulk.call(receiver.feed, pieces)
                del pieces
        except RegistryError as error:
            await worker.bulk.call(receiver.abort)
            if isinstance(error, BodyError):
                raise
            return error.response()
        return await worker.bulk.call(receiver.finish)

    def _expects(self, exchange: Exchange, body: Body) -> bool:
        """Whether the client waits to be asked for the body (RFC 9110, section 10.1.1)."""
        expected = exchange.request.headers.get("expect", "")
        return (
            expected.lower() == "100-continue" and not body.received and exchange.version == "1.1"
        )

    def _invite(self, exchange: Exchange, body: Body) -> None:
        """Ask for the body, where the client waits for that."""
        if self._expects(exchange, body):
            self._transport.write(_CONTINUE)

    async def _answer_ready(self, exchange: Exchange) -> None:
        if self._worker.leaving:
            response = Unavailable("This process is about to end.").response()
            self._respond(exchange, response)
            return
        try:
            response = await asyncio.wait_for(
                self._worker.readiness(exchange.request), READY_SECONDS
            )
        except TimeoutError:
            response = Unavailable("Postgres or storage does not answer in time.").response()
        self._respond(exchange, response)

    def _run(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            with exchange.bound(), tracing.within(exchange.span):
                try:
                    await work
                except Exception as error:
                    # A client that goes away while it is sent to is no news.
                    if not isinstance(error, ConnectionError):
                        request = exchange.request
                        _log.exception("%s %s failed", request.method, request.path)
                    if not exchange.status:
                        self._respond(exchange, endpoints.refusal(exchange.request, _FAILED))
                    else:
                        self._transport.abort()
                        self._ended(exchange, keep=False)

        self._task = self._loop.create_task(guarded())

    # From an answer to the socket.

    def _respond(self, exchange: Exchange, response: Response) -> None:
        self._answered(exchange, response, self._head(exchange, response))

    def _answered(self, exchange: Exchange, response: Response, head: bytes) -> None:
        """Send an answer; its exchange ends with that."""
        if exchange.body is not None and not exchange.body.complete:
            exchange.body.drop()
            exchange.keep = False
        keep = exchange.keep and not self._closing
        # A push goes on here where its next request could not be let in.
        if self._worker.leaving and not (self._worker.alone and self._pushes):
            keep = False
        body = response.body
        exchange.status = response.status
        exchange.subject = response.subject
        exchange.route = response.route
        head += b"\r\n" if keep else b"Connection: close\r\n\r\n"
        if self._lost:
            head = b""
        if not isinstance(body, bytes):
            if self._lost or not sending.has_body(exchange.request.method, response.status):
                self._worker.bulk.put(body.close)
                body = b""
            else:
                self._transport.write(head)
                length = Headers(response.headers).get("content-length")
                self._run(exchange, self._send(exchange, body, length, keep=keep))
                return
        elif not sending.has_body(exchange.request.method, response.status):
            body = b""
        if not self._lost:
            self._transport.write(head + body)
            exchange.sent = len(body)
        self._ended(exchange, keep=keep)

    async def _send(
        self, exchange: Exchange, body: FileRegion | Stream, length: str | None, *, keep: bool
    ) -> None:
        if isinstance(body, FileRegion) and not self._secure:
            await self._send_file(exchange, body)
        else:
            await self._send_pieces(exchange, body, chunked=length is None)
        if length is not None and exchange.sent != int(length):
            raise OSError(f"{exchange.sent} bytes came instead of {length}")
        self._ended(exchange, keep=keep)

    async def _send_file(self, exchange: Exchange, region: FileRegion) -> None:
        """Send from the file to the socket. The socket is ours as long as the transport has nothing
        to write; a descriptor of our own stays ours when the transport closes."""
        socket = -1
        try:
            await self._unblocked()
            socket = os.dup(self._transport.get_extra_info("socket").fileno())
            file = region.file.fileno()
            while left := region.length - exchange.sent:
                sent = await self._worker.bulk.call(
                    sending.send_file, socket, file, region.offset + exchange.sent, left
                )
                exchange.sent += sent
                if sent < min(left, sending.TURN):
                    self.pause_writing()
                    self._loop.add_writer(socket, self.resume_writing)
                    try:
                        await self._unblocked()
                    finally:
                        self._loop.remove_writer(socket)
        finally:
            if socket >= 0:
                os.close(socket)
            region.close()

    async def _send_pieces(
        self, exchange: Exchange, body: FileRegion | Stream, *, chunked: bool
    ) -> None:
        """Send what Python has to see, the next piece being fetched while one is on its way."""
        bulk = self._worker.bulk
        pieces = iter(body)
        coming = bulk.call(next, pieces, None)
        try:
            while (piece := await coming) is not None:
                coming = bulk.call(next, pieces, None)
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                exchange.sent += len(piece)
                await self._unblocked()
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        finally:
            await asyncio.wait([coming])
            await bulk.call(body.close)

    async def _unblocked(self) -> None:
        """Wait until the client has taken what was written."""
        if self._blocked is not None:
            await self._blocked
        if self._lost:
            raise ConnectionResetError("the client went away")

    # After an answer.

    def _ended(self, exchange: Exchange, *, keep: bool) -> None:
        self._worker.log(exchange)
        method, route = exchange.request.method, exchange.route
        tracing.answered(exchange.span, method, route, exchange.status, exchange.id)
        self._exchanges.popleft()
        self._since = self._loop.time()
        if not keep or self._lost:
            self._leave(exchange)
        elif self._blocked is not None:
            # Somebody who does not read gets no more answers.
            self._blocked.add_done_callback(self._go_on)
        else:
            self._go_on()

    def _go_on(self, _future: object = None) -> None:
        if self._exchanges:
            self._begin(self._exchanges[0])
        self._transport.resume_reading()

    def _leave(self, exchange: Exchange) -> None:
        """Close after an answer, but let a client that is sending read the answer first: unread
        bytes would make of the end a reset."""
        self._closing = True
        self._exchanges.clear()
        if self._lost:
            self._worker.forget(self)
        body = exchange.body
        if body is not None and not body.complete and not (self._lost or self._half_closed):
            self._lingering = True
            self._transport.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self._transport.close()

    # What the worker calls.

    def check(self, now: float) -> None:
        """End what has lasted too long. Called about once a second."""
        age = now - self._since
        if self._blocked is not None:
            if age > SEND_SECONDS:
                self._transport.abort()
        elif self._exchanges:
            body = self._exchanges[0].body
            seconds = self._worker.body_timeout
            if body is not None and body.since and now - body.since > seconds:
                body.fail(BodyError(f"The body fell silent for {seconds} seconds.", 408))
        elif self._lingering:
            if age > LINGER_SECONDS:
                self._transport.abort()
        elif self._in_head:
            if age > HEAD_SECONDS:
                self._refuse(408, f"The request's head took more than {HEAD_SECONDS} seconds.")
        elif age >= self._patience():
            self._transport.close()

    def _patience(self) -> float:
        """How long it may be idle, in seconds."""
        if not self._worker.draining:
            return HEAD_SECONDS if self._fresh else IDLE_SECONDS
        if self._worker.alone and self._pushes:
            return DRAIN_SECONDS
        return FIRST_SECONDS if self._fresh else 0


def _end(receiver: Receiver, pieces: list[bytes]) -> Response:
    """Feed the last pieces and finish, on one thread's turn."""
    receiver.feed(pieces)
    return receiver.finish()


def _length(request: Request) -> int:
    """What a request says about its body's size; the parser has checked that it is a number."""
    return int(request.headers.get("content-length", 0))


def _origin_form(target: str) -> str:
    """The path and query of a target in absolute form (RFC 9112, section 3.2.2). Raises
    ``ValueError``."""
    url = urlsplit(target)
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _error(status: int, sentence: str) -> RegistryError:
    return RegistryError(sentence, code="REQUEST_INVALID", status=status)
