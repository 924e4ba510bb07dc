"""The keys that sign and seal, all derived from SECRET_KEY: every host has them, and no table.

Each purpose has a key of its own, so that nothing signed for one can stand for another. What the
former key signed (OLD_SECRET_KEY) is still verified, so that a key can be exchanged while people
work.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PERIOD = 30 * 86400
"""Seconds after which registry tokens are signed with another key."""


class SigningKey(NamedTuple):
    """A key of registry tokens. ``id`` is its thumbprint (RFC 7638), ``jwk`` its public half
    (RFC 8037)."""

    id: str
    private: "Ed25519PrivateKey"
    jwk: dict[str, str]


class SealError(Exception):
    """A secret cannot be opened. The text is a sentence for whoever runs the registry."""


class Keys:
    """The keys of one registry. ``old`` is the former secret, or empty."""

    def __init__(self, secret: str, old: str = "") -> None:
        self._secrets = [secret, *([old] if old else [])]

    def derived(self, purpose: str) -> list[bytes]:
        """32 bytes for a purpose by each secret, the one in force first."""
        return [
            hmac.digest(secret.encode(), f"openregistry {purpose}".encode(), hashlib.sha256)
            for secret in self._secrets
        ]

    def seal(self, purpose: str, owner: str, secret: bytes) -> bytes:
        """A secret that Postgres keeps, unreadable there; it opens for the same ``owner`` alone.
        Begins with the mark of the key that sealed it."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key, nonce = self.derived(purpose)[0], os.urandom(_NONCE)
        return _mark(key) + nonce + AESGCM(key).encrypt(nonce, secret, owner.encode())

    def unseal(self, purpose: str, owner: str, sealed: bytes) -> bytes:
        """What was sealed. Raises ``SealError`` where neither secret key did it."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        mark, nonce, text = sealed[:_MARK], sealed[_MARK : _MARK + _NONCE], sealed[_MARK + _NONCE :]
        for key in self.derived(purpose):
            if _mark(key) == mark:
                try:
                    return AESGCM(key).decrypt(nonce, text, owner.encode())
                except (InvalidTag, ValueError):
                    break
        raise SealError("It was sealed with another SECRET_KEY.")

    def mark(self, purpose: str) -> bytes:
        """What begins whatever the secret in force has sealed for a purpose."""
        return _mark(self.derived(purpose)[0])

    def signing(self) -> SigningKey:
        """The key that signs registry tokens now."""
        return self._of_period(int(time.time()) // PERIOD)[0]

    def published(self) -> list[SigningKey]:
        """Every key that may have signed a token in use, or will before verifiers look again."""
        period = int(time.time()) // PERIOD
        return [
            key for number in (period, period - 1, period + 1) for key in self._of_period(number)
        ]

    def _of_period(self, period: int) -> list[SigningKey]:
        return [_signing_key(seed) for seed in self.derived(f"registry tokens {period}")]


_MARK, _NONCE = 4, 12
"""Bytes."""


def _mark(key: bytes) -> bytes:
    return hashlib.sha256(b"mark" + key).digest()[:_MARK]


@lru_cache(maxsize=16)
def _signing_key(seed: bytes) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(seed)
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(private.public_key().public_bytes_raw())}
    canonical = json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode()
    return SigningKey(_base64url(hashlib.sha256(canonical).digest()), private, jwk)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
