"""JWT-SVIDs, verified by trust bundles; SPIFFE's own library for Python is the judge."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spiffe import JwtBundle, JwtSvid, TrustDomain
from spiffe.errors import PySpiffeError

from chalicelib.identity import key_sets
from chalicelib.identity import spiffe as module
from chalicelib.identity.key_sets import TokenRefused
from chalicelib.identity.spiffe import ALGORITHMS, TrustBundles, unverified_spiffe_id
from chalicelib.outbound import Outbound
from tests.identity.doubles.provider import Provider, SigningKey, redirect

DOMAIN = "example.org"
AUDIENCE = "https://registry.example.org"
ID = f"spiffe://{DOMAIN}/ns/ci/sa/builder"

KEYS = {algorithm: SigningKey(algorithm, "jwt-svid") for algorithm in sorted(ALGORITHMS)}
KEY = KEYS["ES256"]
X509_KEY = SigningKey("ES256", "x509-svid")
STRANGER = SigningKey("ES256", "jwt-svid")
EDWARDS = SigningKey("EdDSA", "jwt-svid")
BUNDLE = {
    "spiffe_sequence": 1,
    "spiffe_refresh_hint": 600,
    "keys": [key.jwk for key in (*KEYS.values(), X509_KEY, EDWARDS)],
}


def claims(**changes: Any) -> dict[str, Any]:
    """A JWT-SVID's claims as SPIRE makes them; a claim of None is left out. Those of the tables
    below are made when the file is read, long before some are tried."""
    now = int(time.time())
    made = {"sub": ID, "aud": [AUDIENCE], "iat": now, "exp": now + 4 * 3600, **changes}
    return {name: value for name, value in made.items() if value is not None}


@pytest.fixture(scope="module")
def bundle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spiffe") / "bundle.json"
    path.write_text(json.dumps(BUNDLE))
    return path


def accepts(path: Path, svid: str) -> bool:
    """Whether we accept it, and then as whom it says it is."""
    try:
        spiffe_id = TrustBundles([f"{DOMAIN}={path}"], Outbound()).verify(svid, AUDIENCE)
    except TokenRefused:
        return False
    return spiffe_id == unverified_spiffe_id(svid)


def judge_accepts(svid: str) -> bool:
    bundle = JwtBundle.parse(TrustDomain(DOMAIN), json.dumps(BUNDLE).encode())
    try:
        JwtSvid.parse_and_validate(svid, bundle, {AUDIENCE})
    except (PySpiffeError, KeyError):  # KeyError: where there is no exp
        return False
    return True


NOW = int(time.time())
GOOD = {
    **{name: key.sign(claims()) for name, key in KEYS.items()},
    "typ JOSE": KEY.sign(claims(), typ="JOSE"),
    "no typ": KEY.sign(claims(), typ=None),
    "one audience as text": KEY.sign(claims(aud=AUDIENCE)),
    "several audiences": KEY.sign(claims(aud=["other", AUDIENCE])),
    "no path": KEY.sign(claims(sub=f"spiffe://{DOMAIN}")),
    "dots and dashes": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a.b/..c/-_/...")),
    "no iat": KEY.sign(claims(iat=None)),
    "iat in the future": KEY.sign(claims(iat=NOW + 3600)),
    "a long life": KEY.sign(claims(exp=NOW + 30 * 86400)),
    "old": KEY.sign(claims(iat=NOW - 86400)),
    "an issuer": KEY.sign(claims(iss="https://oidc.example.org")),
    "nbf in the past": KEY.sign(claims(nbf=NOW - 10)),
    "a longest id": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/{'a' * (2048 - 21)}")),
    "more claims": KEY.sign(claims(jti="1", team="a")),
}
BAD = {
    "wrong audience": KEY.sign(claims(aud=["other"])),
    "no audience": KEY.sign(claims(aud=None)),
    "empty audience": KEY.sign(claims(aud=[])),
    "audience of another kind": KEY.sign(claims(aud={AUDIENCE: 1})),
    "expired": KEY.sign(claims(exp=NOW - 3600)),
    "no exp": KEY.sign(claims(exp=None)),
    "exp is no number": KEY.sign(claims(exp="soon")),
    "nbf in the future": KEY.sign(claims(nbf=NOW + 3600)),
    "no sub": KEY.sign(claims(sub=None)),
    "empty sub": KEY.sign(claims(sub="")),
    "sub is no text": KEY.sign(claims(sub=[ID])),
    "another scheme": KEY.sign(claims(sub=f"https://{DOMAIN}/a")),
    "another trust domain": KEY.sign(claims(sub="spiffe://other.org/a")),
    "a subdomain": KEY.sign(claims(sub=f"spiffe://a.{DOMAIN}/a")),
    "user info": KEY.sign(claims(sub=f"spiffe://user@{DOMAIN}/a")),
    "port": KEY.sign(claims(sub=f"spiffe://{DOMAIN}:443/a")),
    "query": KEY.sign(claims(sub=f"{ID}?a=b")),
    "fragment": KEY.sign(claims(sub=f"{ID}#a")),
    "trailing slash": KEY.sign(claims(sub=f"{ID}/")),
    "only a slash": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/")),
    "empty segment": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a//b")),
    "dot segment": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a/./b")),
    "dots segment": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a/..")),
    "percent-encoding": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a%2Fb")),
    "a space": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/a b")),
    "a star": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/*")),
    "no trust domain": KEY.sign(claims(sub="spiffe:///a")),
    "another letter": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/ä")),
    "typ": KEY.sign(claims(), typ="at+jwt"),
    "typ in small letters": KEY.sign(claims(), typ="jwt"),
    "no kid": KEY.sign(claims(), kid=None),
    "unknown kid": STRANGER.sign(claims()),
    "a stranger's signature": STRANGER.sign(claims(), kid=KEY.id),
    "EdDSA": EDWARDS.sign(claims()),
    "key of another type": KEY.sign(claims(), kid=KEYS["RS256"].id),
    "key of another curve": KEY.sign(claims(), kid=KEYS["ES384"].id),
    "crit": KEY.sign(claims(), crit=["x"], x=1),
    "cut short": KEY.sign(claims())[:-4],
    "no signature": KEY.sign(claims()).rpartition(".")[0] + ".",
    "no token": "svid",
    "empty": "",
}
STRICTER = {
    # SPIFFE-ID, section 2.1: the trust domain's name MUST be lowercase.
    "trust domain in capitals": KEY.sign(claims(sub=f"spiffe://{DOMAIN.upper()}/a")),
    "scheme in capitals": KEY.sign(claims(sub=f"SPIFFE://{DOMAIN}/a")),
    # JWT-SVID, section 6.2: keys of another use are left out.
    "key for X.509-SVIDs": X509_KEY.sign(claims()),
    # RFC 7519, section 2: a NumericDate is a number.
    "exp as text": KEY.sign(claims(exp=str(NOW + 3600))),
    # SPIFFE-ID, section 2.3: not to be made longer than 2048 bytes.
    "an id too long": KEY.sign(claims(sub=f"spiffe://{DOMAIN}/{'a' * 2048}")),
    "a newline at the end": KEY.sign(claims(sub=f"{ID}\n")),
}
"""What the judge accepts and the specifications do not."""


@pytest.mark.parametrize("name", GOOD)
def test_what_the_judge_accepts_is_accepted(name: str, bundle_file: Path) -> None:
    assert accepts(bundle_file, GOOD[name])
    assert judge_accepts(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_the_judge_refuses_is_refused(name: str, bundle_file: Path) -> None:
    assert not accepts(bundle_file, BAD[name])
    assert not judge_accepts(BAD[name])


@pytest.mark.parametrize("name", STRICTER)
def test_where_the_specification_is_stricter_than_the_judge_it_wins(
    name: str, bundle_file: Path
) -> None:
    assert not accepts(bundle_file, STRICTER[name])
    assert judge_accepts(STRICTER[name])


def refusal(bundles: TrustBundles, svid: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        bundles.verify(svid, AUDIENCE)
    sentence = caught.value.sentence
    assert not [part for part in svid.split(".") if part in sentence]
    return sentence


def test_each_trust_domain_has_its_own_keys(tmp_path: Path) -> None:
    """The key of one domain proves nothing about another (section 5.2 of the bundle's)."""
    domains = {"one.org": SigningKey("ES256", "jwt-svid"), "two_2.org": STRANGER}
    for domain, key in domains.items():
        (tmp_path / domain).write_text(json.dumps({"keys": [key.jwk]}))
    bundles = TrustBundles([f"{domain}={tmp_path / domain}" for domain in domains], Outbound())
    one, two = domains.values()
    assert bundles.verify(two.sign(claims(sub="spiffe://two_2.org/a")), AUDIENCE)
    assert refusal(bundles, one.sign(claims(sub="spiffe://two_2.org/a"))) == (
        "The token is signed with a key that its bundle does not hold."
    )
    assert refusal(bundles, one.sign(claims(sub="spiffe://three.org/a"))) == (
        "The token is of a trust domain whose bundle is not known here."
    )


def test_a_bundle_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    bundles = TrustBundles([f"{DOMAIN}={path}"], Outbound())
    svid = KEY.sign(claims())
    unreadable = "The trust domain's bundle cannot be read."
    assert refusal(bundles, svid) == unreadable
    path.write_text(json.dumps(BUNDLE))
    assert bundles.verify(svid, AUDIENCE) == ID
    # As Kubernetes does it: another file takes its place.
    (tmp_path / "new").write_text(json.dumps({"keys": [STRANGER.jwk]}))
    (tmp_path / "new").replace(path)
    assert refusal(bundles, svid) == "The token is signed with a key that its bundle does not hold."
    assert bundles.verify(STRANGER.sign(claims()), AUDIENCE) == ID
    path.write_text('{"keys": [')
    assert refusal(bundles, svid) == unreadable
    path.write_text('{"keys": 1}')
    assert refusal(bundles, svid) == "The trust domain's bundle is malformed."
    path.write_text(json.dumps({"keys": []}))
    assert refusal(bundles, svid) == "The token is signed with a key that its bundle does not hold."
    path.unlink()
    path.mkdir()
    assert refusal(bundles, svid) == unreadable


def test_a_bundle_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(BUNDLE))
    bundles = TrustBundles([f"{DOMAIN}={path}"], Outbound())
    bundles.verify(KEY.sign(claims()), AUDIENCE)
    found = path.stat()
    path.write_text(" " * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert bundles.verify(KEY.sign(claims()), AUDIENCE)


class Endpoint:
    """A bundle endpoint; the provider's counter counts."""

    def __init__(self, provider: Provider) -> None:
        self.keys = [KEY]
        self.hint: Any = None
        self.provider = provider
        provider.routes["GET", "/bundle"] = lambda handler: handler.reply(
            {
                "keys": [key.jwk for key in self.keys],
                **({} if self.hint is None else {"spiffe_refresh_hint": self.hint}),
            }
        )
        self.bundles = TrustBundles(
            [f"{DOMAIN}={provider.origin}/bundle"], Outbound([provider.origin])
        )

    @property
    def fetches(self) -> int:
        return self.provider.fetches["/bundle"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Provider() as provider:
        yield Endpoint(provider)


def test_a_bundle_url_is_asked_once_and_again_for_a_new_key(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10):
        assert endpoint.bundles.verify(KEY.sign(claims()), AUDIENCE) == ID
    assert endpoint.fetches == 1
    # Within a minute no unknown key makes it ask again.
    endpoint.keys = [STRANGER]
    sentence = "The token is signed with a key that its issuer does not publish."
    assert refusal(endpoint.bundles, STRANGER.sign(claims())) == sentence
    assert endpoint.fetches == 1
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    fresh = Endpoint(endpoint.provider)
    assert fresh.bundles.verify(KEY.sign(claims()), AUDIENCE)
    fresh.keys = [STRANGER]
    assert fresh.bundles.verify(STRANGER.sign(claims()), AUDIENCE)
    assert refusal(fresh.bundles, KEY.sign(claims())) == sentence


@pytest.mark.parametrize(
    ("hint", "seconds"),
    [
        (None, 300),
        (120, 120),
        (1, 60),
        (0, 60),
        (-5, 60),
        (2419200, 3600),
        (10**30, 3600),
        ("600", 300),
        (1.5, 300),
    ],
)
def test_the_hint_says_how_long_a_bundle_is_kept_within_bounds(hint: object, seconds: int) -> None:
    document = {"keys": [], **({} if hint is None else {"spiffe_refresh_hint": hint})}
    assert module._parse(document).seconds == seconds


def test_a_bundle_url_is_asked_again_after_its_hint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REFRESH_BOUNDS", (0.3, 3600))
    endpoint.hint = 0
    svid = KEY.sign(claims())
    assert endpoint.bundles.verify(svid, AUDIENCE)
    endpoint.keys = []
    assert endpoint.bundles.verify(svid, AUDIENCE)
    time.sleep(0.35)
    assert refusal(endpoint.bundles, svid)
    assert endpoint.fetches == 2


def test_a_bundle_that_cannot_be_had_is_said_so(endpoint: Endpoint) -> None:
    svid = KEY.sign(claims())
    endpoint.provider.routes["GET", "/bundle"] = redirect("https://example.org/")
    assert refusal(endpoint.bundles, svid) == (
        "The trust domain's bundle could not be had."
        " The server answered with a redirect, and none is followed."
    )
    del endpoint.provider.routes["GET", "/bundle"]
    absent = Endpoint(endpoint.provider)
    del endpoint.provider.routes["GET", "/bundle"]
    assert refusal(absent.bundles, svid) == "The trust domain's bundle is malformed."
    public = TrustBundles([f"{DOMAIN}={endpoint.provider.origin}/bundle"], Outbound())
    assert refusal(public, svid) == (
        "The trust domain's bundle could not be had. Only https:// URLs are asked."
    )


def test_no_bundle_is_asked_for_a_token_that_could_not_be_accepted(endpoint: Endpoint) -> None:
    for svid in (
        KEY.sign(claims(sub="spiffe://other.org/a")),
        KEY.sign(claims(), typ="at+jwt"),
        EDWARDS.sign(claims()),
    ):
        assert refusal(endpoint.bundles, svid)
    assert endpoint.fetches == 0
