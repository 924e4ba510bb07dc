"""GitHub, as far as people sign in with it, after its documentation.

"Authorizing OAuth apps", "Troubleshooting OAuth app access token request errors", "REST API
endpoints for users", "… emails", "… OAuth authorizations", "Rate limits for the REST API",
"Authenticating to the REST API". As on an Enterprise Server one host has both the pages and, under
/api/v3, the API.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

API = "/api/v3"
CODE_LIFE = 600
"""Seconds that a code of the web flow holds."""

DOCUMENTATION = "https://docs.github.com"


@dataclass(frozen=True)
class App:
    """An OAuth app (a token of it begins with gho_) or a GitHub App (ghu_)."""

    client_id: str
    client_secret: str
    callback: str
    prefix: str = "gho_"


@dataclass(frozen=True)
class User:
    id: int
    login: str
    emails: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Grant:
    """What a token stands for; ``app`` is None for a token that a person made."""

    user: User
    app: App | None
    scopes: frozenset[str]


@dataclass(frozen=True)
class _Code:
    app: App
    user: User
    scopes: frozenset[str]
    redirect_uri: str
    challenge: str
    issued_at: float


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


class GitHubDouble:
    """A GitHub on 127.0.0.1. ``user`` is who is signed in in the browser and grants every app what
    it asks for, but for the scopes in ``withheld``; ``denies``: presses Cancel. ``trouble`` is the
    answer to everything while it is set. ``requests`` are those that came, as (method, path)."""

    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self.tokens: dict[str, Grant] = {}
        self.user: User | None = None
        self.withheld: frozenset[str] = frozenset()
        self.denies = False
        self.trouble: Answer | None = None
        self.requests: list[tuple[str, str]] = []
        self.now = time.time
        self._codes: dict[str, _Code] = {}
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.api_url = self.url + API

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def register(self, client_id: str, callback: str, prefix: str = "gho_") -> App:
        """A new app, as its developer registers it."""
        app = App(client_id, secrets.token_hex(20), callback, prefix)
        self.apps[client_id] = app
        return app

    def personal_token(self, user: User, prefix: str = "ghp_", *scopes: str) -> str:
        """A token that a person made in the settings."""
        return self._token(prefix, Grant(user, None, frozenset(scopes)))

    def grant(self, app: App, user: User, *scopes: str) -> str:
        """A token that a person granted to an app."""
        return self._token(app.prefix, Grant(user, app, frozenset(scopes)))

    def _token(self, prefix: str, grant: Grant) -> str:
        length = 82 if prefix == "github_pat_" else 36
        token = prefix + secrets.token_hex(length // 2)
        self.tokens[token] = grant
        return token

    # The pages.

    def authorize(self, query: Mapping[str, str]) -> Answer:
        """GET /login/oauth/authorize"""
        app = self.apps.get(query.get("client_id", ""))
        if app is None or self.user is None:
            return Answer(404, {"message": "Not Found"})
        uri = query.get("redirect_uri", app.callback)
        if not _matches(uri, app.callback):
            told = "The redirect_uri MUST match the registered callback URL for this application."
            return _redirect(
                app.callback, query, error="redirect_uri_mismatch", error_description=told
            )
        challenge = query.get("code_challenge", "")
        if query.get("code_challenge_method", "S256" if challenge else "") != (
            "S256" if challenge else ""
        ) or (challenge and len(challenge) != 43):
            return Answer(400, {"message": "code_challenge: 43 characters, S256"})
        if self.denies:
            told = "The user has denied your application access."
            return _redirect(uri, query, error="access_denied", error_description=told)
        code = secrets.token_hex(10)
        scopes = frozenset(query.get("scope", "").split()) - self.withheld
        self._codes[code] = _Code(app, self.user, scopes, uri, challenge, self.now())
        return _redirect(uri, query, code=code)

    def access_token(self, form: Mapping[str, str]) -> Answer:
        """POST /login/oauth/access_token: errors have status 200."""
        app = self.apps.get(form.get("client_id", ""))
        if app is None or form.get("client_secret") != app.client_secret:
            return _oauth_error(
                "incorrect_client_credentials",
                "The client_id and/or client_secret passed are incorrect.",
            )
        with self._lock:
            code = self._codes.pop(form.get("code", ""), None)
        if code is None or code.app != app or code.issued_at + CODE_LIFE < self.now():
            return _oauth_error("bad_verification_code", "The code passed is incorrect or expired.")
        if form.get("redirect_uri", code.redirect_uri) != code.redirect_uri:
            return _oauth_error(
                "redirect_uri_mismatch",
                "The redirect_uri MUST match the registered callback URL for this application.",
            )
        if code.challenge and code.challenge != _s256(form.get("code_verifier", "")):
            return _oauth_error("bad_verification_code", "The code passed is incorrect or expired.")
        if not any(each["primary"] and each["verified"] for each in code.user.emails):
            return _oauth_error(
                "unverified_user_email", "The user must have a verified primary email."
            )
        return Answer(
            200,
            {
                "access_token": self._token(app.prefix, Grant(code.user, app, code.scopes)),
                "scope": ",".join(sorted(code.scopes)),
                "token_type": "bearer",
            },
        )

    # The API.

    def get_user(self, token: str) -> Answer:
        """GET /user"""
        grant = self.tokens.get(token)
        if grant is None:
            return _message(401, "Bad credentials", "/rest")
        if token.startswith("ghs_"):
            return _message(403, "Resource not accessible by integration", "/rest/users/users")
        return Answer(200, {**_simple_user(grant.user), "name": "Mona", "email": None})

    def get_emails(self, token: str) -> Answer:
        """GET /user/emails: for those with the scope user:email (user includes it)."""
        grant = self.tokens.get(token)
        if grant is None:
            return _message(401, "Bad credentials", "/rest")
        if not grant.scopes & {"user:email", "user"}:
            return _message(404, "Not Found", "/rest/users/emails")
        return Answer(200, [dict(each) for each in grant.user.emails])

    def check_token(self, client_id: str, authorization: str, body: bytes) -> Answer:
        """POST /applications/{client_id}/token"""
        app = self.apps.get(client_id)
        if app is None or authorization != _basic(app.client_id, app.client_secret):
            return _message(401, "Bad credentials", "/rest")
        try:
            asked = json.loads(body)
        except ValueError:
            return _message(400, "Problems parsing JSON", "/rest")
        if not isinstance(asked, dict):
            return _message(400, "Body should be a JSON object", "/rest")
        if not isinstance(asked.get("access_token"), str):
            return _message(422, "Invalid request.", "/rest/apps/oauth-applications#check-a-token")
        grant = self.tokens.get(asked["access_token"])
        if grant is None or grant.app != app:
            return _message(404, "Not Found", "/rest/apps/oauth-applications#check-a-token")
        return Answer(
            200,
            {
                "id": 1,
                "app": {"client_id": client_id, "name": "registry", "url": app.callback},
                "token": asked["access_token"],
                "hashed_token": hashlib.sha256(asked["access_token"].encode()).hexdigest(),
                "token_last_eight": asked["access_token"][-8:],
                "scopes": sorted(grant.scopes),
                "expires_at": None,
                "user": _simple_user(grant.user),
            },
        )


def primary_limit(status: int = 403) -> Answer:
    """The answer to one who has used up the hour's requests."""
    answer = _message(status, "API rate limit exceeded for user ID 1.", "/rest/rate-limit")
    reset = str(int(time.time()) + 1800)
    return Answer(status, answer.body, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": reset})


def secondary_limit(status: int = 403) -> Answer:
    """The answer to one who asks too much at once."""
    told = (
        "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
    )
    answer = _message(status, told, "/rest/overview/rate-limits-for-the-rest-api")
    return Answer(status, answer.body, {"retry-after": "60"})


def login_limit() -> Answer:
    """The answer to everyone, the rightful too, after many wrong tokens."""
    told = "Maximum number of login attempts exceeded. Please try again later."
    return _message(403, told, "/rest")


def suspended() -> Answer:
    """The answer to a person whose account GitHub has suspended."""
    return _message(403, "Sorry. Your account was suspended.", "/rest")


def _simple_user(user: User) -> dict[str, Any]:
    return {"login": user.login, "id": user.id, "node_id": f"U_{user.id}", "type": "User"}


def _message(status: int, message: str, page: str) -> Answer:
    told = {"message": message, "documentation_url": DOCUMENTATION + page, "status": str(status)}
    return Answer(status, told)


def _oauth_error(error: str, description: str) -> Answer:
    page = "troubleshooting-oauth-app-access-token-request-errors"
    uri = f"{DOCUMENTATION}/apps/managing-oauth-apps/{page}/#{error.replace('_', '-')}"
    return Answer(200, {"error": error, "error_description": description, "error_uri": uri})


def _redirect(uri: str, query: Mapping[str, str], **parameters: str) -> Answer:
    state = {"state": query["state"]} if "state" in query else {}
    joined = uri + ("&" if urlsplit(uri).query else "?") + urlencode({**parameters, **state})
    return Answer(302, None, {"Location": joined})


def _matches(uri: str, callback: str) -> bool:
    """The rule of "Redirect URLs": the host without sub-domains, the port unless it is loopback,
    and a path below the callback's."""
    asked, known = urlsplit(uri), urlsplit(callback)
    loopback = known.hostname in ("127.0.0.1", "::1", "localhost")
    hosts = asked.hostname or "", known.hostname or ""
    return (
        asked.scheme == known.scheme
        and (hosts[0] == hosts[1] or hosts[0].endswith(f".{hosts[1]}"))
        and (loopback or asked.port == known.port)
        and (asked.path == known.path or asked.path.startswith(known.path.rstrip("/") + "/"))
    )


def _s256(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, github: GitHubDouble) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.github = github


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        github, parts = self.server.github, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        github.requests.append((self.command, parts.path))
        if github.trouble is not None:
            answer = github.trouble
        elif not parts.path.startswith(API):
            answer = self._page(parts.path, parts.query, body)
        elif not self.headers.get("User-Agent"):
            answer = _message(403, "Request forbidden by administrative rules.", "/rest")
        else:
            answer = self._api(parts.path.removeprefix(API), body)
        self._send(answer, parts.path.startswith(API))

    def _page(self, path: str, query: str, body: bytes) -> Answer:
        github = self.server.github
        if (self.command, path) == ("GET", "/login/oauth/authorize"):
            return github.authorize(dict(parse_qsl(query)))
        if (self.command, path) == ("POST", "/login/oauth/access_token"):
            return github.access_token(dict(parse_qsl(body.decode())))
        return Answer(404, b"<!DOCTYPE html><p>Page not found")

    def _api(self, path: str, body: bytes) -> Answer:
        github, authorization = self.server.github, self.headers.get("Authorization", "")
        scheme, _, token = authorization.partition(" ")
        bearer = token if scheme.lower() in ("bearer", "token") else ""
        if (self.command, path) == ("GET", "/user"):
            return github.get_user(bearer)
        if (self.command, path) == ("GET", "/user/emails"):
            return github.get_emails(bearer)
        checked = re.fullmatch("/applications/([^/]+)/token", path)
        if self.command == "POST" and checked:
            return github.check_token(checked[1], authorization, body)
        return _message(404, "Not Found", "/rest")

    def _send(self, answer: Answer, api: bool) -> None:
        # The pages answer in JSON only to those who accept it; the API always does.
        if answer.body is None or isinstance(answer.body, bytes):
            data, kind = answer.body or b"", "text/html"
        elif api or "json" in self.headers.get("Accept", ""):
            data, kind = json.dumps(answer.body).encode(), "application/json"
        else:
            data, kind = urlencode(answer.body).encode(), "application/x-www-form-urlencoded"
        self.send_response(answer.status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
