"""Migrations on a real Postgres, several processes at once among them."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import MIGRATIONS, MigrationError, current, migrate
from tests.hosts.wire import until
from tests.servers import Postgres, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """Two migrations; each works once only."""
    (tmp_path / "0001_first.sql").write_text(
        "CREATE TABLE first (id integer);\n"
        "INSERT INTO first VALUES (1); -- of an integer; not ':a' $1\n"
    )
    (tmp_path / "0002_second.sql").write_text(
        "ALTER TABLE first ADD COLUMN name text;\n"
        "CREATE FUNCTION two() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 2; END $$;\n"
        "UPDATE first SET name = 'grün'"
    )
    (tmp_path / "README.md").write_text("not a migration")
    return tmp_path


NAMES = ["0001_first.sql", "0002_second.sql"]


def test_in_order_and_once(url: str, database: Database, migrations: Path) -> None:
    assert not current(database, migrations)
    assert migrate(url, migrations) == NAMES
    assert database.run("SELECT id, name, two() FROM first") == [[1, "grün", 2]]
    assert current(database, migrations)
    assert migrate(url, migrations) == []


def test_a_later_one(url: str, database: Database, migrations: Path) -> None:
    migrate(url, migrations)
    (migrations / "0003_third.sql").write_text("CREATE TABLE third ()")
    assert not current(database, migrations)
    assert migrate(url, migrations) == ["0003_third.sql"]
    assert current(database, migrations)


def test_all_or_nothing(url: str, database: Database, migrations: Path) -> None:
    second = migrations / "0002_second.sql"
    right = second.read_text()
    second.write_text("CREATE TABLE second (); SELECT 1/0;")
    with pytest.raises(MigrationError, match="22012: division by zero"):
        migrate(url, migrations)
    assert database.run("SELECT to_regclass('first') IS NULL, to_regclass('second') IS NULL") == [
        [False, True]
    ]
    second.write_text(right)
    assert migrate(url, migrations) == ["0002_second.sql"]


def test_one_that_was_edited(url: str, database: Database, migrations: Path) -> None:
    migrate(url, migrations)
    (migrations / "0001_first.sql").write_text("CREATE TABLE first (id bigint)")
    assert not current(database, migrations)
    with pytest.raises(MigrationError, match=r"0001_first\.sql is not what was applied"):
        migrate(url, migrations)


def test_a_newer_database(url: str, database: Database, migrations: Path) -> None:
    migrate(url, migrations)
    (migrations / "0002_second.sql").unlink()
    assert current(database, migrations)
    assert migrate(url, migrations) == []


def test_many_processes_at_once(url: str, database: Database, migrations: Path) -> None:
    slow = "SELECT pg_sleep(0.5);\n" + (migrations / "0001_first.sql").read_text()
    (migrations / "0001_first.sql").write_text(slow)
    code = (
        "import sys; from pathlib import Path; from chalicelib.metadata.migrate import migrate\n"
        "print(migrate(sys.argv[1], Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, url, str(migrations)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    applied = [name for output in outputs for name in NAMES if name in output]
    assert sorted(applied) == NAMES
    assert database.run("SELECT count(*) FROM schema_migrations") == [[2]]


@pytest.mark.long
def test_longer_than_a_statement_may_usually_take(url: str, migrations: Path) -> None:
    (migrations / "0003_long.sql").write_text("SELECT pg_sleep(11)")
    assert migrate(url, migrations) == [*NAMES, "0003_long.sql"]


@pytest.mark.long
def test_a_lock_that_others_hold(
    url: str, connect: Callable[..., Database], database: Database, migrations: Path
) -> None:
    second = migrations / "0002_second.sql"
    text = second.read_text()
    second.unlink()
    migrate(url, migrations)
    second.write_text(text)
    with ThreadPoolExecutor() as threads:

        def hold(seconds: float) -> None:
            connect(timeout=30).transaction(
                lambda t: t.run(f"SELECT pg_sleep({seconds}) FROM (SELECT FROM first) AS locked")
            )

        locks = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'first'::regclass AND "
        held = threads.submit(hold, 15)
        for _ in until():
            if database.run(locks + "granted") == [[True]]:
                break
        migrating = threads.submit(migrate, url, migrations)
        for _ in until():
            if database.run(locks + "NOT granted") == [[True]]:
                break
        # A reader queues behind the migration, but not for as long as the lock is held.
        began = time.monotonic()
        connect(timeout=30).run("SELECT id FROM first")
        assert time.monotonic() - began < 12
        held.result(40)
        assert migrating.result(40) == ["0002_second.sql"]


def test_a_role_that_may_create_nothing(url: str, database: Database, migrations: Path) -> None:
    database.run("DROP ROLE IF EXISTS reader")
    database.run("CREATE ROLE reader LOGIN")
    reader = url.replace("//postgres@", "//reader@")
    with pytest.raises(MigrationError, match="42501: permission denied"):
        migrate(reader, migrations)
    migrate(url, migrations)
    database.run("GRANT SELECT ON schema_migrations TO reader")
    assert migrate(reader, migrations) == []
    database.run("DROP OWNED BY reader")


def test_no_server(migrations: Path) -> None:
    url = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/x"
    with pytest.raises(MigrationError, match="Connection refused") as caught:
        migrate(url, migrations)
    assert "secret" not in str(caught.value)


def test_the_registrys_own(url: str, database: Database, server: Postgres) -> None:
    names = [file.name for file in sorted(MIGRATIONS.glob("*.sql"))]
    assert migrate(url) == names
    assert current(database)
    assert database.run("SELECT name FROM schema_migrations ORDER BY name") == [[n] for n in names]
