"""Registry tokens: what a client gets from the token server and brings to /v2/.

JWTs (RFC 7519) signed with Ed25519 (RFC 8037), their claims those of distribution's "Token
Authentication Implementation". They live for minutes, are verified without a question to the
database, and grant what their ``access`` names, as far as the account still may.
"""

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from chalicelib.identity import Subject
from chalicelib.identity.keys import Keys

SECONDS = 300
"""How long a token holds; clients take less than 60 for a mistake."""
_LEEWAY = 30
_LONGEST = 16_384
_REMEMBERED = 8192

Access = Sequence[Mapping[str, Any]]


class RegistryTokens:
    """Issues and verifies the tokens of one registry. ``service`` is their audience, the name that
    challenges give to clients."""

    def __init__(self, keys: Keys, service: str) -> None:
        self._keys = keys
        self.service = service
        self._verified: dict[str, Subject] = {}
        self._lock = threading.Lock()

    def issue(self, subject: Subject, access: Access, seconds: int = SECONDS) -> tuple[str, int]:
        """A token for these grants (``type``, ``name``, ``actions`` each), and how many seconds it
        holds: as many, or fewer where what the subject brought ends sooner."""
        now = int(time.time())
        until = now + seconds
        if subject.expires is not None:
            until = min(until, int(subject.expires))
        key = self._keys.signing()
        claims: dict[str, Any] = {
            "iss": self.service,
            "aud": self.service,
            "sub": subject.id,
            "iat": now,
            "nbf": now,
            "exp": until,
            "jti": str(uuid.uuid4()),
            "access": list(access),
        }
        if subject.password is not None:
            claims["password"] = subject.password
        token = jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.id})
        return token, until - now

    def verify(self, token: str) -> Subject | None:
        """Whom a token stands for, and for what; None where it is not ours, or has expired.
        Verified once, and then remembered until it expires."""
        known = self._verified.get(token)
        if known is None:
            known = self._verify(token)
            if known is None:
                return None
            with self._lock:
                if len(self._verified) >= _REMEMBERED:
                    self._verified.clear()
                self._verified[token] = known
        if known.expires is None or known.expires + _LEEWAY <= time.time():
            self._verified.pop(token, None)
            return None
        return known

    def _verify(self, token: str) -> Subject | None:
        if len(token) > _LONGEST:
            return None
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next((key for key in self._keys.published() if key.id == kid), None)
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key.private.public_key(),
                algorithms=["EdDSA"],
                audience=self.service,
                issuer=self.service,
                leeway=_LEEWAY,
                options={"require": ["exp", "iat", "nbf", "sub", "aud", "iss", "access"]},
            )
        except (jwt.InvalidTokenError, ValueError):
            return None
        granted: dict[str, frozenset[str]] = {}
        for grant in claims["access"]:
            thing = f"{grant['type']}:{grant['name']}"
            granted[thing] = granted.get(thing, frozenset()) | frozenset(grant["actions"])
        of = Subject.of(claims["sub"])
        return Subject(
            of.account, of.credential, granted, float(claims["exp"]), claims.get("password")
        )

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517)."""
        return {
            "keys": [
                {**key.jwk, "kid": key.id, "alg": "EdDSA", "use": "sig"}
                for key in self._keys.published()
            ]
        }
