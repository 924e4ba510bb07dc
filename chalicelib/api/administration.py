"""What administrators of the registry do: other people's accounts, and invitations to make one."""

from datetime import datetime

import msgspec

from chalicelib.api.accounts import Account, NewPassword, shown
from chalicelib.api.operations import (
    Call,
    Needs,
    Operation,
    Page,
    Paging,
    PagingByNumber,
    page,
)
from chalicelib.api.problems import Problem
from chalicelib.api.texts import AccountName, Email
from chalicelib.identity import emails, users
from chalicelib.mail import MailError
from chalicelib.metadata import accounts, registry_invitations


class NewAccountOfOther(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to make an account for, whose email counts as verified. Without a password they are
    sent a link to choose one."""

    name: AccountName
    email: Email
    password: NewPassword | None = None
    administrator: bool = False


class Invited(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to invite."""

    email: Email


class RegistryInvitation(msgspec.Struct):
    """An invitation to make an account, which holds until ``expires_at``."""

    id: int
    email: str
    created_at: datetime
    expires_at: datetime


def list_accounts(call: Call) -> Page[Account]:
    """All accounts, by name."""
    query = call.query
    found = accounts.listed(call.context.database, query.after, query.limit + 1)
    return page([shown(each) for each in found], query.limit, lambda each: each.name)


def create_account(call: Call) -> Account:
    """Make an account for somebody."""
    body, database = call.body, call.context.database
    made = users.create(
        database,
        body.name,
        body.email,
        body.password,
        by=call.subject.id,
        email_verified=True,
        administrator=body.administrator,
    )
    account = accounts.by_id(database, made)
    if account is None:
        raise Problem(409, "The account was deleted meanwhile.")
    if body.password is None:
        emails.welcome(call.context, account, by=call.subject.id)
    return shown(account)


def suspend_account(call: Call) -> None:
    """Let an account do nothing any more."""
    account = _account(call)
    if account.id == call.account:
        raise Problem(409, "This is your own account.")
    users.suspend(call.context.database, account.id, suspended=True, by=call.subject.id)


def resume_account(call: Call) -> None:
    """Let an account act again."""
    users.suspend(call.context.database, _account(call).id, suspended=False, by=call.subject.id)


def make_administrator(call: Call) -> None:
    """Let a user administer the registry."""
    _set_administrator(call, True)


def unmake_administrator(call: Call) -> None:
    """Let a user administer the registry no longer."""
    _set_administrator(call, False)


def invite_to_registry(call: Call) -> RegistryInvitation:
    """Send somebody an invitation to make an account, in place of earlier ones of theirs."""
    context = call.context
    if context.settings.sign_up == "closed":
        raise Problem(409, "Sign-up is closed: make the account yourself.")
    try:
        invitation = emails.send_invitation(
            context.database,
            context.settings,
            context.mailer,
            call.body.email,
            invited_by=call.account,
            by=call.subject.id,
        )
    except MailError as error:
        raise Problem(503, f"The mail could not be sent. {error}") from error
    return RegistryInvitation(*invitation)


def list_registry_invitations(call: Call) -> Page[RegistryInvitation]:
    """Invitations that hold."""
    query = call.query
    found = registry_invitations.listed(
        call.context.database, int(query.after or 0), query.limit + 1
    )
    return page([RegistryInvitation(*each) for each in found], query.limit, lambda each: each.id)


def revoke_registry_invitation(call: Call) -> None:
    """Void an invitation."""
    number = call.params["invitation"]
    if not _is_id(number) or not emails.revoke_invitation(
        call.context, int(number), by=call.subject.id
    ):
        raise Problem(404, "There is no such invitation.")


def _set_administrator(call: Call, administrator: bool) -> None:
    users.set_administrator(
        call.context.database,
        _account(call).id,
        administrator=administrator,
        by=call.subject.id,
    )


def _account(call: Call) -> accounts.Account:
    found = accounts.by_name(call.context.database, call.params["account"])
    if found is None:
        raise Problem(404, "There is no such account.")
    return found


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


OPERATIONS = (
    Operation("GET", "/admin/accounts", list_accounts, Needs.ADMINISTRATOR, "All accounts",
              answer=Page[Account], query=Paging),
    Operation("POST", "/admin/accounts", create_account, Needs.ADMINISTRATOR,
              "Make an account for somebody", body=NewAccountOfOther, answer=Account, status=201,
              problems=(409,)),
    Operation("POST", "/admin/accounts/{account}/suspension", suspend_account,
              Needs.ADMINISTRATOR, "Let an account do nothing any more", problems=(409,)),
    Operation("DELETE", "/admin/accounts/{account}/suspension", resume_account,
              Needs.ADMINISTRATOR, "Let an account act again"),
    Operation("PUT", "/admin/accounts/{account}/administrator", make_administrator,
              Needs.ADMINISTRATOR, "Let a user administer the registry", problems=(409,)),
    Operation("DELETE", "/admin/accounts/{account}/administrator", unmake_administrator,
              Needs.ADMINISTRATOR, "Let a user administer the registry no longer",
              problems=(409,)),
    Operation("GET", "/admin/invitations", list_registry_invitations, Needs.ADMINISTRATOR,
              "Invitations to the registry", answer=Page[RegistryInvitation],
              query=PagingByNumber),
    Operation("POST", "/admin/invitations", invite_to_registry, Needs.ADMINISTRATOR,
              "Invite somebody to the registry", body=Invited, answer=RegistryInvitation,
              status=201, problems=(409,)),
    Operation("DELETE", "/admin/invitations/{invitation}", revoke_registry_invitation,
              Needs.ADMINISTRATOR, "Void an invitation"),
)  # fmt: skip
