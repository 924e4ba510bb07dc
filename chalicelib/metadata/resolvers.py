"""Resolvers that people have added: of an account, or for all. Their keys are sealed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.metadata import resolver_copies
from chalicelib.metadata.database import Runner
from chalicelib.metadata.sealed import Column

KEYS = Column("resolvers", "sealed", owner="name", owner_type="text")
"""Where the keys are, sealed."""


class Added(NamedTuple):
    """A resolver. ``account`` is the id of whose it is, None where it is for all; ``address`` is
    where it puts what it gets, as its kind has it. Once it was removed nobody can choose it, and
    ``copies`` are left there, which are taken away."""

    name: str
    account: int | None
    kind: str
    address: dict[str, str]
    created_at: Any
    removed_at: Any
    copies: int


class Sealed(NamedTuple):
    """What a resolver is opened with."""

    kind: str
    address: dict[str, str]
    keys: bytes


_COLUMNS = (
    "s.name, s.account_id, s.kind, s.address, s.created_at, s.removed_at,"
    " CASE WHEN s.removed_at IS NULL THEN 0 ELSE"
    " (SELECT count(*) FROM resolver_copies c WHERE c.resolver = s.name) END"
)
_OF = "s.account_id IS NOT DISTINCT FROM CAST(:account AS bigint)"


def add(
    runner: Runner,
    name: str,
    account: int | None,
    kind: str,
    address: Mapping[str, str],
    keys: bytes,
    by: str,
) -> Added | None:
    """Keep a resolver whose keys are sealed; None where another has its name."""
    rows = runner.run(
        "INSERT INTO resolvers AS s (name, account_id, kind, address, sealed, created_by)"
        " VALUES (:name, :account, :kind, CAST(:address AS jsonb), :keys, :by)"
        f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
        name=name,
        account=account,
        kind=kind,
        address=json.dumps(dict(address)),
        keys=keys,
        by=by,
    )
    return Added(*rows[0]) if rows else None


def count(runner: Runner, account: int | None) -> int:
    """How many resolvers an account has, or all have."""
    rows = runner.run(f"SELECT count(*) FROM resolvers s WHERE {_OF}", account=account)
    return int(rows[0][0])


def listed(runner: Runner, account: int | None, after: str, limit: int) -> list[Added]:
    """At most ``limit`` resolvers of an account, or for all, by their names after ``after``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM resolvers s WHERE {_OF}"
        ' AND s.name COLLATE "C" > :after ORDER BY s.name COLLATE "C" LIMIT :limit',
        account=account,
        after=after,
        limit=limit,
    )
    return [Added(*row) for row in rows]


def find(runner: Runner, name: str) -> Added | None:
    """The resolver of a name."""
    rows = runner.run(f"SELECT {_COLUMNS} FROM resolvers s WHERE s.name = :name", name=name)
    return Added(*rows[0]) if rows else None


def sealed(runner: Runner, name: str) -> Sealed | None:
    """What a resolver is opened with, be it removed or not."""
    rows = runner.run(
        "SELECT kind, address, sealed FROM resolvers WHERE name = :name",
        name=name,
    )
    return Sealed(rows[0][0], rows[0][1], bytes(rows[0][2])) if rows else None


def hold_usable(runner: Runner, account: int | None, names: Sequence[str]) -> set[str]:
    """Which of these resolvers an account may use: its own, and those for all. They are not removed
    before the transaction ends."""
    rows = runner.run(
        "SELECT name FROM resolvers WHERE name = ANY(CAST(:names AS text[])) AND removed_at IS NULL"
        " AND (account_id IS NULL OR account_id = CAST(:account AS bigint))"
        " ORDER BY name FOR SHARE",
        account=account,
        names=list(names),
    )
    return {name for (name,) in rows}


def set_keys(runner: Runner, name: str, keys: bytes) -> bool:
    """Open a resolver with other keys, sealed; False where there is none."""
    return bool(
        runner.run(
            "UPDATE resolvers SET sealed = :keys WHERE name = :name RETURNING 1",
            name=name,
            keys=keys,
        )
    )


def remove(runner: Runner, name: str) -> None:
    """Let nobody choose a resolver any more, and choose it for nobody. What is there is let go,
    since then nobody wants it; the row goes with the last of it (``end_removed``)."""
    runner.run(
        "UPDATE resolvers SET removed_at = coalesce(removed_at, now()) WHERE name = :name",
        name=name,
    )
    runner.run(
        "UPDATE resolver_choices SET resolvers = array_remove(resolvers, :name)"
        " WHERE :name = ANY(resolvers)",
        name=name,
    )


def forget(runner: Runner, name: str) -> None:
    """Forget a resolver that was removed, and what is there: it stays there."""
    runner.run("DELETE FROM resolver_copies WHERE resolver = :name", name=name)
    runner.run(
        "DELETE FROM jobs WHERE kind = ANY(CAST(:kinds AS text[])) AND data ->> 'resolver' = :name",
        kinds=[resolver_copies.PUT, resolver_copies.DERIVE, resolver_copies.UNPIN],
        name=name,
    )
    runner.run("DELETE FROM resolvers WHERE name = :name AND removed_at IS NOT NULL", name=name)


def end_removed(runner: Runner) -> None:
    """Forget resolvers that were removed, and have nothing more."""
    runner.run(
        "DELETE FROM resolvers s WHERE removed_at IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM resolver_copies c WHERE c.resolver = s.name)"
    )
