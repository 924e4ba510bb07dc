"""What is done to a database that is an earlier state of itself."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest

from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from chalicelib.metadata.restored import GAP, has_tables, settle
from tests.servers import Postgres


@pytest.fixture
def registry(postgres: Postgres) -> Iterator[Database]:
    """A registry's database, with somebody in it."""
    with postgres.migrated_database() as url, closing(Database(url, pool=1)) as database:
        database.run("INSERT INTO accounts (kind, name) VALUES ('user', 'alice')")
        yield database


def ids(database: Database) -> dict[str, int]:
    """What the next row of each table would have for its id."""
    rows = database.run(
        "SELECT sequencename, coalesce(last_value, 0) + 1 FROM pg_sequences"
        " WHERE schemaname = 'public'"
    )
    return dict(map(tuple, rows))


def test_no_id_comes_a_second_time(registry: Database) -> None:
    before = ids(registry)
    assert len(before) > 10
    registry.transaction(partial(settle, revoke_tokens=False, by="operator"))
    after = ids(registry)
    # The audit log says that it was done, and so has one more.
    assert after.pop("audit_id_seq") == before.pop("audit_id_seq") + GAP + 1
    assert after == {name: number + GAP for name, number in before.items()}
    jobs.add(registry, "collect", {})
    [[number]] = registry.run("SELECT max(id) FROM jobs")
    assert number > GAP


def test_nothing_that_is_remembered_of_rights_holds(registry: Database) -> None:
    [[before]] = registry.run("SELECT epoch FROM access_epoch")
    registry.transaction(partial(settle, revoke_tokens=False, by="operator"))
    [[after]] = registry.run("SELECT epoch FROM access_epoch")
    assert after >= before + GAP


def test_uploads_and_sign_ins_end(registry: Database) -> None:
    registry.run(
        "INSERT INTO uploads (id, repository, state, algorithm, expires_at) SELECT"
        " gen_random_uuid(), 'a', state, 'sha256', now() FROM"
        " unnest(enum_range(NULL::upload_state)) AS s (state)"
    )
    registry.run(
        "INSERT INTO sessions (hash, id, account_id, method, expires_at)"
        " SELECT 'x', gen_random_uuid(), id, 'password', now() FROM accounts"
    )
    registry.run(
        "INSERT INTO one_time_secrets (hash, purpose, data, expires_at)"
        " VALUES ('x', 'reset password', '{}', now())"
    )
    registry.run(
        "INSERT INTO access_tokens (id, account_id, name, scopes, hash)"
        " SELECT gen_random_uuid(), id, 'x', '{}', 'x' FROM accounts"
    )
    done = registry.transaction(partial(settle, revoke_tokens=False, by="operator"))
    assert done == (2, 2, 0)
    rows = registry.run("SELECT CAST(state AS text), count(*) FROM uploads GROUP BY 1 ORDER BY 1")
    assert rows == [["cancelled", 3], ["committed", 1]]
    done = registry.transaction(partial(settle, revoke_tokens=True, by="operator"))
    assert done == (0, 0, 1)
    assert registry.run("SELECT revoked_at IS NULL FROM access_tokens") == [[False]]
    events = registry.run("SELECT event, subject FROM audit ORDER BY id DESC LIMIT 2")
    assert events == [["database.restored", "operator"]] * 2


def test_an_empty_database_is_told(database_url: str, registry: Database) -> None:
    with closing(Database(database_url, pool=1)) as empty:
        assert not has_tables(empty)
    assert has_tables(registry)
