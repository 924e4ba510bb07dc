"""Users: how accounts of people are made, and what changes in them."""

import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from chalicelib.identity import passwords
from chalicelib.mail import is_address
from chalicelib.metadata import accounts, audit, one_time, registry_invitations
from chalicelib.metadata.database import Database, Transaction, UniqueViolation

T = TypeVar("T")
OPERATOR = "operator"
"""The subject of what is done at the command line, in the audit log."""
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
LONGEST_NAME = 64

VERIFICATION = "verify email"
"""The purpose of the secret in a link by which an account gets an email."""
RESET = "reset password"
"""The purpose of the secret in a link by which a password is replaced."""
FIRST_ADMINISTRATOR = "first-administrator"
"""The purpose of the secret by which somebody becomes the first administrator."""
FIRST_ADMINISTRATOR_SECONDS = 86400


class Refused(ValueError):
    """What cannot be done; the text is a sentence for who asked. ``field`` is the part of the
    request that is wrong, if one is; ``conflict``: it would be right but for what is there."""

    def __init__(self, sentence: str, field: str = "", *, conflict: bool = False) -> None:
        super().__init__(sentence)
        self.field = field
        self.conflict = conflict


def checked_name(name: str) -> str:
    """The name of an account, which is the first component of its repositories'. Raises
    ``Refused``."""
    if len(name) > LONGEST_NAME or _NAME.fullmatch(name) is None:
        raise Refused(
            f"A name has at most {LONGEST_NAME} lower-case letters and digits, with single"
            " separators (. _ __ -) between them.",
            "name",
        )
    return name


def checked_email(email: str) -> str:
    """An address that mail can be sent to, as far as its form tells. Raises ``Refused``."""
    if not is_address(email):
        raise Refused("This is no address for mail.", "email")
    return email


def hashed(password: str, *, by: str = "") -> str:
    """The hash of a new password. An operator may choose a short one. Raises ``Refused``."""
    from chalicelib.identity import access_tokens, github

    if access_tokens.looks_like(password) or github.looks_like(password):
        # A login would take it for one.
        raise Refused("A password cannot begin as a token does.", "password")
    try:
        return passwords.hashed(password, 1 if by == OPERATOR else passwords.SHORTEST)
    except passwords.PasswordError as error:
        raise Refused(str(error), "password") from None


def create(
    database: Database,
    name: str,
    email: str,
    password: str | None,
    *,
    by: str,
    email_verified: bool,
    administrator: bool = False,
) -> int:
    """Make a user; gives its id. Without a password it signs in otherwise. Raises ``Refused``."""
    checked_name(name)
    checked_email(email)
    password_hash = None if password is None else hashed(password, by=by)
    return _making(
        database,
        lambda transaction: _add(
            transaction, name, email, password_hash, by, email_verified, administrator
        ),
    )


def sign_up(database: Database, name: str, email: str, password: str) -> int:
    """Make a user of somebody who asks for it; gives its id. Whether another account has the email
    makes no difference: this one claims it, and has it when it is verified. Raises ``Refused``."""
    return create(database, name, email, password, by="", email_verified=False)


def accept_invitation(
    database: Database, secret: str, name: str, email: str, password: str
) -> tuple[int, bool]:
    """Make a user of somebody who was invited; gives its id, and whether the email is verified, as
    it is where the invitation went there. Raises ``Refused``."""
    checked_name(name)
    checked_email(email)
    if not registry_invitations.holds(database, secret):
        raise _used_up("invitation")
    password_hash = hashed(password)

    def work(transaction: Transaction) -> tuple[int, bool]:
        invitation = registry_invitations.take(transaction, secret)
        if invitation is None:
            raise _used_up("invitation")
        verified = invitation.email.lower() == email.lower()
        account = _add(transaction, name, email, password_hash, "", verified, False)
        audit.add(
            transaction,
            "registry-invitation.accept",
            f"account:{account}",
            account=account,
            invitation=invitation.id,
        )
        return account, verified

    return _making(database, work)


def needs_administrator(database: Database) -> str | None:
    """A secret by which somebody can become the first administrator within a day, where there is
    none yet."""
    if accounts.has_administrator(database):
        return None
    return one_time.put(database, FIRST_ADMINISTRATOR, FIRST_ADMINISTRATOR_SECONDS)


def create_first_administrator(
    database: Database, name: str, email: str, password: str, *, secret: str | None
) -> int | None:
    """Make the first administrator, whose email counts as verified: with the secret of
    ``needs_administrator``, or None from the operator. Gives its id, None where there is an
    administrator already. Any number may try at once. Raises ``Refused``."""
    checked_name(name)
    checked_email(email)
    if secret is not None and not one_time.holds(database, FIRST_ADMINISTRATOR, secret):
        raise _used_up("secret")
    if accounts.has_administrator(database):
        return None
    password_hash = hashed(password)

    def work(transaction: Transaction) -> int | None:
        accounts.lock(transaction)
        if accounts.has_administrator(transaction):
            return None
        if secret is not None and not one_time.take(transaction, FIRST_ADMINISTRATOR, secret):
            raise _used_up("secret")
        by = "operator" if secret is None else ""
        return _add(transaction, name, email, password_hash, by, True, True)

    return _making(database, work)


def change_password(database: Database, account_id: int, password: str, *, by: str) -> None:
    """Give a user another password: browsers are signed out, and logins by the former one end, as
    do links that would give it yet another. Access tokens stay. Raises ``Refused``."""
    password_hash = hashed(password, by=by)
    database.transaction(
        partial(set_password, account_id=account_id, password_hash=password_hash, by=by)
    )


def set_password(transaction: Transaction, account_id: int, password_hash: str, *, by: str) -> None:
    """Within a transaction, what ``change_password`` does with the hash."""
    found = accounts.by_id(transaction, account_id)
    accounts.set_password(transaction, account_id, password_hash)
    one_time.drop(transaction, RESET, account_id)
    if found is not None and found.email_verified:
        # A change of the email that is under way, which who knew the former password began.
        one_time.drop(transaction, VERIFICATION, account_id)
    audit.add(transaction, "user.password", by, account=account_id)


def suspend(database: Database, account_id: int, *, suspended: bool, by: str) -> None:
    """Let an account do nothing any more, or let it again."""

    def work(transaction: Transaction) -> None:
        accounts.suspend(transaction, account_id, suspended)
        event = "account.suspend" if suspended else "account.resume"
        audit.add(transaction, event, by, account=account_id)

    database.transaction(work)


def set_new_repositories_public(
    database: Database, account_id: int, public: bool | None, *, by: str
) -> None:
    """Say whether what an account's pushes make is public; None: as the settings say."""

    def work(transaction: Transaction) -> None:
        accounts.set_new_repositories_public(transaction, account_id, public)
        audit.add(transaction, "account.settings", by, account=account_id, public=public)

    database.transaction(work)


def set_administrator(database: Database, account_id: int, *, administrator: bool, by: str) -> None:
    """Let a user administer the registry, or no longer. Raises ``Refused`` for the only one, and
    for what is no user."""

    def work(transaction: Transaction) -> None:
        accounts.lock(transaction)
        found = accounts.by_id(transaction, account_id)
        if found is None or found.kind != "user":
            raise Refused("Only a user can be an administrator.", conflict=True)
        if not administrator and not accounts.has_administrator(transaction, besides=account_id):
            raise _only_administrator()
        accounts.set_administrator(transaction, account_id, administrator)
        audit.add(
            transaction, "user.administrator", by, account=account_id, administrator=administrator
        )

    database.transaction(work)


def delete(database: Database, account_id: int, *, by: str) -> None:
    """Delete an account, user or organisation, for ever. Raises ``Refused`` while repositories lie
    in its namespace, and while it is an organisation's only owner or the only administrator."""
    database.transaction(partial(_delete, account_id=account_id, by=by))


def _delete(transaction: Transaction, account_id: int, by: str) -> None:
    accounts.lock(transaction)
    found = accounts.by_id(transaction, account_id)
    if found is None:
        raise Refused("There is no such account.")
    if found.administrator and not accounts.has_administrator(transaction, besides=account_id):
        raise _only_administrator()
    if accounts.owns_repositories(transaction, account_id):
        raise Refused(
            "There are repositories in this namespace: delete them, or give them another name.",
            conflict=True,
        )
    if alone := accounts.sole_owner_of(transaction, account_id):
        raise Refused(
            f"This is the only owner of {', '.join(alone)}: make somebody else one first.",
            conflict=True,
        )
    accounts.delete(transaction, account_id)
    audit.add(transaction, "account.delete", by, account=account_id)


def _only_administrator() -> Refused:
    return Refused("This is the only administrator: make somebody else one first.", conflict=True)


def _making(database: Database, work: Callable[[Transaction], T]) -> T:
    """What a transaction that makes an account gives. Raises ``Refused`` for an email that another
    account has verified."""
    try:
        return database.transaction(work)
    except UniqueViolation:
        raise email_taken() from None


def email_taken() -> Refused:
    """That another account has verified an email: for who may know."""
    return Refused("This email belongs to an account already.", "email", conflict=True)


def _add(
    transaction: Transaction,
    name: str,
    email: str,
    password_hash: str | None,
    by: str,
    email_verified: bool,
    administrator: bool,
) -> int:
    """A new user, made ``by`` somebody, or "" by themselves."""
    account = accounts.add(
        transaction,
        "user",
        name,
        email=email,
        email_verified=email_verified,
        password_hash=password_hash,
        administrator=administrator,
        adopts=bool(by),
    )
    if account is None:
        raise Refused("This name is taken.", "name", conflict=True)
    audit.add(
        transaction,
        "user.create",
        by or f"account:{account}",
        account=account,
        administrator=administrator,
    )
    return account


def _used_up(field: str) -> Refused:
    return Refused("This link was used already, or is too old.", field)
