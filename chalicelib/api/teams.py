"""Teams: members of an organisation that are granted things together."""

from datetime import datetime

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.organisations import member_id, no_member, organisation_id
from chalicelib.api.problems import Problem
from chalicelib.api.texts import AccountName
from chalicelib.identity import organisations
from chalicelib.metadata import teams


class NewTeam(msgspec.Struct, forbid_unknown_fields=True):
    """A team to be made, or a team's new name."""

    name: AccountName


class Team(msgspec.Struct):
    """A team. In a list of grants it is called ORGANISATION:NAME."""

    name: str
    created_at: datetime


class TeamMember(msgspec.Struct):
    """A member of a team."""

    name: str


def create_team(call: Call) -> Team:
    """Make a team."""
    team = organisations.create_team(
        call.context.database, organisation_id(call), call.body.name, by=call.subject.id
    )
    return Team(team.name, team.created_at)


def list_teams(call: Call) -> Page[Team]:
    """An organisation's teams."""
    limit = call.query.limit
    found = teams.listed(call.context.database, organisation_id(call), call.query.after, limit + 1)
    return page([Team(each.name, each.created_at) for each in found], limit, lambda each: each.name)


def show_team(call: Call) -> Team:
    """A team."""
    team = _team(call)
    return Team(team.name, team.created_at)


def rename_team(call: Call) -> Team:
    """Give a team another name."""
    team = organisations.rename_team(
        call.context.database,
        organisation_id(call),
        _team(call).id,
        call.body.name,
        by=call.subject.id,
    )
    if team is None:
        raise _none()
    return Team(team.name, team.created_at)


def delete_team(call: Call) -> None:
    """Delete a team, and what was granted to it."""
    if not organisations.delete_team(
        call.context.database, organisation_id(call), _team(call).id, by=call.subject.id
    ):
        raise _none()


def list_team_members(call: Call) -> Page[TeamMember]:
    """A team's members."""
    limit = call.query.limit
    found = teams.members(call.context.database, _team(call).id, call.query.after, limit + 1)
    return page([TeamMember(name) for name in found], limit, lambda each: each.name)


def add_team_member(call: Call) -> None:
    """Take a member of the organisation into a team."""
    organisations.add_to_team(
        call.context.database,
        organisation_id(call),
        _team(call).id,
        member_id(call),
        by=call.subject.id,
    )


def remove_team_member(call: Call) -> None:
    """Take a member out of a team."""
    if not organisations.remove_from_team(
        call.context.database,
        organisation_id(call),
        _team(call).id,
        member_id(call),
        by=call.subject.id,
    ):
        raise no_member()


def _team(call: Call) -> teams.Team:
    found = teams.by_name(call.context.database, organisation_id(call), call.params["team"])
    if found is None:
        raise _none()
    return found


def _none() -> Problem:
    return Problem(404, "There is no such team.")


_ALL = "/organisations/{account}/teams"
_ONE = f"{_ALL}/{{team}}"
OPERATIONS = (
    Operation("POST", _ALL, create_team, Needs.ACCOUNT_ADMIN, "Make a team",
              body=NewTeam, answer=Team, status=201, problems=(409,)),
    Operation("GET", _ALL, list_teams, Needs.ACCOUNT_READ, "An organisation's teams",
              query=Paging, answer=Page[Team]),
    Operation("GET", _ONE, show_team, Needs.ACCOUNT_READ, "A team", answer=Team),
    Operation("PATCH", _ONE, rename_team, Needs.ACCOUNT_ADMIN, "Give a team another name",
              body=NewTeam, answer=Team, problems=(409,)),
    Operation("DELETE", _ONE, delete_team, Needs.ACCOUNT_ADMIN, "Delete a team"),
    Operation("GET", f"{_ONE}/members", list_team_members, Needs.ACCOUNT_READ,
              "A team's members", query=Paging, answer=Page[TeamMember]),
    Operation("PUT", f"{_ONE}/members/{{member}}", add_team_member, Needs.ACCOUNT_ADMIN,
              "Take a member of the organisation into a team"),
    Operation("DELETE", f"{_ONE}/members/{{member}}", remove_team_member, Needs.ACCOUNT_ADMIN,
              "Take a member out of a team"),
)  # fmt: skip
