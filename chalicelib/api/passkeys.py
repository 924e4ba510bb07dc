"""Passkeys: signing in with an authenticator's key instead of a password.

``options`` and ``credential`` are the JSON forms of Web Authentication Level 3, sections 5.1.8 to
5.1.10 and 5.1.4, which browsers make and take. ``state`` comes with the options, and goes back with
the credential within five minutes, once.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from chalicelib.api.operations import Answer, Call, Needs, Operation, Page
from chalicelib.api.problems import Problem, invalid
from chalicelib.api.sessions import Who, signed_in
from chalicelib.identity import emails, passkeys
from chalicelib.identity.passkeys import PasskeyRefused, RelyingParty
from chalicelib.metadata import accounts, audit

PasskeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
State = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class PasskeyOptions(msgspec.Struct):
    """What a browser's authenticator is to be asked."""

    options: dict[str, Any]
    state: str


class NewPasskey(msgspec.Struct, forbid_unknown_fields=True):
    """What the authenticator said, and the passkey's name for its owner."""

    state: State
    credential: dict[str, Any]
    name: PasskeyName


class UsedPasskey(msgspec.Struct, forbid_unknown_fields=True):
    """What the authenticator said."""

    state: State
    credential: dict[str, Any]


class PasskeyChanges(msgspec.Struct, forbid_unknown_fields=True):
    """A passkey's name that is to be."""

    name: PasskeyName


class Passkey(msgspec.Struct):
    """A passkey of one's own."""

    id: str
    name: str
    created_at: datetime
    used_at: datetime | None


def registration_options(call: Call) -> PasskeyOptions:
    """Begin to register a passkey."""
    account = _account(call, call.account)
    try:
        return PasskeyOptions(
            *passkeys.registration_options(
                call.context.database, account.id, account.name, _relying_party(call)
            )
        )
    except PasskeyRefused as refused:
        raise invalid(refused.sentence) from None


def register_passkey(call: Call) -> Passkey:
    """Keep a passkey that the browser has made."""
    body, database = call.body, call.context.database
    account = _account(call, call.account)
    try:
        made = passkeys.register(
            database, account.id, body.state, body.credential, body.name, _relying_party(call)
        )
    except PasskeyRefused as refused:
        raise invalid(refused.sentence) from None
    audit.add(database, "passkey.add", call.subject.id, account=account.id, id=made.id)
    emails.tell(call.context, account, "It has another passkey now, with which one can sign in.")
    return Passkey(*made)


def list_passkeys(call: Call) -> Page[Passkey]:
    """One's passkeys, the oldest first."""
    return Page([Passkey(*each) for each in passkeys.listed(call.context.database, call.account)])


def rename_passkey(call: Call) -> None:
    """Give a passkey another name."""
    try:
        found = passkeys.rename(
            call.context.database, call.account, call.params["passkey"], call.body.name
        )
    except PasskeyRefused as refused:
        raise invalid(refused.sentence, "name") from None
    if not found:
        raise Problem(404, "There is no such passkey.")


def remove_passkey(call: Call) -> None:
    """Forget a passkey."""
    database, passkey = call.context.database, call.params["passkey"]
    if not passkeys.remove(database, call.account, passkey):
        raise Problem(404, "There is no such passkey.")
    audit.add(database, "passkey.remove", call.subject.id, account=call.account, id=passkey)


def passkey_options(call: Call) -> PasskeyOptions:
    """Begin to sign in with a passkey. Nobody is named: any passkey may answer."""
    try:
        return PasskeyOptions(
            *passkeys.sign_in_options(call.context.database, _relying_party(call))
        )
    except PasskeyRefused as refused:
        raise invalid(refused.sentence) from None


def sign_in_with_passkey(call: Call) -> Answer:
    """Sign in with a passkey."""
    body, database = call.body, call.context.database
    try:
        account_id = passkeys.sign_in(database, body.state, body.credential, _relying_party(call))
    except PasskeyRefused as refused:
        if refused.account_id is not None:
            audit.add(database, "passkey.refuse", "", account=refused.account_id)
        raise Problem(401, refused.sentence, headers=[("WWW-Authenticate", "Session")]) from None
    call.access.trust(call.request.client, account_id)
    return signed_in(call, account_id, "passkey")


def _relying_party(call: Call) -> RelyingParty:
    return passkeys.relying_party(call.context.settings, call.request.headers.get("host", ""))


def _account(call: Call, account_id: int) -> accounts.Account:
    found = accounts.by_id(call.context.database, account_id)
    if found is None:
        raise call.unauthorized()
    return found


OPERATIONS = (
    Operation("POST", "/session/passkey-options", passkey_options, Needs.NOTHING,
              "Begin to sign in with a passkey", answer=PasskeyOptions, problems=(422,)),
    Operation("POST", "/session/passkey", sign_in_with_passkey, Needs.NOTHING,
              "Sign in with a passkey", body=UsedPasskey, answer=Who, problems=(401,)),
    Operation("POST", "/passkeys/registration-options", registration_options, Needs.PERSON,
              "Begin to register a passkey", answer=PasskeyOptions, problems=(422,)),
    Operation("POST", "/passkeys", register_passkey, Needs.PERSON, "Register a passkey",
              body=NewPasskey, answer=Passkey, status=201),
    Operation("GET", "/passkeys", list_passkeys, Needs.PERSON, "One's passkeys",
              answer=Page[Passkey]),
    Operation("PATCH", "/passkeys/{passkey}", rename_passkey, Needs.PERSON, "Rename a passkey",
              body=PasskeyChanges),
    Operation("DELETE", "/passkeys/{passkey}", remove_passkey, Needs.PERSON, "Forget a passkey"),
)  # fmt: skip
