"""Postgres as the functions use it: statements and transactions.

A server that restarts is waited for, and what can be repeated safely is. Where it cannot be known
whether a change was made, the caller gets ``Unavailable`` and may ask again: every operation of
the registry may be repeated.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from chalicelib import tracing
from chalicelib.http import Denied, Unavailable
from chalicelib.metadata.connection import (
    ConnectError,
    Connection,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    UniqueViolation,
)
from chalicelib.metadata.pool import Pool
from chalicelib.metadata.target import Target
from chalicelib.metrics import catalogue

__all__ = [
    "Database",
    "DatabaseError",
    "ForeignKeyViolation",
    "Runner",
    "Transaction",
    "UniqueViolation",
]

T = TypeVar("T")
_log = logging.getLogger(__name__)

_ATTEMPTS = {"40001": 5, "40P01": 5, "55P03": 5, "23503": 3}
"""How often a transaction is tried after a serialisation failure, a deadlock, a lock that was not
to be had, and a reference that was lost (mostly it is still missing when it is looked at again)."""
_ATTEMPTS_ALONE = {"40001": 5, "40P01": 5}
"""How often a statement by itself is tried."""
_RECONNECTS = 5
_RULE = "OR001"
"""Raised by triggers where a rule of the registry's users forbids a change. The message is for
whoever wanted it, the detail is JSON."""


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

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """Run one statement. After an error the transaction is lost, even where it is caught."""
        begin, self._begun = not self._begun, True
        trace = tracing.traceparent() if begin else ""
        with tracing.statement(sql):
            return self._try(
                lambda: self._connection.execute(sql, parameters, begin=begin, trace=trace)
            )

    def script(self, sql: str) -> None:
        """Run several statements that take no parameters, as a migration has them."""
        self.run("SELECT")
        self._try(lambda: self._connection.script(sql))

    def commit(self) -> None:
        """Called by ``Database.transaction`` at the end."""
        if self._failure is not None:
            raise self._failure
        if self._begun:
            with tracing.statement("COMMIT"):
                self._connection.commit()

    def _try(self, statement: Callable[[], T]) -> T:
        try:
            return statement()
        except ConnectionLost as error:
            error.harmless = True  # nothing was committed
            self._failure = error
            raise
        except DatabaseError as error:
            self._failure = error
            raise


class Database:
    """Postgres behind a pool of at most ``pool`` connections, none of which is made before it is
    needed. For any thread; ``run`` and ``transaction`` raise ``DatabaseError`` where Postgres
    refuses, ``Denied`` where a rule does that a trigger keeps, and ``Unavailable`` where Postgres
    does not answer within about ``timeout`` seconds.

    ``prepare`` is switched off where a pooler in transaction mode stands before Postgres.
    ``shared`` is for a process that is one of many and answers one request at a time: it calls
    ``rest`` after each. Raises ``ValueError`` for a URL that cannot be right.
    """

    def __init__(
        self,
        url: str,
        *,
        pool: int = 8,
        prepare: bool = True,
        timeout: float = 10.0,
        shared: bool = False,
    ) -> None:
        self._pool = Pool(
            Target.parse(url), size=pool, prepare=prepare, timeout=timeout, shared=shared
        )

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """Run one statement by itself. It is run again where the connection was lost before it can
        have had an effect, or where it only reads, and after a deadlock."""

        def attempt(connection: Connection) -> list[list[Any]]:
            if tracing.traceparent() and not sql.startswith("SELECT"):
                # What it writes is to be found in the trace, which a transaction alone can have.
                return _alone(connection, sql, parameters)
            try:
                with tracing.statement(sql):
                    return connection.execute(sql, parameters)
            except ConnectionLost as error:
                error.harmless = error.harmless or sql.startswith("SELECT")
                raise

        return self._persist(attempt, _ATTEMPTS_ALONE, "statement")

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Call ``work`` within a transaction, and commit. It is called again, in a new
        transaction, after a serialisation failure, a deadlock, a reference that was lost
        meanwhile, and a connection that was lost before COMMIT; at last its error is raised. Any
        other exception of ``work`` undoes the transaction and goes on to the caller. When
        ``Unavailable`` is raised, the transaction may have been committed.

        ``work`` must not use the database but through its transaction.
        """

        def attempt(connection: Connection) -> T:
            with tracing.statement("BEGIN"):
                transaction = Transaction(connection)
                result = work(transaction)
                transaction.commit()
                return result

        return self._persist(attempt, _ATTEMPTS, "transaction")

    def check(self) -> None:
        """Raise ``Unavailable`` when Postgres does not answer (for /ready)."""
        self.run("SELECT 1")

    def rest(self) -> None:
        """Give back to the server what it has few of: for a ``shared`` one, when nothing is to be
        asked for a while."""
        self._pool.rest()

    def close(self) -> None:
        """Close the connections; those in use when they are no longer."""
        self._pool.close()

    def _persist(
        self, attempt: Callable[[Connection], T], attempts: dict[str, int], kind: str
    ) -> T:
        tried = 0
        while True:
            tried += 1
            try:
                connection = self._pool.take()
            except ConnectError as error:
                catalogue.DATABASE_FAILURES.add(1, "connect")
                raise _unavailable(error) from error
            began = time.monotonic()
            try:
                return attempt(connection)
            except ConnectionLost as error:
                catalogue.DATABASE_FAILURES.add(1, "lost")
                self._pool.forget_idle()
                if error.silent or not error.harmless or tried == _RECONNECTS:
                    raise _unavailable(error) from error
            except DatabaseError as error:
                contended = error.sqlstate in _ATTEMPTS
                catalogue.DATABASE_FAILURES.add(1, "contention" if contended else "refused")
                if tried >= attempts.get(error.sqlstate, 0):
                    if _passing(error):
                        raise _unavailable(error) from error
                    if error.sqlstate == _RULE:
                        raise Denied(error.args[0], json.loads(error.detail)) from error
                    raise
            finally:
                self._pool.give(connection)
                catalogue.DATABASE_SECONDS.observe(time.monotonic() - began, kind)
            time.sleep(random.uniform(0, 0.02 * 2**tried))  # noqa: S311


def _alone(connection: Connection, sql: str, parameters: Mapping[str, Any]) -> list[list[Any]]:
    """Run one statement in a transaction of its own."""
    transaction = Transaction(connection)
    rows = transaction.run(sql, **parameters)
    transaction.commit()
    return rows


def _passing(error: DatabaseError) -> bool:
    """Whether it may work later: contention (class 40, 55P03), took too long (57014), no space,
    memory or connections (class 53)."""
    return error.sqlstate[:2] in ("40", "53") or error.sqlstate in ("55P03", "57014")


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, DatabaseError) and error.sqlstate == "53100":
        _log.error("the database's disk is full: %s", error)
        return Unavailable("The disk of the registry's database is full.")
    if isinstance(error, ConnectError) and error.full:
        _log.warning("the database has no connection left: %s", error)
        return Unavailable(
            "The registry has more to do than its database has connections; try again in a moment."
        )
    _log.warning("the database does not answer: %s", error)
    return Unavailable("The registry's database does not answer; try again in a moment.")
