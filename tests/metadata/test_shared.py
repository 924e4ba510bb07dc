"""A Postgres that many processes share, each with a connection, and that has few of them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from chalicelib.http import Unavailable
from chalicelib.metadata import pool
from chalicelib.metadata.database import Database
from tests.metadata.test_connection import PgBouncer
from tests.servers import Postgres, stopping, wait_until

CONNECTIONS = 8


class Small(Postgres):
    """A Postgres with few connections."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", f"max_connections={CONNECTIONS}"]


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Small]:
    small = Small(directory / "scarce")
    with stopping(small):
        yield small.start()


@pytest.fixture
def shared(server: Small) -> Iterator[Database]:
    database = Database(url(server), pool=1, shared=True)
    yield database
    database.close()


def url(server: Small) -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def others(server: Small) -> Iterator[Callable[[int], list[Any]]]:
    """Have other programs hold so many connections: `others(3)`."""
    with ExitStack() as stack:

        def hold(count: int) -> list[Any]:
            wait_until(lambda: held(server) == 0, 10, lambda: "earlier connections to end")
            made = []
            for _ in range(count):
                connection = pg8000.native.Connection(
                    "postgres", host="127.0.0.1", port=server.port
                )
                stack.callback(close, connection)
                made.append(connection)
            return made

        yield hold


def close(connection: Any) -> None:
    if connection._usock is not None:
        connection.close()


def held(server: Small) -> int:
    """How many connections the server has, but for the one that asks."""
    [[count]] = server.query(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    assert isinstance(count, int)
    return count


def test_where_there_are_many_left_one_is_kept(
    server: Small, shared: Database, others: Callable[[int], list[Any]]
) -> None:
    others(CONNECTIONS // 2)
    [[before]] = shared.run("SELECT pg_backend_pid()")
    shared.rest()
    assert shared.run("SELECT pg_backend_pid()") == [[before]]


def test_where_there_are_few_left_none_is_kept(
    server: Small, shared: Database, others: Callable[[int], list[Any]]
) -> None:
    others(CONNECTIONS - 2)
    [[before]] = shared.run("SELECT pg_backend_pid()")
    assert shared.run("SELECT pg_backend_pid()") == [[before]], "within one request it is kept"
    shared.rest()
    wait_until(lambda: held(server) == CONNECTIONS - 2, 10, lambda: "the connection to end")
    assert shared.run("SELECT 1") == [[1]]


def test_a_full_server_is_told_clearly_each_time(
    shared: Database, others: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each time it is waited for: others give back theirs all the time."""
    monkeypatch.setattr(pool, "_PATIENCE", 0.5)
    others(CONNECTIONS)
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="more to do than its database has connections") as it:
            shared.run("SELECT 1")
        assert 0.5 < time.monotonic() - begun < 5
        assert ("Retry-After", "2") in it.value.headers


def test_a_full_server_is_waited_for(shared: Database, others: Callable[[int], list[Any]]) -> None:
    [last, *_] = others(CONNECTIONS)
    threading.Timer(0.5, last.close).start()
    assert shared.run("SELECT 1") == [[1]]


def test_a_process_that_stands_still_keeps_no_connection(
    server: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_IDLE", 0.2)
    still = Database(url(server), pool=1, shared=True)
    still.run("CREATE TABLE IF NOT EXISTS ticks (n integer)")
    wait_until(lambda: held(server) == 0, 10, lambda: "the server to end the connection")
    still.run("INSERT INTO ticks VALUES (1)")
    assert still.run("SELECT count(*) FROM ticks") == [[1]]
    still.close()


def test_a_full_pooler_is_told_clearly(
    server: Small, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler = PgBouncer(directory / "full-pooler", server)
    monkeypatch.setattr(pool, "_PATIENCE", 0.5)
    with pooler.settings.open("a") as settings:
        settings.write("max_client_conn = 2\n")
    with stopping(pooler):
        pooler.start()
        with ExitStack() as stack:
            databases = [Database(pooler.url, pool=1, prepare=False, shared=True) for _ in range(3)]
            for database in databases:
                stack.callback(database.close)
            for database in databases[:2]:
                database.run("SELECT 1")
            with pytest.raises(Unavailable, match="more to do than its database has connections"):
                databases[2].run("SELECT 1")
            databases[0].close()
            assert databases[2].run("SELECT 1") == [[1]]
