"""Migrations: plain SQL files, applied in the order of their names, each once.

A file is never edited after a release; a change is a new file, which the release before must be
able to live with, since both run during a rolling restart. So a database that knows more
migrations than this code is no error.
"""

import hashlib
from functools import partial
from pathlib import Path

from chalicelib.http import Unavailable
from chalicelib.metadata.database import Database, DatabaseError, Runner, Transaction

MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK = 0x4F52_4547  # any number, the same in every release
_SECONDS = 3600.0


class MigrationError(Exception):
    """The database cannot be brought to what this release needs; the message says why."""


def migrate(url: str, directory: Path = MIGRATIONS) -> list[str]:
    """Apply what is missing, and give its names. Any number of processes may do this at once.
    Raises ``MigrationError``, and ``ValueError`` for a URL that cannot be right."""
    # Unprepared, since a pooler may stand in between; patient, since an index takes its time and
    # another process may be at it.
    database = Database(url, pool=1, prepare=False, timeout=_SECONDS)
    try:
        if current(database, directory):
            return []
        return [
            file.name
            for file in _files(directory)
            if database.transaction(partial(_apply, file=file))
        ]
    except (DatabaseError, Unavailable) as error:
        reason = error.__cause__ if isinstance(error, Unavailable) else error
        raise MigrationError(f"The database cannot be migrated: {reason or error}") from error
    finally:
        database.close()


def current(runner: Runner, directory: Path = MIGRATIONS) -> bool:
    """Whether every migration of this release has been applied: for a host that applies none."""
    if runner.run("SELECT to_regclass('schema_migrations') IS NULL")[0][0]:
        return False
    applied = _applied(runner)
    return all(applied.get(file.name) == _checksum(file) for file in _files(directory))


def _apply(transaction: Transaction, file: Path) -> bool:
    transaction.run("SELECT pg_advisory_xact_lock(CAST(:lock AS bigint))", lock=_LOCK)
    transaction.run(
        "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY,"
        " checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    checksum = _checksum(file)
    known = _applied(transaction).get(file.name)
    if known == checksum:
        return False
    if known is not None:
        raise MigrationError(
            f"{file.name} is not what was applied to this database. A migration is never edited:"
            " restore the file, and put the change into a new one."
        )
    # A statement that waits for a table's lock makes everybody else wait behind it.
    transaction.run("SET LOCAL lock_timeout = '5s'")
    transaction.script(file.read_text(encoding="utf-8"))
    transaction.run(
        "INSERT INTO schema_migrations (name, checksum) VALUES (:name, :checksum)",
        name=file.name,
        checksum=checksum,
    )
    return True


def _applied(runner: Runner) -> dict[str, bytes]:
    rows = runner.run("SELECT name, checksum FROM schema_migrations")
    return {row[0]: row[1] for row in rows}


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.sql"))


def _checksum(file: Path) -> bytes:
    return hashlib.sha256(file.read_text(encoding="utf-8").encode()).digest()
