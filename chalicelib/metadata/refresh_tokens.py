"""Refresh tokens: families, each with one token that still works."""

import secrets
import uuid
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner, Transaction
from chalicelib.metadata.hashing import hashed

PREFIX = "orr_"
SECONDS = 90 * 86400
"""How long a refresh token holds that is not used."""


class Family(NamedTuple):
    """Whom the tokens of a family stand for; ``access_token`` is the id of the token that the
    first was had with, if one was."""

    id: str
    account_id: int
    access_token: str | None
    client: str
    created_at: Any


def begin(runner: Runner, account_id: int, access_token: str | None, client: str) -> str:
    """A family's first token."""
    family = str(uuid.uuid4())
    runner.run(
        "INSERT INTO refresh_families (id, account_id, access_token_id, client)"
        " VALUES (CAST(:id AS uuid), :account, CAST(:token AS uuid), :client)",
        id=family,
        account=account_id,
        token=access_token,
        client=client,
    )
    return follow(runner, family)


def follow(runner: Runner, family: str) -> str:
    """The next token of a family."""
    token = PREFIX + secrets.token_urlsafe(32)
    runner.run(
        "INSERT INTO refresh_tokens (hash, family_id, expires_at)"
        " VALUES (:hash, CAST(:family AS uuid),"
        " now() + CAST(:seconds AS integer) * interval '1 second')",
        hash=hashed(token),
        family=family,
        seconds=SECONDS,
    )
    return token


def use(transaction: Transaction, token: str) -> tuple[Family | None, Family | None]:
    """Use a token up: its family, or None and the family that it has just ended, since it had been
    used before (somebody else has it too), or None twice for one that does not hold."""
    rows = transaction.run(
        "SELECT f.id, f.account_id, f.access_token_id, f.client, f.created_at,"
        " t.used_at IS NULL, t.expires_at > now() AND f.revoked_at IS NULL"
        " FROM refresh_tokens t JOIN refresh_families f ON f.id = t.family_id"
        " WHERE t.hash = :hash FOR UPDATE OF t, f",
        hash=hashed(token),
    )
    if not rows:
        return None, None
    family_id, account_id, access_token, client, created_at, unused, holds = rows[0]
    family = Family(
        str(family_id), account_id, str(access_token) if access_token else None, client, created_at
    )
    if not holds:
        return None, None
    if not unused:
        revoke(transaction, family.id)
        return None, family
    transaction.run(
        "UPDATE refresh_tokens SET used_at = now() WHERE hash = :hash", hash=hashed(token)
    )
    return family, None


def revoke(runner: Runner, family: str, account_id: int | None = None) -> bool:
    """End a family, of one account if that is given; False where there is none to end."""
    return bool(
        runner.run(
            "UPDATE refresh_families SET revoked_at = now()"
            " WHERE id = CAST(:id AS uuid) AND revoked_at IS NULL"
            " AND (CAST(:account AS bigint) IS NULL OR account_id = :account) RETURNING 1",
            id=family,
            account=account_id,
        )
    )


def listed(runner: Runner, account_id: int, last: str, count: int) -> list[Family]:
    """At most ``count`` families of an account that still work, in the order of their ids, after
    ``last``."""
    rows = runner.run(
        "SELECT f.id, f.account_id, f.access_token_id, f.client, f.created_at"
        " FROM refresh_families f WHERE f.account_id = :account AND f.revoked_at IS NULL"
        " AND (:last = '' OR f.id > CAST(nullif(:last, '') AS uuid))"
        " AND EXISTS (SELECT FROM refresh_tokens t WHERE t.family_id = f.id"
        " AND t.used_at IS NULL AND t.expires_at > now())"
        " AND (f.access_token_id IS NULL OR EXISTS (SELECT FROM access_tokens a"
        " WHERE a.id = f.access_token_id AND a.revoked_at IS NULL"
        " AND (a.expires_at IS NULL OR a.expires_at > now()))) ORDER BY f.id LIMIT :count",
        account=account_id,
        last=last,
        count=count,
    )
    return [
        Family(str(row[0]), row[1], str(row[2]) if row[2] else None, row[3], row[4]) for row in rows
    ]
