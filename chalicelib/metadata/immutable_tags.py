"""Rules that keep tags as they are, of a repository or of all in a namespace.

The database itself keeps them (0007_rules.sql): whoever would move or delete such a tag is refused
with ``Denied``, whatever code it comes by.
"""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.grants import Place


class Rule(NamedTuple):
    """Tags that match ``pattern`` and none of ``exceptions`` are neither moved nor deleted; ``*``
    stands for any characters. ``created_by`` is a subject's id."""

    id: int
    pattern: str
    exceptions: list[str]
    created_by: str
    created_at: Any


_RULE = "i.id, i.pattern, i.exceptions, i.created_by, i.created_at"
_AT = (
    "(i.repository_id = CAST(:repository AS bigint) OR i.namespace_id = CAST(:namespace AS bigint))"
)


def add(runner: Runner, place: Place, pattern: str, exceptions: list[str], by: str) -> Rule:
    """Make a rule. It holds at once, for the tags there are too."""
    rows = runner.run(
        "INSERT INTO immutable_tags AS i"
        " (repository_id, namespace_id, pattern, exceptions, created_by)"
        " VALUES (:repository, :namespace, :pattern, CAST(:exceptions AS text[]), :by)"
        f" RETURNING {_RULE}",
        **place._asdict(),
        pattern=pattern,
        exceptions=exceptions,
        by=by,
    )
    return Rule(*rows[0])


def listed(runner: Runner, place: Place, after: int, count: int) -> list[Rule]:
    """At most ``count`` rules of a place, with ids above ``after``."""
    rows = runner.run(
        f"SELECT {_RULE} FROM immutable_tags i WHERE {_AT} AND i.id > :after"
        " ORDER BY i.id LIMIT :count",
        **place._asdict(),
        after=after,
        count=count,
    )
    return [Rule(*row) for row in rows]


def count(runner: Runner, place: Place) -> int:
    """How many rules a place has."""
    rows = runner.run(f"SELECT count(*) FROM immutable_tags i WHERE {_AT}", **place._asdict())
    return int(rows[0][0])


def in_force(runner: Runner, repository_id: int) -> list[Rule]:
    """The rules that hold in a repository: its own, and its namespace's."""
    rows = runner.run(
        f"SELECT {_RULE} FROM repositories r"
        " LEFT JOIN accounts n ON n.name = split_part(r.name, '/', 1)"
        " JOIN immutable_tags i ON i.repository_id = r.id OR i.namespace_id = n.id"
        " WHERE r.id = :repository ORDER BY i.id",
        repository=repository_id,
    )
    return [Rule(*row) for row in rows]


def remove(runner: Runner, place: Place, rule_id: int) -> Rule | None:
    """Take a rule of that place away; None where there is none."""
    rows = runner.run(
        f"DELETE FROM immutable_tags i WHERE {_AT} AND i.id = :id RETURNING {_RULE}",
        **place._asdict(),
        id=rule_id,
    )
    return Rule(*rows[0]) if rows else None
