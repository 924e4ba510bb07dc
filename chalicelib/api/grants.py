"""Grants over all of an account's namespace: the repositories there are, and will be."""

from datetime import datetime
from typing import Literal

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.problems import Problem
from chalicelib.api.robots import owner_of_namespace
from chalicelib.identity import grants
from chalicelib.metadata import grants as rows
from chalicelib.metadata.grants import Place
from chalicelib.metadata.robots import Role


class NewGrant(msgspec.Struct, forbid_unknown_fields=True):
    """The role to give."""

    role: Role


class Grant(msgspec.Struct):
    """What somebody may do: ``grantee`` is the name of a user, of a robot (OWNER+NAME) or of a team
    (ORGANISATION:NAME)."""

    grantee: str
    kind: Literal["user", "robot", "team"]
    role: Role
    granted_at: datetime


def list_grants(call: Call) -> Page[Grant]:
    """Who may do what in all of a namespace."""
    limit = call.query.limit
    place = Place(namespace=owner_of_namespace(call))
    found = rows.listed(call.context.database, place, call.query.after, limit + 1)
    return page([shown(each) for each in found], limit, lambda each: each.grantee)


def give_grant(call: Call) -> Grant:
    """Give a user, a robot or a team a role in all of a namespace."""
    namespace = owner_of_namespace(call)
    return give(call, Place(namespace=namespace), namespace)


def take_grant(call: Call) -> None:
    """Take a role in all of a namespace away."""
    namespace = owner_of_namespace(call)
    take(call, Place(namespace=namespace), namespace)


def give(call: Call, place: Place, namespace: int | None) -> Grant:
    """Give the path's grantee the role in the body, at a place in that namespace."""
    granted = grants.give(
        call.context.database,
        place,
        namespace,
        call.params["grantee"],
        call.body.role,
        by=call.subject.id,
    )
    if granted is None:
        raise Problem(404, "There is no such user, and no such robot or team of this account.")
    return shown(granted)


def take(call: Call, place: Place, namespace: int | None) -> None:
    """Take the role of the path's grantee away, at a place in that namespace."""
    if not grants.take(
        call.context.database, place, namespace, call.params["grantee"], by=call.subject.id
    ):
        raise Problem(404, "There is no such grant.")


def shown(grant: rows.Grant) -> Grant:
    """A grant as the API shows it."""
    return msgspec.convert(grant._asdict(), Grant)


_ALL = "/accounts/{account}/grants"
OPERATIONS = (
    Operation("GET", _ALL, list_grants, Needs.ACCOUNT_ADMIN,
              "Who may do what in all of a namespace", query=Paging, answer=Page[Grant]),
    Operation("PUT", f"{_ALL}/{{grantee}}", give_grant, Needs.ACCOUNT_ADMIN,
              "Give somebody a role in all of a namespace", body=NewGrant, answer=Grant),
    Operation("DELETE", f"{_ALL}/{{grantee}}", take_grant, Needs.ACCOUNT_ADMIN,
              "Take a role in all of a namespace away"),
)  # fmt: skip
