"""Accounts: users, organisations and robots; their rows."""

import hashlib
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner

_COLUMNS = (
    "id, kind, name, email, email_verified, administrator, member_role,"
    " new_repositories_public, owner_id, suspended_at IS NOT NULL, created_at"
)
_VERIFIED_EMAIL = "email_verified AND lower(email) = lower(:login)"


class Account(NamedTuple):
    """An account that has not been deleted."""

    id: int
    kind: str
    name: str
    email: str | None
    email_verified: bool
    administrator: bool
    member_role: str
    new_repositories_public: bool | None
    owner_id: int | None
    suspended: bool
    created_at: Any


class Secret(NamedTuple):
    """What a password is checked against."""

    account_id: int
    password_hash: str | None
    password_number: int


def add(
    runner: Runner,
    kind: str,
    name: str,
    *,
    email: str | None = None,
    email_verified: bool = False,
    password_hash: str | None = None,
    administrator: bool = False,
    owner_id: int | None = None,
    adopts: bool = False,
) -> int | None:
    """Make an account; gives its id, None where the name is or was another's, and, unless it
    ``adopts`` them, where there are repositories that would become the account's. A verified email
    that is another's makes this a unique violation."""
    rows = runner.run(
        "INSERT INTO accounts"
        " (kind, name, email, email_verified, password_hash, administrator, owner_id)"
        " SELECT CAST(:kind AS account_kind), :name, :email, :verified, :hash, :administrator,"
        " :owner"
        " WHERE NOT EXISTS (SELECT FROM retired_names WHERE hash = :retired)"
        " AND (:adopts OR NOT EXISTS"
        " (SELECT FROM repositories r WHERE split_part(r.name, '/', 1) = :name))"
        " ON CONFLICT (name) DO NOTHING RETURNING id",
        kind=kind,
        name=name,
        email=email,
        verified=email_verified,
        hash=password_hash,
        administrator=administrator,
        owner=owner_id,
        retired=_hash(name),
        adopts=adopts,
    )
    return int(rows[0][0]) if rows else None


def by_id(runner: Runner, account_id: int) -> Account | None:
    """The account of that id."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM accounts WHERE id = :id AND deleted_at IS NULL", id=account_id
    )
    return Account(*rows[0]) if rows else None


def by_name(runner: Runner, name: str) -> Account | None:
    """The account of that name."""
    rows = runner.run(f"SELECT {_COLUMNS} FROM accounts WHERE name = :name", name=name)
    return Account(*rows[0]) if rows else None


def by_email(runner: Runner, email: str) -> Account | None:
    """The account of that email, in any case: the one that has verified it, else the newest that
    claims it."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM accounts WHERE lower(email) = lower(:email)"
        " ORDER BY email_verified DESC, id DESC LIMIT 1",
        email=email,
    )
    return Account(*rows[0]) if rows else None


def secret(runner: Runner, login: str) -> Secret | None:
    """What to check the password of a user against, by name or verified email; None where there is
    no such user, or it is suspended."""
    rows = runner.run(
        "SELECT id, password_hash, password_number FROM accounts"
        " WHERE kind = 'user' AND suspended_at IS NULL"
        f" AND {_VERIFIED_EMAIL if '@' in login else 'name = :login'}",
        login=login,
    )
    return Secret(*rows[0]) if rows else None


def password_number(runner: Runner, account_id: int) -> int:
    """How many passwords an account has had, from 0 on."""
    rows = runner.run("SELECT password_number FROM accounts WHERE id = :id", id=account_id)
    return int(rows[0][0])


def listed(runner: Runner, after: str = "", count: int | None = None) -> list[Account]:
    """Accounts that have not been deleted, by name: those after a name, at most ``count``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM accounts WHERE name > :after ORDER BY name"
        " LIMIT CAST(:count AS bigint)",
        after=after,
        count=count,
    )
    return [Account(*row) for row in rows]


def lock(runner: Runner) -> None:
    """Let nobody else make or change accounts until the transaction ends. To be its first
    statement."""
    runner.run("LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE")


def set_administrator(runner: Runner, account_id: int, administrator: bool) -> None:
    """Let a user administer the registry, or no longer."""
    runner.run(
        "UPDATE accounts SET administrator = :administrator WHERE id = :id",
        administrator=administrator,
        id=account_id,
    )


def suspend(runner: Runner, account_id: int, suspended: bool) -> None:
    """Let an account and its robots do nothing any more, or let them again."""
    runner.run(
        "UPDATE accounts SET suspended_at = CASE WHEN :suspended THEN now() END WHERE id = :id",
        suspended=suspended,
        id=account_id,
    )


def set_password(runner: Runner, account_id: int, password_hash: str) -> None:
    """Give an account another password, and sign its browsers out."""
    runner.run(
        "UPDATE accounts SET password_hash = :hash, password_number = password_number + 1"
        " WHERE id = :id",
        hash=password_hash,
        id=account_id,
    )
    runner.run("DELETE FROM sessions WHERE account_id = :id", id=account_id)
    runner.run(
        "UPDATE refresh_families SET revoked_at = now()"
        " WHERE account_id = :id AND revoked_at IS NULL AND access_token_id IS NULL",
        id=account_id,
    )


def verify_email(runner: Runner, account_id: int, email: str) -> None:
    """Set an account's email, verified. One that is another's makes this a unique violation."""
    runner.run(
        "UPDATE accounts SET email = :email, email_verified = true WHERE id = :id",
        email=email,
        id=account_id,
    )


def claim_email(runner: Runner, account_id: int, email: str) -> None:
    """Have an account claim another email in place of one that it has not verified."""
    runner.run(
        "UPDATE accounts SET email = :email WHERE id = :id AND NOT email_verified",
        email=email,
        id=account_id,
    )


def set_new_repositories_public(runner: Runner, account_id: int, public: bool | None) -> None:
    """Say what visibility the account's new repositories get; None: what the settings say."""
    runner.run(
        "UPDATE accounts SET new_repositories_public = :public WHERE id = :id",
        public=public,
        id=account_id,
    )


def has_administrator(runner: Runner, besides: int | None = None) -> bool:
    """Whether anybody can administer the registry, besides an account."""
    return bool(
        runner.run(
            "SELECT FROM accounts WHERE administrator AND name IS NOT NULL AND suspended_at IS NULL"
            " AND id IS DISTINCT FROM CAST(:besides AS bigint) LIMIT 1",
            besides=besides,
        )
    )


def owns_repositories(runner: Runner, account_id: int) -> bool:
    """Whether any repository lies in the account's namespace."""
    return bool(
        runner.run(
            "SELECT FROM repositories r JOIN accounts a ON a.name = split_part(r.name, '/', 1)"
            " WHERE a.id = :id LIMIT 1",
            id=account_id,
        )
    )


def sole_owner_of(runner: Runner, account_id: int) -> list[str]:
    """Names of the organisations that nobody else owns. Locks their owners until the transaction
    ends, so that two cannot leave at once."""
    rows = runner.run(
        "SELECT o.name, m.user_id FROM members m JOIN accounts o ON o.id = m.organisation_id"
        " WHERE m.role = 'owner' AND m.organisation_id IN"
        " (SELECT organisation_id FROM members WHERE user_id = :id AND role = 'owner')"
        " ORDER BY m.organisation_id, m.user_id FOR UPDATE OF m",
        id=account_id,
    )
    owners: dict[str, set[int]] = {}
    for name, user in rows:
        owners.setdefault(name, set()).add(user)
    return sorted(name for name, users in owners.items() if users == {account_id})


def delete(runner: Runner, account_id: int) -> None:
    """Forget who an account was: its name, which nobody gets again unless it was a robot's, its
    email and all that it had. What is left is an id. The caller has seen that it owns no
    repository."""
    runner.run(
        "INSERT INTO retired_names (hash) SELECT sha256(convert_to(name, 'UTF8')) FROM accounts"
        " WHERE id = :id AND kind <> 'robot' ON CONFLICT DO NOTHING",
        id=account_id,
    )
    for table in (
        "access_tokens",
        "refresh_families",
        "sessions",
        "one_time_secrets",
        "external_identities",
        "passkeys",
        "trust_rules",
        "webhooks",
        "triggers",
        "resolver_choices",
        "grants",
    ):
        runner.run(
            f"DELETE FROM {table} WHERE account_id IN"
            " (SELECT id FROM accounts WHERE id = :id OR owner_id = :id)",
            id=account_id,
        )
    for table, column in (
        ("members", "user_id"),
        ("members", "organisation_id"),
        ("teams", "organisation_id"),
        ("invitations", "organisation_id"),
        ("grants", "namespace_id"),
        ("immutable_tags", "namespace_id"),
        ("retention_policies", "namespace_id"),
    ):
        runner.run(f"DELETE FROM {table} WHERE {column} = :id", id=account_id)
    # Their keys are needed until the networks were told.
    runner.run(
        "UPDATE resolvers SET removed_at = now() WHERE account_id = :id AND removed_at IS NULL",
        id=account_id,
    )
    runner.run(
        "DELETE FROM repository_renames r USING accounts a"
        " WHERE a.id = :id AND split_part(r.name, '/', 1) = a.name",
        id=account_id,
    )
    runner.run(
        "UPDATE accounts SET name = NULL, email = NULL, email_verified = false,"
        " password_hash = NULL, administrator = false, passkey_handle = NULL, deleted_at = now()"
        " WHERE id = :id OR owner_id = :id",
        id=account_id,
    )


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
