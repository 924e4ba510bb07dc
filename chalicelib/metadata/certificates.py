"""The registry's own certificates, and what ordering them takes (RFC 8555)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from chalicelib.metadata.database import Database, Runner, Transaction
from chalicelib.metadata.sealed import Column

ACCOUNT_KEYS = Column("acme_accounts", "key", owner="directory", owner_type="text")
KEYS = Column("certificates", "key")


class Account(NamedTuple):
    """An account at a certificate authority. ``key`` is sealed."""

    url: str
    key: bytes


class Certificate(NamedTuple):
    """A certificate with those above it, as PEM. ``key`` is sealed, and ``id`` its owner: another
    one for each certificate."""

    id: str
    chain: str
    key: bytes
    not_before: datetime
    not_after: datetime


def account(runner: Runner, directory: str) -> Account | None:
    """Our account at a directory's authority."""
    rows = runner.run(
        "SELECT url, key FROM acme_accounts WHERE directory = :directory", directory=directory
    )
    return Account(rows[0][0], bytes(rows[0][1])) if rows else None


def keep_account(runner: Runner, directory: str, account: Account) -> None:
    """Use this account from now on."""
    runner.run(
        "INSERT INTO acme_accounts (directory, url, key) VALUES (:directory, :url, :key)"
        " ON CONFLICT (directory) DO UPDATE SET url = excluded.url, key = excluded.key",
        directory=directory,
        url=account.url,
        key=account.key,
    )


def forget_account(runner: Runner, directory: str) -> None:
    """The authority does not know our account any more."""
    runner.run("DELETE FROM acme_accounts WHERE directory = :directory", directory=directory)


def add_challenge(runner: Runner, token: str, key_authorization: str) -> None:
    """Have every host answer an authority that asks for this token."""
    runner.run(
        "INSERT INTO acme_challenges (token, key_authorization) VALUES (:token, :text)"
        " ON CONFLICT (token) DO UPDATE SET key_authorization = excluded.key_authorization",
        token=token,
        text=key_authorization,
    )


def challenge(runner: Runner, token: str) -> str | None:
    """What the authority wants to read, None for a token that is not ours."""
    rows = runner.run(
        "SELECT key_authorization FROM acme_challenges WHERE token = :token", token=token
    )
    return str(rows[0][0]) if rows else None


def find(runner: Runner, directory: str, names: Sequence[str]) -> Certificate | None:
    """The certificate for exactly these names."""
    rows = runner.run(
        "SELECT CAST(id AS text), chain, key, not_before, not_after FROM certificates"
        " WHERE directory = :directory AND names = CAST(:names AS text[])",
        directory=directory,
        names=sorted(names),
    )
    return _certificate(rows)


def find_newer(
    runner: Runner, directory: str, names: Sequence[str], known: str | None
) -> Certificate | None:
    """The same, None where it is the one whose id is known."""
    rows = runner.run(
        "SELECT CAST(id AS text), chain, key, not_before, not_after FROM certificates"
        " WHERE directory = :directory AND names = CAST(:names AS text[])"
        " AND id IS DISTINCT FROM CAST(:known AS uuid)",
        directory=directory,
        names=sorted(names),
        known=known,
    )
    return _certificate(rows)


def keep(
    database: Database, directory: str, names: Sequence[str], certificate: Certificate
) -> None:
    """Use this one for its names from now on."""

    def work(transaction: Transaction) -> None:
        transaction.run(
            "DELETE FROM certificates WHERE directory = :directory"
            " AND names = CAST(:names AS text[])",
            directory=directory,
            names=sorted(names),
        )
        transaction.run(
            "INSERT INTO certificates (id, directory, names, chain, key, not_before, not_after)"
            " VALUES (CAST(:id AS uuid), :directory, CAST(:names AS text[]), :chain, :key,"
            " :not_before, :not_after)",
            directory=directory,
            names=sorted(names),
            **certificate._asdict(),
        )

    database.transaction(work)


def expire(runner: Runner) -> None:
    """Forget challenges of long ago, and certificates that nobody has renewed."""
    runner.run(
        "WITH challenges AS (DELETE FROM acme_challenges"
        " WHERE created_at < now() - interval '1 day')"
        " DELETE FROM certificates WHERE not_after < now() - interval '7 days'"
    )


def _certificate(rows: list[list[Any]]) -> Certificate | None:
    if not rows:
        return None
    number, chain, key, not_before, not_after = rows[0]
    return Certificate(number, chain, bytes(key), not_before, not_after)
