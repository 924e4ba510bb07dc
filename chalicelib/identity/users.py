"""Users: how accounts of people are made, and what changes in them."""

import re
from functools import partial

from chalicelib.identity import passwords
from chalicelib.metadata import accounts, audit
from chalicelib.metadata.database import Database, Transaction, UniqueViolation

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_EMAIL = re.compile(
    r"[^\s@<>\",;:()\[\]\\]{1,64}@[^\s@<>\",;:()\[\]\\.][^\s@<>\",;:()\[\]\\]{0,252}"
)
LONGEST_NAME = 64


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
    if len(email) > 254 or _EMAIL.fullmatch(email) is None or not email.isprintable():
        raise Refused("This is no address for mail.", "email")
    return email


def hashed(password: str) -> str:
    """The hash of a new password. Raises ``Refused``."""
    try:
        return passwords.hashed(password)
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
    password_hash = None if password is None else hashed(password)

    def work(transaction: Transaction) -> int:
        account = accounts.add(
            transaction,
            "user",
            name,
            email=email,
            email_verified=email_verified,
            password_hash=password_hash,
            administrator=administrator,
        )
        if account is None:
            raise Refused("This name is taken.", "name", conflict=True)
        audit.add(transaction, "user.create", by, account=account, administrator=administrator)
        return account

    try:
        return database.transaction(work)
    except UniqueViolation:
        raise Refused("This email belongs to an account already.", "email", conflict=True) from None


def change_password(database: Database, account_id: int, password: str, *, by: str) -> None:
    """Give a user another password: browsers are signed out, and logins by the former one end.
    Access tokens stay. Raises ``Refused``."""
    password_hash = hashed(password)

    def work(transaction: Transaction) -> None:
        accounts.set_password(transaction, account_id, password_hash)
        audit.add(transaction, "user.password", by, account=account_id)

    database.transaction(work)


def suspend(database: Database, account_id: int, *, suspended: bool, by: str) -> None:
    """Let an account do nothing any more, or let it again."""

    def work(transaction: Transaction) -> None:
        accounts.suspend(transaction, account_id, suspended)
        event = "account.suspend" if suspended else "account.resume"
        audit.add(transaction, event, by, account=account_id)

    database.transaction(work)


def delete(database: Database, account_id: int, *, by: str) -> None:
    """Delete an account, user or organisation, for ever. Raises ``Refused`` while repositories lie
    in its namespace, and while it is an organisation's only owner."""
    database.transaction(partial(_delete, account_id=account_id, by=by))


def _delete(transaction: Transaction, account_id: int, by: str) -> None:
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
