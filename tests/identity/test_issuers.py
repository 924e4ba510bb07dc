"""Tokens of OpenID providers: what is believed and refused, and how often keys are asked for."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from chalicelib import outbound
from chalicelib.identity import issuers as module
from chalicelib.identity import key_sets
from chalicelib.identity.issuers import ALGORITHMS, Issuers, unverified_issuer
from chalicelib.identity.key_sets import TokenRefused, parse_keys
from chalicelib.outbound import Outbound
from tests.identity.doubles.network import Authority, Resolver
from tests.identity.doubles.provider import (
    DISCOVERY,
    KEYS,
    Handler,
    Provider,
    SigningKey,
    drip,
    redirect,
)

AUDIENCE = "https://registry.example.org"
UNPUBLISHED = "The token is signed with a key that its issuer does not publish."


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def issuers(provider: Provider) -> Issuers:
    return Issuers(Outbound([provider.origin]))


def refusal(issuers: Issuers, token: str, issuer: str, audience: str = AUDIENCE) -> str:
    """The sentence, which never holds any of the token."""
    with pytest.raises(TokenRefused) as caught:
        issuers.verify(token, issuer, audience)
    sentence = caught.value.sentence
    assert not [part for part in token.split(".") if len(part) > 8 and part in sentence]
    return sentence


def forge(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that no library would make."""

    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    signed = b".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return (signed + b"." + encoded(sign(signed))).decode()


def test_a_github_actions_token_is_verified_by_discovery(
    provider: Provider, issuers: Issuers
) -> None:
    provider.rotate("RS256")
    claims = provider.github_actions(AUDIENCE)
    token = provider.token(claims)
    assert unverified_issuer(token) == provider.issuer
    assert issuers.verify(token, provider.issuer, AUDIENCE) == claims
    assert provider.fetches == {DISCOVERY: 1, KEYS: 1}


def test_a_gitlab_ci_token_is_verified_by_discovery(provider: Provider, issuers: Issuers) -> None:
    provider.rotate("RS256")
    claims = provider.gitlab_ci(AUDIENCE)
    assert issuers.verify(provider.token(claims), provider.issuer, AUDIENCE) == claims


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_each_allowed_algorithm_verifies(
    algorithm: str, provider: Provider, issuers: Issuers
) -> None:
    provider.rotate(algorithm)
    token = provider.token(provider.standard(AUDIENCE))
    assert issuers.verify(token, provider.issuer, AUDIENCE)["sub"] == "somebody"
    head, _, signature = token.rpartition(".")
    swapped = ("A" if signature[0] != "A" else "B") + signature[1:]
    forged = f"{head}.{swapped}"
    assert refusal(issuers, forged, provider.issuer) == "The token's signature is wrong."


@pytest.mark.parametrize("prefix", ["/realms/ci", "/realms/ci/", "/"])
def test_an_issuer_may_have_a_path(prefix: str) -> None:
    """A slash at its end is left out of the discovery's URL (section 4.1), not of the name."""
    with Provider(prefix.rstrip("/")) as provider:
        provider.issuer = provider.origin + prefix
        provider.routes["GET", DISCOVERY] = lambda handler: handler.reply(
            {"issuer": provider.issuer, "jwks_uri": provider.origin + prefix.rstrip("/") + KEYS}
        )
        token = provider.token(provider.standard(AUDIENCE))
        assert Issuers(Outbound([provider.origin])).verify(token, provider.issuer, AUDIENCE)


def test_the_keys_may_be_on_another_host(provider: Provider) -> None:
    with Provider() as other:
        described = {"issuer": provider.issuer, "jwks_uri": other.origin + KEYS}
        provider.routes["GET", DISCOVERY] = lambda handler: handler.reply(described)
        token = other.token(provider.standard(AUDIENCE))
        issuers = Issuers(Outbound([provider.origin, other.origin]))
        assert issuers.verify(token, provider.issuer, AUDIENCE)
        alone = Issuers(Outbound([provider.origin]))
        assert refusal(alone, token, provider.issuer) == (
            "The issuer's keys could not be had. Only https:// URLs are asked."
        )
        assert other.fetches[KEYS] == 1


NOW = int(time.time())
"""When this file was read, which may be long before a test runs: ``shifted`` makes up for it."""
HOUR, DAY = 3600, 86400


def shifted(claims: dict[str, Any]) -> dict[str, Any]:
    """Claims with their times as far from now as they are from ``NOW``."""
    late = int(time.time()) - NOW
    return {
        name: value + late
        if isinstance(value, int | float) and abs(value - NOW) < 10 * DAY
        else value
        for name, value in claims.items()
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"aud": "https://other.example.org"}, "The token is made out to another audience (aud)."),
        ({"aud": AUDIENCE + "/"}, "The token is made out to another audience (aud)."),
        ({"aud": ["a", "b"]}, "The token is made out to another audience (aud)."),
        ({"aud": []}, "The token lacks the claim aud."),
        ({"aud": None}, "The token lacks the claim aud."),
        ({"aud": {AUDIENCE: 1}}, "The token is made out to another audience (aud)."),
        ({"iss": "https://other.example.org"}, "The token is of another issuer (iss)."),
        ({"iss": None}, "The token does not name its issuer (iss)."),
        ({"iss": ["a"]}, "The token does not name its issuer (iss)."),
        ({"exp": None}, "The token lacks the claim exp."),
        ({"exp": NOW - 120}, "The token has expired."),
        ({"exp": str(NOW + 300)}, "The token's claim exp is no date."),
        ({"exp": True}, "The token's claim exp is no date."),
        ({"exp": float("inf")}, "The token's claim exp is no date."),
        ({"exp": float("nan")}, "The token's claim exp is no date."),
        ({"exp": 10**30}, "The token's claim exp is no date."),
        ({"exp": NOW + DAY + 300}, "The token is made to last for more than a day."),
        ({"iat": None}, "The token lacks the claim iat."),
        ({"iat": "now"}, "The token's claim iat is no date."),
        ({"iat": NOW + 600, "exp": NOW + 900}, "The token is not valid yet."),
        ({"iat": NOW - HOUR - 120}, "The token is older than an hour."),
        ({"nbf": NOW + 600}, "The token is not valid yet."),
        ({"nbf": {}}, "The token's claim nbf is no date."),
        ({"sub": 7}, "The token's claims are malformed."),
    ],
)
def test_a_signed_token_with_a_wrong_claim_is_refused(
    changes: dict[str, Any], sentence: str, provider: Provider, issuers: Issuers
) -> None:
    token = provider.token(provider.standard(AUDIENCE, **shifted(changes)))
    assert refusal(issuers, token, provider.issuer) == sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://other.example.org", AUDIENCE]},
        {"nbf": None},
        {"exp": NOW - 20},
        {"nbf": NOW + 30},
        {"iat": NOW + 30},
        {"iat": NOW - HOUR + 60, "exp": NOW + DAY - HOUR},
        {"iat": NOW + 0.5},
    ],
)
def test_clocks_may_differ_and_a_token_have_several_audiences(
    changes: dict[str, Any], provider: Provider, issuers: Issuers
) -> None:
    token = provider.token(provider.standard(AUDIENCE, **shifted(changes)))
    assert issuers.verify(token, provider.issuer, AUDIENCE)


def test_the_leeway_is_the_callers(provider: Provider, issuers: Issuers) -> None:
    token = provider.token(provider.standard(AUDIENCE, exp=int(time.time()) - 20))
    assert issuers.verify(token, provider.issuer, AUDIENCE, leeway=60)
    with pytest.raises(TokenRefused, match="has expired"):
        issuers.verify(token, provider.issuer, AUDIENCE, leeway=0)


NO_ALGORITHM = "The token is not signed with an algorithm that is accepted."


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
def test_an_unsigned_token_is_refused(name: str, provider: Provider, issuers: Issuers) -> None:
    claims = provider.standard(AUDIENCE)
    header = {"alg": name, "kid": provider.keys[0].id}
    for token in (forge(header, claims, lambda _: b""), forge(header, claims, lambda _: b"x")):
        assert refusal(issuers, token, provider.issuer) == NO_ALGORITHM
    assert not provider.fetches


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_secret(algorithm: str, provider: Provider, issuers: Issuers) -> None:
    """Key confusion: signed by HMAC with what everybody can have."""
    key = provider.rotate("RS256")
    public = key.private.public_key()
    header = {"alg": algorithm, "kid": key.id, "typ": "JWT"}
    hashed = getattr(hashlib, algorithm.replace("HS", "sha"))
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        shared = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        token = forge(
            header,
            provider.standard(AUDIENCE),
            lambda signed, shared=shared: hmac.new(shared, signed, hashed).digest(),  # type: ignore[misc]
        )
        assert refusal(issuers, token, provider.issuer) == NO_ALGORITHM


def test_a_published_secret_verifies_nothing(provider: Provider, issuers: Issuers) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode()
    jwk = {"kty": "oct", "k": secret, "kid": "shared", "alg": "ES256"}
    provider.routes["GET", KEYS] = lambda handler: handler.reply({"keys": [jwk]})
    token = forge(
        {"alg": "ES256", "kid": "shared"},
        provider.standard(AUDIENCE),
        lambda signed: hmac.digest(b"s" * 32, signed, "sha256"),
    )
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


@pytest.mark.parametrize(
    ("signed", "published"),
    [("RS256", "ES256"), ("ES256", "RS256"), ("EdDSA", "ES256"), ("ES384", "ES256")],
)
def test_the_keys_type_decides_and_not_the_tokens_word(
    signed: str, published: str, provider: Provider, issuers: Issuers
) -> None:
    key = provider.rotate(published)
    stranger = SigningKey(signed)
    token = stranger.sign(provider.standard(AUDIENCE), kid=key.id)
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


def test_a_key_for_one_algorithm_serves_no_other(provider: Provider, issuers: Issuers) -> None:
    key = provider.rotate("RS256")
    key.jwk["alg"] = "RS256"
    claims = provider.standard(AUDIENCE)
    assert issuers.verify(key.sign(claims), provider.issuer, AUDIENCE)
    assert refusal(issuers, key.sign(claims, alg="PS256"), provider.issuer) == UNPUBLISHED


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"use": "jwt-svid"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"kid": None},
        {"alg": "RSA-OAEP"},
        {"alg": 7},
        {"crv": "secp256k1"},
        {"crv": ["P-256"]},
        {"x": "AAAA"},
        {"x": 7},
        {"y": None},
        {"kty": "XYZ"},
    ],
)
def test_a_key_for_something_else_verifies_nothing(
    change: dict[str, Any], provider: Provider, issuers: Issuers
) -> None:
    key = provider.keys[0]
    token = provider.token(provider.standard(AUDIENCE))
    key.jwk.update(change)
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


def test_a_private_key_that_is_published_verifies_nothing(
    provider: Provider, issuers: Issuers
) -> None:
    key = provider.keys[0]
    key.jwk.update(json.loads(ECAlgorithm.to_jwk(key.private)))
    assert "d" in key.jwk
    token = provider.token(provider.standard(AUDIENCE))
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


def test_a_short_key_verifies_nothing(provider: Provider, issuers: Issuers) -> None:
    key = provider.rotate("RS256")
    key.private = rsa.generate_private_key(65537, 1024)
    published = json.loads(RSAAlgorithm.to_jwk(key.private.public_key()))
    key.jwk.update({"n": published["n"]})
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = provider.token(provider.standard(AUDIENCE))
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


def test_a_key_that_the_token_brings_along_is_not_used(
    provider: Provider, issuers: Issuers
) -> None:
    with Provider() as attacker:
        stranger = SigningKey()
        header = {
            "jwk": {key: value for key, value in stranger.jwk.items() if key != "kid"},
            "jku": attacker.origin + KEYS,
            "x5u": attacker.origin + "/x5u",
        }
        token = stranger.sign(provider.standard(AUDIENCE), kid=provider.keys[0].id, **header)
        assert refusal(issuers, token, provider.issuer) == "The token's signature is wrong."
        assert not attacker.fetches


EXTENSIONS = "That is no signed token (JWT), or one whose header demands extensions (crit)."


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"crit": ["exp"]}, EXTENSIONS),
        ({"crit": []}, EXTENSIONS),
        ({"crit": ["x"], "x": 1}, EXTENSIONS),
        ({"crit": ["b64"], "b64": True}, "The token's header demands extensions (crit)."),
        ({"typ": "at+jwt"}, "The token is of another type (typ)."),
        ({"typ": "logout+jwt"}, "The token is of another type (typ)."),
        ({"typ": ["JWT"]}, "The token is of another type (typ)."),
        ({"kid": None}, "The token does not name its key (kid)."),
        ({"kid": ""}, "The token does not name its key (kid)."),
        ({"alg": "ES256K"}, NO_ALGORITHM),
        ({"alg": ["ES256"]}, NO_ALGORITHM),
    ],
)
def test_a_wrong_header_is_refused_before_anybody_is_asked(
    header: dict[str, Any], sentence: str, provider: Provider, issuers: Issuers
) -> None:
    given = {"alg": "ES256", "kid": provider.keys[0].id, **header}
    if given["kid"] is None:
        del given["kid"]
    token = forge(given, provider.standard(AUDIENCE), lambda _: b"signature")
    assert refusal(issuers, token, provider.issuer) == sentence
    assert not provider.fetches


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "e30.e30.",
        "bnVsbA.e30.YQ",
        "e30.W10.YQ",
        "töken",
        "\ud800",
        "\x00",
        "W" * 1000 + "." + "W" * 100 + ".W",
        base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.YQ",
    ],
)
def test_what_is_no_token_is_refused(token: str, provider: Provider, issuers: Issuers) -> None:
    assert refusal(issuers, token, provider.issuer) in (EXTENSIONS, NO_ALGORITHM)
    with pytest.raises(TokenRefused):
        unverified_issuer(token)
    assert not provider.fetches


def test_a_token_of_more_than_16_kib_is_refused(provider: Provider, issuers: Issuers) -> None:
    fitting = provider.token(provider.standard(AUDIENCE, filler="x" * 11_500))
    assert 15 << 10 < len(fitting) <= 16 << 10
    assert issuers.verify(fitting, provider.issuer, AUDIENCE)
    token = provider.token(provider.standard(AUDIENCE, filler="x" * 12_500))
    assert refusal(issuers, token, provider.issuer) == "The token is longer than 16 KiB."
    with pytest.raises(TokenRefused):
        unverified_issuer(token)


def test_no_issuer_is_asked_on_a_tokens_own_word(provider: Provider) -> None:
    with Provider() as attacker:
        issuers = Issuers(Outbound([provider.origin, attacker.origin]))
        token = attacker.token(attacker.standard(AUDIENCE))
        assert refusal(issuers, token, provider.issuer) == "The token is of another issuer (iss)."
        token = attacker.token(attacker.standard(AUDIENCE, iss=provider.issuer))
        assert refusal(issuers, token, provider.issuer) == UNPUBLISHED
        assert not attacker.fetches


# Discovery.


def _with(**changes: Any) -> Callable[[Provider], Callable[[Handler], None]]:
    return lambda provider: lambda handler: handler.reply({**provider.configuration(), **changes})


HAD = "The issuer's keys could not be had."


@pytest.mark.parametrize(
    ("route", "sentence"),
    [
        (
            _with(issuer="https://other.example.org"),
            f"{HAD} The OpenID configuration is that of another issuer.",
        ),
        (_with(issuer=None), f"{HAD} The OpenID configuration is that of another issuer."),
        (
            _with(jwks_uri=None),
            f"{HAD} The OpenID configuration does not name its keys (jwks_uri).",
        ),
        (
            _with(jwks_uri="https://169.254.169.254/latest/meta-data/"),
            f"{HAD} The server's name has no public address.",
        ),
        (_with(jwks_uri="file:///etc/passwd"), f"{HAD} Only https:// URLs are asked."),
        (
            lambda _: redirect("https://example.org/"),
            f"{HAD} The server answered with a redirect, and none is followed.",
        ),
        (
            lambda _: lambda handler: handler.reply(b"<html>"),
            f"{HAD} The server answered with something else than JSON.",
        ),
        (
            lambda _: lambda handler: handler.reply([]),
            f"{HAD} The server has no OpenID configuration.",
        ),
        (
            lambda _: lambda handler: handler.reply({}, 500),
            f"{HAD} The server has no OpenID configuration.",
        ),
        (
            lambda _: lambda handler: handler.reply(b"1" * (2 << 20)),
            f"{HAD} The server's answer is longer than 1 MiB.",
        ),
        (lambda _: drip(b"{}" + b" " * 100), f"{HAD} The server did not answer in time."),
    ],
)
def test_a_wrong_configuration_is_refused(
    route: Callable[[Provider], Callable[[Handler], None]],
    sentence: str,
    provider: Provider,
    issuers: Issuers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 1.0)
    provider.routes["GET", DISCOVERY] = route(provider)
    token = provider.token(provider.standard(AUDIENCE))
    assert refusal(issuers, token, provider.issuer) == sentence


@pytest.mark.parametrize("document", [{}, [], {"keys": {}}, {"keys": [{}] * 101}, "text", None])
def test_what_is_no_key_set_is_refused(document: Any, provider: Provider, issuers: Issuers) -> None:
    provider.routes["GET", KEYS] = lambda handler: handler.reply(document)
    token = provider.token(provider.standard(AUDIENCE))
    sentence = "The issuer publishes no set of keys (JWKS)."
    assert refusal(issuers, token, provider.issuer) == sentence


@pytest.mark.parametrize(
    "issuer",
    ["http://example.org", "https://localhost", "https://127.0.0.1:5432", "https://10.0.0.1"],
)
def test_an_issuer_that_is_not_public_is_not_asked(issuer: str, provider: Provider) -> None:
    token = provider.token(provider.standard(AUDIENCE, iss=issuer))
    assert refusal(Issuers(Outbound()), token, issuer).startswith(HAD)


@pytest.mark.parametrize("end", ["?a=b", "#a"])
def test_an_issuer_has_neither_query_nor_fragment(
    end: str, provider: Provider, issuers: Issuers
) -> None:
    issuer = provider.issuer + "/" + end
    token = provider.token(provider.standard(AUDIENCE, iss=issuer))
    assert refusal(issuers, token, issuer) == (
        f"{HAD} An issuer's URL has neither a query nor a fragment."
    )
    assert not provider.fetches


def test_a_public_issuer_cannot_send_the_registry_to_a_private_one(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    monkeypatch.setattr(outbound, "is_public", lambda _: True)
    Resolver(monkeypatch, {"public.test": [["127.0.0.1"]]})
    with Provider(host="public.test", tls=authority.context("public.test")) as public:
        described = {"issuer": public.issuer, "jwks_uri": provider.origin + KEYS}
        public.routes["GET", DISCOVERY] = lambda handler: handler.reply(described)
        token = provider.token(public.standard(AUDIENCE))
        issuers = Issuers(Outbound([provider.origin]))
        assert refusal(issuers, token, public.issuer) == (
            f"{HAD} The keys of a public issuer are not at a private address."
        )
        assert not provider.fetches


# How often keys are asked for.


def test_keys_are_kept(provider: Provider, issuers: Issuers) -> None:
    for _ in range(20):
        issuers.verify(provider.token(provider.standard(AUDIENCE)), provider.issuer, AUDIENCE)
    assert provider.fetches == {DISCOVERY: 1, KEYS: 1}


def test_a_new_key_is_found_and_an_old_one_kept(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    old = provider.token(provider.standard(AUDIENCE))
    issuers.verify(old, provider.issuer, AUDIENCE)
    provider.rotate("EdDSA", keep=True)
    issuers.verify(provider.token(provider.standard(AUDIENCE)), provider.issuer, AUDIENCE)
    issuers.verify(old, provider.issuer, AUDIENCE)
    assert provider.fetches[KEYS] == 2


def test_a_withdrawn_key_is_refused_once_the_keys_are_asked_for_again(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS_LIFE", 0.3)
    old = provider.token(provider.standard(AUDIENCE))
    issuers.verify(old, provider.issuer, AUDIENCE)
    provider.rotate()
    issuers.verify(old, provider.issuer, AUDIENCE)
    time.sleep(0.35)
    assert refusal(issuers, old, provider.issuer) == UNPUBLISHED


def test_forged_key_ids_do_not_make_the_registry_hammer_an_issuer(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.5)
    genuine = provider.token(provider.standard(AUDIENCE))
    issuers.verify(genuine, provider.issuer, AUDIENCE)

    def flood() -> None:
        for index in range(50):
            forged = provider.token(provider.standard(AUDIENCE), kid=f"forged-{index}")
            assert refusal(issuers, forged, provider.issuer) == UNPUBLISHED

    flood()
    assert provider.fetches[KEYS] == 1
    time.sleep(0.5)
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 60.0)
    flood()
    assert provider.fetches[KEYS] == 2
    assert issuers.verify(genuine, provider.issuer, AUDIENCE)


def test_one_thread_asks_and_the_others_wait(provider: Provider, issuers: Issuers) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        handler.reply(provider.key_set())

    provider.routes["GET", KEYS] = slow
    token = provider.token(provider.standard(AUDIENCE))
    with ThreadPoolExecutor(16) as threads:
        done = [threads.submit(issuers.verify, token, provider.issuer, AUDIENCE) for _ in range(16)]
        assert all(each.result()["sub"] == "somebody" for each in done)
    assert provider.fetches == {DISCOVERY: 1, KEYS: 1}


def test_a_slow_answer_keeps_nobody_waiting_whose_key_is_known(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    token = provider.token(provider.standard(AUDIENCE))
    issuers.verify(token, provider.issuer, AUDIENCE)
    asked, answer = threading.Event(), threading.Event()

    def wait(handler: Handler) -> None:
        asked.set()
        answer.wait(4)
        handler.reply(provider.key_set())

    provider.routes["GET", KEYS] = wait
    forged = provider.token(provider.standard(AUDIENCE), kid="forged")
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(refusal, issuers, forged, provider.issuer)
        assert asked.wait(4)
        assert issuers.verify(token, provider.issuer, AUDIENCE)
        assert not refused.done()
        answer.set()
        assert refused.result() == UNPUBLISHED


def test_a_failure_is_remembered_for_a_while(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "FAILURE_PAUSE", 0.5)
    broken, working = redirect("https://example.org/"), provider.routes["GET", DISCOVERY]
    provider.routes["GET", DISCOVERY] = broken
    token = provider.token(provider.standard(AUDIENCE))
    sentences = {refusal(issuers, token, provider.issuer) for _ in range(10)}
    assert sentences == {f"{HAD} The server answered with a redirect, and none is followed."}
    assert provider.fetches[DISCOVERY] == 1
    provider.routes["GET", DISCOVERY] = working
    time.sleep(0.5)
    assert issuers.verify(token, provider.issuer, AUDIENCE)


def test_known_keys_outlast_a_failure_but_not_their_hour(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    monkeypatch.setattr(module, "KEYS_LIFE", 1.0)
    token = provider.token(provider.standard(AUDIENCE))
    issuers.verify(token, provider.issuer, AUDIENCE)
    provider.routes["GET", DISCOVERY] = redirect("https://example.org/")
    forged = provider.token(provider.standard(AUDIENCE), kid="forged")
    assert refusal(issuers, forged, provider.issuer) == UNPUBLISHED
    assert issuers.verify(token, provider.issuer, AUDIENCE)
    time.sleep(1.0)
    assert refusal(issuers, token, provider.issuer).startswith(HAD)


def test_an_empty_key_set_withdraws_every_key(
    provider: Provider, issuers: Issuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    token = provider.token(provider.standard(AUDIENCE))
    issuers.verify(token, provider.issuer, AUDIENCE)
    provider.keys, key = [], provider.keys[0]
    forged = key.sign(provider.standard(AUDIENCE), kid="forged")
    assert refusal(issuers, forged, provider.issuer) == UNPUBLISHED
    assert refusal(issuers, token, provider.issuer) == UNPUBLISHED


def test_the_issuers_that_are_kept_are_bounded(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ISSUERS_LIMIT", 2)
    with Provider() as second, Provider() as third:
        providers = [provider, second, third]
        issuers = Issuers(Outbound([each.origin for each in providers]))
        for each in (provider, second, provider, third, provider, second):
            token = each.token(each.standard(AUDIENCE))
            assert issuers.verify(token, each.issuer, AUDIENCE)
        # The second had to make room for the third; the first, asked for in between, had not.
        assert [each.fetches[KEYS] for each in providers] == [1, 2, 1]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_JWKS = st.fixed_dictionaries(
    {"kty": st.sampled_from(["RSA", "EC", "OKP", "oct"]) | _VALUES, "kid": st.just("k") | _VALUES},
    optional={
        "crv": st.sampled_from(["P-256", "P-384", "P-521", "Ed25519", "Ed448"]) | _VALUES,
        **{name: st.text("AQgw-_=") | _VALUES for name in ("n", "e", "x", "y", "alg", "use")},
        "key_ops": st.just(["verify"]) | _VALUES,
    },
)


@given(st.lists(_JWKS | _VALUES))
def test_no_key_set_makes_the_parser_fail(keys: list[Any]) -> None:
    parse_keys({"keys": keys}, (None, "sig"))
