"""Organisations and their members."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.problems import Problem
from chalicelib.api.texts import AccountName
from chalicelib.identity import organisations, users
from chalicelib.metadata import accounts
from chalicelib.metadata import organisations as rows
from chalicelib.metadata.organisations import Role


class NewOrganisation(msgspec.Struct, forbid_unknown_fields=True):
    """An organisation to be made."""

    name: AccountName


class Organisation(msgspec.Struct):
    """An organisation. ``member_role`` is what a member may do with all of its repositories;
    ``new_repositories_public``: null stands for what the registry's settings say."""

    name: str
    member_role: str
    new_repositories_public: bool | None
    created_at: datetime


class OrganisationSettings(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What to change; what is left out stays."""

    member_role: Literal["none", "read", "write", "maintain", "admin"] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    new_repositories_public: bool | msgspec.UnsetType | None = msgspec.UNSET


class OwnOrganisation(msgspec.Struct):
    """An organisation that one belongs to."""

    name: str
    role: Role


class Member(msgspec.Struct):
    """Somebody who belongs to an organisation."""

    name: str
    role: Role
    joined_at: datetime


class NewRole(msgspec.Struct, forbid_unknown_fields=True):
    """What a member is to be."""

    role: Role


class Transfer(msgspec.Struct, forbid_unknown_fields=True):
    """The member who is to be an owner in one's own place."""

    to: AccountName


def create_organisation(call: Call) -> Organisation:
    """Make an organisation, and own it."""
    check_verified(call)
    organisations.create(call.context.database, call.body.name, call.account, by=call.subject.id)
    return _shown(call, call.body.name)


def list_organisations(call: Call) -> Page[OwnOrganisation]:
    """The organisations that one belongs to."""
    limit = call.query.limit
    found = rows.of_user(call.context.database, call.account, call.query.after, limit + 1)
    items = [OwnOrganisation(*each) for each in found]
    return page(items, limit, lambda each: each.name)


def show_organisation(call: Call) -> Organisation:
    """An organisation, to its members."""
    organisation_id(call)
    return _shown(call, call.params["account"])


def change_organisation(call: Call) -> Organisation:
    """Change an organisation's settings."""
    changes: dict[str, Any] = {
        name: value
        for name in ("member_role", "new_repositories_public")
        if (value := getattr(call.body, name)) is not msgspec.UNSET
    }
    organisations.change(call.context.database, organisation_id(call), changes, by=call.subject.id)
    return _shown(call, call.params["account"])


def delete_organisation(call: Call) -> None:
    """Delete an organisation for ever. Nobody gets its name again."""
    organisation = organisation_id(call)
    check_person(call)
    users.delete(call.context.database, organisation, by=call.subject.id)


def list_members(call: Call) -> Page[Member]:
    """An organisation's members, to each of them."""
    limit = call.query.limit
    found = rows.members(call.context.database, organisation_id(call), call.query.after, limit + 1)
    return page([Member(*each) for each in found], limit, lambda each: each.name)


def change_member(call: Call) -> None:
    """Make a member an owner, or an owner a member."""
    organisation, member = organisation_id(call), member_id(call)
    if call.body.role == "owner":
        check_person(call)
    if not organisations.change_role(
        call.context.database, organisation, member, call.body.role, by=call.subject.id
    ):
        raise no_member()


def remove_member(call: Call) -> None:
    """Take a member out of an organisation: out of its teams, and of what was granted to them."""
    organisation, member = organisation_id(call), member_id(call)
    if not organisations.remove_member(
        call.context.database, organisation, member, by=call.subject.id
    ):
        raise no_member()


def leave_organisation(call: Call) -> None:
    """Leave an organisation."""
    found = accounts.by_name(call.context.database, call.params["account"])
    if found is None or found.kind != "organisation":
        raise _none()
    if not organisations.remove_member(
        call.context.database, found.id, call.account, by=call.subject.id
    ):
        raise _none()


def transfer_organisation(call: Call) -> None:
    """Make another member an owner in one's own place, and become a member."""
    organisation = organisation_id(call)
    check_person(call)
    to = rows.member_id(call.context.database, organisation, call.body.to)
    if to is None:
        raise users.Refused("This user is no member.", "to")
    organisations.transfer(
        call.context.database, organisation, call.account, to, by=call.subject.id
    )


def organisation_id(call: Call) -> int:
    """The id of the path's account, which is an organisation, or else there is none."""
    if call.standing is None or call.standing.kind != "organisation":
        raise _none()
    return call.standing.account


def member_id(call: Call) -> int:
    """The id of the path's ``member`` of the path's organisation."""
    found = rows.member_id(call.context.database, organisation_id(call), call.params["member"])
    if found is None:
        raise no_member()
    return found


def check_person(call: Call) -> None:
    """Raise a problem for access tokens: one that leaks makes nobody an owner, and deletes
    nothing for ever."""
    if call.subject.credential:
        raise Problem(403, "An access token cannot do this: sign in.")


def check_verified(call: Call) -> None:
    """Raise a problem where a user has not shown that their email is theirs."""
    account = accounts.by_id(call.context.database, call.account)
    if account is None or not account.email_verified:
        raise Problem(403, "Verify your email first.")


def no_member() -> Problem:
    """That somebody is no member."""
    return Problem(404, "There is no such member.")


def _none() -> Problem:
    return Problem(404, "There is no such organisation, or it is not yours to see.")


def _shown(call: Call, name: str) -> Organisation:
    found = accounts.by_name(call.context.database, name)
    if found is None:
        raise _none()
    return Organisation(
        found.name, found.member_role, found.new_repositories_public, found.created_at
    )


_ONE = "/organisations/{account}"
OPERATIONS = (
    Operation("POST", "/organisations", create_organisation, Needs.PERSON,
              "Make an organisation", body=NewOrganisation, answer=Organisation, status=201,
              problems=(409,)),
    Operation("GET", "/organisations", list_organisations, Needs.PERSON,
              "The organisations that one belongs to", query=Paging, answer=Page[OwnOrganisation]),
    Operation("GET", _ONE, show_organisation, Needs.ACCOUNT_READ, "An organisation",
              answer=Organisation),
    Operation("PATCH", _ONE, change_organisation, Needs.ACCOUNT_ADMIN,
              "Change an organisation's settings", body=OrganisationSettings, answer=Organisation),
    Operation("DELETE", _ONE, delete_organisation, Needs.ACCOUNT_ADMIN,
              "Delete an organisation that has no repositories, for ever", problems=(409,)),
    Operation("POST", f"{_ONE}/transfer", transfer_organisation, Needs.ACCOUNT_ADMIN,
              "Make a member an owner in one's own place", body=Transfer),
    Operation("DELETE", f"{_ONE}/membership", leave_organisation, Needs.PERSON,
              "Leave an organisation", problems=(409,)),
    Operation("GET", f"{_ONE}/members", list_members, Needs.ACCOUNT_READ,
              "An organisation's members", query=Paging, answer=Page[Member]),
    Operation("PATCH", f"{_ONE}/members/{{member}}", change_member, Needs.ACCOUNT_ADMIN,
              "Make a member an owner, or an owner a member", body=NewRole, problems=(409,)),
    Operation("DELETE", f"{_ONE}/members/{{member}}", remove_member, Needs.ACCOUNT_ADMIN,
              "Take a member out of an organisation", problems=(409,)),
)  # fmt: skip
