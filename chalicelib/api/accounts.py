"""Accounts of people: making one, what the world sees of it, and what its owner changes."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib.api.operations import Answer, Call, Needs, Operation
from chalicelib.api.problems import Problem, invalid
from chalicelib.api.sessions import expired_cookie, signed_in
from chalicelib.api.texts import AccountName, Email
from chalicelib.http import Unauthorized
from chalicelib.identity import emails, users
from chalicelib.metadata import accounts, permissions

Password = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
NewPassword = Annotated[str, msgspec.Meta(min_length=8, max_length=1024)]
Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class NewAccount(msgspec.Struct, forbid_unknown_fields=True):
    """Who wants an account; ``invitation`` is the secret of an invitation's link."""

    name: AccountName
    email: Email
    password: NewPassword
    invitation: Secret | None = None


class Account(msgspec.Struct):
    """An account. What is not for everyone is seen by itself and by administrators, and absent for
    others."""

    name: str
    kind: str
    created_at: datetime
    email: str | msgspec.UnsetType | None = msgspec.UNSET
    email_verified: bool | msgspec.UnsetType = msgspec.UNSET
    administrator: bool | msgspec.UnsetType = msgspec.UNSET
    suspended: bool | msgspec.UnsetType = msgspec.UNSET
    new_repositories_public: bool | msgspec.UnsetType | None = msgspec.UNSET


class AccountChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What is to change; ``new_repositories_public`` null: as the registry's settings say."""

    new_repositories_public: bool | msgspec.UnsetType | None = msgspec.UNSET


class NewPasswordOf(msgspec.Struct, forbid_unknown_fields=True):
    """The password as it is, and as it is to be."""

    current: Password
    new: NewPassword


class NewEmail(msgspec.Struct, forbid_unknown_fields=True):
    """Another email, and the password."""

    email: Email
    password: Password


class Confirmation(msgspec.Struct, forbid_unknown_fields=True):
    """The password, for what cannot be undone."""

    password: Password


class OneTimeSecret(msgspec.Struct, forbid_unknown_fields=True):
    """The secret of a link."""

    secret: Secret


class ForgottenPassword(msgspec.Struct, forbid_unknown_fields=True):
    """The email of an account whose password is forgotten."""

    email: Email


class ResetPassword(msgspec.Struct, forbid_unknown_fields=True):
    """The secret of a link, and the password that is to be."""

    secret: Secret
    password: NewPassword


class FirstAdministrator(msgspec.Struct, forbid_unknown_fields=True):
    """The secret of the link that the registry printed, and who is to be the administrator."""

    secret: Secret
    name: AccountName
    email: Email
    password: NewPassword


def sign_up(call: Call) -> Account:
    """Make an account. Whether the email has one already makes no difference that can be seen."""
    body, context = call.body, call.context
    allowed = context.settings.sign_up
    if allowed == "closed":
        raise Problem(403, "Accounts are made by the registry's administrators alone.")
    if allowed == "invitation" and body.invitation is None:
        raise Problem(403, "Accounts are made by invitation: open the link in its mail.")
    call.access.limits.mail(call.request.client, users.checked_email(body.email))
    if body.invitation is None:
        made = users.sign_up(context.database, body.name, body.email, body.password)
        verified = False
    else:
        made, verified = users.accept_invitation(
            context.database, body.invitation, body.name, body.email, body.password
        )
    account = _of(call, made)
    if not verified:
        context.afterwards.do(lambda: emails.send_verification(context, account, body.email))
    return shown(account)


def show_account(call: Call) -> Account:
    """What may be seen of an account."""
    database, subject = call.context.database, call.subject
    found = accounts.by_name(database, call.params["account"])
    if found is None or found.kind == "robot":
        raise Problem(404, "There is no such account.")
    if subject.account is None or subject.credential:
        return public(found)
    if subject.account == found.id or permissions.is_administrator(database, subject.account):
        return shown(found)
    return public(found)


def change_account(call: Call) -> Account:
    """Change one's settings."""
    public = call.body.new_repositories_public
    if public is not msgspec.UNSET:
        users.set_new_repositories_public(
            call.context.database, call.account, public, by=call.subject.id
        )
    return shown(_of(call, call.account))


def change_password(call: Call) -> Answer:
    """Choose another password. Other browsers are signed out."""
    account = _confirmed(call, call.body.current, "current")
    users.change_password(call.context.database, account.id, call.body.new, by=call.subject.id)
    emails.tell(call.context, account, "Its password is another one now.")
    headers = signed_in(call, account.id, "password").headers if call.session else ()
    return Answer(None, headers)


def change_email(call: Call) -> None:
    """Have another email. It holds when the link in the mail is opened that goes there."""
    account = _confirmed(call, call.body.password, "password")
    call.access.limits.mail(call.request.client, users.checked_email(call.body.email))
    emails.claim(call.context, account, call.body.email)


def verify_email(call: Call) -> None:
    """Show by the secret of a link that one reads the mail of an address."""
    emails.verify(call.context, call.body.secret)


def resend_verification(call: Call) -> None:
    """Have the link to verify one's email sent again."""
    account, context = _of(call, call.account), call.context
    email = account.email
    if email is None or account.email_verified:
        raise Problem(409, "There is no email to be verified.")
    call.access.limits.mail(call.request.client, email)
    context.afterwards.do(lambda: emails.send_verification(context, account, email))


def ask_for_reset(call: Call) -> None:
    """Have a link sent to choose another password, if there is an account of that email."""
    call.access.limits.mail(call.request.client, users.checked_email(call.body.email))
    emails.ask_for_reset(call.context, call.body.email)


def complete_reset(call: Call) -> None:
    """Choose another password by the secret of a link. All browsers are signed out."""
    account = emails.reset_password(call.context, call.body.secret, call.body.password)
    call.access.trust(call.request.client, account.id)


def delete_account(call: Call) -> Answer:
    """Delete one's account for ever. Nobody gets its name again."""
    account = _confirmed(call, call.body.password, "password")
    users.delete(call.context.database, account.id, by=call.subject.id)
    return Answer(None, [expired_cookie(call)])


def create_first_administrator(call: Call) -> Account:
    """Become the first administrator, by the secret of the link that the registry printed."""
    body = call.body
    made = users.create_first_administrator(
        call.context.database, body.name, body.email, body.password, secret=body.secret
    )
    if made is None:
        raise Problem(409, "There is an administrator already.")
    return shown(_of(call, made))


def public(account: accounts.Account) -> Account:
    """What everyone may see of an account."""
    return Account(account.name, account.kind, account.created_at)


def shown(account: accounts.Account) -> Account:
    """What the account itself may see, and administrators."""
    return Account(
        account.name,
        account.kind,
        account.created_at,
        account.email,
        account.email_verified,
        account.administrator,
        account.suspended,
        account.new_repositories_public,
    )


def _of(call: Call, account_id: int) -> accounts.Account:
    found = accounts.by_id(call.context.database, account_id)
    if found is None:
        raise call.unauthorized()
    return found


def _confirmed(call: Call, password: str, field: str) -> accounts.Account:
    """The caller's account, after its password was given once more. A wrong one counts as a
    sign-in that failed."""
    account = _of(call, call.account)
    try:
        call.access.authenticator.person(account.name, password, call.request.client)
    except Unauthorized:
        sentence = "The password is wrong; who has none gets one by a reset."
        raise invalid(sentence, field, 403) from None
    return account


OPERATIONS = (
    Operation("POST", "/accounts", sign_up, Needs.NOTHING, "Make an account",
              body=NewAccount, answer=Account, status=201, problems=(403, 409)),
    Operation("GET", "/accounts/{account}", show_account, Needs.NOTHING, "An account",
              answer=Account, problems=(401,)),
    Operation("PATCH", "/account", change_account, Needs.PERSON, "Change one's settings",
              body=AccountChanges, answer=Account),
    Operation("DELETE", "/account", delete_account, Needs.PERSON, "Delete one's account",
              body=Confirmation, problems=(409,)),
    Operation("POST", "/account/password", change_password, Needs.PERSON,
              "Choose another password", body=NewPasswordOf),
    Operation("POST", "/account/email", change_email, Needs.PERSON, "Have another email",
              body=NewEmail, status=202),
    Operation("POST", "/email-verifications", verify_email, Needs.NOTHING,
              "Verify an email by a link's secret", body=OneTimeSecret, problems=(409,)),
    Operation("POST", "/email-verifications/resend", resend_verification, Needs.PERSON,
              "Have the link sent again", status=202, problems=(409,)),
    Operation("POST", "/password-resets", ask_for_reset, Needs.NOTHING,
              "Ask for a link to choose another password", body=ForgottenPassword, status=202),
    Operation("POST", "/password-resets/complete", complete_reset, Needs.NOTHING,
              "Choose another password by a link's secret", body=ResetPassword),
    Operation("POST", "/first-administrator", create_first_administrator, Needs.NOTHING,
              "Become the first administrator by a link's secret",
              body=FirstAdministrator, answer=Account, status=201, problems=(409,)),
)  # fmt: skip
