"""What was chosen of resolvers: for a repository, else for an account, else for all. Triggers keep
it with each repository (``repositories.resolvers``), and have what is there looked at again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.grants import Place

ALL = Place()
"""The place of what was chosen for all."""


class Choice(NamedTuple):
    """Names of resolvers, none where images stay here alone. ``insisted``: private images go there
    too."""

    resolvers: list[str]
    insisted: bool
    chosen_at: Any


class Holding(NamedTuple):
    """What holds for a repository. ``chosen_for`` is ``repository``, ``account`` or ``all``, and
    None where nothing was chosen."""

    resolvers: list[str]
    insisted: bool
    public: bool
    chosen_for: str | None


_AT = (
    "c.repository_id IS NOT DISTINCT FROM CAST(:repository AS bigint)"
    " AND c.account_id IS NOT DISTINCT FROM CAST(:namespace AS bigint)"
)


def put(
    runner: Runner, place: Place, resolvers: Sequence[str], insisted: bool, chosen_by: str
) -> Choice:
    """Choose resolvers for a place, instead of those that were chosen before."""
    # The lock that the triggers take: of two choices at once, the second finds the first.
    runner.run("SELECT pg_advisory_xact_lock(hashtext('resolver_choices'))")
    about = {
        "resolvers": list(resolvers),
        "insisted": insisted,
        "by": chosen_by,
        **place._asdict(),
    }
    made = runner.run(
        "UPDATE resolver_choices c SET resolvers = CAST(:resolvers AS text[]),"
        " insisted = :insisted, chosen_by = :by, chosen_at = now()"
        f" WHERE {_AT} RETURNING resolvers, insisted, chosen_at",
        **about,
    )
    if not made:
        made = runner.run(
            "INSERT INTO resolver_choices"
            " (repository_id, account_id, resolvers, insisted, chosen_by)"
            " VALUES (:repository, :namespace, CAST(:resolvers AS text[]), :insisted, :by)"
            " RETURNING resolvers, insisted, chosen_at",
            **about,
        )
    return Choice(*made[0])


def find(runner: Runner, place: Place) -> Choice | None:
    """What was chosen for a place itself."""
    rows = runner.run(
        f"SELECT resolvers, insisted, chosen_at FROM resolver_choices c WHERE {_AT}",
        **place._asdict(),
    )
    return Choice(*rows[0]) if rows else None


def remove(runner: Runner, place: Place) -> bool:
    """Choose nothing for a place, so that what was chosen above it holds; False where nothing
    was."""
    return bool(
        runner.run(
            f"DELETE FROM resolver_choices c WHERE {_AT} RETURNING 1",
            **place._asdict(),
        )
    )


def holding(runner: Runner, repository_id: int) -> Holding | None:
    """What holds for a repository; None where there is none."""
    rows = runner.run(
        "SELECT r.resolvers, r.insisted, r.public, CASE WHEN c.id IS NULL THEN NULL"
        " WHEN c.repository_id IS NOT NULL THEN 'repository'"
        " WHEN c.account_id IS NOT NULL THEN 'account' ELSE 'all' END"
        " FROM repositories r CROSS JOIN LATERAL choice_for(r.id, r.name) c WHERE r.id = :id",
        id=repository_id,
    )
    return Holding(*rows[0]) if rows else None
