"""Teams: members of an organisation that are granted things together; their rows."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Team(NamedTuple):
    """A team."""

    id: int
    name: str
    created_at: Any


_COLUMNS = "id, name, created_at"


def add(runner: Runner, organisation_id: int, name: str) -> Team | None:
    """Make a team; None where the organisation has one of that name."""
    rows = runner.run(
        "INSERT INTO teams (organisation_id, name) VALUES (:organisation, :name)"
        f" ON CONFLICT (organisation_id, name) DO NOTHING RETURNING {_COLUMNS}",
        organisation=organisation_id,
        name=name,
    )
    return Team(*rows[0]) if rows else None


def by_name(runner: Runner, organisation_id: int, name: str) -> Team | None:
    """The team of that name."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM teams WHERE organisation_id = :organisation AND name = :name",
        organisation=organisation_id,
        name=name,
    )
    return Team(*rows[0]) if rows else None


def listed(runner: Runner, organisation_id: int, last: str, count: int) -> list[Team]:
    """At most ``count`` teams of an organisation, by name, after ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM teams WHERE organisation_id = :organisation AND name > :last"
        " ORDER BY name LIMIT :count",
        organisation=organisation_id,
        last=last,
        count=count,
    )
    return [Team(*row) for row in rows]


def rename(runner: Runner, team_id: int, name: str) -> Team | None:
    """Give a team another name. One that another team has makes this a unique violation; None
    where the team is no longer there."""
    rows = runner.run(
        f"UPDATE teams SET name = :name WHERE id = :id RETURNING {_COLUMNS}", name=name, id=team_id
    )
    return Team(*rows[0]) if rows else None


def delete(runner: Runner, team_id: int) -> bool:
    """Delete a team, and what was granted to it; False where it is no longer there."""
    return bool(runner.run("DELETE FROM teams WHERE id = :id RETURNING 1", id=team_id))


def members(runner: Runner, team_id: int, last: str, count: int) -> list[str]:
    """At most ``count`` names of a team's members, in order, after ``last``."""
    rows = runner.run(
        "SELECT a.name FROM team_members t JOIN accounts a ON a.id = t.user_id"
        " WHERE t.team_id = :team AND a.name > :last ORDER BY a.name LIMIT :count",
        team=team_id,
        last=last,
        count=count,
    )
    return [name for (name,) in rows]


def add_member(runner: Runner, team_id: int, user_id: int) -> bool:
    """Take a member of the organisation into its team; False where they are in it already, or no
    member of the organisation."""
    return bool(
        runner.run(
            "INSERT INTO team_members (team_id, organisation_id, user_id)"
            " SELECT t.id, t.organisation_id, m.user_id FROM teams t"
            " JOIN members m ON m.organisation_id = t.organisation_id"
            " WHERE t.id = :team AND m.user_id = :user"
            " ON CONFLICT DO NOTHING RETURNING 1",
            team=team_id,
            user=user_id,
        )
    )


def remove_member(runner: Runner, team_id: int, user_id: int) -> bool:
    """Take a user out of a team; False where they are not in it."""
    return bool(
        runner.run(
            "DELETE FROM team_members WHERE team_id = :team AND user_id = :user RETURNING 1",
            team=team_id,
            user=user_id,
        )
    )
