"""Robots: accounts of machines, each of a user or an organisation; their rows.

A robot is a row of accounts, named OWNER+NAME.
"""

from typing import Any, Literal, NamedTuple

from chalicelib.metadata.database import Runner

Role = Literal["read", "write", "maintain", "admin"]


class Robot(NamedTuple):
    """A robot; ``role`` is what it may do with all of its owner's namespace, None: nothing but by
    other grants."""

    id: int
    name: str
    role: Role | None
    created_at: Any


_ROBOTS = (
    "SELECT a.id, a.name, g.role, a.created_at FROM accounts a"
    " LEFT JOIN grants g ON g.account_id = a.id AND g.namespace_id = a.owner_id"
    " WHERE a.owner_id = :owner"
)


def listed(runner: Runner, owner_id: int, last: str, count: int) -> list[Robot]:
    """At most ``count`` robots of an account, by name, after ``last``."""
    rows = runner.run(
        f"{_ROBOTS} AND a.name > :last ORDER BY a.name LIMIT :count",
        owner=owner_id,
        last=last,
        count=count,
    )
    return [Robot(*row) for row in rows]


def by_name(runner: Runner, owner_id: int, name: str) -> Robot | None:
    """An account's robot of that name, OWNER+NAME."""
    rows = runner.run(f"{_ROBOTS} AND a.name = :name", owner=owner_id, name=name)
    return Robot(*rows[0]) if rows else None
