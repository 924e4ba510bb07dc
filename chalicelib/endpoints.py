"""The table of endpoints: method, path, function, and the permission it needs.

Both hosts dispatch by it, and authorisation is done here, before a function is called: an endpoint
cannot forget it. ``answer`` and ``receive`` never raise: what a function raises becomes the answer.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from chalicelib.api import problems
from chalicelib.context import Context
from chalicelib.http import (
    JSON,
    Piece,
    Receiver,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    Unavailable,
    Unsupported,
)
from chalicelib.identity import Permission, Subject, token_server
from chalicelib.identity.capabilities import PARAMETER
from chalicelib.registry import blobs, catalog, manifests, names, referrers, tags, uploads
from chalicelib.storage import ObjectTooLarge, StorageError

_log = logging.getLogger(__name__)
_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


class Body(Enum):
    """How an endpoint takes a request's body."""

    NONE = "none"
    BUFFERED = "buffered"
    STREAMED = "streamed"


Function = Callable[[Context, Request], Receiver | Response]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table; without ``methods`` it is for any. ``by_capability``: the path holds an
    upload, and its signed capability decides instead of credentials. ``waits``: anything but a HEAD
    may wait for storage, for another service, or for a password to be checked, for however long
    that takes. ``pulls``: a GET is a pull, and counts as one."""

    methods: tuple[str, ...]
    path: str
    function: Function
    permission: Permission
    body: Body = Body.NONE
    by_capability: bool = False
    waits: bool = False
    pulls: bool = False


def health(_context: Context, _request: Request) -> Response:
    """That the process lives."""
    return Response(200, [("Content-Type", JSON)], b'{"status":"ok"}')


def api(context: Context, request: Request) -> Response:
    """The JSON API, whose table is its own (``chalicelib.api``): it also describes bodies."""
    from chalicelib.api import operations

    return operations.answer(context, request)


def account(context: Context, request: Request) -> Response:
    """The page for one's account, and the files that it needs."""
    from chalicelib import console

    files = {"/account.js": console.script, "/account.css": console.style}
    return files.get(request.path, console.page)(context, request)


def status(context: Context, request: Request) -> Response:
    """The page that tells whether the registry works, and the files that belong to it."""
    from chalicelib.console import status

    files = {"/status.json": status.document, "/status.css": status.style}
    return files.get(request.path, status.page)(context, request)


def trigger(context: Context, request: Request) -> Response:
    """What a signed message from elsewhere starts."""
    from chalicelib.jobs import triggers

    return triggers.receive(context, request)


def ready(context: Context, _request: Request) -> Response:
    """That Postgres and storage can be used now; 503 that names the one that cannot."""
    problems: dict[str, str] = {}
    for name, check in (("database", context.database.check), ("storage", context.store.check)):
        try:
            check()
        except Exception as error:
            _log.warning("%s is not ready", name, exc_info=True)
            problems[name] = str(error) or type(error).__name__
    status = "unavailable" if problems else "ready"
    body = json.dumps({"status": status, **problems}).encode()
    return Response(503 if problems else 200, [("Content-Type", JSON)], body)


def _direct(name: str) -> Function:
    """A function of ``registry.direct``, which most processes need never load."""

    def function(context: Context, request: Request) -> Response:
        from chalicelib.registry import direct

        answered: Response = getattr(direct, name)(context, request)
        return answered

    return function


_R = "/v2/{repository}"
_UPLOAD = f"{_R}/blobs/uploads/{{upload}}"
# Not below /v2, where API Gateway turns away whoever brings no credentials.
_SENT = "/uploads/{repository}/{upload}"

# Looked through in this order: what is asked for most comes first.
ENDPOINTS = (
    Endpoint(("GET", "HEAD"), "/v2/", catalog.check_version, Permission.LOGIN),
    Endpoint(("GET", "HEAD"), "/v2/_catalog", catalog.list_repositories, Permission.CATALOG),
    Endpoint(("GET", "HEAD"), "/v2/_oci/ext/discover", catalog.discover, Permission.LOGIN),
    Endpoint(("GET", "HEAD"), f"{_R}/_oci/ext/discover", catalog.discover, Permission.PULL),
    Endpoint(("GET", "HEAD"), f"{_R}/tags/list", tags.list_tags, Permission.PULL),
    Endpoint(("GET", "HEAD"), f"{_R}/referrers/{{digest}}", referrers.list_referrers,
             Permission.PULL),
    Endpoint(("GET", "HEAD"), f"{_R}/manifests/{{reference}}", manifests.get, Permission.PULL,
             pulls=True),
    Endpoint(("PUT",), f"{_R}/manifests/{{reference}}", manifests.put, Permission.PUSH,
             Body.BUFFERED),
    Endpoint(("DELETE",), f"{_R}/manifests/{{reference}}", manifests.delete, Permission.DELETE),
    Endpoint(("POST",), f"{_R}/blobs/uploads/", uploads.start, Permission.PUSH, Body.STREAMED),
    Endpoint(("GET", "HEAD"), _UPLOAD, uploads.status, Permission.PUSH, by_capability=True,
             waits=True),
    Endpoint(("PATCH",), _UPLOAD, uploads.patch, Permission.PUSH, Body.STREAMED,
             by_capability=True),
    Endpoint(("PUT",), _UPLOAD, uploads.put, Permission.PUSH, Body.STREAMED, by_capability=True),
    Endpoint(("DELETE",), _UPLOAD, uploads.cancel, Permission.PUSH, by_capability=True),
    Endpoint(("GET", "HEAD"), f"{_R}/blobs/{{digest}}", blobs.get, Permission.PULL, waits=True),
    Endpoint(("DELETE",), f"{_R}/blobs/{{digest}}", blobs.delete, Permission.DELETE),
    Endpoint(("POST",), f"{_R}/_openregistry/uploads/direct", _direct("begin"), Permission.PUSH,
             Body.BUFFERED, waits=True),
    Endpoint(("POST",), _SENT, _direct("more"), Permission.PUSH, Body.BUFFERED,
             by_capability=True, waits=True),
    Endpoint(("PUT",), _SENT, _direct("put"), Permission.PUSH, Body.BUFFERED,
             by_capability=True, waits=True),
    Endpoint(("GET",), _SENT, _direct("status"), Permission.PUSH, by_capability=True, waits=True),
    Endpoint(("DELETE",), _SENT, _direct("cancel"), Permission.PUSH, by_capability=True,
             waits=True),
    Endpoint(("GET", "HEAD"), "/health", health, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/ready", ready, Permission.ANONYMOUS, waits=True),
    Endpoint(("GET",), "/token", token_server.get_token, Permission.ANONYMOUS, waits=True),
    Endpoint(("POST",), "/token", token_server.post_token, Permission.ANONYMOUS, Body.BUFFERED,
             waits=True),
    Endpoint(("GET", "HEAD"), "/.well-known/jwks.json", token_server.keys, Permission.ANONYMOUS),
    Endpoint((), "/api/v1/{rest}", api, Permission.ANONYMOUS, Body.BUFFERED, waits=True),
    Endpoint(("POST",), "/hooks/{trigger}", trigger, Permission.ANONYMOUS, Body.BUFFERED),
    Endpoint(("GET", "HEAD"), "/account", account, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/account.js", account, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/account.css", account, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/status", status, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/status.json", status, Permission.ANONYMOUS),
    Endpoint(("GET", "HEAD"), "/status.css", status, Permission.ANONYMOUS),
)  # fmt: skip


def _pattern(path: str) -> re.Pattern[str]:
    """A path of the table as an expression: a repository's name takes as many components as it
    can, anything else is one; a slash at the end is optional."""
    escaped = re.sub(r"\\\{(\w+)\\\}", r"{\1}", re.escape(path.removesuffix("/")))
    names = {name: rf"(?P<{name}>{'.+' if name in ('repository', 'rest') else '[^/]+'})"
             for name in re.findall(r"{(\w+)}", escaped)}  # fmt: skip
    return re.compile(escaped.format(**names) + "/?", re.DOTALL)


def _part(path: str) -> str:
    """The longest text that every path of this form holds: to look for it is much faster than to
    try the expression."""
    return max(re.split(r"\{\w+\}", path.removesuffix("/")), key=len)


_PATTERNS = [(one, _part(one.path), _pattern(one.path)) for one in ENDPOINTS]
_WAITING = [(part, pattern) for endpoint, part, pattern in _PATTERNS if endpoint.waits]


def find(method: str, path: str) -> Endpoint | None:
    """The endpoint of a request, for a host to see how its body is to be read; None where there is
    none (``answer`` says why)."""
    found = locate(method, path)
    return found[0] if found else None


def locate(method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
    """The endpoint of a request, and the parts of its path."""
    found = _match(method, path)
    return found if isinstance(found, tuple) else None


def waits(method: str, path: str) -> bool:
    """Whether a request may wait, for a host to keep it apart from those that do not."""
    return method != "HEAD" and any(
        part in path and pattern.fullmatch(path) for part, pattern in _WAITING
    )


def answer(context: Context, request: Request) -> Response:
    """Answer a request whose body, if any, has been read whole."""
    route = ""
    try:
        endpoint, params = _found(request)
        route = endpoint.path
        request = _authorised(context, endpoint, request, params)
        fields: Sequence[tuple[str, str]] = ()
        if endpoint.pulls and request.method == "GET":
            fields = context.access.count_pull(request)
        response = endpoint.function(context, request)
        if not isinstance(response, Response):
            raise TypeError("a streamed endpoint is driven by receive")
        if fields:
            response = replace(response, headers=[*response.headers, *fields])
    except Exception as error:
        response = _failure(request, error)
    return _finished(request, response, route)


def receive(context: Context, request: Request) -> Receiver | Response:
    """Begin a request whose body is streamed: who takes the body, or a refusal of it."""
    route = ""
    try:
        endpoint, params = _found(request)
        route = endpoint.path
        request = _authorised(context, endpoint, request, params)
        started = endpoint.function(context, request)
    except Exception as error:
        started = _failure(request, error)
    if isinstance(started, Response):
        return _finished(request, started, route)
    return _Guarded(request, started, route)


class _Guarded:
    """A receiver whose errors are those that a client may see."""

    def __init__(self, request: Request, receiver: Receiver, route: str) -> None:
        self._request = request
        self._receiver = receiver
        self._route = route

    def feed(self, pieces: Sequence[Piece]) -> None:
        try:
            self._receiver.feed(pieces)
        except Exception as error:
            raise _seen(self._request, error) from error

    def finish(self) -> Response:
        try:
            response = self._receiver.finish()
        except Exception as error:
            self.abort()
            response = _failure(self._request, error)
        return _finished(self._request, response, self._route)

    def abort(self) -> None:
        try:
            self._receiver.abort()
        except Exception:
            _log.exception("%s %s could not be aborted", self._request.method, self._request.path)


def _match(method: str, path: str) -> tuple[Endpoint, dict[str, str]] | list[str]:
    """The row and the parts of the path, or the methods that the path would have."""
    allowed: list[str] = []
    for endpoint, part, pattern in _PATTERNS:
        match = pattern.fullmatch(path) if part in path else None
        if match is not None:
            if method in endpoint.methods or not endpoint.methods:
                return endpoint, match.groupdict()
            allowed.extend(endpoint.methods)
    return allowed


def _found(request: Request) -> tuple[Endpoint, dict[str, str]]:
    found = _match(request.method, request.path)
    if isinstance(found, tuple):
        return found
    if not found:
        raise RegistryError(
            "There is nothing at this path.", {"path": request.path[:512]},
            code="NOT_FOUND", status=404,
        )  # fmt: skip
    methods = ", ".join(dict.fromkeys(found))
    raise Unsupported(
        f"This path takes {methods}.", {"method": request.method}, headers=[("Allow", methods)]
    )


def _authorised(
    context: Context, endpoint: Endpoint, request: Request, params: dict[str, str]
) -> Request:
    """The request with its parts checked and its subject known."""
    repository = params.get("repository")
    if repository is not None:
        names.checked_name(repository)
    if endpoint.by_capability:
        token = request.query.get(PARAMETER, "")
        subject = Subject.of(
            context.capabilities.verify(token, params["repository"], params["upload"])
        )
    else:
        subject = context.access.authorise(request, endpoint.permission, repository)
    return replace(request, params=params, subject=subject)


def refusal(request: Request, error: RegistryError) -> Response:
    """An error as who asked reads it: the API's clients problem details, others the
    specification's JSON."""
    if request.path == "/api" or request.path.startswith("/api/"):
        return problems.refusal(request, error)
    return error.response()


def _failure(request: Request, error: Exception) -> Response:
    return refusal(request, _seen(request, error))


def _seen(request: Request, error: Exception) -> RegistryError:
    """The error as the client may see it."""
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, ObjectTooLarge):
        return SizeInvalid(str(error), status=413)
    if isinstance(error, StorageError):
        _log.warning("%s %s: %s", request.method, request.path, error)
        return Unavailable("Storage cannot do this now; try again.", str(error))
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return RegistryError("The registry failed; its log says why.", status=500)


def _finished(request: Request, response: Response, route: str) -> Response:
    headers = [*response.headers, _VERSION]
    subject = response.subject or request.subject.id
    return Response(response.status, headers, response.body, subject, route)
