"""Access tokens and refresh tokens of users and robots."""

import uuid
from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, PagingByUuid, page
from chalicelib.api.organisations import check_person
from chalicelib.api.problems import Problem, invalid
from chalicelib.api.texts import Scope
from chalicelib.identity import access_tokens, scopes
from chalicelib.metadata import access_tokens as rows
from chalicelib.metadata import audit, refresh_tokens
from chalicelib.metadata.database import Transaction


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """An access token to be made: what it is for, scopes like ``repository:alice/*:pull,push``, and
    the seconds after which it expires, null for never."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    scopes: Annotated[
        list[Scope],
        msgspec.Meta(min_length=1, max_length=50),
    ]
    expires_in: Annotated[int, msgspec.Meta(ge=60, le=3650 * 86400)] | None = None


class CreatedToken(msgspec.Struct):
    """A new access token: ``token`` is shown this once."""

    id: str
    token: str


class Token(msgspec.Struct):
    """An access token; ``used_at`` is when it last was, to the minute."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None


class Login(msgspec.Struct):
    """A client that logged in for long: it holds a refresh token. ``access_token`` is the id of
    the token that it logged in with, null where that was a password."""

    id: str
    client: str
    access_token: str | None
    created_at: datetime


def create_token(call: Call) -> CreatedToken:
    """Make an access token of one's own, or of a robot that one manages."""
    check_person(call)
    account = _holder(call)
    try:
        wanted = scopes.parse(call.body.scopes)
    except scopes.ScopeError as error:
        raise invalid(str(error), "scopes") from None
    if not wanted:
        raise invalid("A token without a scope is good for nothing.", "scopes")
    created = access_tokens.make(
        call.context.database,
        call.access.keys,
        account,
        call.body.name,
        wanted,
        by=call.subject.id,
        seconds=call.body.expires_in,
        created_by=call.account,
    )
    return CreatedToken(created.id, created.token)


def list_tokens(call: Call) -> Page[Token]:
    """An account's access tokens, those that were revoked too."""
    limit, after = call.query.limit, _after(call)
    found = rows.listed(call.context.database, _account(call), after, limit + 1)
    items = [
        Token(each.id, each.name, each.scopes, each.created_at, each.expires_at, each.used_at,
              each.revoked_at)
        for each in found
    ]  # fmt: skip
    return page(items, limit, lambda each: each.id)


def revoke_token(call: Call) -> None:
    """Revoke an access token, at once."""
    token, account = _id(call.params["token"]), _account(call)
    if token is None or not access_tokens.revoke(
        call.context.database, token, by=call.subject.id, account_id=account
    ):
        raise Problem(404, "There is no such token that still holds.")


def list_logins(call: Call) -> Page[Login]:
    """Clients that hold a refresh token of an account."""
    limit, after = call.query.limit, _after(call)
    found = refresh_tokens.listed(call.context.database, _account(call), after, limit + 1)
    items = [Login(each.id, each.client, each.access_token, each.created_at) for each in found]
    return page(items, limit, lambda each: each.id)


def end_login(call: Call) -> None:
    """Revoke a client's refresh token, and whatever would follow it."""
    login, account = _id(call.params["login"]), _account(call)

    def work(transaction: Transaction) -> None:
        if login is None or not refresh_tokens.revoke(transaction, login, account):
            raise Problem(404, "There is no such login.")
        audit.add(transaction, "refresh_token.revoke", call.subject.id, account=account, id=login)

    call.context.database.transaction(work)


def _holder(call: Call) -> int:
    """The path's account, for which the caller may have a token: no administrator acts in
    another user's name."""
    account = _account(call)
    if account != call.account and (call.standing is None or call.standing.kind == "user"):
        raise Problem(403, "Only the user makes tokens of that account.")
    return account


def _account(call: Call) -> int:
    """The id of the path's account, which is a user or a robot."""
    if call.standing is None or call.standing.kind == "organisation":
        raise Problem(404, "An organisation has no tokens: make a robot of it.")
    return call.standing.account


def _after(call: Call) -> str:
    """The id after which the page comes, or ""."""
    if call.query.after and _id(call.query.after) is None:
        raise invalid("The query's after is the next of the page before.", "after")
    return str(call.query.after)


def _id(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


_TOKENS = "/accounts/{account}/tokens"
_LOGINS = "/accounts/{account}/logins"
OPERATIONS = (
    Operation("POST", _TOKENS, create_token, Needs.ACCOUNT_ADMIN, "Make an access token",
              body=NewToken, answer=CreatedToken, status=201),
    Operation("GET", _TOKENS, list_tokens, Needs.ACCOUNT_ADMIN, "An account's access tokens",
              query=PagingByUuid, answer=Page[Token]),
    Operation("DELETE", f"{_TOKENS}/{{token}}", revoke_token, Needs.ACCOUNT_ADMIN,
              "Revoke an access token"),
    Operation("GET", _LOGINS, list_logins, Needs.ACCOUNT_ADMIN,
              "Clients that hold a refresh token", query=PagingByUuid, answer=Page[Login]),
    Operation("DELETE", f"{_LOGINS}/{{login}}", end_login, Needs.ACCOUNT_ADMIN,
              "Revoke a client's refresh token"),
)  # fmt: skip
