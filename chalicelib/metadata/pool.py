"""A bounded pool of connections, made when they are first needed."""

import contextlib
import os
import random
import threading
import time
import weakref
from collections import deque

from chalicelib.http import Unavailable
from chalicelib.metadata.connection import ConnectError, Connection, ConnectionLost, DatabaseError
from chalicelib.metadata.target import Target
from chalicelib.metrics import catalogue, sampled

_FRESH = 1.0
_OLD = 300.0
"""Seconds that a connection has been idle: so long it is trusted, and so long it is trusted if the
server has not hung up. After that, something on the way may have dropped it without a word."""
_PATIENCE = 5.0
_IDLE = 60.0
"""Seconds after which the server ends what a shared pool does not use: its process may stand still,
and cannot let go itself."""
_SCARCE = """
SELECT count(*) * 4 > 3 * current_setting('max_connections')::int FROM pg_stat_activity
 WHERE backend_type = 'client backend'
"""
_OUTAGE = 60.0
"""Seconds from an outage's beginning: so long a server that starts is waited for, and so long the
outage is the same one. In between, callers hear at once that there is no server."""


class Pool:
    """For any thread, and for a process that was forked. A connection is taken by one thread and
    given back by it.

    ``shared``: more processes may come than the server has connections, and stand still in
    between. So one that was made when more than three quarters of the server's were in use is not
    kept (``rest``), and what is kept and not used is ended by the server.
    """

    def __init__(
        self, target: Target, *, size: int, prepare: bool, timeout: float, shared: bool = False
    ) -> None:
        self._target = target
        self._size = size
        self._prepare = prepare
        self._timeout = timeout
        self._shared = shared
        self._outage = 0.0
        self._closed = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # A slot is an idle connection or the right to open one. The last used is on top, so that
        # a quiet process uses few.
        self._slots: list[Connection | None] = [None] * self._size
        self._waiters: deque[_Waiter] = deque()

    def take(self) -> Connection:
        """A connection. Raises ``Unavailable`` where none is given back in time, and
        ``ConnectError`` where none can be made."""
        waiter = None
        with self._lock:
            if self._slots:
                connection = self._slots.pop()
            else:
                waiter = _Waiter()
                self._waiters.append(waiter)
        if waiter is not None:
            connection = self._wait(waiter)
        if connection is not None:
            idle = time.monotonic() - connection.used
            if idle < _FRESH or (idle < _OLD and not connection.stale()):
                return connection
            connection.close()
        try:
            return self._connect()
        except BaseException:
            self._release(None)
            raise

    def give(self, connection: Connection) -> None:
        """Take a connection back. One in a transaction is rolled back, a broken one closed."""
        if connection.open:
            with contextlib.suppress(ConnectionLost, DatabaseError):
                connection.rollback()
        if connection.ready and not self._closed:
            connection.used = time.monotonic()
            self._release(connection)
        else:
            connection.close()
            self._release(None)

    def forget_idle(self) -> None:
        """Close the idle connections: what one of them has lost, the others have most likely."""
        with self._lock:
            idle, self._slots = self._slots, []
        for connection in idle:
            if connection is not None:
                connection.close()
            self._release(None)

    def usage(self) -> tuple[int, int, int]:
        """How many connections are used, and idle, and how many there are at most."""
        slots = list(self._slots)
        return self._size - len(slots), len(slots) - slots.count(None), self._size

    def rest(self) -> None:
        """Let others have what the server has few of, until there is more to do here."""
        lent: list[Connection] = []
        with self._lock:
            for place, connection in enumerate(self._slots):
                if connection is not None and connection.scarce:
                    lent.append(connection)
                    self._slots[place] = None
        for connection in lent:
            connection.close()

    def close(self) -> None:
        """Close the connections; those in use when they are given back."""
        self._closed = True
        self.forget_idle()

    def after_fork(self) -> None:
        """Begin anew in a child process: the sockets go on belonging to the parent, and the lock
        may be held by a thread that is not here."""
        for connection in self._slots:
            if connection is not None:
                connection.abandon()
        self._reset()

    def _release(self, slot: Connection | None) -> None:
        with self._lock:
            if self._waiters:
                self._waiters.popleft().hand(slot)
            elif slot is None:
                self._slots.insert(0, None)
            else:
                self._slots.append(slot)

    def _wait(self, waiter: "_Waiter") -> Connection | None:
        """The slot that another thread hands over; the first to come is served first, so that
        nobody starves."""
        began = time.monotonic()
        try:
            return self._handed(waiter)
        finally:
            catalogue.POOL_WAIT.observe(time.monotonic() - began)

    def _handed(self, waiter: "_Waiter") -> Connection | None:
        if not waiter.handed.wait(self._timeout / 2):
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                    catalogue.POOL_TIMEOUTS.add()
                    raise Unavailable(
                        "The registry has more to do than its database connections can carry;"
                        " try again in a moment."
                    )
        return waiter.slot

    def _connect(self) -> Connection:
        first = time.monotonic()
        while True:
            began = time.monotonic()
            try:
                connection = self._made()
            except ConnectError as error:
                if not self._outage or began - self._outage > _OUTAGE:
                    self._outage = began
                # Of a server that is full, connections become free all the time.
                since = first if error.full else self._outage
                if not error.passing or time.monotonic() - since > _PATIENCE:
                    raise
                time.sleep(random.uniform(0.05, 0.2))  # noqa: S311
            else:
                self._outage = 0.0
                return connection

    def _made(self) -> Connection:
        connection = Connection(
            self._target,
            prepare=self._prepare,
            timeout=self._timeout,
            idle=_IDLE if self._shared else 0,
        )
        # A pooler has connections enough, and what it shows is its own.
        if self._shared and self._prepare:
            try:
                [[connection.scarce]] = connection.execute(_SCARCE, {})
            except (ConnectionLost, DatabaseError) as error:
                connection.close()
                raise ConnectError(str(error), passing=True) from error
        return connection


class _Waiter:
    """A thread that waits for a slot."""

    def __init__(self) -> None:
        self.handed = threading.Event()
        self.slot: Connection | None = None

    def hand(self, slot: Connection | None) -> None:
        self.slot = slot
        self.handed.set()


_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


@sampled
def _measure() -> None:
    found = [pool.usage() for pool in list(_pools) if not pool._closed]
    used, idle, most = map(sum, zip(*found, strict=True)) if found else (0, 0, 0)
    catalogue.POOL.set(used, "used")
    catalogue.POOL.set(idle, "idle")
    catalogue.POOL_LIMIT.set(most)


def _after_fork() -> None:
    for pool in _pools:
        pool.after_fork()


os.register_at_fork(after_in_child=_after_fork)
