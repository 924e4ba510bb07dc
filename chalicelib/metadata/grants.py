"""Grants: what a user, a robot or a team may do with one repository, or with all of a namespace."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Place(NamedTuple):
    """What a grant is for: the id of a repository, or of the account whose namespace it is."""

    repository: int | None = None
    namespace: int | None = None


class Grantee(NamedTuple):
    """Who has a grant: ``kind`` is ``user``, ``robot`` or ``team``; ``owner`` is whose robot or
    team it is."""

    kind: str
    id: int
    owner: int | None


class Grant(NamedTuple):
    """A grant as it is shown; ``grantee`` is the name of a user or a robot, or ORG:TEAM."""

    grantee: str
    kind: str
    role: str
    granted_at: Any


_AT = (
    "(g.repository_id = CAST(:repository AS bigint) OR g.namespace_id = CAST(:namespace AS bigint))"
)
_TO = "(g.account_id = CAST(:account AS bigint) OR g.team_id = CAST(:team AS bigint))"


def grantee(runner: Runner, name: str) -> Grantee | None:
    """Whom a name means: a user, a robot, or, as ORG:TEAM, a team."""
    organisation, colon, team = name.partition(":")
    if colon:
        rows = runner.run(
            "SELECT 'team', t.id, t.organisation_id FROM teams t"
            " JOIN accounts o ON o.id = t.organisation_id"
            " WHERE o.name = :organisation AND t.name = :team",
            organisation=organisation,
            team=team,
        )
    else:
        rows = runner.run(
            "SELECT CAST(kind AS text), id, owner_id FROM accounts"
            " WHERE name = :name AND kind <> 'organisation'",
            name=name,
        )
    return Grantee(*rows[0]) if rows else None


def put(runner: Runner, place: Place, to: Grantee, role: str) -> Any:
    """Give somebody a role (``read``, ``write``, ``maintain`` or ``admin``) in the place of what
    they had by a grant there; gives when they first had one."""
    rows = runner.run(
        "INSERT INTO grants (repository_id, namespace_id, account_id, team_id, role)"
        " VALUES (:repository, :namespace, :account, :team, :role)"
        " ON CONFLICT (coalesce(repository_id, 0), coalesce(namespace_id, 0),"
        " coalesce(account_id, 0), coalesce(team_id, 0))"
        " DO UPDATE SET role = excluded.role RETURNING granted_at",
        role=role,
        **place._asdict(),
        **_ids(to),
    )
    return rows[0][0]


def remove(runner: Runner, place: Place, to: Grantee) -> bool:
    """Take a grant away; False where there is none."""
    return bool(
        runner.run(
            f"DELETE FROM grants g WHERE {_AT} AND {_TO} RETURNING 1",
            **place._asdict(),
            **_ids(to),
        )
    )


def listed(runner: Runner, place: Place, last: str, count: int) -> list[Grant]:
    """At most ``count`` grants, in the order of the grantees' names, after ``last``."""
    rows = runner.run(
        "SELECT * FROM (SELECT coalesce(a.name, o.name || ':' || t.name) AS grantee,"
        " coalesce(CAST(a.kind AS text), 'team'), g.role, g.granted_at FROM grants g"
        " LEFT JOIN accounts a ON a.id = g.account_id LEFT JOIN teams t ON t.id = g.team_id"
        f" LEFT JOIN accounts o ON o.id = t.organisation_id WHERE {_AT}) named"
        ' WHERE grantee > :last ORDER BY grantee COLLATE "C" LIMIT :count',
        last=last,
        count=count,
        **place._asdict(),
    )
    return [Grant(*row) for row in rows]


def _ids(to: Grantee) -> dict[str, int | None]:
    team = to.kind == "team"
    return {"account": None if team else to.id, "team": to.id if team else None}
