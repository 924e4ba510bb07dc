"""Passkeys: the public keys by which users sign in, and the handles that authenticators know the
users by."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from chalicelib.metadata.database import Runner

_LIVE_USER = "kind = 'user' AND suspended_at IS NULL AND deleted_at IS NULL"
_SHOWN = "CAST(id AS text), name, created_at, used_at"


class Passkey(NamedTuple):
    """A passkey as its owner sees it."""

    id: str
    name: str
    created_at: datetime
    used_at: datetime | None


class Credential(NamedTuple):
    """What a signature is checked with, and whose it is. ``live``: the account may sign in."""

    account_id: int
    public_key: bytes
    handle: bytes | None
    live: bool


def handle(runner: Runner, account_id: int, fresh: bytes) -> bytes | None:
    """The handle of a user, which becomes ``fresh`` where there was none; None where the account
    is no user or may not sign in."""
    rows = runner.run(
        "UPDATE accounts SET passkey_handle = coalesce(passkey_handle, :fresh)"
        f" WHERE id = :account AND {_LIVE_USER} RETURNING passkey_handle",
        fresh=fresh,
        account=account_id,
    )
    return rows[0][0] if rows else None


def descriptors(runner: Runner, account_id: int) -> list[tuple[bytes, list[str]]]:
    """(credential id, transports) of each passkey of an account."""
    rows = runner.run(
        "SELECT credential_id, transports FROM passkeys WHERE account_id = :account"
        " ORDER BY created_at, id",
        account=account_id,
    )
    return [(credential_id, transports) for credential_id, transports in rows]


def add(
    runner: Runner,
    account_id: int,
    name: str,
    *,
    credential_id: bytes,
    public_key: bytes,
    sign_count: int,
    transports: Sequence[str],
) -> Passkey | None:
    """A new passkey; None where the credential is one already, of anybody, or the account may not
    sign in."""
    rows = runner.run(
        "INSERT INTO passkeys"
        " (credential_id, id, account_id, name, public_key, sign_count, transports)"
        " SELECT CAST(:credential AS bytea), CAST(:id AS uuid), id, CAST(:name AS text),"
        " CAST(:key AS bytea), CAST(:count AS bigint), CAST(:transports AS text[])"
        f" FROM accounts WHERE id = :account AND {_LIVE_USER}"
        f" ON CONFLICT (credential_id) DO NOTHING RETURNING {_SHOWN}",
        credential=credential_id,
        id=str(uuid.uuid4()),
        account=account_id,
        name=name,
        key=public_key,
        count=sign_count,
        transports=list(transports),
    )
    return Passkey(*rows[0]) if rows else None


def find(runner: Runner, credential_id: bytes) -> Credential | None:
    """The passkey that an authenticator names."""
    rows = runner.run(
        f"SELECT a.id, p.public_key, a.passkey_handle, {_LIVE_USER}"
        " FROM passkeys p JOIN accounts a ON a.id = p.account_id WHERE credential_id = :credential",
        credential=credential_id,
    )
    return Credential(*rows[0]) if rows else None


def used(runner: Runner, credential_id: bytes, sign_count: int) -> bool:
    """Note a sign-in. False where the counter has not moved forward, unless it is one that never
    moves (Web Authentication, section 6.1.1): then the key may have been copied."""
    return bool(
        runner.run(
            "UPDATE passkeys SET sign_count = :count, used_at = now()"
            " WHERE credential_id = :credential"
            " AND (sign_count < :count OR (sign_count = 0 AND :count = 0)) RETURNING 1",
            credential=credential_id,
            count=sign_count,
        )
    )


def of(runner: Runner, account_id: int) -> list[Passkey]:
    """The passkeys of an account, the oldest first."""
    rows = runner.run(
        f"SELECT {_SHOWN} FROM passkeys WHERE account_id = :account ORDER BY created_at, id",
        account=account_id,
    )
    return [Passkey(*row) for row in rows]


def rename(runner: Runner, account_id: int, passkey_id: str, name: str) -> bool:
    """Give a passkey another name; False where the account has none of that id."""
    return bool(
        runner.run(
            "UPDATE passkeys SET name = :name"
            " WHERE id = CAST(:id AS uuid) AND account_id = :account RETURNING 1",
            name=name,
            id=passkey_id,
            account=account_id,
        )
    )


def remove(runner: Runner, account_id: int, passkey_id: str) -> bool:
    """Forget a passkey; False where the account has none of that id."""
    return bool(
        runner.run(
            "DELETE FROM passkeys"
            " WHERE id = CAST(:id AS uuid) AND account_id = :account RETURNING 1",
            id=passkey_id,
            account=account_id,
        )
    )
