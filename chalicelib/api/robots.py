"""Robots: accounts of machines, each of a user or an organisation."""

from datetime import datetime

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.organisations import check_verified
from chalicelib.api.problems import Problem
from chalicelib.api.texts import AccountName
from chalicelib.identity import robots
from chalicelib.metadata import robots as rows
from chalicelib.metadata.robots import Role


class NewRobot(msgspec.Struct, forbid_unknown_fields=True):
    """A robot to be made: the part of its name after OWNER+, and its role in all of the owner's
    namespace; without one it may do what it is granted elsewhere."""

    name: AccountName
    role: Role | None = None


class Robot(msgspec.Struct):
    """A robot, called OWNER+NAME, and its role in all of its owner's namespace. Its tokens are made
    as those of other accounts are."""

    name: str
    role: Role | None
    created_at: datetime


def create_robot(call: Call) -> Robot:
    """Make a robot."""
    owner_id, owner = owner_of_namespace(call), call.params["account"]
    # A robot has no email that could be verified, and acts as if it were.
    check_verified(call)
    robots.create(
        call.context.database,
        owner_id,
        owner,
        call.body.name,
        call.body.role,
        by=call.subject.id,
    )
    return _shown(_robot(call, f"{owner}+{call.body.name}"))


def list_robots(call: Call) -> Page[Robot]:
    """An account's robots."""
    limit = call.query.limit
    found = rows.listed(
        call.context.database, owner_of_namespace(call), call.query.after, limit + 1
    )
    return page([_shown(each) for each in found], limit, lambda each: each.name)


def delete_robot(call: Call) -> None:
    """Delete a robot. Its tokens are void at once."""
    robot = _robot(call, call.params["robot"])
    robots.delete(call.context.database, owner_of_namespace(call), robot.id, by=call.subject.id)


def owner_of_namespace(call: Call) -> int:
    """The id of the path's account, which is a user or an organisation: a robot owns nothing."""
    if call.standing is None or call.standing.kind == "robot":
        raise Problem(404, "A robot has no namespace.")
    return call.standing.account


def _robot(call: Call, name: str) -> rows.Robot:
    found = rows.by_name(call.context.database, owner_of_namespace(call), name)
    if found is None:
        raise Problem(404, "There is no such robot.")
    return found


def _shown(robot: rows.Robot) -> Robot:
    return Robot(robot.name, robot.role, robot.created_at)


_ALL = "/accounts/{account}/robots"
OPERATIONS = (
    Operation("POST", _ALL, create_robot, Needs.ACCOUNT_ADMIN, "Make a robot",
              body=NewRobot, answer=Robot, status=201, problems=(409,)),
    Operation("GET", _ALL, list_robots, Needs.ACCOUNT_READ, "An account's robots",
              query=Paging, answer=Page[Robot]),
    Operation("DELETE", f"{_ALL}/{{robot}}", delete_robot, Needs.ACCOUNT_ADMIN, "Delete a robot"),
)  # fmt: skip
