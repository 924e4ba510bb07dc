"""Postgres as the functions use it: statements, transactions, and the pool behind them.

A server that restarts is waited for, and what can be repeated safely is; where it cannot be known
whether a change was made, the caller gets ``Unavailable`` and may ask again, since every operation
of the registry may be repeated.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from chalicelib.http import Unavailable
from chalicelib.metadata.connection import (
    ConnectError,
    Connection,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    Target,
    UniqueViolation,
)

__all__ = [
    "Database",
    "DatabaseError",
    "ForeignKeyViolation",
    "Runner",
    "Transaction",
    "UniqueViolation",
]

T = TypeVar("T")
log = logging.getLogger(__name__)

_ATTEMPTS = 5
_RETRIED = frozenset({"40001", "40P01", "23503", "55P03"})
"""Serialisation failure, deadlock, lost reference, lock not available."""
_CANCELED = "57014"
_PATIENCE = 3.0
"""Seconds that an outage is waited out, counted from its beginning."""
_OUTAGE = 60.0
_FRESH = 1.0
_OLD = 300.0
"""Seconds after which an idle connection is not trusted: something on the way may have dropped it
silently."""


class Runner(Protocol):
    """What a query needs: a ``Database`` or a ``Transaction``."""

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """The rows that one statement with ``:name`` parameters gives."""


class Transaction:
    """One transaction, for the thread that it was given to. BEGIN travels with the first
    statement."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begun = False
        self._failure: Exception | None = None
        self.committing = False

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """Run one statement. After an error the transaction is lost, even where it is caught."""
        try:
            begin, self._begun = not self._begun, True
            return self._connection.execute(sql, parameters, begin=begin)
        except (DatabaseError, ConnectionLost) as error:
            self._failure = error
            raise

    def script(self, sql: str) -> None:
        """Run several statements that take no parameters, as a migration has them."""
        self.run("SELECT")
        try:
            self._connection.script(sql)
        except (DatabaseError, ConnectionLost) as error:
            self._failure = error
            raise

    def commit(self) -> None:
        """Called by ``Database.transaction``."""
        if self._failure is not None:
            raise self._failure
        if self._begun:
            self.committing = True
            self._connection.commit()


class Database:
    """A bounded pool of connections, made when they are first needed. For any thread, and for a
    process that was forked.

    ``prepare`` is switched off where a pooler in transaction mode stands before Postgres.
    ``timeout`` in seconds is how long Postgres may take to answer. Raises ``ValueError`` for a URL
    that cannot be right.
    """

    def __init__(
        self, url: str, *, pool: int = 8, prepare: bool = True, timeout: float = 10.0
    ) -> None:
        self.target = Target.parse(url)
        self._size = pool
        self._prepare = prepare
        self._timeout = timeout
        self._outage = 0.0
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # A slot is an idle connection or the right to open one. The last used is on top, so that
        # a quiet process uses few; appending and popping are atomic.
        self._slots: list[Connection | None] = [None] * self._size
        self._freed = threading.Condition()
        self._waiting = 0

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """Run one statement by itself. It is tried again on a new connection where the old one was
        lost before the statement can have had an effect, or where it only reads. Raises
        ``DatabaseError``, or ``Unavailable`` where Postgres does not answer."""
        for attempt in range(_ATTEMPTS):
            connection = self._take()
            try:
                return connection.execute(sql, parameters)
            except ConnectionLost as error:
                self._forget_idle()
                again = error.harmless or sql.startswith("SELECT")
                if error.silent or not again or attempt == _ATTEMPTS - 1:
                    raise _unavailable(error) from error
            except DatabaseError as error:
                if error.sqlstate == _CANCELED:
                    raise _unavailable(error) from error
                raise
            finally:
                self._give(connection)
        raise AssertionError("unreachable")

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Call ``work`` within a transaction, and commit. ``work`` is called again after a
        deadlock, a serialisation failure, a reference that was lost meanwhile, and a connection
        that was lost before COMMIT; at last its error is raised. Raises ``Unavailable`` where
        Postgres does not answer; after COMMIT was sent, the transaction may have been
        committed."""
        for attempt in range(_ATTEMPTS):
            connection = self._take()
            transaction = Transaction(connection)
            last = attempt == _ATTEMPTS - 1
            try:
                result = work(transaction)
                transaction.commit()
                return result
            except ConnectionLost as error:
                self._forget_idle()
                unknown = transaction.committing and not error.harmless
                if last or unknown or error.silent:
                    raise _unavailable(error) from error
            except DatabaseError as error:
                if error.sqlstate == _CANCELED:
                    raise _unavailable(error) from error
                if last or error.sqlstate not in _RETRIED:
                    raise
            finally:
                self._give(connection)
            time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    def check(self) -> None:
        """Raise ``Unavailable`` when Postgres does not answer (for /ready)."""
        self.run("SELECT 1")

    def close(self) -> None:
        """Close the connections; those in use when they are given back."""
        self._closed = True
        self._forget_idle()

    def _take(self) -> Connection:
        if self._pid != os.getpid():
            self._after_fork()
        try:
            connection = self._slots.pop()
        except IndexError:
            connection = self._wait()
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

    def _give(self, connection: Connection) -> None:
        if connection.open:
            with contextlib.suppress(ConnectionLost, DatabaseError):
                connection.rollback()
        if connection.ready and not self._closed:
            connection.used = time.monotonic()
            self._release(connection)
        else:
            connection.close()
            self._release(None)

    def _release(self, slot: Connection | None) -> None:
        if slot is None:
            self._slots.insert(0, None)
        else:
            self._slots.append(slot)
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def _wait(self) -> Connection | None:
        """A slot, once another thread gives one back."""
        deadline = time.monotonic() + self._timeout / 2
        with self._freed:
            self._waiting += 1
            try:
                while True:
                    try:
                        return self._slots.pop()
                    except IndexError:
                        left = deadline - time.monotonic()
                    if left <= 0:
                        raise Unavailable(
                            "The registry has more to do than its database connections can carry;"
                            " try again in a moment."
                        )
                    self._freed.wait(left)
            finally:
                self._waiting -= 1

    def _connect(self) -> Connection:
        while True:
            try:
                connection = Connection(self.target, prepare=self._prepare, timeout=self._timeout)
            except ConnectError as error:
                now = time.monotonic()
                if not self._outage or now - self._outage > _OUTAGE:
                    self._outage = now
                if not error.passing or now - self._outage > _PATIENCE:
                    raise _unavailable(error) from error
                time.sleep(random.uniform(0.05, 0.2))  # noqa: S311
            else:
                self._outage = 0.0
                return connection

    def _forget_idle(self) -> None:
        """Close the idle connections: what one of them has lost, the others have most likely."""
        idle = []
        while True:
            try:
                idle.append(self._slots.pop())
            except IndexError:
                break
        for connection in idle:
            if connection is not None:
                connection.close()
            self._release(None)

    def _after_fork(self) -> None:
        """The sockets belong to the parent process; start anew."""
        for connection in self._slots:
            if connection is not None:
                connection.abandon()
        self._reset()


def _unavailable(error: Exception) -> Unavailable:
    log.warning("the database does not answer: %s", error)
    return Unavailable("The registry's database does not answer; try again in a moment.")
