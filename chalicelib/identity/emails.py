"""Emails: how a person shows that one is theirs, and what they may do who have shown it.

What strangers ask for takes place in ``Context.afterwards``: neither an answer nor its time tells
which emails have accounts.
"""

import logging
from contextlib import suppress

from chalicelib.context import Context
from chalicelib.http import Unavailable
from chalicelib.identity import letters, users
from chalicelib.identity.users import RESET, VERIFICATION, Refused, checked_email
from chalicelib.mail import Mailer, MailError, Message
from chalicelib.metadata import accounts, audit, one_time, registry_invitations
from chalicelib.metadata.accounts import Account
from chalicelib.metadata.database import Database, Transaction, UniqueViolation
from chalicelib.metadata.registry_invitations import Invitation
from chalicelib.settings import DAY, HOUR, Settings

_log = logging.getLogger(__name__)

VERIFICATION_SECONDS = 3 * DAY
RESET_SECONDS = 2 * HOUR
WELCOME_SECONDS = 7 * DAY


def send_verification(context: Context, account: Account, email: str) -> None:
    """Have somebody show that an email is theirs, which the account gets then. Where another
    account has it, its owner is told instead."""
    owner = accounts.by_email(context.database, email)
    if owner is not None and owner.email_verified and owner.id != account.id:
        link = letters.base_url(context.settings) + "/account"
        _send(context, letters.taken(owner.email or email, owner.name, account.name, link))
        return

    def work(transaction: Transaction) -> str:
        one_time.drop(transaction, VERIFICATION, account.id)
        return one_time.put(
            transaction, VERIFICATION, VERIFICATION_SECONDS, account.id, email=email
        )

    secret = context.database.transaction(work)
    link = letters.link(context.settings, "verify", secret)
    _send(context, letters.verification(email, account.name, link))


def verify(context: Context, secret: str) -> None:
    """Give an account the email that the secret was sent to. Raises ``Refused``."""

    def work(transaction: Transaction) -> tuple[Account, str]:
        held = one_time.take(transaction, VERIFICATION, secret)
        account = accounts.by_id(transaction, held.account_id or 0) if held else None
        if held is None or account is None:
            raise Refused("This link was used already, or is too old.", "secret")
        accounts.verify_email(transaction, account.id, held.data["email"])
        one_time.drop(transaction, RESET, account.id)
        audit.add(transaction, "user.email", f"account:{account.id}", account=account.id)
        return account, held.data["email"]

    try:
        before, email = context.database.transaction(work)
    except UniqueViolation:
        raise users.email_taken() from None
    if before.email and before.email_verified and before.email.lower() != email.lower():
        tell(context, before, "Its email is another one now, and no longer this.")


def claim(context: Context, account: Account, email: str) -> None:
    """Have an account get another email once it is verified. Raises ``Refused``."""
    checked_email(email)
    accounts.claim_email(context.database, account.id, email)
    context.afterwards.do(lambda: send_verification(context, account, email))


def ask_for_reset(context: Context, email: str) -> None:
    """Send a link to choose another password, where the email has an account; to one that only
    claims it, the link to verify it first. Raises ``Refused`` for what is no email."""
    checked_email(email)

    def work() -> None:
        account = accounts.by_email(context.database, email)
        if account is None or account.suspended or account.email is None:
            return
        if not account.email_verified:
            send_verification(context, account, account.email)
            return
        secret = _reset_secret(context, account.id, RESET_SECONDS, f"account:{account.id}")
        link = letters.link(context.settings, "reset", secret)
        _send(context, letters.reset(account.email, account.name, link))

    context.afterwards.do(work)


def reset_password(context: Context, secret: str, password: str) -> Account:
    """Give the account another password that the secret was sent to; gives the account. Raises
    ``Refused``."""
    database = context.database
    refused = Refused("This link was used already, or is too old.", "secret")
    if not one_time.holds(database, RESET, secret):
        raise refused
    password_hash = users.hashed(password)

    def work(transaction: Transaction) -> Account:
        held = one_time.take(transaction, RESET, secret)
        account = accounts.by_id(transaction, held.account_id or 0) if held else None
        if account is None:
            raise refused
        by = f"account:{account.id}"
        users.set_password(transaction, account.id, password_hash, by=by)
        return account

    account = database.transaction(work)
    tell(context, account, "Its password is another one now.")
    return account


def welcome(context: Context, account: Account, *, by: str) -> None:
    """Have somebody choose a password for an account that was made for them."""
    secret = _reset_secret(context, account.id, WELCOME_SECONDS, by)
    link = letters.link(context.settings, "reset", secret)
    email = account.email or ""
    context.afterwards.do(lambda: _send(context, letters.welcome(email, account.name, link)))


def invite(
    database: Database, email: str, *, invited_by: int | None, by: str
) -> tuple[Invitation, str]:
    """Let the person of an email make an account, in place of earlier invitations of theirs; gives
    the secret of the link too. Raises ``Refused``."""
    checked_email(email)
    owner = accounts.by_email(database, email)
    if owner is not None and owner.email_verified:
        raise users.email_taken()

    def work(transaction: Transaction) -> tuple[Invitation, str]:
        invitation, secret = registry_invitations.add(transaction, email, invited_by)
        audit.add(transaction, "registry-invitation.create", by, invitation=invitation.id)
        return invitation, secret

    return database.transaction(work)


def send_invitation(
    database: Database,
    settings: Settings,
    mailer: Mailer,
    email: str,
    *,
    invited_by: int | None,
    by: str,
) -> Invitation:
    """Invite somebody as ``invite`` does, and mail them the link. Raises ``Refused``, and
    ``MailError`` where it could not be sent."""
    invitation, secret = invite(database, email, invited_by=invited_by, by=by)
    mailer.send(letters.invitation(invitation.email, letters.link(settings, "invitation", secret)))
    return invitation


def revoke_invitation(context: Context, invitation_id: int, *, by: str) -> bool:
    """Void an invitation to the registry; False where there is none."""

    def work(transaction: Transaction) -> bool:
        if not registry_invitations.revoke(transaction, invitation_id):
            return False
        audit.add(transaction, "registry-invitation.revoke", by, invitation=invitation_id)
        return True

    return context.database.transaction(work)


def tell(context: Context, account: Account, what: str) -> None:
    """Write to the owner of an account, where the email is known to be theirs, that it was
    changed."""
    email = account.email
    if email and account.email_verified:
        with suppress(Unavailable):  # the change was made
            context.afterwards.do(
                lambda: _send(context, letters.changed(email, account.name, what))
            )


def _reset_secret(context: Context, account_id: int, seconds: int, by: str) -> str:
    def work(transaction: Transaction) -> str:
        one_time.drop(transaction, RESET, account_id)
        audit.add(transaction, "user.reset", by, account=account_id)
        return one_time.put(transaction, RESET, seconds, account_id)

    return context.database.transaction(work)


def _send(context: Context, message: Message) -> None:
    try:
        context.mailer.send(message)
    except MailError as error:
        _log.error("a mail could not be sent: %s", error)
