"""Sign-in with an OpenID provider: the authorization code flow with PKCE, state and nonce.

OpenID Connect Core 1.0 (sections 3.1 and 5.3), Discovery 1.0, RFC 6749 and RFC 7636.
"""

import base64
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

from chalicelib.http import Unavailable
from chalicelib.identity.external import Person, SignInRefused
from chalicelib.identity.issuers import Issuers
from chalicelib.identity.key_sets import TokenRefused
from chalicelib.outbound import Outbound, OutboundError
from chalicelib.settings import Settings

SCOPE = "openid email profile"

CONFIGURATION_LIFE = 600
"""Seconds for which the provider's description is kept: it is not asked for it at every sign-in."""

_MISCONFIGURED = ("invalid_client", "unauthorized_client", "unsupported_grant_type")


class OpenID:
    """The provider that the settings name. Threads may share it.

    Each method raises ``Unavailable`` where the provider does not answer, or does not know this
    registry.
    """

    def __init__(self, settings: Settings, outbound: Outbound, issuers: Issuers) -> None:
        self._outbound = outbound
        self._issuers = issuers
        self._issuer = settings.oidc_issuer
        self._id = settings.oidc_client_id
        self._secret = settings.oidc_client_secret
        self._kept: tuple[float, Mapping[str, Any]] = (0.0, {})

    def authorize_url(self, state: str, nonce: str, challenge: str, redirect_uri: str) -> str:
        """Where a browser is sent to sign in. ``challenge`` is made of a verifier (RFC 7636,
        S256)."""
        parameters = {
            "response_type": "code",
            "client_id": self._id,
            "redirect_uri": redirect_uri,
            "scope": SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = self._endpoint("authorization_endpoint")
        # RFC 6749, section 3.1: a query that is there stays.
        return endpoint + ("&" if urlsplit(endpoint).query else "?") + urlencode(parameters)

    def exchange(self, code: str, verifier: str, nonce: str, redirect_uri: str) -> Person:
        """Who the code that a browser brought back stands for, once. Raises ``SignInRefused``
        where the provider, or its ID token, does not prove it."""
        answer = self._tokens(code, verifier, redirect_uri)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise _garbled()
        try:
            claims = self._issuers.verify(token, self._issuer, self._id)
        except TokenRefused as error:
            raise SignInRefused(
                "What the OpenID provider says cannot be trusted: begin again.", error.sentence
            ) from None
        self._check(claims, nonce)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= 255:
            raise _garbled()
        told = claims if "email" in claims else self._user_info(subject, answer)
        email = told.get("email") if told.get("email_verified") is True else None
        name = claims.get("preferred_username", told.get("preferred_username"))
        return Person(
            self._issuer,
            subject,
            name if isinstance(name, str) else "",
            email if isinstance(email, str) else "",
        )

    def _tokens(self, code: str, verifier: str, redirect_uri: str) -> dict[str, Any]:
        """What the token endpoint gives for a code (Core, section 3.1.3)."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        # Basic is what every provider takes that does not say otherwise (Discovery, section 3).
        methods = self._configuration().get("token_endpoint_auth_methods_supported")
        if self._secret and (not isinstance(methods, list) or "client_secret_basic" in methods):
            # RFC 6749, section 2.3.1: each half is encoded first.
            pair = f"{quote_plus(self._id)}:{quote_plus(self._secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form["client_id"] = self._id
            if self._secret:
                form["client_secret"] = self._secret
        url = self._endpoint("token_endpoint")
        try:
            reply = self._outbound.post(url, form, headers)
            answer = reply.json()
        except OutboundError as error:
            raise _silent(error) from None
        if reply.status == 429 or reply.status >= 500 or not isinstance(answer, dict):
            raise _garbled()
        if answer.get("error") in _MISCONFIGURED:
            raise Unavailable(
                "The OpenID provider does not know this registry: its operator compares"
                " OIDC_CLIENT_ID and OIDC_CLIENT_SECRET with the provider's settings."
            )
        if reply.status != 200:
            raise SignInRefused(
                "The OpenID provider does not accept this sign-in, or no longer: begin again."
            )
        return answer

    def _check(self, claims: Mapping[str, Any], nonce: str) -> None:
        """What Core, section 3.1.3.7 demands of an ID token beyond what ``Issuers`` checks."""
        said = claims.get("nonce")
        if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
            raise SignInRefused("This sign-in was begun elsewhere (nonce): begin again.")
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else self._id) != self._id:
            raise SignInRefused("The ID token was made out to another application (azp).")

    def _user_info(self, subject: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the UserInfo endpoint tells of the same subject: some providers name the email
        address there alone (Core, section 5.4). Nothing where it tells nothing."""
        token = answer.get("access_token")
        if "userinfo_endpoint" not in self._configuration() or not isinstance(token, str):
            return {}
        url = self._endpoint("userinfo_endpoint")
        try:
            reply = self._outbound.get(url, {"Authorization": f"Bearer {token}"})
            told = reply.json()
        except OutboundError as error:
            raise _silent(error) from None
        # Core, section 5.3.2: another subject's is not used.
        if reply.status != 200 or not isinstance(told, dict) or told.get("sub") != subject:
            return {}
        return told

    def _configuration(self) -> Mapping[str, Any]:
        until, described = self._kept
        if time.monotonic() < until:
            return described
        try:
            described = self._issuers.configuration(self._issuer)
        except OutboundError as error:
            raise _silent(error) from None
        self._kept = time.monotonic() + CONFIGURATION_LIFE, described
        return described

    def _endpoint(self, name: str) -> str:
        """An endpoint of the provider: a URL by HTTPS, or at a private origin where the issuer is
        at one too."""
        url = self._configuration().get(name)
        try:
            if isinstance(url, str) and (
                self._outbound.is_private(self._issuer)
                if self._outbound.is_private(url)
                else urlsplit(url).scheme == "https"
            ):
                return url
        except OutboundError:
            pass
        raise Unavailable(f"The OpenID provider's configuration has no usable {name}.")


def _silent(error: OutboundError) -> Unavailable:
    return Unavailable("The OpenID provider does not answer.", error.sentence)


def _garbled() -> Unavailable:
    return Unavailable("The OpenID provider's answer cannot be used: it may be out of order.")
