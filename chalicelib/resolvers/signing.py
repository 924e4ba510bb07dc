"""Signatures by which registries know what comes from each other over networks.

Each registry has one Ed25519 key, derived from SECRET_KEY, and signs with it under a *type*, so
that nothing signed as one thing can stand for another. A signature is a JWS in compact form (RFC
7515, RFC 8037) whose header names the public key; whether that is trusted is for whoever verifies.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from chalicelib.identity.keys import Keys

MANIFEST, INDEX = "openregistry-manifest", "openregistry-index"
"""Types: of the digest of a manifest, and of an index of what a registry has."""

_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_PURPOSE = "content signatures"


class NotTrusted(Exception):
    """What was signed is not to be believed. The text is a sentence."""


class Signed(NamedTuple):
    """What was signed, and by which public key."""

    payload: bytes
    key: str


def public_keys(keys: "Keys") -> list[str]:
    """The registry's own public keys, the one in force first."""
    return [_public(private) for private in _private(keys)]


def checked_key(text: str) -> str:
    """A public key as people write it: 32 bytes in base64url. Raises ``ValueError``."""
    if not _KEY.fullmatch(text) or _encoded(_decoded(text)) != text:
        raise ValueError("must be public keys, as `openregistry resolve key` prints them")
    return text


def sign(keys: "Keys", kind: str, payload: bytes) -> str:
    """Sign some bytes as something of a type."""
    private = _private(keys)[0]
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": _public(private)}
    header = json.dumps({"alg": "EdDSA", "typ": kind, "jwk": jwk}, separators=(",", ":"))
    signed = f"{_encoded(header.encode())}.{_encoded(payload)}"
    return f"{signed}.{_encoded(private.sign(signed.encode()))}"


def verify(token: str, kind: str, trusted: Sequence[str] | None) -> Signed:
    """What was signed as something of a type, by one of these public keys, or by any where there
    are none to go by. Raises ``NotTrusted`` for anything else."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signed, _, signature = token.rpartition(".")
        head, dot, payload = signed.partition(".")
        header = json.loads(_decoded(head))
        known = (header["alg"], header["jwk"]["kty"], header["jwk"]["crv"])
        key = checked_key(header["jwk"]["x"])
        if not dot or known != ("EdDSA", "OKP", "Ed25519") or "crit" in header:
            raise ValueError
        if header["typ"] != kind:
            raise NotTrusted(f"It is signed as {str(header['typ'])[:64]!r}, not as {kind!r}.")
        Ed25519PublicKey.from_public_bytes(_decoded(key)).verify(
            _decoded(signature), signed.encode()
        )
        found = Signed(_decoded(payload), key)
    except InvalidSignature:
        raise NotTrusted("Its signature is not of what it says: somebody has changed it.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotTrusted("Its signature is no JWS by an Ed25519 key.") from None
    # Last, so that the key which a person may come to trust is one that has signed it.
    if trusted is not None and found.key not in trusted:
        raise NotTrusted(f"It is signed by the key {found.key}, which is not trusted here.")
    return found


def _private(keys: "Keys") -> list["Ed25519PrivateKey"]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return [Ed25519PrivateKey.from_private_bytes(seed) for seed in keys.derived(_PURPOSE)]


def _public(private: "Ed25519PrivateKey") -> str:
    return _encoded(private.public_key().public_bytes_raw())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """Raises ``ValueError``."""
    if not re.fullmatch("[A-Za-z0-9_-]*", text):
        raise ValueError("That is no base64url.")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("That is no base64url.") from None
