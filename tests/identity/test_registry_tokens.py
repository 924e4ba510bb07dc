"""Registry tokens: only ours verify, as they were made, as long as they hold; and their keys."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from chalicelib.identity import Subject
from chalicelib.identity.keys import PERIOD, Keys
from chalicelib.identity.registry_tokens import SECONDS, RegistryTokens
from tests.client import HTTPClient
from tests.servers import Registry

SECRET, ANOTHER = "a secret for the tests alone", "another secret for the tests"
GRANT = {"type": "repository", "name": "alice/app", "actions": ["pull", "push"]}
LEEWAY = 30
ALICE = Subject(7, "token:4dc5e9b0-3c1a-4b36-9d4e-0d3f6f3a1f00")


class Clock:
    """What ``time.time`` gives."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._time = time.time

    def __call__(self) -> float:
        return self._time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for all that asks ``time.time``, PyJWT too, which asks ``datetime``."""
    import datetime as dt

    import jwt.api_jwt

    moved = Clock()

    class Moved(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Moved":
            return cls.fromtimestamp(moved(), tz)

    monkeypatch.setattr(time, "time", moved)
    monkeypatch.setattr(jwt.api_jwt, "datetime", Moved)
    return moved


def tokens(*secrets: str) -> RegistryTokens:
    """Another process with these keys, which remembers nothing."""
    return RegistryTokens(Keys(*(secrets or (SECRET,))), "registry.example.org")


def issued(subject: Subject = ALICE) -> str:
    """A token."""
    return tokens().issue(subject, [GRANT])[0]


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a token says: its header and its claims."""
    header, claims, _ = token.split(".")
    return json.loads(_decoded(header)), json.loads(_decoded(claims))


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: dict[str, Any], key: Ed25519PrivateKey | None = None, **header: Any) -> str:
    """A token that says this, signed with our key unless told otherwise."""
    ours = Keys(SECRET).signing()
    fields = {"alg": "EdDSA", "typ": "JWT", "kid": ours.id, **header}
    head = f"{_encoded(fields)}.{_encoded(claims)}"
    return f"{head}.{_encoded((key or ours.private).sign(head.encode()))}"


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a token, but for some."""
    made = {**parts(issued())[1], **changes}
    return {name: value for name, value in made.items() if value is not None}


def test_a_token_says_who_and_what_for() -> None:
    found = tokens().verify(issued())
    assert found is not None
    assert (found.account, found.credential) == (ALICE.account, ALICE.credential)
    assert found.claims == {"repository:alice/app": frozenset({"pull", "push"})}
    assert found.expires == pytest.approx(time.time() + SECONDS, abs=2)
    nobody = tokens().verify(issued(Subject()))
    assert nobody is not None
    assert nobody.account is None


def test_the_claims_are_those_of_the_specification() -> None:
    """Distribution, "Token Authentication Implementation"."""
    header, found = parts(issued())
    assert header == {"alg": "EdDSA", "typ": "JWT", "kid": Keys(SECRET).signing().id}
    assert set(found) == {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "access"}
    assert found["access"] == [GRANT]
    assert found["aud"] == found["iss"] == "registry.example.org"
    assert uuid.UUID(found["jti"]).version == 4
    assert parts(issued())[1]["jti"] != found["jti"]


def test_grants_of_one_thing_add_up() -> None:
    again = [{**GRANT, "actions": ["push"]}, {**GRANT, "actions": ["pull"]}]
    found = tokens().verify(tokens().issue(ALICE, again)[0])
    assert found is not None
    assert found.claims == {"repository:alice/app": frozenset({"pull", "push"})}


def test_what_the_tests_sign_is_good_but_for_what_they_change() -> None:
    assert tokens().verify(signed(claims())) is not None


def _forged() -> dict[str, str]:
    ours = Keys(SECRET).signing()
    public = ours.private.public_key()
    raw = public.public_bytes_raw()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stranger = Ed25519PrivateKey.generate()
    good = issued()
    header, payload, signature = good.split(".")
    more = {**GRANT, "name": "bob/app"}
    forged = {
        "nothing": "",
        "no token": "eyJ.x.y",
        "two parts": f"{header}.{payload}",
        "no signature": f"{header}.{payload}.",
        "a tampered access": f"{header}.{_encoded(claims(access=[more]))}.{signature}",
        "a tampered subject": f"{header}.{_encoded(claims(sub='account:1'))}.{signature}",
        "another's key": signed(claims(), stranger),
        "another's key by its own kid": signed(claims(), stranger, kid="mine"),
        "another's key in the header": signed(
            claims(),
            stranger,
            jwk={
                "kty": "OKP",
                "crv": "Ed25519",
                "x": _encoded(stranger.public_key().public_bytes_raw()),
            },
        ),
        "another's key by URL": signed(claims(), stranger, jku="https://example.org/keys"),
        "an unknown kid": signed(claims(), kid="unknown"),
        "no kid": signed(claims(), kid=None),
        "a kid that is a list": signed(claims(), kid=[ours.id]),
        "another audience": signed(claims(aud="another.example.org")),
        "another issuer": signed(claims(iss="another.example.org")),
        "expired": signed(claims(exp=int(time.time()) - LEEWAY - 1)),
        "of the future": signed(claims(nbf=int(time.time()) + LEEWAY + 10)),
        "issued in the future": signed(claims(iat=int(time.time()) + LEEWAY + 10)),
        "too long": signed(claims(access=[GRANT] * 400)),
        "a critical header": signed(claims(), crit=["exp"]),
        "a deep header": f"{_encoded(b'[' * 5000)}.{payload}.{signature}",
        "a deep payload": f"{header}.{_encoded(b'[' * 5000)}.{signature}",
        "another algorithm": signed(claims(), alg="Ed448"),
    }
    for name in ("exp", "iat", "nbf", "sub", "aud", "iss", "access"):
        forged[f"without {name}"] = signed(claims(**{name: None}))
    for name in ("none", "None", "NONE", ""):
        unsigned = f"{_encoded({'alg': name, 'kid': ours.id})}.{payload}"
        forged[f"alg {name!r}"] = f"{unsigned}."
        forged[f"alg {name!r} with a signature"] = f"{unsigned}.{signature}"
    for name, key in (("raw", raw), ("PEM", pem), ("x", _encoded(raw).encode()), ("no", b"")):
        head = f"{_encoded({'alg': 'HS256', 'kid': ours.id})}.{payload}"
        mac = hmac.digest(key, head.encode(), hashlib.sha256)
        forged[f"HS256 by the {name} public key"] = f"{head}.{_encoded(mac)}"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    forged["ES256"] = jwt.encode(claims(), elliptic, "ES256", headers={"kid": ours.id})
    return forged


@pytest.mark.parametrize("how", _forged())
def test_no_other_token_is_ours(how: str) -> None:
    assert tokens().verify(_forged()[how]) is None


def test_a_token_ends(clock: Clock) -> None:
    verifier, token = tokens(), issued()
    assert verifier.verify(token) is not None
    clock.ahead = SECONDS + LEEWAY - 5
    assert verifier.verify(token) is not None
    assert tokens().verify(token) is not None
    clock.ahead = SECONDS + LEEWAY + 1
    assert verifier.verify(token) is None
    assert tokens().verify(token) is None


def test_a_token_ends_with_the_token_that_it_was_had_with() -> None:
    until = int(time.time()) + 40
    token, seconds = tokens().issue(Subject(7, "", {}, until), [GRANT])
    assert 38 <= seconds <= 40
    assert parts(token)[1]["exp"] == until


# Keys.


def test_the_key_changes_and_the_former_one_holds_on(clock: Clock) -> None:
    clock.ahead = PERIOD - time.time() % PERIOD - 10  # the end of a period
    before = issued()
    kid = parts(before)[0]["kid"]
    published = {key["kid"] for key in tokens().jwks()["keys"]}
    clock.ahead += 20
    after = issued()
    assert parts(after)[0]["kid"] != kid
    # Who has asked for the keys before the change knows the next one.
    assert {kid, parts(after)[0]["kid"]} <= published
    assert tokens().verify(before) is not None
    assert tokens().verify(after) is not None
    clock.ahead += 2 * PERIOD
    assert kid not in {key["kid"] for key in tokens().jwks()["keys"]}


def test_a_host_whose_clock_is_behind_takes_the_next_key(clock: Clock) -> None:
    clock.ahead = PERIOD - time.time() % PERIOD + 5
    token = issued()
    clock.ahead -= 15
    assert tokens().verify(token) is not None


def test_the_former_secret_is_good_while_secrets_change() -> None:
    former = issued()
    assert tokens(ANOTHER).verify(former) is None
    assert tokens(ANOTHER, SECRET).verify(former) is not None
    now, _ = tokens(ANOTHER, SECRET).issue(ALICE, [GRANT])
    assert tokens(ANOTHER).verify(now) is not None
    # A host that has not been told yet is told first: the new secret as the old one.
    assert tokens(SECRET).verify(now) is None
    assert tokens(SECRET, ANOTHER).verify(now) is not None
    kids = {key["kid"] for key in tokens(ANOTHER, SECRET).jwks()["keys"]}
    assert {parts(former)[0]["kid"], parts(now)[0]["kid"]} <= kids


def test_no_key_serves_two_purposes() -> None:
    keys = Keys(SECRET)
    purposes = ("access tokens", "upload capabilities", "rate limits", "registry tokens 0")
    assert len({keys.derived(purpose)[0] for purpose in purposes}) == len(purposes)


def test_anybody_can_verify_by_the_published_keys() -> None:
    """With nothing of ours: RFC 7517, 8037, 8032 and 7638 alone."""
    token = issued()
    header, payload, signature = token.split(".")
    published = tokens().jwks()
    [key] = [key for key in published["keys"] if key["kid"] == parts(token)[0]["kid"]]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    public = Ed25519PublicKey.from_public_bytes(_decoded(key["x"]))
    public.verify(_decoded(signature), f"{header}.{payload}".encode())
    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{key["x"]}"}}'
    assert key["kid"] == _encoded(hashlib.sha256(canonical.encode()).digest())


def test_a_jwks_client_verifies(serve: Callable[..., Registry]) -> None:
    """PyJWT's, by HTTP, as a service that believes our tokens does."""
    registry = serve(OPENREGISTRY_ACCESS="accounts")
    token = HTTPClient(registry.host).request("GET", "/token").json["token"]
    key = jwt.PyJWKClient(f"{registry.url}/.well-known/jwks.json").get_signing_key_from_jwt(token)
    found = jwt.decode(token, key, algorithms=["EdDSA"], audience="openregistry")
    assert found["access"] == []
