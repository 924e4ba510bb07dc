"""A Postgres that these tests may stop, restart and kill."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chalicelib.metadata.database import Database
from tests.servers import Postgres, stopping


@pytest.fixture(scope="session")
def server(directory: Path) -> Iterator[Postgres]:
    """A server with one database, since every file of it is synced after a crash."""
    postgres = Postgres(directory / "restarted-postgres")
    with stopping(postgres):
        yield postgres.start()


@pytest.fixture
def url(server: Postgres) -> str:
    """The URL of a database without tables, on a server that runs."""
    if not server.alive():
        server.kill9()
        server.start()
    server.query("DROP SCHEMA public CASCADE")
    server.query("CREATE SCHEMA public")
    server.query("GRANT USAGE ON SCHEMA public TO public")
    return f"postgresql://postgres@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., Database]]:
    """Databases with settings of one's own: `connect(pool=1)`."""
    with ExitStack() as stack:

        def new(where: str = url, **settings: Any) -> Database:
            database = Database(where, **settings)
            stack.callback(database.close)
            return database

        yield new


@pytest.fixture
def database(connect: Callable[..., Database]) -> Database:
    """A database as the hosts make it, with a table `t (id integer PRIMARY KEY, value text)`."""
    made = connect()
    made.run("CREATE TABLE t (id integer PRIMARY KEY, value text)")
    return made
