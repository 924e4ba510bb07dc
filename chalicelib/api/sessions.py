"""Sessions: signing in and out in a browser."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib.api.operations import Answer, Call, Needs, Operation, Page, cookie_name
from chalicelib.api.problems import Problem
from chalicelib.http import Unauthorized
from chalicelib.metadata import accounts, audit, sessions
from chalicelib.metadata.database import Transaction


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    """A name or email, and a password."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=254)]
    password: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Who(msgspec.Struct):
    """Who is signed in."""

    name: str
    email: str | None
    email_verified: bool
    administrator: bool


class Session(msgspec.Struct):
    """A browser that is signed in; ``method`` is how it was."""

    id: str
    method: str
    created_at: datetime
    used_at: datetime
    current: bool


def sign_in(call: Call) -> Answer:
    """Sign in with a password."""
    try:
        subject = call.access.authenticator.person(
            call.body.name, call.body.password, call.request.client
        )
    except Unauthorized as error:
        raise Problem(401, error.message, headers=[("WWW-Authenticate", "Session")]) from None
    return signed_in(call, subject.account or 0, "password")


def signed_in(call: Call, account_id: int, method: str) -> Answer:
    """The answer that signs a browser in, however it was found who sits at it: by a new cookie,
    and any session that it came with ends."""

    def work(transaction: Transaction) -> str:
        if call.session is not None:
            sessions.end(transaction, call.session, call.account)
        audit.add(transaction, "session.begin", f"account:{account_id}", account=account_id,
                  method=method)  # fmt: skip
        return sessions.begin(transaction, account_id, method)

    cookie = call.context.database.transaction(work)
    return Answer(_who(call, account_id), [_cookie(call, cookie, sessions.SECONDS)])


def show_session(call: Call) -> Who:
    """Who is signed in."""
    return _who(call, call.account)


def sign_out(call: Call) -> Answer:
    """Sign this browser out."""
    if call.session is not None:
        _end(call, call.session)
    return Answer(None, [expired_cookie(call)])


def list_sessions(call: Call) -> Page[Session]:
    """Where one is signed in."""
    return Page(
        [
            Session(each.id, each.method, each.created_at, each.used_at, each.id == call.session)
            for each in sessions.listed(call.context.database, call.account)
        ]
    )


def end_session(call: Call) -> None:
    """Sign another browser out."""
    if not _end(call, call.params["session"]):
        raise Problem(404, "There is no such session.")


def _end(call: Call, session: str) -> bool:
    """End a session of the caller's; False where there is none."""

    def work(transaction: Transaction) -> bool:
        ended = sessions.end(transaction, session, call.account)
        if ended:
            audit.add(transaction, "session.end", call.subject.id, account=call.account)
        return ended

    return call.context.database.transaction(work)


def _who(call: Call, account_id: int) -> Who:
    found = accounts.by_id(call.context.database, account_id)
    if found is None:
        raise call.unauthorized()
    return Who(found.name, found.email, found.email_verified, found.administrator)


def expired_cookie(call: Call) -> tuple[str, str]:
    """The field that has a browser forget its session."""
    return _cookie(call, "", 0)


def _cookie(call: Call, value: str, seconds: int) -> tuple[str, str]:
    parts = [
        f"{cookie_name(call.request)}={value}",
        "Path=/",
        f"Max-Age={seconds}",
        "HttpOnly",
        "SameSite=Lax",
        *(["Secure"] if call.request.secure else []),
    ]
    return "Set-Cookie", "; ".join(parts)


OPERATIONS = (
    Operation("POST", "/session", sign_in, Needs.NOTHING, "Sign in with a password",
              body=Credentials, answer=Who, problems=(401, 429)),
    Operation("GET", "/session", show_session, Needs.ACCOUNT, "Who is signed in", answer=Who),
    Operation("DELETE", "/session", sign_out, Needs.ACCOUNT, "Sign out"),
    Operation("GET", "/sessions", list_sessions, Needs.PERSON, "Where one is signed in",
              answer=Page[Session]),
    Operation("DELETE", "/sessions/{session}", end_session, Needs.PERSON, "Sign a browser out",
              problems=(404,)),
)  # fmt: skip
