"""How the API comes from a request to a function: the table, who may call, bodies, answers.

A row of the table says what an operation needs; that is checked here, before the function is
called. Programs bring an access token or a password (``Authorization``), browsers a session's
cookie. A browser that another site makes send a request is told by its own ``Sec-Fetch-Site`` or
``Origin`` (Fetch, section 3.2; W3C "Fetch Metadata"), and refused where the request changes
something.
"""

import importlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from chalicelib.api import problems
from chalicelib.api.problems import Problem
from chalicelib.http import JSON, NameUnknown, RegistryError, Request, Response, Unauthorized
from chalicelib.identity import NOBODY, Subject, scopes
from chalicelib.identity.access import Accounts
from chalicelib.identity.challenge import base_url, challenge
from chalicelib.identity.users import Refused
from chalicelib.metadata import permissions, sessions
from chalicelib.metadata.permissions import Standing

if TYPE_CHECKING:
    from chalicelib.context import Context

T = TypeVar("T")
_log = logging.getLogger(__name__)

PREFIX = "/api/v1"
NOUNS = (
    "sessions",
    "accounts",
    "administration",
    "passkeys",
    "external",
    "organisations",
    "invitations",
    "teams",
    "robots",
    "grants",
    "trust",
    "repositories",
    "webhooks",
    "pulls",
    "tags",
    "resolvers",
    "networks",
    "immutable_tags",
    "retention",
    "quotas",
    "blocks",
    "jobs",
    "tokens",
    "audit",
    "openapi",
)
"""Modules with a table ``OPERATIONS``, in the order of the API's description."""
LARGEST_BODY = 64 << 10


class Needs(Enum):
    """Who may call an operation."""

    NOTHING = "nothing"
    """Anybody, signed in or not."""
    ACCOUNT = "account"
    """Any account."""
    PERSON = "person"
    """A user who has signed in by themselves: no access token, so that one that leaks cannot be
    made into more."""
    ADMINISTRATOR = "administrator"
    """An administrator of the registry."""
    ACCOUNT_READ = "account:read"
    """Whoever may see the path's ``account`` from inside: itself, or a member."""
    ACCOUNT_ADMIN = "account:admin"
    """Whoever may manage the path's ``account``: itself, or an owner."""
    REPOSITORY_READ = "repository:pull"
    """Whoever may pull from the path's ``repository``."""
    REPOSITORY_PUSH = "repository:push"
    """Whoever may push to the path's ``repository``."""
    REPOSITORY_ADMIN = "repository:admin"
    """Whoever may manage the path's ``repository``."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the table. ``body`` and ``answer`` are msgspec types (None: none), ``query`` a
    struct of the query's parameters; ``problems`` are the statuses of its own problems. Raises
    ``ValueError`` where the path lacks the part that ``needs`` is about."""

    method: str
    path: str
    function: "Callable[[Call], Any]"
    needs: Needs
    summary: str
    body: Any = None
    answer: Any = None
    status: int = 200
    query: Any = None
    problems: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kind, about, _ = self.needs.value.partition(":")
        if about and f"{{{kind}}}" not in self.path:
            raise ValueError(
                f"{self.method} {self.path} has no {kind} for {self.needs} to be about"
            )

    @property
    def id(self) -> str:
        """A name for programs that are made from the description."""
        return str(getattr(self.function, "__name__", ""))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation, after it was allowed. ``session`` is the id of the browser's
    session, if it came by one; ``standing`` says whose the path's ``account`` is."""

    context: "Context"
    request: Request
    access: Accounts
    subject: Subject
    params: dict[str, str]
    session: str | None = None
    standing: Standing | None = None
    body: Any = None
    query: Any = None

    @property
    def account(self) -> int:
        """The id of the account that calls."""
        if self.subject.account is None:
            raise self.unauthorized()
        return self.subject.account

    def unauthorized(self) -> Problem:
        """That the caller has to sign in."""
        field = challenge(self.context.settings, self.request)
        return Problem(401, "Sign in, or send an access token.", headers=[field])


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with header fields of its own; ``body`` as the operation says."""

    body: Any = None
    headers: Sequence[tuple[str, str]] = ()
    status: int | None = None


_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DIGEST = "(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
_END = r"$(?!\n)"
"""The end of a text. To Python's expressions ``$`` alone is before a last newline too."""


class Paging(msgspec.Struct):
    """The query of every list: how many, and after the ``next`` of the page before."""

    after: Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[^\x00]*$")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50


class PagingByNumber(Paging):
    """The query of a list whose ``next`` is a number."""

    after: Annotated[str, msgspec.Meta(pattern=f"^[0-9]{{0,18}}{_END}")] = ""


class PagingByUuid(Paging):
    """The query of a list whose ``next`` is a UUID."""

    after: Annotated[str, msgspec.Meta(pattern=f"^({_UUID})?{_END}")] = ""


class PagingByDigest(Paging):
    """The query of a list whose ``next`` is a digest."""

    after: Annotated[str, msgspec.Meta(pattern=f"^({_DIGEST})?{_END}")] = ""


class Page(msgspec.Struct, Generic[T]):
    """A page of a list; ``next`` is what the next page comes after, None on the last one."""

    items: list[T]
    next: str | None = None


def page(items: list[T], limit: int, key: Callable[[T], object]) -> Page[T]:
    """The page of a list whose caller asked for one item more than ``limit``. ``key`` is what the
    next page comes after."""
    shown = items[:limit]
    return Page(shown, str(key(shown[-1])) if len(items) > limit else None)


def answer(context: "Context", request: Request) -> Response:
    """Answer a request to the API. Never raises."""
    try:
        response = _answered(context, request)
    except Refused as error:
        problem = problems.invalid(str(error), error.field, 409 if error.conflict else 422)
        return problems.refusal(request, problem)
    except RegistryError as error:
        return problems.refusal(request, error)
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        failure = Problem(500, "The registry failed; its log says why.")
        return problems.refusal(request, failure)
    return replace(response, headers=[*response.headers, *problems.security_headers(request)])


def _answered(context: "Context", request: Request) -> Response:
    if not isinstance(context.access, Accounts):
        raise Problem(404, "This registry has no accounts (OPENREGISTRY_ACCESS=open).")
    operation, params = _found(request)
    if request.method not in ("GET", "HEAD"):
        _refuse_other_sites(context, request)
    subject, session = _caller(context, context.access, request)
    call = Call(context, request, context.access, subject, params, session)
    standing = _authorised(call, operation)
    call = Call(
        context, request, context.access, subject, params, session, standing,
        _body(operation, request), _query(operation, request),
    )  # fmt: skip
    result = operation.function(call)
    if not isinstance(result, Answer):
        result = Answer(result)
    status = result.status or operation.status
    if result.body is None and operation.answer is None:
        status = 204 if status == 200 else status
        return Response(status, list(result.headers), subject=subject.id)
    headers = [("Content-Type", JSON), *result.headers]
    return Response(status, headers, msgspec.json.encode(result.body), subject.id)


@cache
def table() -> list[Operation]:
    """Every operation."""
    modules = (importlib.import_module(f"chalicelib.api.{noun}") for noun in NOUNS)
    return [operation for module in modules for operation in module.OPERATIONS]


@cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Operation]]]:
    """Every path as an expression, with its operations by method. Those with fewer variable parts
    come first (OpenAPI 3.1, section 4.8.8.2: concrete ones are matched before templated ones)."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in table():
        paths.setdefault(operation.path, {})[operation.method] = operation
    return [
        (_pattern(path), paths[path]) for path in sorted(paths, key=lambda each: each.count("{"))
    ]


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", PREFIX + path)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = re.escape(part)
        else:
            # No NUL, which Postgres has in no text; and "-" is no component of a repository.
            some = r"(?:(?!/-/)[^\0])+" if part == "repository" else r"[^/\0]+"
            parts[index] = f"(?P<{part}>{some})"
    return re.compile("".join(parts), re.DOTALL)


def _found(request: Request) -> tuple[Operation, dict[str, str]]:
    """The operation of a request; HEAD is that of GET, whose body the host leaves out."""
    for pattern, operations in _paths():
        match = pattern.fullmatch(request.path)
        if match is None:
            continue
        operation = operations.get("GET" if request.method == "HEAD" else request.method)
        if operation is not None:
            return operation, match.groupdict()
        methods = ", ".join([*operations, *(["HEAD"] if "GET" in operations else [])])
        raise Problem(405, f"This path takes {methods}.", headers=[("Allow", methods)])
    raise Problem(404, "There is nothing at this path.")


def _refuse_other_sites(context: "Context", request: Request) -> None:
    """Refuse a change that another site has made a browser ask for."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):
            return
    else:
        origin = request.headers.get("origin")
        if origin is None or origin == base_url(context.settings, request):
            return
    raise Problem(403, "This request came from another site.")


SESSION_COOKIE = "openregistry-session"


def cookie_name(request: Request) -> str:
    """The session's cookie: bound to this host alone where browsers let it (RFC 6265bis,
    section 4.1.3.2)."""
    return f"__Host-{SESSION_COOKIE}" if request.secure else SESSION_COOKIE


def cookie(request: Request, name: str) -> str:
    """The value of a cookie, "" where there is none. The first one counts (RFC 6265, section 5.4:
    the longest path), and no other site's cookies, whatever they look like, hide it."""
    for pair in request.headers.get("cookie", "").split(";"):
        key, _, value = pair.strip(" \t").partition("=")
        if key == name:
            return value
    return ""


def _caller(context: "Context", access: Accounts, request: Request) -> tuple[Subject, str | None]:
    """Who calls, and the id of the session that it came by."""
    if request.headers.get("authorization"):
        try:
            subject = access.authenticator.subject(request, fresh=True) or NOBODY
            if subject.claims is not None:
                raise Unauthorized("A registry token is for /v2/ alone: send an access token.")
            access.check(subject)
        except Unauthorized as error:
            field = challenge(context.settings, request)
            raise Problem(401, error.message, headers=[field]) from None
        return subject, None
    value = cookie(request, cookie_name(request))
    found = sessions.find(context.database, value) if value else None
    return (NOBODY, None) if found is None else (Subject(found.account_id), found.id)


def _authorised(call: Call, operation: Operation) -> Standing | None:
    """Whose the path's account is. Raises a problem where the caller may not do this."""
    needs, subject = operation.needs, call.subject
    if needs is Needs.NOTHING:
        return None
    if needs in (Needs.REPOSITORY_READ, Needs.REPOSITORY_PUSH, Needs.REPOSITORY_ADMIN):
        _check_repository(call, needs)
        return None
    account = call.account
    if needs is Needs.PERSON and subject.credential:
        raise Problem(403, "An access token cannot do this: sign in.")
    if needs is Needs.ADMINISTRATOR:
        if subject.credential or not permissions.is_administrator(call.context.database, account):
            raise Problem(403, "Only an administrator of the registry may do this.")
        return None
    if needs in (Needs.ACCOUNT_READ, Needs.ACCOUNT_ADMIN):
        return _standing(call, needs)
    return None


def _standing(call: Call, needs: Needs) -> Standing:
    name = call.params["account"]
    found = permissions.standing(call.context.database, call.subject.account, name)
    action = needs.value.partition(":")[2]
    least = permissions.ADMIN if needs is Needs.ACCOUNT_ADMIN else permissions.READ
    if found is None or found.role == permissions.NONE:
        raise Problem(404, "There is no such account, or it is not yours to see.")
    if found.role < least:
        raise Problem(403, "Only an owner may do this.")
    if call.subject.credential and action not in _scoped(call, "account", name):
        raise Problem(403, f"This token lacks the scope account:{name}:{action}.")
    return found


def _check_repository(call: Call, needs: Needs) -> None:
    name, action = call.params["repository"], needs.value.partition(":")[2]
    may = call.access.actions(call.subject, name)
    if action in may:
        return
    now = call.access.moved(name) if "pull" not in may else None
    if now is not None and "pull" in call.access.actions(call.subject, now):
        raise _moved(call, name, now)
    if call.subject.account is None:
        raise call.unauthorized()
    if "pull" in may:
        who = "an administrator of" if action == "admin" else "those who may push to"
        raise Problem(403, f"Only {who} the repository may do this.")
    raise NameUnknown("There is no such repository, or it is not yours to know of.")


def _moved(call: Call, name: str, now: str) -> Problem:
    """Where a repository that was renamed is now."""
    rest = call.request.path.removeprefix(f"{PREFIX}/repositories/{name}")
    query = [(key, value) for key in call.request.query for value in call.request.query.all(key)]
    location = quote(f"{PREFIX}/repositories/{now}{rest}") + ("?" + urlencode(query)) * bool(query)
    return Problem(307, f"{name} is called {now} now.", headers=[("Location", location)])


def _scoped(call: Call, kind: str, name: str) -> frozenset[str]:
    """What the caller's access token allows with a thing of that name."""
    subject = call.subject
    held = permissions.decide(call.context.database, subject.account, subject.credential, "")
    return scopes.allowed(scopes.parse(held.scopes or ()), kind, name)


def _body(operation: Operation, request: Request) -> Any:
    if operation.body is None:
        return None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON:
        raise Problem(415, "The body is application/json.")
    if len(request.body) > LARGEST_BODY:
        raise Problem(413, f"The body has at most {LARGEST_BODY} bytes.")
    try:
        return _without_nul(msgspec.json.decode(request.body, type=operation.body))
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is no JSON: {error}") from None


def _query(operation: Operation, request: Request) -> Any:
    if operation.query is None:
        return None
    try:
        query = msgspec.convert(dict(request.query), operation.query, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    return _without_nul(query)


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""A NUL in JSON. Postgres has it in no text."""


def _without_nul(struct: Any) -> Any:
    """The same. Raises a problem where a text in it has a NUL."""
    for name, value in msgspec.to_builtins(struct).items():
        if _NUL.search(msgspec.json.encode(value)):
            raise problems.invalid("No text here has a NUL.", name)
    return struct


_PLACE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def _invalid(error: msgspec.ValidationError) -> Problem:
    """What is wrong, and where."""
    sentence = str(error)
    place = _PLACE.search(sentence)
    return problems.invalid(f"{_PLACE.sub('', sentence)}.", place[1] if place else "")
