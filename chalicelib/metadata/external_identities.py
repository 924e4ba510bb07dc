"""Who accounts are elsewhere: at GitHub, at an OpenID provider."""

import uuid
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Link(NamedTuple):
    """An account, and who it is at an issuer."""

    id: str
    account_id: int
    issuer: str
    subject: str
    linked_at: Any


_COLUMNS = "e.id, e.account_id, e.issuer, e.subject, e.linked_at"


def find(runner: Runner, issuer: str, subject: str) -> Link | None:
    """Whose account somebody at an issuer is linked to; None where there is none, or where it may
    do nothing."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM external_identities e JOIN accounts a ON a.id = e.account_id"
        " WHERE e.issuer = :issuer AND e.subject = :subject"
        " AND a.suspended_at IS NULL AND a.deleted_at IS NULL",
        issuer=issuer,
        subject=subject,
    )
    return _link(rows[0]) if rows else None


def add(runner: Runner, account_id: int, issuer: str, subject: str) -> str | None:
    """Link somebody at an issuer to an account; gives the link's id, None where they are linked to
    one already."""
    rows = runner.run(
        "INSERT INTO external_identities (id, issuer, subject, account_id)"
        " VALUES (CAST(:id AS uuid), :issuer, :subject, :account)"
        " ON CONFLICT (issuer, subject) DO NOTHING RETURNING id",
        id=str(uuid.uuid4()),
        issuer=issuer,
        subject=subject,
        account=account_id,
    )
    return str(rows[0][0]) if rows else None


def listed(runner: Runner, account_id: int) -> list[Link]:
    """An account's links, the oldest first."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM external_identities e WHERE e.account_id = :account"
        " ORDER BY e.linked_at, e.id",
        account=account_id,
    )
    return [_link(row) for row in rows]


def remove(runner: Runner, link_id: str, account_id: int) -> str | None:
    """Take a link away; gives its issuer, None where there is no such link."""
    rows = runner.run(
        "DELETE FROM external_identities"
        " WHERE account_id = :account AND CAST(id AS text) = :id RETURNING issuer",
        id=link_id,
        account=account_id,
    )
    return str(rows[0][0]) if rows else None


def ways_in(runner: Runner, account_id: int) -> int:
    """In how many ways a user can sign in: a password, passkeys, links. Its row is locked first, so
    that two who each take one away do not take the last together."""
    runner.run("SELECT FROM accounts WHERE id = :id FOR UPDATE", id=account_id)
    rows = runner.run(
        "SELECT CASE WHEN a.password_hash IS NULL THEN 0 ELSE 1 END"
        " + (SELECT count(*) FROM passkeys p WHERE p.account_id = a.id)"
        " + (SELECT count(*) FROM external_identities e WHERE e.account_id = a.id)"
        " FROM accounts a WHERE a.id = :id",
        id=account_id,
    )
    return int(rows[0][0]) if rows else 0


def _link(row: list[Any]) -> Link:
    return Link(str(row[0]), *row[1:])
