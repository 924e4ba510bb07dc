"""The token server: where clients get the registry token that a challenge asks for.

GET is distribution's "Token Authentication Specification", POST its "OAuth2 Token Authentication"
(RFC 6749), with the exchange of other issuers' tokens (RFC 8693). Whatever is asked for, the token
is for what the caller may do of it, which may be nothing: never an error.

GET with ``offline_token=true`` gives no refresh token. Docker's engine would keep it in the
password's place and use the same one for ever, since it forgets the next one that it is given.
"""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from chalicelib.context import Context
from chalicelib.http import JSON, RegistryError, Request, Response, Unauthorized
from chalicelib.identity import NOBODY, Subject, registry_tokens
from chalicelib.identity.access import CATALOG, LEAST_ROLES, Accounts
from chalicelib.identity.challenge import challenge
from chalicelib.metadata import accounts as accounts_metadata
from chalicelib.metadata import audit, refresh_tokens
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.trust import Rule
from chalicelib.registry.names import LONGEST_NAME, is_name

_MOST_SCOPES = 100
_SCOPE = re.compile(r"(repository|registry)(?:\([a-z]+\))?:(.+):([a-z*,]*)", re.DOTALL)
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_TYPE = "urn:ietf:params:oauth:token-type:{}"
_RULES_TRIED = 5
_HEADERS = (("Content-Type", JSON), ("Cache-Control", "no-store"))


class OAuthError(RegistryError):
    """A request that cannot be granted (RFC 6749, section 5.2); also in the form that clients of
    registries read."""

    code = "DENIED"

    def __init__(self, error: str, message: str, status: int = 400) -> None:
        super().__init__(message, status=status)
        self.error = error

    def response(self) -> Response:
        body = {
            "error": self.error,
            "error_description": self.message,
            "errors": [{"code": self.code, "message": self.message}],
        }
        return Response(self.status, (*_HEADERS, *self.headers), json.dumps(body).encode())


def accounts(context: Context) -> Accounts:
    """The policy, where it has accounts. Raises a 404 where everyone may do everything."""
    if not isinstance(context.access, Accounts):
        raise RegistryError(
            "This registry has no accounts.",
            "OPENREGISTRY_ACCESS=accounts gives it some",
            code="NOT_FOUND",
            status=404,
        )
    return context.access


def get_token(context: Context, request: Request) -> Response:
    """A token for the Basic credentials of the request, or for nobody."""
    with _challenging(context, request):
        return _get_token(context, request)


def post_token(context: Context, request: Request) -> Response:
    """A token for a password, a refresh token or another issuer's token."""
    with _challenging(context, request):
        try:
            return _post_token(context, request)
        except Unauthorized as error:
            raise OAuthError("invalid_grant", error.message, 401) from None


@contextmanager
def _challenging(context: Context, request: Request) -> Iterator[None]:
    """Every 401 has a challenge (RFC 9110, section 11.6.1)."""
    try:
        yield
    except RegistryError as error:
        if error.status == 401:
            error.headers = (*error.headers, challenge(context.settings, request))
        raise


def _get_token(context: Context, request: Request) -> Response:
    access = accounts(context)
    subject = access.authenticator.subject(request, fresh=True) or NOBODY
    # Clients write the space between scopes as a plus, which no scope has in it.
    scopes = [text.replace("+", " ") for text in request.query.all("scope")]
    return _granted(access, subject, scopes)


def _post_token(context: Context, request: Request) -> Response:
    access = accounts(context)
    form = _form(request)
    kind = form.get("grant_type", [""])[0]
    if kind == "password":
        subject = access.authenticator.log_in(
            _field(form, "username"), _field(form, "password"), request.client
        )
        refresh = None
        if form.get("access_type", [""])[0] == "offline":
            refresh = _begin(context, subject, form.get("client_id", [""])[0])
    elif kind == "refresh_token":
        subject, refresh = _follow(context, _field(form, "refresh_token"))
    elif kind == _EXCHANGE:
        return _exchanged(context, access, form)
    else:
        raise OAuthError(
            "unsupported_grant_type", f"grant_type is password, refresh_token or {_EXCHANGE}."
        )
    return _granted(access, subject, form.get("scope", []), refresh)


def keys(context: Context, _request: Request) -> Response:
    """The public keys of registry tokens (RFC 7517)."""
    headers = [("Content-Type", JSON), ("Cache-Control", "public, max-age=3600")]
    return Response(200, headers, json.dumps(accounts(context).tokens.jwks()).encode())


def _granted(
    access: Accounts, subject: Subject, scopes: list[str], refresh: str | None = None
) -> Response:
    access.check(subject)
    more = {} if refresh is None else {"refresh_token": refresh}
    return _answer(access, subject, _grants(access, subject, scopes), more)


def _answer(
    access: Accounts,
    subject: Subject,
    grants: list[dict[str, Any]],
    more: dict[str, str],
    seconds: int = registry_tokens.SECONDS,
) -> Response:
    token, seconds = access.tokens.issue(subject, grants, seconds)
    answer: dict[str, Any] = {
        "token": token,
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": seconds,
        "issued_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "scope": " ".join(f"{g['type']}:{g['name']}:{','.join(g['actions'])}" for g in grants),
        **more,
    }
    return Response(200, _HEADERS, json.dumps(answer).encode(), subject.id)


def _grants(access: Accounts, subject: Subject, scopes: list[str]) -> list[dict[str, Any]]:
    """What is asked for and may be had. For the former name of a repository that is what may be had
    by its new one, so that reads can be sent on and a push be told; and the new one for reads."""
    grants = []
    for (kind, name), actions in _wanted(scopes).items():
        if kind == "registry":
            if name == "catalog" and (subject.claims is None or CATALOG in subject.claims):
                grants.append({"type": kind, "name": name, "actions": ["*"]})
            continue
        if not is_name(name):
            continue
        asked = set(LEAST_ROLES) - {"admin"} if "*" in actions else actions
        may = access.actions(subject, name)
        now = access.moved(name) if not may else None
        if now is not None:
            may = access.actions(subject, now)
        granted = [action for action in may if action in asked]
        if granted:
            grants.append({"type": kind, "name": name, "actions": granted})
        if now is not None and "pull" in granted:
            grants.append({"type": kind, "name": now, "actions": ["pull"]})
    return grants


def _wanted(scopes: list[str]) -> dict[tuple[str, str], set[str]]:
    """The actions that are asked for, by type and name."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for text in [word for scope in scopes for word in scope.split()][:_MOST_SCOPES]:
        match = _SCOPE.fullmatch(text)
        if match is not None and len(match[2]) <= LONGEST_NAME:
            wanted.setdefault((match[1], match[2]), set()).update(match[3].split(","))
    return wanted


def _exchanged(context: Context, access: Accounts, form: dict[str, list[str]]) -> Response:
    """A token for one of another issuer (RFC 8693), by the trust rule that grants the most of what
    is asked for: the namespace owner's before others', older ones before newer ones."""
    from chalicelib.identity import exchange
    from chalicelib.identity.key_sets import TokenRefused

    token, rule_id = _field(form, "subject_token"), None
    if _field(form, "subject_token_type") not in (_TYPE.format("jwt"), _TYPE.format("id_token")):
        raise OAuthError(
            "invalid_request",
            f"subject_token_type is {_TYPE.format('jwt')} or {_TYPE.format('id_token')}.",
        )
    wants = form.get("requested_token_type", [_TYPE.format("access_token")])
    if wants != [_TYPE.format("access_token")] or "actor_token" in form:
        raise OAuthError("invalid_request", "What is given is an access token, to the subject.")
    if "rule" in form:
        try:
            rule_id = str(uuid.UUID(_field(form, "rule")))
        except ValueError:
            raise OAuthError("invalid_request", "rule is the id of a trust rule.") from None
    scopes = form.get("scope", [])
    owners = sorted({name.partition("/")[0] for _, name in _wanted(scopes)})
    try:
        admitted = exchange.admit(context.database, access.federation, token, rule_id, owners)
        best: tuple[list[dict[str, Any]], Rule] | None = None
        for rule in admitted.rules[:_RULES_TRIED]:
            grants = _grants(access, admitted.subject(rule), scopes)
            if _size(grants) > (_size(best[0]) if best else 0):
                best = grants, rule
        if best is None:
            raise OAuthError(
                "invalid_scope",
                "Nothing of this scope may be had by the trust rules for this token: ask for one"
                " like repository:NAME:pull,push",
            )
        exchange.use_up(context.database, admitted, best[1])
    except TokenRefused as error:
        # RFC 8693, section 2.2.2: whatever is wrong with the token.
        raise OAuthError("invalid_request", error.sentence) from None
    more = {"issued_token_type": _TYPE.format("access_token")}
    return _answer(access, admitted.subject(best[1]), best[0], more, exchange.SECONDS)


def _size(grants: list[dict[str, Any]]) -> int:
    return sum(len(grant["actions"]) for grant in grants)


def _begin(context: Context, subject: Subject, client: str) -> str | None:
    """A refresh token for somebody who is an account, by its password or an access token."""
    kind, _, credential = subject.credential.partition(":")
    if subject.account is None or subject.claims is not None or kind not in ("", "token"):
        return None
    account = subject.account

    def work(transaction: Transaction) -> str:
        audit.add(transaction, "refresh_token.create", subject.id, account=account)
        return refresh_tokens.begin(transaction, account, credential or None, client[:200])

    return context.database.transaction(work)


def _follow(context: Context, token: str) -> tuple[Subject, str]:
    """Whom a refresh token stands for, and the token that replaces it."""

    def work(transaction: Transaction) -> tuple[Subject, str] | None:
        family, ended = refresh_tokens.use(transaction, token)
        if ended is not None:
            audit.add(transaction, "refresh_token.reuse", "", account=ended.account_id, id=ended.id)
        if family is None:
            return None
        following = refresh_tokens.follow(transaction, family.id)
        if family.access_token:
            return Subject(family.account_id, f"token:{family.access_token}"), following
        number = accounts_metadata.password_number(transaction, family.account_id)
        return Subject(family.account_id, password=number), following

    found = context.database.transaction(work)
    if found is None:
        raise OAuthError(
            "invalid_grant", "This refresh token was used, was revoked, or has expired.", 401
        )
    return found


def _form(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs(
            request.body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=200
        )
    except (UnicodeDecodeError, ValueError):
        raise OAuthError("invalid_request", "The body is a form, URL-encoded.") from None


def _field(form: dict[str, list[str]], name: str) -> str:
    values = form.get(name, [])
    if len(values) != 1 or not values[0]:
        raise OAuthError("invalid_request", f"The form needs {name}, once.")
    return values[0]
