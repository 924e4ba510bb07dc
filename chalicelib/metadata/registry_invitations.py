"""Invitations to the registry, by email, where sign-up is by invitation; their rows."""

import secrets
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.hashing import hashed

SECONDS = 7 * 86400
"""How long an invitation holds."""

_OPEN = "organisation_id IS NULL AND expires_at > now()"
_COLUMNS = "id, email, created_at, expires_at"


class Invitation(NamedTuple):
    """An invitation that holds."""

    id: int
    email: str
    created_at: Any
    expires_at: Any


def add(runner: Runner, email: str, invited_by: int | None) -> tuple[Invitation, str]:
    """Invite the person of an email, in place of earlier invitations of theirs; gives the secret of
    the link too."""
    secret = secrets.token_urlsafe(32)
    runner.run(
        "DELETE FROM invitations WHERE organisation_id IS NULL"
        " AND (lower(email) = lower(:email) OR expires_at <= now())",
        email=email,
    )
    rows = runner.run(
        "INSERT INTO invitations (email, secret_hash, invited_by, expires_at)"
        " VALUES (:email, :hash, :by, now() + CAST(:seconds AS integer) * interval '1 second')"
        f" RETURNING {_COLUMNS}",
        email=email,
        hash=hashed(secret),
        by=invited_by,
        seconds=SECONDS,
    )
    return Invitation(*rows[0]), secret


def listed(runner: Runner, after: int, count: int) -> list[Invitation]:
    """At most ``count`` invitations that hold, by id, after that one."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM invitations WHERE id > :after AND {_OPEN}"
        " ORDER BY id LIMIT :count",
        after=after,
        count=count,
    )
    return [Invitation(*row) for row in rows]


def holds(runner: Runner, secret: str) -> bool:
    """Whether there is such an invitation."""
    return bool(
        runner.run(
            f"SELECT FROM invitations WHERE secret_hash = :hash AND {_OPEN}", hash=hashed(secret)
        )
    )


def take(runner: Runner, secret: str) -> Invitation | None:
    """Use an invitation up; None where there is none that holds."""
    rows = runner.run(
        f"DELETE FROM invitations WHERE secret_hash = :hash AND {_OPEN} RETURNING {_COLUMNS}",
        hash=hashed(secret),
    )
    return Invitation(*rows[0]) if rows else None


def revoke(runner: Runner, invitation_id: int) -> bool:
    """Void an invitation; False where there is none."""
    return bool(
        runner.run(
            f"DELETE FROM invitations WHERE id = :id AND {_OPEN} RETURNING 1", id=invitation_id
        )
    )
