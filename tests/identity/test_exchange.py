"""Keyless push: workloads' own tokens are exchanged for registry tokens, by trust rules."""

import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest

from chalicelib.http import Unavailable
from chalicelib.identity import exchange, key_sets, organisations, trust
from chalicelib.identity.access import Accounts
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit
from chalicelib.metadata.trust import Rule
from chalicelib.outbound import Outbound
from tests.api.conftest import PASSWORD, World, basic, opened
from tests.client import Answer, push_image
from tests.identity.doubles.network import Authority, Resolver
from tests.identity.doubles.provider import DISCOVERY, KEYS, Handler, Provider, SigningKey
from tests.images import make_image
from tests.servers import Postgres

AUDIENCE = "https://registry.example.org"
DOMAIN = "example.org"
WORKLOAD = f"spiffe://{DOMAIN}/ns/ci/sa/builder"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
SCOPE = "repository:acme/app:pull,push"


class CI:
    """The registry, an issuer, and a trust domain; ``bundle`` is the latter's file, and
    ``url_domain`` a domain whose bundle is at a URL."""

    url_domain = "url.example.org"

    def __init__(self, world: World, provider: Provider, bundle: Path) -> None:
        self.world = world
        self.provider = provider
        self.bundle = bundle
        self.database = world.context.database
        assert isinstance(world.context.access, Accounts)
        self.access = world.context.access
        self.acme = organisations.create(self.database, "acme", world.ids["alice"], by="operator")

    def trust(
        self,
        account: int | None = None,
        issuer: str = "",
        *scopes: str,
        audience: str = AUDIENCE,
        **claims: str,
    ) -> Rule:
        """A rule of an account, acme unless told otherwise."""
        return trust.create(
            self.database,
            self.access.federation.outbound,
            account or self.acme,
            issuer or self.provider.issuer,
            audience,
            claims or {"repository": "acme/app"},
            scopes or ("repository:acme/*:pull,push",),
            by="operator",
        )

    def actions(self, **changes: Any) -> str:
        """A token of a job of GitHub Actions."""
        return self.provider.token({**self.provider.github_actions(AUDIENCE), **changes})

    def exchange(self, token: str, scope: str = SCOPE, **form: str) -> Answer:
        fields = {
            "grant_type": GRANT,
            "subject_token": token,
            "subject_token_type": JWT,
            "scope": scope,
            **form,
        }
        body = urlencode({name: value for name, value in fields.items() if value}).encode()
        return self.world.client.request("POST", "/token", body)

    def refusal(self, token: str, **form: str) -> str:
        """Why a token is not exchanged; it is not used up thereby."""
        answer = self.exchange(token, **form)
        assert answer.status == 400, answer
        assert answer.json["error"] == "invalid_request"
        assert not token or token not in answer.body.decode()
        used = self.database.run("SELECT count(*) FROM exchanged_tokens")[0][0]
        assert used == len([each for each in self.events if each == "token.exchange"])
        return str(answer.json["error_description"])

    def granted(self, token: str, scope: str = SCOPE, **form: str) -> str:
        answer = self.exchange(token, scope, **form)
        assert answer.status == 200, answer
        return str(answer.json["access_token"])

    @property
    def events(self) -> list[str]:
        return [each.event for each in audit.page(self.database, 200)]


KEY = SigningKey("ES256", "jwt-svid")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        server.rotate("RS256")
        yield server


@pytest.fixture
def ci(postgres: Postgres, tmp_path: Path, provider: Provider) -> Iterator[CI]:
    bundle = tmp_path / "bundle.json"
    bundle.write_text(json.dumps({"keys": [KEY.jwk]}))
    provider.routes["GET", "/bundle"] = lambda handler: handler.reply(
        {"keys": [KEY.jwk], "spiffe_refresh_hint": 60}
    )
    with opened(
        postgres,
        tmp_path,
        OPENREGISTRY_PUBLIC_URL=AUDIENCE,
        OPENREGISTRY_PRIVATE_ISSUERS=provider.origin,
        OPENREGISTRY_SPIFFE_BUNDLES=(f"{DOMAIN}={bundle},{CI.url_domain}={provider.origin}/bundle"),
    ) as world:
        yield CI(world, provider, bundle)


def svid(key: SigningKey = KEY, **changes: Any) -> str:
    now = int(time.time())
    return key.sign({"sub": WORKLOAD, "aud": [AUDIENCE], "iat": now, "exp": now + 300, **changes})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def push(ci: CI, authorization: str, repository: str = "acme/app") -> int:
    """The status of an attempt to begin to push."""
    path = f"/v2/{repository}/blobs/uploads/"
    return ci.world.client.request("POST", path, b"", {"Authorization": authorization}).status


# What is granted.


@pytest.mark.parametrize("shape", ["github_actions", "gitlab_ci"])
@pytest.mark.parametrize("kind", [JWT, ID_TOKEN])
def test_a_jobs_token_is_exchanged(ci: CI, shape: str, kind: str) -> None:
    claim = {"github_actions": "repository", "gitlab_ci": "project_path"}[shape]
    rule = ci.trust(None, "", **{claim: "acme/*", "ref_protected": "true"})
    claims = getattr(ci.provider, shape)(AUDIENCE)
    answer = ci.exchange(ci.provider.token(claims), subject_token_type=kind)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    said = answer.json
    assert said["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    assert said["token_type"] == "Bearer"
    assert said["token"] == said["access_token"]
    assert said["scope"] == SCOPE
    assert "refresh_token" not in said
    registry_token = jwt.decode(said["token"], options={"verify_signature": False})
    assert registry_token["sub"] == f"account:{ci.acme}/rule:{rule.id}"
    assert 3590 < said["expires_in"] <= 3600
    assert registry_token["exp"] - registry_token["iat"] == said["expires_in"]
    assert push(ci, f"Bearer {said['token']}") == 202
    assert push(ci, f"Bearer {said['token']}", "acme/other") == 401
    entry = audit.page(ci.database, 1, account=ci.acme)[0]
    assert (entry.event, entry.detail) == ("token.exchange", {"rule": rule.id})
    assert entry.subject == registry_token["sub"]


def test_a_registry_token_outlives_a_short_token_that_it_was_had_for(ci: CI) -> None:
    """A workload's token holds for minutes; a push may take longer."""
    ci.trust()
    answer = ci.exchange(ci.actions(exp=int(time.time()) + 20))
    assert answer.json["expires_in"] > 3000


def test_a_registry_token_is_a_password_and_is_narrowed_by_the_token_server(ci: CI) -> None:
    """As docker does after a login with it."""
    ci.trust()
    token = ci.granted(ci.actions())
    exp = jwt.decode(token, options={"verify_signature": False})["exp"]
    password = basic("anything", token)
    assert push(ci, password) == 202
    for asked, granted in [
        (SCOPE, SCOPE),
        ("repository:acme/app:pull,delete", "repository:acme/app:pull"),
        ("repository:acme/other:pull,push", ""),
        ("registry:catalog:*", ""),
    ]:
        answer = ci.world.client.request(
            "GET", f"/token?{urlencode({'scope': asked})}", b"", {"Authorization": password}
        )
        assert answer.status == 200
        assert answer.json["scope"] == granted
        narrowed = jwt.decode(answer.json["token"], options={"verify_signature": False})
        assert narrowed["exp"] <= exp
    form = {
        "grant_type": "password",
        "username": "anything",
        "password": token,
        "access_type": "offline",
        "scope": SCOPE,
    }
    answer = ci.world.client.request("POST", "/token", urlencode(form).encode())
    assert answer.json["scope"] == SCOPE
    assert "refresh_token" not in answer.json
    api = ci.world.call("GET", "/session", Authorization=password)
    assert api.status == 401


def test_a_rules_scopes_and_its_accounts_rights_are_the_bounds(ci: CI) -> None:
    ci.trust(None, "", "repository:acme/*:pull,push", "repository:other/*:push")
    scope = f"{SCOPE},delete repository:other/app:push repository:acme/two:*"
    answer = ci.exchange(ci.actions(), scope)
    assert answer.json["scope"] == f"{SCOPE} repository:acme/two:pull,push"


def test_a_rule_of_a_user_follows_what_the_user_may_do(ci: CI) -> None:
    bob = ci.world.ids["bob"]
    ci.database.run(
        "INSERT INTO members (organisation_id, user_id, role) VALUES (:o, :u, 'owner')",
        o=ci.acme,
        u=bob,
    )
    ci.trust(bob)
    token = ci.granted(ci.actions())
    assert push(ci, f"Bearer {token}") == 202
    ci.database.run("DELETE FROM members WHERE user_id = :u", u=bob)
    assert push(ci, f"Bearer {token}") == 403
    answer = ci.exchange(ci.actions())
    assert (answer.status, answer.json["error"]) == (400, "invalid_scope")


def test_a_suspended_accounts_rules_rest(ci: CI) -> None:
    ci.trust()
    token = ci.granted(ci.actions())
    ci.database.run("UPDATE accounts SET suspended_at = now() WHERE id = :id", id=ci.acme)
    assert push(ci, f"Bearer {token}") == 401
    assert ci.refusal(ci.actions()).startswith("No trust rule here")


def test_a_rule_that_is_removed_ends_what_it_granted_at_once(ci: CI) -> None:
    rule = ci.trust()
    token = ci.granted(ci.actions())
    assert push(ci, f"Bearer {token}") == 202
    assert trust.remove(ci.database, rule, by="operator")
    assert push(ci, f"Bearer {token}") == 401
    assert push(ci, basic("ci", token)) == 401
    assert ci.refusal(ci.actions()).startswith("No trust rule here")


# Which rule.


def test_of_several_rules_the_one_that_grants_most_is_chosen(ci: CI) -> None:
    less = ci.trust(None, "", "repository:acme/app:pull")
    most = ci.trust(None, "", "repository:acme/app:pull,push,delete")
    more = ci.trust(None, "", "repository:acme/app:pull,push")

    def chosen(scope: str, **form: str) -> tuple[str, str]:
        answer = ci.exchange(ci.actions(), scope, **form)
        claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
        return claims["sub"].partition("rule:")[2], answer.json["scope"]

    assert chosen(SCOPE) == (most.id, SCOPE)
    assert chosen("repository:acme/app:pull") == (less.id, "repository:acme/app:pull")
    assert chosen(SCOPE, rule=more.id) == (more.id, SCOPE)
    assert chosen(SCOPE, rule=less.id) == (less.id, "repository:acme/app:pull")


def test_a_strangers_rules_for_ones_workloads_do_not_get_in_the_way(ci: CI) -> None:
    bob = ci.world.ids["bob"]
    for _ in range(8):
        ci.trust(bob, "", "repository:*:*")
    rule = ci.trust()
    token = ci.granted(
        ci.actions(),
    )
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == f"account:{ci.acme}/rule:{rule.id}"


def test_a_rule_of_another_id_is_not_taken(ci: CI) -> None:
    ci.trust()
    other = ci.trust(None, "", repository="acme/other")
    assert ci.refusal(ci.actions(), rule=other.id).startswith("The token is a right one")
    assert ci.refusal(ci.actions(), rule="00000000-0000-0000-0000-000000000000").startswith("No")
    assert ci.refusal(ci.actions(), rule="x") == "rule is the id of a trust rule."


@pytest.mark.parametrize(
    ("claims", "fits"),
    [
        ({"repository": "acme/app"}, True),
        ({"repository": "acme/*"}, True),
        ({"repository": "acme/a"}, False),
        ({"repository": "acme/app", "ref": "refs/heads/main"}, True),
        ({"repository": "acme/app", "ref": "refs/tags/*"}, False),
        ({"repository": "acme/app", "environment": "*"}, False),
        ({"repository": "Acme/app"}, False),
        ({"sub": "repo:acme/app:*"}, True),
        ({"sub": "repo:acme/app:environment:*"}, False),
        ({"repository_id": "424242", "workflow_ref": "*/release.yml@*"}, True),
        ({"runner_id": "1", "sub": "repo:*"}, True),
        ({"runner_id": "2", "sub": "repo:*"}, False),
        ({"flag": "true", "sub": "repo:*"}, True),
        ({"list": "a", "sub": "repo:*"}, False),
    ],
)
def test_every_claim_of_a_rule_has_to_match(ci: CI, claims: dict[str, str], fits: bool) -> None:
    ci.trust(None, "", **claims)
    token = ci.actions(runner_id=1, flag=True, list=["a"])
    if fits:
        ci.granted(token)
    else:
        assert ci.refusal(token).startswith("The token is a right one, but")


# What is refused.


def test_a_token_works_once(ci: CI) -> None:
    rule = ci.trust()
    token = ci.actions()
    ci.granted(token)
    assert ci.refusal(token) == "This token was exchanged before: each works once."
    entry = audit.page(ci.database, 1, account=ci.acme)[0]
    assert (entry.event, entry.detail) == ("token.replay", {"rule": rule.id})


def test_a_token_works_once_in_whatever_form_its_signature_is(ci: CI) -> None:
    """Of ECDSA s and n - s verify alike, and base64url leaves bits to choose."""
    key = ci.provider.rotate("ES256")
    ci.trust()
    token = ci.actions()
    head, _, signature = token.rpartition(".")
    raw = jwt.utils.base64url_decode(signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    s = order - int.from_bytes(raw[32:])
    mirrored = jwt.utils.base64url_encode(raw[:32] + s.to_bytes(32)).decode()
    assert key.algorithm == "ES256"
    ci.granted(f"{head}.{mirrored}")
    assert "exchanged before" in ci.refusal(token)


def test_of_many_who_exchange_a_token_at_once_one_alone_succeeds(ci: CI) -> None:
    ci.trust()
    ci.granted(ci.actions())
    token = ci.actions()
    barrier = threading.Barrier(8)

    def attempt(_: int) -> int:
        barrier.wait()
        return ci.exchange(token).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(attempt, range(8)))
    assert sorted(statuses) == [200] + [400] * 7
    assert ci.events.count("token.replay") == 7


def test_only_a_token_that_is_otherwise_right_is_used_up(ci: CI) -> None:
    ci.trust()
    token = ci.actions()
    answer = ci.exchange(token, "repository:other/app:push")
    assert (answer.status, answer.json["error"]) == (400, "invalid_scope")
    assert ci.exchange(token, "").json["error"] == "invalid_scope"
    assert ci.exchange(token, rule="x").status == 400
    ci.granted(token)


def altered(token: str) -> str:
    """The same signature under other claims."""
    header, payload, signature = token.split(".")
    claims = json.loads(jwt.utils.base64url_decode(payload))
    changed = json.dumps({**claims, "repository": "acme/app", "run_id": "1"}).encode()
    return f"{header}.{jwt.utils.base64url_encode(changed).decode()}.{signature}"


def forged(ci: CI, algorithm: str, secret: bytes) -> str:
    """A token that no library would make."""
    header = {"alg": algorithm, "typ": "JWT", "kid": ci.provider.keys[0].id}
    parts = (header, ci.provider.github_actions(AUDIENCE))
    signed = b".".join(jwt.utils.base64url_encode(json.dumps(part).encode()) for part in parts)
    signature = hmac.digest(secret, signed, "sha256") if secret else b""
    return (signed + b"." + jwt.utils.base64url_encode(signature)).decode()


BAD: dict[str, tuple[Callable[[CI], str], str]] = {
    "another audience": (lambda ci: ci.actions(aud="https://other"), "No trust rule here"),
    "no audience": (lambda ci: ci.actions(aud=None), "No trust rule here"),
    "no issuer": (lambda ci: ci.actions(iss=None), "No trust rule here"),
    "an issuer that is no text": (lambda ci: ci.actions(iss=["a"]), "No trust rule here"),
    "an issuer with a NUL": (lambda ci: ci.actions(iss="a\0b"), "No trust rule here"),
    "an audience with a NUL": (lambda ci: ci.actions(aud="a\0b"), "No trust rule here"),
    "expired": (lambda ci: ci.actions(exp=int(time.time()) - 61), "The token has expired"),
    "just expired": (lambda ci: ci.actions(exp=int(time.time()) - 1), "The token has expired"),
    "not valid yet": (lambda ci: ci.actions(nbf=int(time.time()) + 120), "The token is not valid"),
    "old": (
        lambda ci: ci.actions(iat=int(time.time()) - 3700, nbf=None),
        "The token is older than an hour",
    ),
    "no expiry": (lambda ci: ci.actions(exp=None), "The token lacks"),
    "an unknown key": (
        lambda ci: SigningKey("RS256").sign(ci.provider.github_actions(AUDIENCE)),
        "The token is signed with a key that its issuer does not publish",
    ),
    "another key of the same id": (
        lambda ci: SigningKey("RS256").sign(
            ci.provider.github_actions(AUDIENCE), kid=ci.provider.keys[0].id
        ),
        "The token's signature is wrong",
    ),
    "altered": (lambda ci: altered(ci.actions()), "The token's signature is wrong"),
    "alg none": (lambda ci: forged(ci, "none", b""), "The token is not signed with an algorithm"),
    "the public key as a secret": (
        lambda ci: forged(ci, "HS256", json.dumps(ci.provider.keys[0].jwk).encode()),
        "The token is not signed with an algorithm",
    ),
    "another repository": (
        lambda ci: ci.actions(repository="evil/app", sub="repo:evil/app:ref:refs/heads/main"),
        "The token is a right one, but",
    ),
    "a claim with a NUL": (
        lambda ci: ci.actions(repository="acme/app\0"),
        "The token is a right one, but",
    ),
    "a lone surrogate": (
        lambda ci: ci.actions(repository="\ud800", other="\ud800"),
        "The token is a right one, but",
    ),
    "no token": (lambda ci: "eyJ.eyJ.eyJ", "That is no signed token"),
    "a registry token": (
        lambda ci: ci.granted(ci.actions()),
        "No trust rule here",
    ),
    "nothing": (lambda ci: "", "The form needs subject_token"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_proves_nothing_is_refused(ci: CI, case: str) -> None:
    ci.trust()
    make, sentence = BAD[case]
    assert ci.refusal(make(ci)).startswith(sentence)
    # The rule would have taken a right one.
    ci.granted(ci.actions())


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"subject_token_type": ""}, "invalid_request"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"requested_token_type": ID_TOKEN}, "invalid_request"),
        ({"actor_token": "a"}, "invalid_request"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}, "unsupported_grant_type"),
    ],
)
def test_forms_that_are_wrong(ci: CI, form: dict[str, str], error: str) -> None:
    ci.trust()
    answer = ci.exchange(ci.actions(), **form)
    assert (answer.status, answer.json["error"]) == (400, error)
    assert ci.provider.fetches == {}


# Whom the registry asks.


def test_an_issuer_that_no_rule_names_is_not_asked(ci: CI) -> None:
    with Provider() as stranger:
        assert ci.refusal(stranger.token(stranger.github_actions(AUDIENCE))).startswith("No trust")
        ci.trust(None, "", audience="another")
        assert ci.refusal(ci.actions()).startswith("No trust")
        assert stranger.fetches == {}
        assert ci.provider.fetches == {}


def test_keys_rotate(ci: CI, monkeypatch: pytest.MonkeyPatch) -> None:
    ci.trust()
    ci.granted(ci.actions())
    old = ci.actions()
    ci.provider.rotate("ES256")
    monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 61)
    ci.granted(ci.actions())
    assert ci.refusal(old).startswith("The token is signed with a key that its issuer does not")


def test_an_issuer_is_out_of_order(ci: CI) -> None:
    ci.trust()
    ci.provider.routes["GET", KEYS] = lambda handler: handler.reply({}, 500)
    assert ci.refusal(ci.actions()).startswith("The issuer publishes no set of keys")


@pytest.mark.parametrize(
    "issuer", ["http://169.254.169.254", "http://127.0.0.1:1", "https://[::1]"]
)
def test_a_rule_for_a_private_issuer_is_refused_when_it_is_made_and_when_it_is_used(
    ci: CI, issuer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused):
        ci.trust(None, issuer)
    # One that came into the table some other way.
    monkeypatch.setattr(Outbound, "check", lambda *_: None)
    ci.trust(None, issuer)
    sentence = ci.refusal(ci.actions(iss=issuer))
    assert sentence.startswith("The issuer's keys could not be had.")


def test_discovery_cannot_send_the_registry_inwards(
    ci: CI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public issuer by its name, whose keys are said to be where only the registry gets."""
    authority, name = Authority(tmp_path), "issuer.example.net"
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    Resolver(monkeypatch, {name: [["127.0.0.1"]]})
    monkeypatch.setattr("chalicelib.outbound.is_public", lambda _: True)
    with Provider(host=name, tls=authority.context(name)) as issuer, ExitStack() as inside:
        victim = inside.enter_context(Provider())
        for place in (victim.origin + KEYS, ci.provider.origin + KEYS, "file:///etc/passwd"):
            described = {"issuer": issuer.issuer, "jwks_uri": place}
            issuer.routes["GET", DISCOVERY] = partial(Handler.reply, document=described)
            ci.access.federation.__dict__.pop("issuers", None)
            ci.trust(None, issuer.issuer)
            token = issuer.token(issuer.github_actions(AUDIENCE))
            assert ci.refusal(token).startswith("The issuer's keys could not be had.")
        assert issuer.fetches[DISCOVERY] == 3
        assert victim.fetches == {}
        assert ci.provider.fetches == {}


def test_a_slow_issuer_keeps_few_threads_waiting(ci: CI, monkeypatch: pytest.MonkeyPatch) -> None:
    ci.trust()
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(exchange, "_AT_ONCE", full)
    answer = ci.exchange(ci.actions())
    assert answer.status == 503
    assert answer.code == Unavailable.code
    full.release()
    ci.granted(ci.actions())


# SPIFFE.


@pytest.mark.parametrize("domain", [DOMAIN, CI.url_domain])
def test_an_svid_is_exchanged(ci: CI, domain: str) -> None:
    rule = ci.trust(None, domain, sub=f"spiffe://{domain}/ns/ci/*")
    token = ci.granted(svid(sub=f"spiffe://{domain}/ns/ci/sa/builder"))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == f"account:{ci.acme}/rule:{rule.id}"
    assert push(ci, f"Bearer {token}") == 202


def test_svids_that_prove_nothing(ci: CI) -> None:
    ci.trust(None, DOMAIN, sub=f"spiffe://{DOMAIN}/ns/ci/*")
    ci.trust(None, "unknown.org", sub="spiffe://unknown.org/ns/ci/*")
    now = int(time.time())
    for token, sentence in [
        (svid(sub=f"spiffe://{DOMAIN}/ns/other/sa/builder"), "The token is a right one, but"),
        (svid(sub=f"spiffe://{DOMAIN}"), "The token is a right one, but"),
        (svid(sub="spiffe://other.org/ns/ci/sa/builder"), "No trust rule here"),
        (svid(sub="spiffe://unknown.org/ns/ci/a"), "The token is of a trust domain whose bundle"),
        (svid(aud=["other"]), "No trust rule here"),
        (svid(exp=now - 1), "The token has expired"),
        (svid(SigningKey("ES256", "jwt-svid")), "The token is signed with a key that its bundle"),
        (svid(sub=f"spiffe://{DOMAIN}/ns/ci/../x"), "No trust rule here"),
    ]:
        assert ci.refusal(token).startswith(sentence)
    token = svid()
    ci.granted(token)
    assert "exchanged before" in ci.refusal(token)


def test_a_bundle_rotates(ci: CI) -> None:
    ci.trust(None, DOMAIN, sub=f"spiffe://{DOMAIN}/ns/ci/*")
    ci.granted(svid())
    new = SigningKey("ES256", "jwt-svid")
    ci.bundle.write_text(json.dumps({"keys": [new.jwk, KEY.jwk][:1]}))
    ci.granted(svid(new))
    assert ci.refusal(svid()).startswith("The token is signed with a key that its bundle")


def test_an_issuer_of_svids_may_be_trusted_by_its_url_too(ci: CI) -> None:
    """SPIRE serves discovery: the same token is right by either kind of rule, and a rule of the
    one kind that does not work is not in the way of the other."""
    ci.trust(None, "unknown.org", sub="spiffe://unknown.org/a*")
    ci.trust(None, "", sub="spiffe://unknown.org/*")
    claims = ci.provider.standard(AUDIENCE, sub="spiffe://unknown.org/a")
    ci.granted(ci.provider.token(claims))


# From the whole of it.


def test_a_workload_pushes_an_image_and_others_may_not_see_it(ci: CI) -> None:
    ci.trust()
    token = ci.granted(ci.actions())
    client = ci.world.client

    class WithToken:
        def request(self, method: str, target: str, body: Any = b"", headers: Any = None) -> Answer:
            return client.request(method, target, body, {**(headers or {}), **bearer(token)})

    digest = push_image(WithToken(), "acme/app", make_image((1000,), "keyless"), "1")
    path = f"/v2/acme/app/manifests/{digest}"
    assert client.request("GET", path, b"", bearer(token)).status == 200
    assert client.request("GET", path).status == 401
    bob = {"Authorization": basic("bob", PASSWORD)}
    assert client.request("GET", path, b"", bob).status == 404
