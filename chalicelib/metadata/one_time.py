"""Secrets for one use: a link in a mail, a challenge for an authenticator, a sign-in under way.

Stored hashed (SHA-256): each is 32 random bytes, so that nothing slower is needed.
"""

import json
import secrets
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.hashing import hashed


class Held(NamedTuple):
    """What a secret stood for."""

    account_id: int | None
    data: dict[str, Any]


def put(
    runner: Runner, purpose: str, seconds: int, account_id: int | None = None, **data: Any
) -> str:
    """A new secret that holds for so many seconds and stands for this account and data."""
    secret = secrets.token_urlsafe(32)
    runner.run(
        "INSERT INTO one_time_secrets (hash, purpose, account_id, data, expires_at)"
        " VALUES (:hash, :purpose, :account, CAST(:data AS jsonb),"
        " now() + CAST(:seconds AS integer) * interval '1 second')",
        hash=hashed(secret),
        purpose=purpose,
        account=account_id,
        data=json.dumps(data),
        seconds=seconds,
    )
    return secret


def take(runner: Runner, purpose: str, secret: str) -> Held | None:
    """What the secret stands for, once; None where there is no such secret, or no longer."""
    rows = runner.run(
        "DELETE FROM one_time_secrets WHERE hash = :hash AND purpose = :purpose"
        " RETURNING account_id, data, expires_at > now()",
        hash=hashed(secret),
        purpose=purpose,
    )
    if not rows or not rows[0][2]:
        return None
    account_id, data, _ = rows[0]
    return Held(account_id, data)


def holds(runner: Runner, purpose: str, secret: str) -> bool:
    """Whether ``take`` would give something now: asked before work that is not done for anybody."""
    return bool(
        runner.run(
            "SELECT FROM one_time_secrets"
            " WHERE hash = :hash AND purpose = :purpose AND expires_at > now()",
            hash=hashed(secret),
            purpose=purpose,
        )
    )


def drop(runner: Runner, purpose: str, account_id: int) -> None:
    """Void what an account still holds of a purpose: only the newest link works. Of two who ask at
    once one waits for the other's transaction."""
    runner.run("SELECT FROM accounts WHERE id = :account FOR NO KEY UPDATE", account=account_id)
    runner.run(
        "DELETE FROM one_time_secrets WHERE purpose = :purpose AND account_id = :account",
        purpose=purpose,
        account=account_id,
    )
