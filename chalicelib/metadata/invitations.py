"""Invitations to organisations, by email; their rows. Secrets are kept hashed (SHA-256)."""

import secrets
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.hashing import hashed
from chalicelib.metadata.organisations import Role

SECONDS = 7 * 86400
"""How long an invitation holds."""

_OPEN = (
    "i.expires_at > now() AND EXISTS (SELECT FROM accounts b"
    " LEFT JOIN members m ON m.organisation_id = i.organisation_id AND m.user_id = b.id"
    " WHERE b.id = i.invited_by AND b.suspended_at IS NULL"
    " AND (b.administrator OR m.role = 'owner'))"
)
"""Whether an invitation holds: as long as who sent it may send one."""
_COLUMNS = "i.id, o.name, i.email, i.role, i.created_at, i.expires_at"


class Invitation(NamedTuple):
    """An invitation that holds."""

    id: int
    organisation: str
    email: str
    role: Role
    created_at: Any
    expires_at: Any


class Taken(NamedTuple):
    """What an invitation was for, after it is used."""

    id: int
    organisation_id: int
    organisation: str
    role: Role


def add(
    runner: Runner, organisation_id: int, email: str, role: Role, invited_by: int
) -> tuple[Invitation, str]:
    """Invite the person of an email to an organisation, in place of earlier invitations of theirs;
    gives the secret of the link too."""
    secret = secrets.token_urlsafe(32)
    runner.run(
        "DELETE FROM invitations WHERE organisation_id = :organisation"
        " AND (lower(email) = lower(:email) OR expires_at <= now())",
        organisation=organisation_id,
        email=email,
    )
    rows = runner.run(
        "WITH i AS (INSERT INTO invitations"
        " (organisation_id, email, role, secret_hash, invited_by, expires_at)"
        " VALUES (:organisation, :email, :role, :hash, :by,"
        " now() + CAST(:seconds AS integer) * interval '1 second') RETURNING *)"
        f" SELECT {_COLUMNS} FROM i JOIN accounts o ON o.id = i.organisation_id",
        organisation=organisation_id,
        email=email,
        role=role,
        hash=hashed(secret),
        by=invited_by,
        seconds=SECONDS,
    )
    return Invitation(*rows[0]), secret


def count(runner: Runner, organisation_id: int) -> int:
    """How many invitations of an organisation hold."""
    rows = runner.run(
        f"SELECT count(*) FROM invitations i WHERE organisation_id = :organisation AND {_OPEN}",
        organisation=organisation_id,
    )
    return int(rows[0][0])


def of_organisation(runner: Runner, organisation_id: int, last: int, most: int) -> list[Invitation]:
    """At most ``most`` invitations of an organisation that hold, by id, after ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM invitations i JOIN accounts o ON o.id = i.organisation_id"
        f" WHERE o.id = :organisation AND i.id > :last AND {_OPEN} ORDER BY i.id LIMIT :most",
        organisation=organisation_id,
        last=last,
        most=most,
    )
    return [Invitation(*row) for row in rows]


def of_user(runner: Runner, user_id: int, last: int, most: int) -> list[Invitation]:
    """At most ``most`` invitations that hold and went to a user's verified email, by id, after
    ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM invitations i JOIN accounts o ON o.id = i.organisation_id"
        " JOIN accounts u ON u.id = :user AND u.email_verified AND lower(u.email) = lower(i.email)"
        f" WHERE o.name IS NOT NULL AND i.id > :last AND {_OPEN} ORDER BY i.id LIMIT :most",
        user=user_id,
        last=last,
        most=most,
    )
    return [Invitation(*row) for row in rows]


def take(
    runner: Runner, user_id: int, invitation_id: int | None, secret: str | None
) -> Taken | None:
    """Use an invitation up: the one of a secret, or the one of an id where it went to the user's
    verified email. None where there is none that holds."""
    rows = runner.run(
        "DELETE FROM invitations i USING accounts o, accounts u"
        " WHERE o.id = i.organisation_id AND o.name IS NOT NULL AND u.id = :user"
        " AND (i.secret_hash = :hash OR i.id = CAST(:id AS bigint)"
        " AND u.email_verified AND lower(u.email) = lower(i.email))"
        f" AND {_OPEN} RETURNING i.id, o.id, o.name, i.role",
        user=user_id,
        id=invitation_id,
        hash=None if secret is None else hashed(secret),
    )
    return Taken(*rows[0]) if rows else None


def revoke(runner: Runner, organisation_id: int, invitation_id: int) -> bool:
    """Void an invitation of an organisation; False where there is none."""
    return bool(
        runner.run(
            "DELETE FROM invitations WHERE organisation_id = :organisation AND id = :id"
            " RETURNING 1",
            organisation=organisation_id,
            id=invitation_id,
        )
    )
