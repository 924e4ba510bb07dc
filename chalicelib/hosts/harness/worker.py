"""One process of the harness: an event loop, its connections, and its threads."""

import asyncio
import itertools
import logging
import os
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from typing import Any, NamedTuple, NoReturn

import uvloop

from chalicelib import logs, tracing
from chalicelib.addresses import networks
from chalicelib.hosts.harness import heap, log
from chalicelib.hosts.harness.certificates import REFRESH_SECONDS, Certificates
from chalicelib.hosts.harness.connection import Connection, Exchange
from chalicelib.hosts.harness.functions import Functions
from chalicelib.hosts.harness.threads import Threads
from chalicelib.http import Request, Response
from chalicelib.metrics import catalogue, requests, sampled
from chalicelib.settings import Settings

_log = logging.getLogger(__name__)

QUICK, BULK = 4, 32
"""Threads for small reads, and for all that may wait for storage. They are apart, so that storage
that hangs leaves manifests readable. Measured: with eight for small reads the interpreter's lock
goes round less fairly, and one in a hundred waits three times as long."""
YIELD_SECONDS = 0.002
"""How long a worker leaves a new connection to one that has fewer."""
LOG_SECONDS = 0.2
LOG_WAITING = 100_000
"""Lines that may wait while the log's reader is slow; more are dropped, and counted."""
FLUSH_SECONDS = 5
FLUSH_PATIENCE = 3
"""How often what requests have left in memory is written down, and how long a process that ends
waits until that is done for the last time."""


class Entrance(NamedTuple):
    """A listening socket, what answers there, and what it shows where it speaks TLS."""

    listener: socket.socket
    functions: Functions
    certificates: Certificates | None = None


class Worker:
    """Serves connections from listening sockets, which other workers share. ``loads`` says how many
    connections each has, and ``index`` which worker this is."""

    def __init__(
        self,
        entrances: Sequence[Entrance],
        settings: Settings,
        loads: "memoryview[int]",
        index: int,
    ) -> None:
        self.functions = entrances[0].functions
        self.body_timeout = settings.body_timeout
        self.proxies = networks(settings.trusted_proxies)
        self.connections: set[Connection] = set()
        self.uploads = 0
        """How many requests bring a blob's bytes at this moment."""
        self.leaving = False
        """SIGTERM has come: a balancer is told to send nobody here any more."""
        self.draining = False
        """Nobody is let in any more."""
        self.alone = not settings.shutdown_delay
        """No balancer has another place for who is not let in here."""
        self._yielding = False
        self.date = formatdate(usegmt=True)
        self.loop = uvloop.new_event_loop()
        self.quick = Threads(self.loop, "quick", QUICK)
        self.bulk = Threads(self.loop, "bulk", BULK)
        self._checks = Threads(self.loop, "ready", 1)
        self._flusher = Threads(self.loop, "flush", 1)
        self._logger = Threads(self.loop, "log", 1)
        self._ready: asyncio.Future[Response] | None = None
        self._settings = settings
        self._entrances = entrances
        self._loads = loads
        self._index = index
        self._refresher = Threads(self.loop, "certificates", 1)
        self._ended = self.loop.create_future()
        self._tasks: set[asyncio.Task[object]] = set()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._logs = logging.getLogger("access").isEnabledFor(logging.INFO)
        self._served: list[log.Served] = []
        self._writing = False
        self._unlogged = 0

    def run(self, parent: socket.socket, report: Callable[[], None]) -> NoReturn:
        """Serve until SIGTERM, or until ``parent`` comes to its end, as it does when the supervisor
        is gone; then end the process. ``report`` is called at last, and delivers metrics."""
        sampled(self._sample)
        # A terminal sends these to all processes; the supervisor decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _raise_file_limit()
        heap.keep()
        self.loop.add_signal_handler(signal.SIGTERM, self._begin_to_leave)
        self.loop.add_reader(parent.fileno(), self._drain)
        for entrance in self._entrances:
            if entrance.certificates is not None:
                # What the supervisor had may be old by now.
                entrance.certificates.refresh()
                self.loop.call_later(REFRESH_SECONDS, self._refresh, entrance.certificates)
            self.loop.add_reader(entrance.listener.fileno(), self._accept, entrance)
        self.loop.call_soon(self._tick)
        self.loop.call_later(FLUSH_SECONDS, self._flush)
        # Blocked by the supervisor until there is a handler.
        self.loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM])
        self.loop.run_until_complete(self._ended)
        self._finish()
        report()
        # Threads may hang in storage that hangs; nothing waits for them.
        os._exit(0)

    def _finish(self) -> None:
        """Write down what is in memory still. Any of it may hang, and keeps no other waiting."""
        end = time.monotonic() + FLUSH_PATIENCE
        works = (partial(log.write, self._served), self.functions.end, tracing.stop)
        threads = [threading.Thread(target=work, name="end", daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def forget(self, connection: Connection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self._loads[self._index] -= 1

    def identify(self, given: str | None) -> str:
        """An id for a request: what a proxy in front gave it, or one that nobody else has."""
        return logs.request_id(given) or f"{self._prefix}{next(self._numbers):x}"

    def readiness(self, request: Request) -> "asyncio.Future[Response]":
        """Whether Postgres and storage can be used. While they hang nobody asks them again."""
        if self._ready is None or self._ready.done():
            self._ready = self._checks.call(self.functions.ready, request)
        return asyncio.shield(self._ready)

    def log(self, exchange: Exchange) -> None:
        """Write a line about an exchange that has ended, soon, and count it."""
        self._count(exchange)
        if not self._logs:
            return
        if len(self._served) >= LOG_WAITING:
            self._unlogged += 1
            return
        request = exchange.request
        body = exchange.body
        self._served.append(
            log.Served(
                time.time(),
                time.monotonic() - exchange.begun,
                request.method,
                exchange.target,
                exchange.status,
                exchange.sent,
                0 if body is None else body.received,
                request.client,
                exchange.subject,
                exchange.id,
                exchange.trace_id,
            )
        )
        if not self._writing:
            self._writing = True
            self.loop.call_later(LOG_SECONDS, self._write_log)

    def _count(self, exchange: Exchange) -> None:
        request = exchange.request
        seconds = time.monotonic() - exchange.begun
        route = requests.count(
            request.method, request.path, exchange.route, exchange.status, seconds
        )
        if exchange.sent:
            catalogue.SENT.add(exchange.sent, route)
        if exchange.body is not None:
            catalogue.RECEIVED.add(exchange.body.received, route)

    def _sample(self) -> None:
        connections = list(self.connections)
        catalogue.CONNECTIONS.set(len(connections))
        catalogue.IN_PROGRESS.set(sum(connection.busy for connection in connections))
        catalogue.UPLOADS.set(self.uploads)

    def _write_log(self) -> None:
        served, self._served = self._served, []
        self._logger.call(log.write, served).add_done_callback(self._log_written)

    def _log_written(self, _future: object) -> None:
        self._writing = bool(self._served)
        if self._writing:
            self.loop.call_later(LOG_SECONDS, self._write_log)
        if self._unlogged:
            _log.warning("the log is read too slowly: %d requests are missing", self._unlogged)
            self._unlogged = 0

    def _flush(self) -> None:
        self._flusher.call(self.functions.flush).add_done_callback(
            lambda _: self.loop.call_later(FLUSH_SECONDS, self._flush)
        )

    def _refresh(self, certificates: Certificates) -> None:
        self._refresher.call(certificates.refresh).add_done_callback(
            lambda _: self.loop.call_later(REFRESH_SECONDS, self._refresh, certificates)
        )

    def _accept(self, entrance: Entrance) -> None:
        """Take one connection, unless another worker has fewer and takes it. A server of libuv's
        own would take all that wait, and have one processor do the work of two."""
        if not self._yielding and self._loads[self._index] > min(self._loads):
            self._yielding = True
            self._pause_accepting(entrance, YIELD_SECONDS)
            return
        self._yielding = False
        try:
            self._take(entrance)
        except OSError as error:
            _log.error("no connection can be accepted: %s", error)
            self._pause_accepting(entrance, 1)

    def _take(self, entrance: Entrance) -> bool:
        """Take one connection; gives whether one waited. Raises ``OSError``."""
        try:
            client, _ = entrance.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loads[self._index] += 1
        self._start(self._connect(client, entrance))
        return True

    def _pause_accepting(self, entrance: Entrance, seconds: float) -> None:
        def go_on() -> None:
            if not self.draining:
                self.loop.add_reader(entrance.listener.fileno(), self._accept, entrance)

        self.loop.remove_reader(entrance.listener.fileno())
        self.loop.call_later(seconds, go_on)

    async def _connect(self, client: socket.socket, entrance: Entrance) -> None:
        tls = entrance.certificates.context if entrance.certificates else None
        try:
            await self.loop.connect_accepted_socket(
                lambda: Connection(self, entrance.functions),
                client,
                ssl=tls,
                ssl_handshake_timeout=30 if tls else None,
            )
        except OSError as error:
            self._loads[self._index] -= 1
            _log.info("a connection failed before its first request: %s", error)

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        """Once a second: the date, and what has lasted too long."""
        self.date = formatdate(usegmt=True)
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check(now)
        if self.draining and not self._loads[self._index]:
            self._end()
        self.loop.call_later(1, self._tick)

    def _begin_to_leave(self) -> None:
        """Go on for as long as a balancer may take to see that `/ready` says no: whom it sends
        until then is served, and told not to come back by the same connection."""
        self.leaving = True
        self.loop.call_later(self._settings.shutdown_delay, self._drain)

    def _drain(self) -> None:
        """Accept no more, let what runs go on for a while, then end."""
        if self.draining:
            return
        self.leaving = self.draining = True
        for entrance in self._entrances:
            self.loop.remove_reader(entrance.listener.fileno())
            # Who waits already believes to be connected.
            with suppress(OSError):
                while self._take(entrance):
                    pass
            entrance.listener.close()
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check(now)
        if not self._loads[self._index]:
            self._end()
        self.loop.call_later(self._settings.shutdown_timeout, self._end)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _raise_file_limit() -> None:
    """A thousand files, the usual limit, are too few for a thousand clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
