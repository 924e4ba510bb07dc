import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chalicelib.http import Unavailable
from chalicelib.identity import openid as module
from chalicelib.identity.external import Person, SignInRefused
from chalicelib.identity.issuers import Issuers
from chalicelib.identity.openid import OpenID
from chalicelib.outbound import Outbound
from chalicelib.settings import Settings
from tests.identity.doubles.browser import query, redirected
from tests.identity.doubles.openid import TOKEN, USER_INFO, Client, OpenIDProvider
from tests.identity.doubles.provider import DISCOVERY, Handler, Route, SigningKey, redirect

CALLBACK = "https://registry.example.org/api/v1/sign-in/openid"
NONCE = secrets.token_urlsafe(32)
VERIFIER = secrets.token_urlsafe(32)
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
)
ADA = {
    "sub": "24400320",
    "preferred_username": "ada",
    "email": "ada@example.org",
    "email_verified": True,
}


@pytest.fixture
def provider() -> Iterator[OpenIDProvider]:
    with OpenIDProvider() as running:
        running.user = dict(ADA)
        yield running


@pytest.fixture
def client(provider: OpenIDProvider) -> Client:
    return provider.register("our client", CALLBACK)


@pytest.fixture
def openid(provider: OpenIDProvider, client: Client) -> OpenID:
    return connected(provider, client)


def connected(
    provider: OpenIDProvider, client: Client, private: tuple[str, ...] | None = None
) -> OpenID:
    settings = Settings(
        oidc_issuer=provider.issuer,
        oidc_client_id=client.id,
        oidc_client_secret=client.secret,
    )
    outbound = Outbound((provider.origin,) if private is None else private)
    return OpenID(settings, outbound, Issuers(outbound))


def came_back(openid: OpenID, nonce: str = NONCE) -> str:
    """The code with which the browser comes back."""
    callback = redirected(openid.authorize_url("state", nonce, CHALLENGE, CALLBACK))
    assert callback.startswith(CALLBACK + "?")
    brought = query(callback)
    assert brought["state"] == "state"
    return brought["code"]


def sign_in(openid: OpenID) -> Person:
    return openid.exchange(came_back(openid), VERIFIER, NONCE, CALLBACK)


def test_signs_a_person_in(openid: OpenID, provider: OpenIDProvider) -> None:
    assert sign_in(openid) == Person(provider.issuer, "24400320", "ada", "ada@example.org")
    assert provider.fetches[USER_INFO] == 0


def test_asks_with_state_nonce_and_challenge(openid: OpenID, client: Client) -> None:
    url = openid.authorize_url("a & b", NONCE, CHALLENGE, CALLBACK)
    assert client.secret not in url
    assert query(url) == {
        "response_type": "code",
        "client_id": client.id,
        "redirect_uri": CALLBACK,
        "scope": "openid email profile",
        "state": "a & b",
        "nonce": NONCE,
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    }


def test_keeps_the_query_of_the_endpoint(openid: OpenID, provider: OpenIDProvider) -> None:
    provider.described = {"authorization_endpoint": f"{provider.issuer}/authorize?tenant=7"}
    asked = query(openid.authorize_url("state", NONCE, CHALLENGE, CALLBACK))
    assert (asked["tenant"], asked["state"]) == ("7", "state")


@pytest.mark.parametrize(
    "methods",
    [
        None,
        ["client_secret_basic"],
        ["client_secret_post"],
        ["client_secret_post", "client_secret_basic"],
    ],
)
def test_proves_itself_as_the_provider_wants(
    provider: OpenIDProvider, methods: list[str] | None
) -> None:
    provider.methods = methods
    client = provider.register("client:+%ä", CALLBACK, "secret:+% ä/=")
    assert sign_in(connected(provider, client)).subject == "24400320"


def test_a_public_client_has_no_secret(provider: OpenIDProvider) -> None:
    client = provider.register("public", CALLBACK, "")
    assert sign_in(connected(provider, client)).subject == "24400320"


# Codes.


def test_refuses_a_wrong_code(openid: OpenID) -> None:
    with pytest.raises(SignInRefused):
        openid.exchange("wrong", VERIFIER, NONCE, CALLBACK)


def test_refuses_a_replayed_code(openid: OpenID) -> None:
    code = came_back(openid)
    openid.exchange(code, VERIFIER, NONCE, CALLBACK)
    with pytest.raises(SignInRefused):
        openid.exchange(code, VERIFIER, NONCE, CALLBACK)


@pytest.mark.parametrize(
    "verifier",
    ["", VERIFIER[:-1], secrets.token_urlsafe(32)],
    ids=["none", "shorter", "another"],
)
def test_refuses_a_wrong_verifier(openid: OpenID, verifier: str) -> None:
    code = came_back(openid)
    with pytest.raises(SignInRefused):
        openid.exchange(code, verifier, NONCE, CALLBACK)


def test_refuses_a_code_of_another_client(openid: OpenID, provider: OpenIDProvider) -> None:
    code = came_back(connected(provider, provider.register("other", CALLBACK)))
    with pytest.raises(SignInRefused):
        openid.exchange(code, VERIFIER, NONCE, CALLBACK)


def test_refuses_a_code_for_another_callback(openid: OpenID) -> None:
    code = came_back(openid)
    with pytest.raises(SignInRefused):
        openid.exchange(code, VERIFIER, NONCE, CALLBACK + "/other")


# ID tokens.


def test_refuses_a_wrong_nonce(openid: OpenID) -> None:
    code = came_back(openid, secrets.token_urlsafe(32))
    with pytest.raises(SignInRefused, match="nonce"):
        openid.exchange(code, VERIFIER, NONCE, CALLBACK)


@pytest.mark.parametrize(
    "nonce",
    [None, "", 7, [NONCE], NONCE + "x", "ä"],
    ids=["none", "empty", "number", "list", "longer", "another"],
)
def test_refuses_a_token_without_the_nonce(
    openid: OpenID, provider: OpenIDProvider, nonce: object
) -> None:
    provider.claims = {"nonce": nonce}
    with pytest.raises(SignInRefused, match="nonce"):
        sign_in(openid)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": ["other", "another"], "azp": "our client"},
        {"aud": ["our client", "other"]},
        {"aud": ["our client", "other"], "azp": "other"},
        {"aud": ["our client", "other"], "azp": None},
        {"aud": "our client", "azp": "other"},
        {"aud": ["our client"], "azp": "other"},
        {"iss": "https://elsewhere.example"},
        {"exp": int(time.time()) - 3600},
        {"iat": int(time.time()) + 3600},
        {"exp": None},
        {"iss": None},
        {"aud": None},
    ],
)
def test_refuses_a_token_for_others(
    openid: OpenID, provider: OpenIDProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    with pytest.raises(SignInRefused):
        sign_in(openid)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["our client"]},
        {"aud": "our client", "azp": "our client"},
        {"aud": ["our client", "other"], "azp": "our client"},
    ],
)
def test_takes_a_token_for_us(
    openid: OpenID, provider: OpenIDProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    assert sign_in(openid).subject == "24400320"


def forged(
    provider: OpenIDProvider, openid: OpenID, token: Callable[[dict[str, Any]], str]
) -> None:
    """Let the token endpoint answer with a token of somebody else's making."""
    claims = {**provider.standard("our client"), **ADA, "nonce": NONCE}
    provider.routes["POST", TOKEN] = lambda handler: handler.reply({"id_token": token(claims)})
    with pytest.raises(SignInRefused):
        openid.exchange("code", VERIFIER, NONCE, CALLBACK)


def test_refuses_another_key(openid: OpenID, provider: OpenIDProvider) -> None:
    forged(provider, openid, SigningKey().sign)
    key = SigningKey()
    key.id = provider.keys[0].id
    forged(provider, openid, key.sign)


def test_refuses_no_signature(openid: OpenID, provider: OpenIDProvider) -> None:
    import jwt

    forged(provider, openid, lambda claims: jwt.encode(claims, "", algorithm="none"))
    forged(provider, openid, lambda claims: provider.token(claims).rpartition(".")[0] + ".")
    # Some providers sign with the client's secret: anybody who knows it could sign in as anybody.
    secret = "our secret" * 4
    forged(provider, openid, lambda claims: jwt.encode(claims, secret, algorithm="HS256"))


@pytest.mark.parametrize("subject", [None, "", 7, "x" * 256])
def test_takes_no_odd_subject(openid: OpenID, provider: OpenIDProvider, subject: object) -> None:
    provider.claims = {"sub": subject}
    with pytest.raises((SignInRefused, Unavailable)):
        sign_in(openid)


# Email addresses and names.


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email_verified": False}, ""),
        ({"email_verified": None}, ""),
        ({"email_verified": "true"}, ""),
        ({"email_verified": 1}, ""),
        ({"email": 7}, ""),
        ({"email": "b@example.org"}, "b@example.org"),
    ],
)
def test_takes_an_address_that_is_verified_alone(
    openid: OpenID, provider: OpenIDProvider, claims: dict[str, Any], email: str
) -> None:
    provider.claims = claims
    assert sign_in(openid)._replace(issuer="") == Person("", "24400320", "ada", email)


def test_asks_for_what_the_token_does_not_tell(openid: OpenID, provider: OpenIDProvider) -> None:
    provider.hidden = frozenset({"email", "email_verified", "preferred_username"})
    assert sign_in(openid) == Person(provider.issuer, "24400320", "ada", "ada@example.org")
    assert provider.fetches[USER_INFO] == 1


def test_the_token_does_not_verify_an_address_told_elsewhere(
    openid: OpenID, provider: OpenIDProvider
) -> None:
    provider.hidden = frozenset({"email"})
    provider.user["email_verified"] = False
    provider.claims = {"email_verified": True}
    assert sign_in(openid).email == ""


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.reply({**ADA, "sub": "24400321"}),
        lambda handler: handler.reply({**ADA, "sub": None}),
        lambda handler: handler.reply(ADA, 403),
        lambda handler: handler.reply([ADA]),
    ],
)
def test_uses_nothing_told_of_others(
    openid: OpenID, provider: OpenIDProvider, answer: Route
) -> None:
    provider.hidden = frozenset({"email", "email_verified", "preferred_username"})
    provider.routes["GET", USER_INFO] = answer
    assert sign_in(openid) == Person(provider.issuer, "24400320", "", "")


def test_does_without_what_is_told_nowhere(openid: OpenID, provider: OpenIDProvider) -> None:
    provider.hidden = frozenset({"email", "email_verified", "preferred_username"})
    provider.described = {"userinfo_endpoint": None}
    assert sign_in(openid) == Person(provider.issuer, "24400320", "", "")


# A provider that is out of order.


def test_asks_for_the_configuration_once(
    openid: OpenID, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        openid.authorize_url("state", NONCE, CHALLENGE, CALLBACK)
    assert provider.fetches[DISCOVERY] == 1
    monkeypatch.setattr(module, "CONFIGURATION_LIFE", 0)
    forgetful = connected(provider, provider.clients["our client"])
    for _ in range(2):
        forgetful.authorize_url("state", NONCE, CHALLENGE, CALLBACK)
    assert provider.fetches[DISCOVERY] == 3


def test_is_ready_again_when_the_provider_is(openid: OpenID, provider: OpenIDProvider) -> None:
    well = provider.routes.pop(("GET", DISCOVERY))
    with pytest.raises(Unavailable):
        sign_in(openid)
    provider.routes["GET", DISCOVERY] = well
    assert sign_in(openid).subject == "24400320"


@pytest.mark.parametrize(
    "described",
    [
        {"issuer": "https://elsewhere.example"},
        {"authorization_endpoint": None},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://sign-in.example/authorize"},
        {"authorization_endpoint": "https://sign-in.example/a\r\nSet-Cookie: a=b"},
        {"authorization_endpoint": ["https://sign-in.example/authorize"]},
    ],
)
def test_sends_nobody_to_an_odd_place(
    openid: OpenID, provider: OpenIDProvider, described: dict[str, Any]
) -> None:
    provider.described = described
    with pytest.raises(Unavailable):
        openid.authorize_url("state", NONCE, CHALLENGE, CALLBACK)


def test_a_public_provider_sends_nobody_inwards(provider: OpenIDProvider, client: Client) -> None:
    public = "https://sign-in.example"

    class Described(Issuers):
        def configuration(self, issuer: str) -> dict[str, Any]:
            inwards = f"{provider.issuer}{TOKEN}"
            outwards = f"{public}/authorize"
            return {"authorization_endpoint": outwards, "token_endpoint": inwards}

    settings = Settings(oidc_issuer=public, oidc_client_id=client.id)
    outbound = Outbound((provider.origin,))
    openid = OpenID(settings, outbound, Described(outbound))
    assert openid.authorize_url("s", NONCE, CHALLENGE, CALLBACK).startswith(public)
    with pytest.raises(Unavailable, match="no usable token_endpoint"):
        openid.exchange("code", VERIFIER, NONCE, CALLBACK)
    assert not provider.fetches


def answer(status: int, document: Any) -> Route:
    def route(handler: Handler) -> None:
        handler.reply(document, status)

    return route


@pytest.mark.parametrize(
    "route",
    [
        answer(500, {"error": "server_error"}),
        answer(503, b"<h1>Service unavailable"),
        answer(429, {"error": "slow_down"}),
        answer(200, b"<h1>Hello"),
        answer(200, []),
        answer(200, {}),
        answer(200, {"id_token": 7}),
        redirect("https://elsewhere.example/token"),
    ],
)
def test_out_of_order_is_no_refusal(openid: OpenID, provider: OpenIDProvider, route: Route) -> None:
    code = came_back(openid)
    provider.routes["POST", TOKEN] = route
    with pytest.raises(Unavailable):
        openid.exchange(code, VERIFIER, NONCE, CALLBACK)


def test_tells_the_operator_of_a_wrong_secret(provider: OpenIDProvider, client: Client) -> None:
    openid = connected(provider, Client(client.id, "wrong", CALLBACK))
    with pytest.raises(Unavailable, match="OIDC_CLIENT_SECRET"):
        sign_in(openid)


def test_asks_no_private_provider_that_is_not_named(
    provider: OpenIDProvider, client: Client
) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        connected(provider, client, ()).authorize_url("state", NONCE, CHALLENGE, CALLBACK)
    assert not provider.fetches
