"""Sign-in with GitHub, and a GitHub token in place of a password.

After GitHub's documentation: "Authorizing OAuth apps", "REST API endpoints for OAuth
authorizations", "Rate limits for the REST API", "About authentication to GitHub" (the prefixes of
tokens).
"""

import base64
import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec
from urllib.parse import quote, urlencode

from chalicelib.http import Unavailable
from chalicelib.identity.external import Person, SignInRefused
from chalicelib.outbound import Outbound, OutboundError, Reply
from chalicelib.settings import Settings

SCOPE = "read:user user:email"
"""What a person is asked to grant: who they are, and their email addresses."""

REMEMBERED = 60
"""Seconds for which it is believed who holds a token: GitHub is not asked at every request."""

MOST = 4096
"""Tokens that are remembered at once."""

_Arguments = ParamSpec("_Arguments")
_TOKEN = re.compile(r"(?:gh[pousr]_|github_pat_)[A-Za-z0-9_.-]{16,1000}")
_OF_APPS = ("gho_", "ghu_")
_OF_NOBODY = ("ghs_", "ghr_")
_MISCONFIGURED = ("incorrect_client_credentials", "redirect_uri_mismatch", "application_suspended")
_LIMITED = re.compile("rate limit|login attempts|abuse detection", re.IGNORECASE)
_HEADERS = {
    "Accept": "application/vnd.github+json",
    "X-GitHub-Api-Version": "2022-11-28",
}


def looks_like(password: str) -> bool:
    """Whether a password has the form of a token of GitHub's, usable here or not."""
    return _TOKEN.fullmatch(password) is not None


class GitHub:
    """github.com or an Enterprise Server, as the settings name it. Threads may share it.

    What asks GitHub raises ``SignInRefused`` where GitHub does not vouch for somebody, and
    ``Unavailable`` where it does not answer, wants to be asked less, or does not know this
    registry.
    """

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._outbound = outbound
        self._url = settings.github_url.rstrip("/")
        self._api = settings.github_api_url.rstrip("/")
        self._id = settings.github_client_id
        self._secret = settings.github_client_secret
        self._holders: dict[bytes, tuple[float, Person]] = {}
        self._lock = threading.Lock()

    def authorize_url(self, state: str, challenge: str, redirect_uri: str) -> str:
        """Where a browser is sent to sign in. ``challenge`` is made of a verifier (RFC 7636,
        S256)."""
        parameters = {
            "client_id": self._id,
            "redirect_uri": redirect_uri,
            "scope": SCOPE,
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{self._url}/login/oauth/authorize?{urlencode(parameters)}"

    def exchange(self, code: str, verifier: str, redirect_uri: str) -> str:
        """The token that the code which a browser brought back stands for, once."""
        form = {
            "client_id": self._id,
            "client_secret": self._secret,
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        url, headers = f"{self._url}/login/oauth/access_token", {"Accept": "application/json"}
        # Errors have status 200 here.
        answer = _object(_answer(self._outbound.post, url, form, headers))
        error = answer.get("error")
        if error in _MISCONFIGURED:
            raise _misconfigured()
        if error == "unverified_user_email":
            raise SignInRefused("Verify your primary email address at GitHub, then sign in again.")
        if error is not None:
            raise SignInRefused("GitHub does not accept this sign-in, or no longer: begin again.")
        token = answer.get("access_token")
        if not isinstance(token, str) or not looks_like(token):
            raise _garbled()
        return token

    def person(self, token: str) -> Person:
        """Who granted a token of ``exchange``, with their primary address where GitHub has
        verified it and they let it be seen."""
        found = self._user(token)
        reply = self._get("/user/emails?per_page=100", token)
        if reply.status in (403, 404):
            return found
        emails = _json(reply)
        if not isinstance(emails, list):
            raise _garbled()
        for each in emails:
            if isinstance(each, dict) and each.get("primary") is True is each.get("verified"):
                email = each.get("email")
                return found._replace(email=email if isinstance(email, str) else "")
        return found

    def holder(self, token: str) -> Person:
        """Who holds a token that is used as a password; ``email`` is "".

        A token that was granted to an app proves who holds it only where the app is ours: any
        other app could sign in here with what people granted to it. GitHub shuts out whoever asks
        about many wrong tokens, so the caller limits failures.
        """
        if not looks_like(token) or token.startswith(_OF_NOBODY):
            raise SignInRefused(
                "This token stands for no person at GitHub: take a personal access token. Workflows"
                " of GitHub Actions exchange their OpenID token."
            )
        key = hashlib.sha256(token.encode()).digest()
        with self._lock:
            until, person = self._holders.get(key, (0.0, None))
        if person is not None and time.monotonic() < until:
            return person
        person = self._grantor(token) if token.startswith(_OF_APPS) else self._user(token)
        with self._lock:
            self._holders.pop(key, None)
            if len(self._holders) >= MOST:
                del self._holders[next(iter(self._holders))]
            self._holders[key] = time.monotonic() + REMEMBERED, person
        return person

    def _user(self, token: str) -> Person:
        reply = self._get("/user", token)
        if reply.status in (401, 403):
            raise SignInRefused("GitHub does not accept this token.")
        return self._person(_object(reply))

    def _grantor(self, token: str) -> Person:
        """Who granted a token to our app."""
        foreign = SignInRefused(
            "GitHub does not know this token as one granted to this registry: take a personal"
            " access token."
        )
        if not self._id or not self._secret:
            raise foreign
        pair = base64.b64encode(f"{self._id}:{self._secret}".encode()).decode()
        reply = _answer(
            self._outbound.post_json,
            f"{self._api}/applications/{quote(self._id, safe='')}/token",
            {"access_token": token},
            {**_HEADERS, "Authorization": f"Basic {pair}"},
        )
        if reply.status in (404, 422):
            raise foreign
        if reply.status in (401, 403):
            raise _misconfigured()
        answer = _object(reply)
        app, user = answer.get("app"), answer.get("user")
        if not isinstance(app, dict) or not isinstance(user, dict):
            raise _garbled()
        if app.get("client_id") != self._id:
            raise foreign
        return self._person(user)

    def _person(self, user: Mapping[str, Any]) -> Person:
        number, login = user.get("id"), user.get("login")
        if type(number) is not int or not isinstance(login, str):
            raise _garbled()
        return Person(self._url, str(number), login, "")

    def _get(self, path: str, token: str) -> Reply:
        """What the API answers to the holder of a token."""
        headers = {**_HEADERS, "Authorization": f"Bearer {token}"}
        return _answer(self._outbound.get, self._api + path, headers)


def _answer(
    ask: Callable[_Arguments, Reply], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> Reply:
    """GitHub's answer, unless that it is out of order or was asked too much: 429, or 403 with a
    message that says so."""
    try:
        reply = ask(*args, **kwargs)
    except OutboundError as error:
        raise Unavailable("GitHub does not answer.", error.sentence) from None
    limited = reply.status == 403 and _LIMITED.search(reply.body.decode(errors="replace"))
    if limited or reply.status == 429:
        raise Unavailable("GitHub was asked too much, and answers again later.")
    return reply


def _object(reply: Reply) -> dict[str, Any]:
    value = _json(reply)
    if not isinstance(value, dict):
        raise _garbled()
    return value


def _json(reply: Reply) -> Any:
    """What a success brings."""
    if reply.status != 200:
        raise _garbled()
    try:
        return reply.json()
    except OutboundError:
        raise _garbled() from None


def _garbled() -> Unavailable:
    return Unavailable("GitHub's answer cannot be understood: it may be out of order.")


def _misconfigured() -> Unavailable:
    return Unavailable(
        "GitHub does not know this registry: its operator compares GITHUB_CLIENT_ID,"
        " GITHUB_CLIENT_SECRET and the callback URL with the app's settings at GitHub."
    )
