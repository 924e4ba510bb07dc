"""Invitations to organisations: what an owner sends, and what one was sent."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, PagingByNumber, page
from chalicelib.api.organisations import (
    OwnOrganisation,
    check_person,
    check_verified,
    organisation_id,
)
from chalicelib.api.problems import Problem, invalid
from chalicelib.api.texts import Email
from chalicelib.identity import invitations, letters
from chalicelib.metadata import invitations as rows
from chalicelib.metadata.organisations import Role

_DIGITS = 18  # fits into 64 bits
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]


class NewInvitation(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to invite, and as what."""

    email: Email
    role: Role = "member"


class Invitation(msgspec.Struct):
    """An invitation that holds until ``expires_at``."""

    id: int
    organisation: str
    email: str
    role: Role
    created_at: datetime
    expires_at: datetime


class ChosenInvitation(msgspec.Struct, omit_defaults=True):
    """One invitation: the ``id`` of one that went to one's verified email, or the ``secret`` of a
    link."""

    id: Id | msgspec.UnsetType = msgspec.UNSET
    secret: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


_Chosen = Annotated[
    ChosenInvitation,
    msgspec.Meta(extra_json_schema={"oneOf": [{"required": ["id"]}, {"required": ["secret"]}]}),
]


def invite(call: Call) -> Invitation:
    """Invite the person of an email, in place of earlier invitations of theirs."""
    organisation = organisation_id(call)
    if call.body.role == "owner":
        check_person(call)
    context = call.context
    call.access.limits.mail(call.request.client, call.body.email)
    invitation, message = invitations.invite(
        context.database,
        letters.base_url(context.settings),
        organisation,
        call.body.email,
        call.body.role,
        invited_by=call.account,
        by=call.subject.id,
    )
    context.afterwards.do(lambda: context.mailer.send(message))
    return Invitation(*invitation)


def list_invitations(call: Call) -> Page[Invitation]:
    """An organisation's open invitations, to its owners."""
    found = rows.of_organisation(
        call.context.database, organisation_id(call), _after(call), call.query.limit + 1
    )
    return _page(call, found)


def revoke_invitation(call: Call) -> None:
    """Void an invitation."""
    number = call.params["invitation"]
    if not _is_id(number) or not invitations.revoke(
        call.context.database, organisation_id(call), int(number), by=call.subject.id
    ):
        raise _none()


def list_own_invitations(call: Call) -> Page[Invitation]:
    """The open invitations that went to one's verified email."""
    found = rows.of_user(call.context.database, call.account, _after(call), call.query.limit + 1)
    return _page(call, found)


def accept_invitation(call: Call) -> OwnOrganisation:
    """Accept an invitation."""
    check_verified(call)
    number, secret = _chosen(call)
    taken = invitations.accept(
        call.context.database, call.account, number, secret, by=call.subject.id
    )
    if taken is None:
        raise _none()
    return OwnOrganisation(taken.organisation, taken.role)


def decline_invitation(call: Call) -> None:
    """Decline an invitation."""
    number, secret = _chosen(call)
    if not invitations.decline(
        call.context.database, call.account, number, secret, by=call.subject.id
    ):
        raise _none()


def _chosen(call: Call) -> tuple[int | None, str | None]:
    """The id or the secret that chooses an invitation."""
    number = None if call.body.id is msgspec.UNSET else call.body.id
    secret = None if call.body.secret is msgspec.UNSET else call.body.secret
    if (number is None) == (secret is None):
        raise invalid("Send an id or a secret.")
    return number, secret


def _after(call: Call) -> int:
    return int(call.query.after or 0)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _page(call: Call, found: list[rows.Invitation]) -> Page[Invitation]:
    items = [Invitation(*each) for each in found]
    return page(items, call.query.limit, lambda each: each.id)


def _none() -> Problem:
    return Problem(404, "There is no such invitation, or it no longer holds.")


_ALL = "/organisations/{account}/invitations"
OPERATIONS = (
    Operation("POST", _ALL, invite, Needs.ACCOUNT_ADMIN, "Invite the person of an email",
              body=NewInvitation, answer=Invitation, status=201, problems=(409,)),
    Operation("GET", _ALL, list_invitations, Needs.ACCOUNT_ADMIN,
              "An organisation's open invitations", query=PagingByNumber, answer=Page[Invitation]),
    Operation("DELETE", f"{_ALL}/{{invitation}}", revoke_invitation, Needs.ACCOUNT_ADMIN,
              "Void an invitation"),
    Operation("GET", "/organisation-invitations", list_own_invitations, Needs.PERSON,
              "What one is invited to", query=PagingByNumber, answer=Page[Invitation]),
    Operation("POST", "/organisation-invitations/accept", accept_invitation, Needs.PERSON,
              "Accept an invitation", body=_Chosen, answer=OwnOrganisation,
              problems=(404,)),
    Operation("POST", "/organisation-invitations/decline", decline_invitation, Needs.PERSON,
              "Decline an invitation", body=_Chosen, problems=(404,)),
)  # fmt: skip
