"""People whom another service knows: what it says of them, its refusals, and their accounts here.

Somebody there is linked to an account here by the issuer's own id alone. An email links nobody:
whoever got hold of an address elsewhere would get the account with it.
"""

from typing import Literal, NamedTuple

from chalicelib.http import Unauthorized
from chalicelib.identity import users
from chalicelib.identity.users import Refused
from chalicelib.metadata import accounts, audit, external_identities, sessions
from chalicelib.metadata.database import Database, Transaction, UniqueViolation


class Person(NamedTuple):
    """Somebody at an issuer. ``subject`` is the issuer's own, lasting id, and with the issuer the
    key to find an account by: names and emails change hands. ``name`` is what the person is
    called there, "" where the issuer does not say, and ``email`` one that the issuer has verified,
    or ""."""

    issuer: str
    subject: str
    name: str
    email: str


class SignInRefused(Unauthorized):
    """The issuer, or what it says, does not prove who this is: the person may begin anew."""


def sign_up(database: Database, person: Person) -> int:
    """Make a user of somebody who has none, called as there; gives its id. The email counts as
    verified, since the issuer has verified it. Raises ``Refused``: by the field, for a name or an
    email that cannot be had."""
    name = users.checked_name(person.name.lower())
    email = users.checked_email(person.email)

    def work(transaction: Transaction) -> int:
        account = accounts.add(transaction, "user", name, email=email, email_verified=True)
        if account is None:
            raise Refused("This name is taken.", "name", conflict=True)
        audit.add(transaction, "user.create", f"account:{account}", account=account)
        _link(transaction, account, person)
        return account

    try:
        return database.transaction(work)
    except UniqueViolation:
        raise users.email_taken() from None


def link(database: Database, account_id: int, person: Person) -> None:
    """Let somebody elsewhere sign in to an account. Raises ``Refused`` where they are linked to
    another."""

    def work(transaction: Transaction) -> None:
        found = external_identities.find(transaction, person.issuer, person.subject)
        if found is None or found.account_id != account_id:
            _link(transaction, account_id, person)

    database.transaction(work)


def unlink(
    database: Database, account_id: int, link_id: str, session: str | None, github_url: str
) -> bool:
    """Let somebody elsewhere sign in no longer: what they hold ends at once, but for the session
    that asks. False where there is no such link. Raises ``Refused`` for the last way to sign in."""

    def work(transaction: Transaction) -> bool:
        ways = external_identities.ways_in(transaction, account_id)
        issuer = external_identities.remove(transaction, link_id, account_id)
        if issuer is None:
            return False
        if ways < 2:
            raise Refused(
                "This is the last way to sign in: set a password or add a passkey first.",
                conflict=True,
            )
        method = provider_of(issuer, github_url)
        sessions.end_others(transaction, account_id, method, session)
        audit.add(
            transaction, "identity.unlink", f"account:{account_id}", account=account_id,
            id=link_id, method=method,
        )  # fmt: skip
        return True

    return database.transaction(work)


def provider_of(issuer: str, github_url: str) -> Literal["github", "openid"]:
    """What the API calls an issuer."""
    return "github" if issuer == github_url.rstrip("/") else "openid"


def _link(transaction: Transaction, account_id: int, person: Person) -> None:
    added = external_identities.add(transaction, account_id, person.issuer, person.subject)
    if added is None:
        raise Refused("This person is linked to another account.", conflict=True)
    audit.add(
        transaction, "identity.link", f"account:{account_id}", account=account_id, id=added,
        issuer=person.issuer,
    )  # fmt: skip
