"""What one registry signs is believed by those who trust its key, as what it was signed as."""

import base64
import json

import pytest

from chalicelib.identity.keys import Keys
from chalicelib.resolvers import signing
from chalicelib.resolvers.signing import INDEX, MANIFEST, NotTrusted

KEYS = Keys("a secret for the tests alone")


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_signed() -> None:
    [key] = signing.public_keys(KEYS)
    token = signing.sign(KEYS, MANIFEST, b"some bytes")
    assert signing.verify(token, MANIFEST, [key]) == (b"some bytes", key)
    assert signing.checked_key(key) == key
    assert signing.public_keys(Keys("another secret of the tests")) != [key]


def test_former_secret_key() -> None:
    [key] = signing.public_keys(KEYS)
    assert (
        signing.public_keys(Keys("the next secret of all", "a secret for the tests alone"))[1]
        == key
    )


def test_another_key() -> None:
    token = signing.sign(Keys("the secret of a stranger"), MANIFEST, b"some bytes")
    [stranger] = signing.public_keys(Keys("the secret of a stranger"))
    with pytest.raises(NotTrusted, match=f"by the key {stranger}, which is not trusted"):
        signing.verify(token, MANIFEST, signing.public_keys(KEYS))


def test_another_type() -> None:
    token = signing.sign(KEYS, INDEX, b"some bytes")
    with pytest.raises(NotTrusted, match="signed as 'openregistry-index'"):
        signing.verify(token, MANIFEST, signing.public_keys(KEYS))


def test_changed() -> None:
    header, _, signature = signing.sign(KEYS, MANIFEST, b"some bytes").split(".")
    forged = f"{header}.{encoded(b'other bytes')}.{signature}"
    with pytest.raises(NotTrusted, match="somebody has changed it"):
        signing.verify(forged, MANIFEST, signing.public_keys(KEYS))


def test_key_of_somebody_else_in_the_header() -> None:
    """Who names a trusted key must have signed with it."""
    [key] = signing.public_keys(KEYS)
    _, payload, signature = signing.sign(Keys("the secret of a stranger"), MANIFEST, b"x").split(
        "."
    )
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": key}
    header = encoded(json.dumps({"alg": "EdDSA", "typ": MANIFEST, "jwk": jwk}).encode())
    with pytest.raises(NotTrusted, match="somebody has changed it"):
        signing.verify(f"{header}.{payload}.{signature}", MANIFEST, [key])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "..",
        "a.b.c",
        "x" * 300,
        f"{encoded(b'[]')}.{encoded(b'x')}.{encoded(b'x')}",
        f"{encoded(b'{}')}.{encoded(b'x')}.{encoded(b'x')}",
        encoded(b'{"alg":"none","typ":"openregistry-manifest","jwk":{}}') + ".eA.",
        "é.é.é",
    ],
)
def test_no_signature(token: str) -> None:
    with pytest.raises(NotTrusted, match="no JWS"):
        signing.verify(token, MANIFEST, signing.public_keys(KEYS))
