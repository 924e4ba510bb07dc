"""Other people's keys: JSON Web Key Sets (RFC 7517), and the tokens (RFC 7519) that they verify.

What decides is the key: its type says which algorithms it serves, never the token alone. Keys of
HMAC are none, so that no public key can be taken for a secret (RFC 8725, section 2.1).
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jwt

from chalicelib.outbound import OutboundError

TOKEN_LIMIT = 16 << 10
"""Characters of a token."""

LEEWAY = 60
"""Seconds by which other people's clocks may differ from ours."""

UNKNOWN_KEY_PAUSE = 60.0
"""Seconds between two requests for keys that unknown key ids cause."""

FAILURE_PAUSE = 10.0
"""Seconds before keys that could not be had are asked for again."""

_WAIT = 15.0
"""Seconds to wait for keys that another thread is asking for."""

_KEYS_LIMIT = 100
"""Keys of one set."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


class TokenRefused(Exception):
    """A token that proves nothing. The sentence says why, without the token."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Header(NamedTuple):
    """What a token's header says, checked."""

    algorithm: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms that it serves."""

    id: str
    algorithms: tuple[str, ...]
    public: Any


class KeySet(NamedTuple):
    """Keys, and the seconds for which they may be kept."""

    keys: tuple[Key, ...]
    seconds: float


def parse_keys(document: object, uses: Collection[str | None]) -> tuple[Key, ...]:
    """The keys of a JWK Set that are of one of these uses (None: not told). Those of unknown
    types are passed over (RFC 7517, section 5), weak and private ones too. Raises ``ValueError``
    where it is no JWK Set."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > _KEYS_LIMIT:
        raise ValueError("no JWK Set")
    keys = (_parse_key(jwk) for jwk in listed if isinstance(jwk, dict) and jwk.get("use") in uses)
    return tuple(key for key in keys if key is not None)


def _parse_key(jwk: dict[str, Any]) -> Key | None:
    kind, key_id, operations = jwk.get("kty"), jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if not isinstance(key_id, str) or not key_id or "d" in jwk:
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithms: tuple[str, ...]
    if kind == "RSA":
        algorithms = _RSA
    elif kind == "EC" and isinstance(jwk.get("crv"), str) and jwk["crv"] in _CURVES:
        algorithms = (_CURVES[jwk["crv"]],)
    elif kind == "OKP" and jwk.get("crv") == "Ed25519":
        algorithms = ("EdDSA",)
    else:
        return None
    if "alg" in jwk:
        algorithms = tuple(each for each in algorithms if each == jwk["alg"])
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK(jwk, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kind == "RSA" and not 2048 <= public.key_size <= 8192:
        return None
    return Key(key_id, algorithms, public)


class KeptKeys:
    """The keys of one place, kept for as long as ``fetch`` says and asked for by one thread at a
    time. An unknown key id asks again, but once a minute: forged ones cannot make the registry
    hammer anybody."""

    def __init__(self, fetch: Callable[[], KeySet]) -> None:
        """``fetch`` raises ``TokenRefused`` where the keys cannot be had."""
        self._fetch = fetch
        self._lock = threading.Lock()
        self._kept = KeySet((), 0)
        self._expiry = self._next_attempt = -math.inf
        self._failure = ""

    def find(self, header: Header) -> list[Key]:
        """The keys that may have signed a token. Raises ``TokenRefused`` where there is none."""
        if found := self._find(header):
            return found
        if not self._lock.acquire(timeout=_WAIT):
            raise TokenRefused("The keys of the token's issuer are being asked for; try again.")
        try:
            if time.monotonic() >= self._next_attempt:
                self._refresh()
            if time.monotonic() >= self._expiry:
                raise TokenRefused(self._failure)
        finally:
            self._lock.release()
        if found := self._find(header):
            return found
        raise TokenRefused("The token is signed with a key that its issuer does not publish.")

    def _find(self, header: Header) -> list[Key]:
        if time.monotonic() >= self._expiry:
            return []
        return [
            key
            for key in self._kept.keys
            if key.id == header.key_id and header.algorithm in key.algorithms
        ]

    def _refresh(self) -> None:
        try:
            self._kept = self._fetch()
        except TokenRefused as error:
            self._failure = error.sentence
            usable = time.monotonic() < self._expiry
            pause = UNKNOWN_KEY_PAUSE if usable else FAILURE_PAUSE
        else:
            self._expiry = time.monotonic() + self._kept.seconds
            pause = min(UNKNOWN_KEY_PAUSE, self._kept.seconds)
        self._next_attempt = time.monotonic() + pause


def fetched(ask: Callable[[], Any], sentence: str) -> Any:
    """What ``ask`` gives; its ``OutboundError`` becomes a ``TokenRefused`` that begins with the
    sentence."""
    try:
        return ask()
    except OutboundError as error:
        raise TokenRefused(f"{sentence} {error.sentence}") from None


def read_header(token: str, algorithms: Collection[str], types: Collection[str | None]) -> Header:
    """The header of a signed token (JWS Compact Serialization), before anything is believed.
    Raises ``TokenRefused``."""
    header = _unverified(token)["header"]
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise TokenRefused("The token is not signed with an algorithm that is accepted.")
    # What must be understood (RFC 7515, section 4.1.11) is not: the library knows one extension.
    if "crit" in header:
        raise TokenRefused("The token's header demands extensions (crit).")
    kind = header.get("typ")
    if not (kind is None or isinstance(kind, str)) or kind not in types:
        raise TokenRefused("The token is of another type (typ).")
    if not isinstance(key_id, str) or not key_id:
        raise TokenRefused("The token does not name its key (kid).")
    return Header(algorithm, key_id)


def unverified_claims(token: str) -> Mapping[str, Any]:
    """What a token claims, unproven. Raises ``TokenRefused`` where it is no token."""
    return cast("Mapping[str, Any]", _unverified(token)["payload"])


def _unverified(token: str) -> dict[str, Any]:
    if len(token) > TOKEN_LIMIT:
        raise TokenRefused("The token is longer than 16 KiB.")
    try:
        return jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise TokenRefused(
            "That is no signed token (JWT), or one whose header demands extensions (crit)."
        ) from None


def verified_claims(
    token: str,
    header: Header,
    keys: list[Key],
    *,
    audience: str,
    issuer: str | None = None,
    required: Collection[str],
    leeway: int = LEEWAY,
) -> dict[str, Any]:
    """What a token claims, once one of the keys has verified it. The claims of time, audience and
    issuer (RFC 7519, section 4.1) are checked, where they are there or required. Raises
    ``TokenRefused``."""
    unverified = unverified_claims(token)
    for each in ("exp", "nbf", "iat"):
        _check_time(unverified, each)
    signature: TokenRefused | None = None
    for key in keys:
        try:
            return jwt.decode(
                token,
                key.public,
                algorithms=[header.algorithm],
                audience=audience,
                issuer=issuer,
                leeway=leeway,
                options={"require": list(required), "verify_iat": "iat" in required},
            )
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
            signature = TokenRefused("The token's signature is wrong.")
        except jwt.ExpiredSignatureError:
            raise TokenRefused("The token has expired.") from None
        except jwt.ImmatureSignatureError:
            raise TokenRefused("The token is not valid yet.") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("The token is made out to another audience (aud).") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("The token is of another issuer (iss).") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"The token lacks the claim {error.claim}.") from None
        except (jwt.InvalidTokenError, ValueError):
            raise TokenRefused("The token's claims are malformed.") from None
    raise signature or TokenRefused("The token's signature is wrong.")


def _check_time(claims: Mapping[str, Any], name: str) -> None:
    """A NumericDate is a number (RFC 7519, section 2): not text, and no date beyond all dates."""
    value = claims.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise TokenRefused(f"The token's claim {name} is no date.")
