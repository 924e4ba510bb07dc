"""The pages and endpoints with which people sign in at an OpenID provider.

OpenID Connect Core 1.0, sections 3.1.2, 3.1.3 and 5.3; RFC 6749, section 5.2; RFC 7636.
"""

import base64
import hashlib
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from tests.identity.doubles.provider import Handler, Provider

AUTHORIZE, TOKEN, USER_INFO = "/authorize", "/token", "/userinfo"


@dataclass(frozen=True)
class Client:
    """An application that is registered at the provider; without a secret it is a public one."""

    id: str
    secret: str
    callback: str


@dataclass(frozen=True)
class _Code:
    client: Client
    parameters: Mapping[str, str]
    user: Mapping[str, Any]


class OpenIDProvider(Provider):
    """A provider at which ``user``, the claims of a person, is signed in in the browser and grants
    what is asked for. ``claims`` change the next ID tokens, and ``hidden`` are claims of the user
    that the UserInfo endpoint alone tells. ``methods`` are the ways in which a client may prove
    itself, announced unless None, when Basic is the one."""

    def __init__(self) -> None:
        super().__init__("/realm")
        self.clients: dict[str, Client] = {}
        self.user: dict[str, Any] = {"sub": "24400320"}
        self.claims: dict[str, Any] = {}
        self.hidden: frozenset[str] = frozenset()
        self.methods: list[str] | None = None
        self.described: dict[str, Any] = {}
        """Changes to the discovery document; None leaves out."""
        self._codes: dict[str, _Code] = {}
        self._granted: dict[str, _Code] = {}
        self._lock = threading.Lock()
        self.routes |= {
            ("GET", AUTHORIZE): self._authorize,
            ("POST", TOKEN): self._token,
            ("GET", USER_INFO): self._user_info,
        }

    def register(self, client_id: str, callback: str, secret: str | None = None) -> Client:
        """A new client."""
        secret = secrets.token_urlsafe(24) if secret is None else secret
        self.clients[client_id] = Client(client_id, secret, callback)
        return self.clients[client_id]

    def configuration(self) -> dict[str, Any]:
        announced = {"token_endpoint_auth_methods_supported": self.methods} if self.methods else {}
        described = {
            **super().configuration(),
            "authorization_endpoint": self.issuer + AUTHORIZE,
            "token_endpoint": self.issuer + TOKEN,
            "userinfo_endpoint": self.issuer + USER_INFO,
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            **announced,
            **self.described,
        }
        return {name: value for name, value in described.items() if value is not None}

    def _authorize(self, handler: Handler) -> None:
        asked = dict(parse_qsl(urlsplit(handler.path).query))
        client = self.clients.get(asked.get("client_id", ""))
        # Core, section 3.1.2.1: the redirect URI is one of those registered, exactly.
        if client is None or asked.get("redirect_uri") != client.callback:
            return handler.reply({"error": "invalid_request"}, 400)
        answer = {"state": asked["state"]} if "state" in asked else {}
        wanted = {"response_type": "code", "code_challenge_method": "S256"}
        right = wanted.items() <= asked.items() and len(asked.get("code_challenge", "")) == 43
        if not right or "openid" not in asked.get("scope", "").split():
            answer["error"] = "invalid_request"
        else:
            answer["code"] = secrets.token_urlsafe(16)
            self._codes[answer["code"]] = _Code(client, asked, dict(self.user))
        return handler.reply({}, 302, {"Location": f"{client.callback}?{urlencode(answer)}"})

    def _token(self, handler: Handler) -> None:
        form = dict(parse_qsl(handler.body.decode()))
        client = self._client(handler.headers.get("Authorization", ""), form)
        if client is None:
            challenge = {"WWW-Authenticate": "Basic"}
            return handler.reply({"error": "invalid_client"}, 401, challenge)
        if form.get("grant_type") != "authorization_code":
            return handler.reply({"error": "unsupported_grant_type"}, 400)
        with self._lock:
            code = self._codes.pop(form.get("code", ""), None)
        if (
            code is None
            or code.client != client
            or code.parameters["redirect_uri"] != form.get("redirect_uri")
            or code.parameters["code_challenge"] != _s256(form.get("code_verifier", ""))
        ):
            return handler.reply({"error": "invalid_grant"}, 400)
        access_token = secrets.token_urlsafe(24)
        self._granted[access_token] = code
        shown = {name: value for name, value in code.user.items() if name not in self.hidden}
        claims = {"nonce": code.parameters.get("nonce"), **shown, **self.claims}
        answer = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": self.token(self.standard(client.id, **claims)),
        }
        return handler.reply(answer, headers={"Cache-Control": "no-store"})

    def _client(self, authorization: str, form: Mapping[str, str]) -> Client | None:
        """Who asks for a token, proven in one of the ways that are accepted."""
        methods = self.methods or ["client_secret_basic"]
        scheme, _, encoded = authorization.partition(" ")
        if scheme == "Basic":
            pair = base64.b64decode(encoded).decode().partition(":")
            name, secret, method = unquote_plus(pair[0]), unquote_plus(pair[2]), "basic"
        else:
            name, secret, method = form.get("client_id", ""), form.get("client_secret", ""), "post"
        client = self.clients.get(name)
        if client is None or client.secret != secret:
            return None
        return client if not secret or f"client_secret_{method}" in methods else None

    def _user_info(self, handler: Handler) -> None:
        granted = self._granted.get(
            handler.headers.get("Authorization", "").removeprefix("Bearer ")
        )
        if granted is None:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return handler.reply({}, 401, challenge)
        return handler.reply(granted.user)


def _s256(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
