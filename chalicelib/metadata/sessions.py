"""Browsers that are signed in. A cookie is 32 random bytes, kept hashed."""

import secrets
import uuid
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.hashing import hashed
from chalicelib.metadata.permissions import ACTIVE

SECONDS = 14 * 86400
"""How long a session lasts that is not used."""


class Session(NamedTuple):
    """A browser that is signed in; ``method`` is how."""

    id: str
    account_id: int
    method: str
    created_at: Any
    used_at: Any


def begin(runner: Runner, account_id: int, method: str) -> str:
    """Sign a browser in; gives its cookie."""
    cookie = secrets.token_urlsafe(32)
    runner.run(
        "INSERT INTO sessions (hash, id, account_id, method, expires_at)"
        " VALUES (:hash, CAST(:id AS uuid), :account, :method,"
        " now() + CAST(:seconds AS integer) * interval '1 second')",
        hash=hashed(cookie),
        id=str(uuid.uuid4()),
        account=account_id,
        method=method,
        seconds=SECONDS,
    )
    return cookie


def find(runner: Runner, cookie: str) -> Session | None:
    """The session of a cookie, which lasts longer for being used."""
    rows = runner.run(
        "SELECT s.id, s.account_id, s.method, s.created_at, s.used_at,"
        " s.used_at < now() - interval '10 minutes'"
        " FROM sessions s JOIN accounts a ON a.id = s.account_id"
        f" WHERE s.hash = :hash AND s.expires_at > now() AND {ACTIVE}",
        hash=hashed(cookie),
    )
    if not rows:
        return None
    if rows[0][5]:
        runner.run(
            "UPDATE sessions SET used_at = now(),"
            " expires_at = now() + CAST(:seconds AS integer) * interval '1 second'"
            " WHERE hash = :hash",
            hash=hashed(cookie),
            seconds=SECONDS,
        )
    return Session(str(rows[0][0]), *rows[0][1:5])


def listed(runner: Runner, account_id: int) -> list[Session]:
    """An account's sessions, the newest first."""
    rows = runner.run(
        "SELECT id, account_id, method, created_at, used_at FROM sessions"
        " WHERE account_id = :account AND expires_at > now() ORDER BY created_at DESC, id",
        account=account_id,
    )
    return [Session(str(row[0]), *row[1:]) for row in rows]


def end(runner: Runner, session_id: str, account_id: int) -> bool:
    """Sign a browser of an account out; False where there is no such session."""
    return bool(
        runner.run(
            "DELETE FROM sessions WHERE CAST(id AS text) = :id AND account_id = :account"
            " RETURNING 1",
            id=session_id,
            account=account_id,
        )
    )


def end_others(runner: Runner, account_id: int, method: str, session_id: str | None) -> None:
    """Sign out the browsers of an account that were signed in by a method, but for one."""
    runner.run(
        "DELETE FROM sessions WHERE account_id = :account AND method = :method"
        " AND CAST(id AS text) IS DISTINCT FROM CAST(:id AS text)",
        account=account_id,
        method=method,
        id=session_id,
    )
