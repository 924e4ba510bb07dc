"""OpenID providers and their like: what a workload's token says, verified by discovery."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from chalicelib.identity.key_sets import (
    LEEWAY,
    KeptKeys,
    KeySet,
    TokenRefused,
    fetched,
    parse_keys,
    read_header,
    unverified_claims,
    verified_claims,
)
from chalicelib.outbound import Outbound, OutboundError

ALGORITHMS = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
)

AGE_LIMIT = 3600
"""Seconds since a token was issued."""

LIFE_LIMIT = 86400
"""Seconds from a token's issue to its expiry."""

KEYS_LIFE = 3600.0
"""Seconds for which an issuer's keys are kept."""

ISSUERS_LIMIT = 256
"""Issuers whose keys are kept; the one not asked for longest makes room."""


class Issuers:
    """Verifies tokens of issuers anywhere. Threads may share it."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, KeptKeys] = OrderedDict()

    def verify(
        self, token: str, issuer: str, audience: str, leeway: int = LEEWAY
    ) -> dict[str, Any]:
        """What a token claims, once the issuer's keys have verified it: it is the issuer's, for
        this audience, not expired, not older than an hour and not made for more than a day.
        ``leeway`` is in seconds. Raises ``TokenRefused``.

        The caller names the issuer, by a rule that trusts it: the token's own word would let
        anybody choose whom the registry asks.
        """
        header = read_header(token, ALGORITHMS, (None, "JWT", "jwt"))
        if unverified_issuer(token) != issuer:
            raise TokenRefused("The token is of another issuer (iss).")
        keys = self._keys_of(issuer).find(header)
        claims = verified_claims(
            token,
            header,
            keys,
            audience=audience,
            issuer=issuer,
            required=("iss", "aud", "exp", "iat"),
            leeway=leeway,
        )
        if claims["iat"] < time.time() - AGE_LIMIT - leeway:
            raise TokenRefused("The token is older than an hour.")
        if claims["exp"] - claims["iat"] > LIFE_LIMIT:
            raise TokenRefused("The token is made to last for more than a day.")
        return claims

    def configuration(self, issuer: str) -> Mapping[str, Any]:
        """An issuer's own description (OpenID Connect Discovery 1.0, section 4), asked for anew
        each time. Raises ``OutboundError``."""
        if "?" in issuer or "#" in issuer:
            raise OutboundError("An issuer's URL has neither a query nor a fragment.")
        reply = self._outbound.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        described = reply.json() if reply.status == 200 else None
        if not isinstance(described, dict):
            raise OutboundError("The server has no OpenID configuration.")
        # Section 4.3: identical, or one issuer could speak for another.
        if described.get("issuer") != issuer:
            raise OutboundError("The OpenID configuration is that of another issuer.")
        return described

    def _keys_of(self, issuer: str) -> KeptKeys:
        with self._lock:
            kept = self._kept.get(issuer) or KeptKeys(lambda: self._fetch(issuer))
            self._kept[issuer] = kept
            self._kept.move_to_end(issuer)
            if len(self._kept) > ISSUERS_LIMIT:
                self._kept.popitem(last=False)
            return kept

    def _fetch(self, issuer: str) -> KeySet:
        document = fetched(lambda: self._key_set(issuer), "The issuer's keys could not be had.")
        try:
            return KeySet(parse_keys(document, (None, "sig")), KEYS_LIFE)
        except ValueError:
            raise TokenRefused("The issuer publishes no set of keys (JWKS).") from None

    def _key_set(self, issuer: str) -> Any:
        place = self.configuration(issuer).get("jwks_uri")
        if not isinstance(place, str):
            raise OutboundError("The OpenID configuration does not name its keys (jwks_uri).")
        # A public issuer has no business with what an operator opened to a private one.
        if self._outbound.is_private(place) and not self._outbound.is_private(issuer):
            raise OutboundError("The keys of a public issuer are not at a private address.")
        reply = self._outbound.get(place)
        return reply.json() if reply.status == 200 else None


def unverified_issuer(token: str) -> str:
    """Who a token says has issued it, unproven: to look up the rules that trust this issuer,
    never to ask it before one does. Raises ``TokenRefused``."""
    issuer = unverified_claims(token).get("iss")
    if not isinstance(issuer, str) or not issuer:
        raise TokenRefused("The token does not name its issuer (iss).")
    return issuer
