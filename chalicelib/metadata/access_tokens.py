"""Access tokens: their rows."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner

USE_NOTED = 60
"""Seconds after which the use of a token is noted again."""

_COLUMNS = "id, account_id, name, scopes, created_at, expires_at, used_at, revoked_at"


class Held(NamedTuple):
    """A token that holds now."""

    account_id: int
    hash: bytes


class Row(NamedTuple):
    """A token as its owner sees it."""

    id: str
    account_id: int
    name: str
    scopes: list[str]
    created_at: Any
    expires_at: Any
    used_at: Any
    revoked_at: Any


def add(
    runner: Runner,
    token_id: str,
    account_id: int,
    name: str,
    scopes: list[str],
    hashed: bytes,
    seconds: int | None,
    created_by: int | None,
) -> None:
    """Keep a new token."""
    runner.run(
        "INSERT INTO access_tokens"
        " (id, account_id, name, scopes, hash, created_by, expires_at)"
        " VALUES (CAST(:id AS uuid), :account, :name, CAST(:scopes AS text[]), :hash, :by,"
        " now() + CAST(:seconds AS bigint) * interval '1 second')",
        id=token_id,
        account=account_id,
        name=name,
        scopes=scopes,
        hash=hashed,
        by=created_by,
        seconds=seconds,
    )


def find(runner: Runner, token_id: str) -> Held | None:
    """A token that is neither revoked nor expired. Keeps when it was used, to the minute."""
    rows = runner.run(
        "WITH found AS ("
        " SELECT id, account_id, hash, used_at FROM access_tokens"
        " WHERE id = CAST(:id AS uuid) AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now())"
        "), used AS ("
        " UPDATE access_tokens t SET used_at = now() FROM found"
        " WHERE t.id = found.id"
        " AND (found.used_at IS NULL"
        f" OR found.used_at < now() - {USE_NOTED} * interval '1 second')"
        ") SELECT account_id, hash FROM found",
        id=token_id,
    )
    return Held(rows[0][0], bytes(rows[0][1])) if rows else None


def revoke(runner: Runner, token_id: str, account_id: int | None = None) -> int | None:
    """Void a token, of one account if that is given; gives its account, None where there is no
    such token that holds."""
    rows = runner.run(
        "UPDATE access_tokens SET revoked_at = now()"
        " WHERE id = CAST(:id AS uuid) AND revoked_at IS NULL"
        " AND (CAST(:account AS bigint) IS NULL OR account_id = :account) RETURNING account_id",
        id=token_id,
        account=account_id,
    )
    return int(rows[0][0]) if rows else None


def listed(runner: Runner, account_id: int, last: str, count: int) -> list[Row]:
    """At most ``count`` tokens of an account, in the order of their ids, after ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM access_tokens WHERE account_id = :account"
        " AND (:last = '' OR id > CAST(nullif(:last, '') AS uuid)) ORDER BY id LIMIT :count",
        account=account_id,
        last=last,
        count=count,
    )
    return [Row(str(row[0]), *row[1:]) for row in rows]
