"""What has expired is removed; what has not stays."""

import pytest

from chalicelib.metadata import expiry, one_time, refresh_tokens, sessions
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate


@pytest.fixture
def database(database_url: str) -> Database:
    migrate(database_url)
    return Database(database_url)


def test_only_what_has_expired_is_removed(database: Database) -> None:
    [[account]] = database.run(
        "INSERT INTO accounts (kind, name) VALUES ('user', 'ada') RETURNING id"
    )
    one_time.put(database, "purpose", 3600, account)
    sessions.begin(database, account, "password")
    refresh_tokens.begin(database, account, None, "")
    tables = ("one_time_secrets", "sessions", "refresh_tokens", "refresh_families")

    expiry.expire(database)
    assert [_rows(database, table) for table in tables] == [1, 1, 1, 1]

    for table in tables[:3]:
        database.run(f"UPDATE {table} SET expires_at = now() - interval '2 days'")
    database.run("UPDATE refresh_families SET created_at = now() - interval '2 days'")
    expiry.expire(database)
    assert [_rows(database, table) for table in tables] == [0, 0, 0, 0]


def _rows(database: Database, table: str) -> int:
    return int(database.run(f"SELECT count(*) FROM {table}")[0][0])
