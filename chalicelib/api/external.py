"""Signing in by another service (GitHub, an OpenID provider), and who one is there.

A browser is sent there and comes back with a code. What it brings back has to fit what it took
along: the ``state`` in the URL, once, and a cookie, so that nobody can have another's browser
finish a sign-in that they began (RFC 9700, section 4.7). Where it comes out is always our own page.
"""

import base64
import hashlib
import hmac
import logging
import secrets
from datetime import datetime
from typing import Literal

import msgspec

from chalicelib.api.operations import PREFIX, Answer, Call, Needs, Operation, Page, cookie
from chalicelib.api.problems import Problem
from chalicelib.api.sessions import signed_in
from chalicelib.http import Request, Unavailable
from chalicelib.identity import external
from chalicelib.identity.challenge import base_url
from chalicelib.identity.external import Person, SignInRefused
from chalicelib.identity.users import Refused
from chalicelib.metadata import external_identities, one_time

_log = logging.getLogger(__name__)

SECONDS = 600
"""How long a person may take at the provider."""
PAGE = "/account"
"""Where a browser comes out. Its script explains the ``error`` that may be in the query."""
COOKIE = "openregistry-sign-in"


class Providers(msgspec.Struct):
    """With whom one can sign in here."""

    providers: list[str]


class Departure(msgspec.Struct):
    """Where the browser goes now."""

    location: str


class Arrival(msgspec.Struct):
    """What the browser brings back (RFC 6749, sections 4.1.2 and 4.1.2.1)."""

    state: str = ""
    code: str = ""
    error: str = ""


class Identity(msgspec.Struct):
    """Who one is elsewhere; ``subject`` is the issuer's own id."""

    id: str
    provider: Literal["github", "openid"]
    issuer: str
    subject: str
    linked_at: datetime


def list_providers(call: Call) -> Providers:
    """With whom one can sign in here."""
    return Providers(list(call.access.federation.providers))


def begin_sign_in(call: Call) -> Answer:
    """Go and sign in elsewhere."""
    try:
        location, field = _departure(call, None)
    except Unavailable as error:
        return _refused(call, "unavailable", error)
    return Answer(None, [("Location", location), field])


def begin_link(call: Call) -> Answer:
    """Have somebody elsewhere be linked to one's account, who signs in there now."""
    location, field = _departure(call, call.account)
    return Answer(Departure(location), [field])


def finish_sign_in(call: Call) -> Answer:
    """Come back: signed in, signed up, or linked."""
    provider = _provider(call)
    held = one_time.take(call.context.database, f"sign-in by {provider}", call.query.state)
    by = _hash(cookie(call.request, _cookie_name(call.request)))
    if held is None or not hmac.compare_digest(by, held.data["by"]):
        return _refused(call, "begin-again")
    if call.query.error or not call.query.code:
        return _refused(call, "cancelled")
    try:
        person = _person(call, provider, held)
        if held.account_id is None:
            return _signed_in(call, provider, person)
        if call.session is None or call.subject.account != held.account_id:
            return _refused(call, "signed-out")
        external.link(call.context.database, held.account_id, person)
    except SignInRefused as error:
        return _refused(call, "begin-again", error)
    except Unavailable as error:
        return _refused(call, "unavailable", error)
    except Refused as error:
        return _refused(call, error.field or "linked-elsewhere")
    return _arrived(call)


def list_identities(call: Call) -> Page[Identity]:
    """Who one is elsewhere."""
    github = call.context.settings.github_url
    return Page(
        [
            Identity(
                each.id,
                external.provider_of(each.issuer, github),
                each.issuer,
                each.subject,
                each.linked_at,
            )
            for each in external_identities.listed(call.context.database, call.account)
        ]
    )


def unlink_identity(call: Call) -> None:
    """Let somebody elsewhere sign in no longer."""
    if not external.unlink(
        call.context.database,
        call.account,
        call.params["identity"],
        call.session,
        call.context.settings.github_url,
    ):
        raise Problem(404, "There is no such identity.")


def _provider(call: Call) -> str:
    provider = call.params["provider"]
    if provider not in call.access.federation.providers:
        raise Problem(404, "Nobody signs in here by such a provider.")
    return provider


def _departure(call: Call, account: int | None) -> tuple[str, tuple[str, str]]:
    """Where to send the browser, and the cookie that it takes along."""
    provider, federation = _provider(call), call.access.federation
    verifier, nonce, by = (secrets.token_urlsafe(32) for _ in range(3))
    callback = (
        f"{base_url(call.context.settings, call.request)}{PREFIX}/sign-in/{provider}/callback"
    )
    state = one_time.put(
        call.context.database, f"sign-in by {provider}", SECONDS, account,
        verifier=verifier, nonce=nonce, callback=callback, by=_hash(by),
    )  # fmt: skip
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    location = (
        federation.github.authorize_url(state, challenge, callback)
        if provider == "github"
        else federation.openid.authorize_url(state, nonce, challenge, callback)
    )
    return location, _cookie(call.request, by, SECONDS)


def _person(call: Call, provider: str, held: one_time.Held) -> Person:
    """Who the code stands for."""
    federation, data, code = call.access.federation, held.data, call.query.code
    if provider == "github":
        token = federation.github.exchange(code, data["verifier"], data["callback"])
        return federation.github.person(token)
    return federation.openid.exchange(code, data["verifier"], data["nonce"], data["callback"])


def _signed_in(call: Call, provider: str, person: Person) -> Answer:
    """The browser, signed in to the account that the person is linked to, or to a new one."""
    found = external_identities.find(call.context.database, person.issuer, person.subject)
    if found is not None:
        account = found.account_id
    elif call.context.settings.sign_up != "open":
        return _refused(call, "not-linked")
    elif not person.email:
        return _refused(call, "no-email")
    else:
        account = external.sign_up(call.context.database, person)
    call.access.trust(call.request.client, account)
    return _arrived(call, *signed_in(call, account, provider).headers)


def _arrived(call: Call, *headers: tuple[str, str]) -> Answer:
    return Answer(None, [call.context.location(PAGE), _cookie(call.request, "", 0), *headers])


def _refused(call: Call, code: str, error: SignInRefused | Unavailable | None = None) -> Answer:
    if error is not None:
        why = f"{error.message} {error.detail or ''}".rstrip()
        _log.warning("a sign-in by %s: %s", call.params["provider"], why)
    place = call.context.location(f"{PAGE}?error={code}")
    return Answer(None, [place, _cookie(call.request, "", 0)])


def _cookie(request: Request, value: str, seconds: int) -> tuple[str, str]:
    # Lax: it has to come with the way back, which another site begins.
    field = f"{_cookie_name(request)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax"
    return "Set-Cookie", field + ("; Secure" if request.secure else "")


def _cookie_name(request: Request) -> str:
    return f"__Host-{COOKIE}" if request.secure else COOKIE


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


_SIGN_IN = "/sign-in/{provider}"
OPERATIONS = (
    Operation("GET", "/sign-in", list_providers, Needs.NOTHING,
              "With whom one can sign in", answer=Providers),
    Operation("GET", _SIGN_IN, begin_sign_in, Needs.NOTHING,
              "Sign in by another service: for browsers, which are sent there", status=302),
    Operation("GET", f"{_SIGN_IN}/callback", finish_sign_in, Needs.NOTHING,
              "Where browsers come back to, and are sent to /account", status=302, query=Arrival),
    Operation("GET", "/account/identities", list_identities, Needs.PERSON,
              "Who one is at other services", answer=Page[Identity]),
    Operation("POST", f"{_SIGN_IN}/link", begin_link, Needs.PERSON,
              "Link one's account to another service: for browsers, which then go there",
              answer=Departure),
    Operation("DELETE", "/account/identities/{identity}", unlink_identity, Needs.PERSON,
              "Unlink one's account from another service", problems=(409,)),
)  # fmt: skip
