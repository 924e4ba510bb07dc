"""Trust rules by the API: who may make them, and which are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib.identity import access_tokens, organisations, scopes
from chalicelib.identity.access import Accounts
from chalicelib.metadata import audit
from tests.api.conftest import World, basic, opened
from tests.client import Answer
from tests.servers import Postgres

GITHUB = "https://token.actions.githubusercontent.com"
GITLAB = "https://gitlab.com"
PUBLIC_URL = "https://registry.example.org"
PRIVATE = "http://127.0.0.1:9000"
RULE = {
    "issuer": GITHUB,
    "claims": {"repository": "acme/app", "ref": "refs/heads/*"},
    "scopes": ["repository:alice/app:pull,push"],
}


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[World]:
    with opened(
        postgres,
        tmp_path,
        OPENREGISTRY_PUBLIC_URL=PUBLIC_URL,
        OPENREGISTRY_PRIVATE_ISSUERS=PRIVATE,
    ) as registry:
        yield registry


@pytest.fixture(scope="module")
def shared(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """For tests that only ask whether a rule can be made."""
    with opened(
        postgres,
        tmp_path_factory.mktemp("shared"),
        OPENREGISTRY_PUBLIC_URL=PUBLIC_URL,
        OPENREGISTRY_PRIVATE_ISSUERS=PRIVATE,
    ) as registry:
        yield registry


def create(world: World, by: str = "alice", account: str = "alice", **changes: Any) -> Answer:
    return world.call("POST", f"/accounts/{account}/trust-rules", {**RULE, **changes}, by=by)


def test_a_rule_is_made_listed_shown_and_removed(world: World) -> None:
    made = create(world)
    assert made.status == 201
    rule = made.json
    assert rule["kind"] == "oidc"
    assert rule["audience"] == PUBLIC_URL
    assert rule["claims"] == RULE["claims"]
    assert rule["scopes"] == RULE["scopes"]
    path = f"/accounts/alice/trust-rules/{rule['id']}"
    assert world.call("GET", path, by="alice").json == rule
    other = create(world, audience="another").json
    assert other["audience"] == "another"

    pages, after = [], ""
    while after is not None:
        query = f"?limit=1&after={after}"
        answer = world.call("GET", f"/accounts/alice/trust-rules{query}", by="alice").json
        pages += answer["items"]
        after = answer["next"]
    assert sorted(each["id"] for each in pages) == sorted([rule["id"], other["id"]])

    assert world.call("DELETE", path, by="alice").status == 204
    assert world.call("DELETE", path, by="alice").status == 404
    assert world.call("GET", path, by="alice").status == 404
    entries = audit.page(world.context.database, 10, account=world.ids["alice"])
    assert [each.event for each in entries][:3] == [
        "trust_rule.delete",
        "trust_rule.create",
        "trust_rule.create",
    ]
    assert entries[0].subject == f"account:{world.ids['alice']}"
    assert entries[0].detail == {"id": rule["id"]}


def test_rules_are_their_accounts_owners_alone(world: World) -> None:
    database = world.context.database
    acme = organisations.create(database, "acme", world.ids["alice"], by="operator")
    database.run(
        "INSERT INTO members (organisation_id, user_id, role) VALUES (:o, :u, 'member')",
        o=acme,
        u=world.ids["bob"],
    )
    rule = create(world, account="acme").json["id"]
    path = f"/accounts/acme/trust-rules/{rule}"
    for method in ("GET", "DELETE"):
        assert world.call(method, path, by="bob").status == 403
        assert world.call(method, path).status == 401
        assert world.call(method, f"/accounts/alice/trust-rules/{rule}", by="bob").status == 404
        # Of another account that one owns too: the rule is not found there.
        assert world.call(method, f"/accounts/alice/trust-rules/{rule}", by="alice").status == 404
    assert create(world, by="bob", account="acme").status == 403
    assert create(world, by="bob").status == 404
    assert world.call("GET", path, by="root").status == 200
    assert world.call("GET", path, by="alice").status == 200


def test_an_access_token_makes_no_rules(world: World) -> None:
    assert isinstance(world.context.access, Accounts)
    token = access_tokens.create(
        world.context.database,
        world.context.access.keys,
        world.ids["alice"],
        "",
        scopes.parse(["repository:*:* account:*:*"]),
    ).token
    for method, body in (("GET", None), ("POST", RULE)):
        answer = world.call(
            method, "/accounts/alice/trust-rules", body, Authorization=basic("alice", token)
        )
        assert answer.status == 403


@pytest.mark.parametrize(
    ("claims", "issuer"),
    [
        ({"ref": "refs/heads/main"}, GITHUB),
        ({"repository": "*"}, GITHUB),
        ({"repository": "*/app"}, GITHUB),
        ({"repository": "acme*/app"}, GITHUB),
        ({"repository_owner": "acme*"}, GITHUB),
        ({"repository_id": "4*"}, GITHUB),
        ({"sub": "repo:*"}, GITHUB),
        ({"sub": "repo:acme*"}, GITHUB),
        ({"sub": "*"}, GITHUB),
        ({"job_workflow_ref": "acme/app/.github/workflows/release.yml@refs/heads/main"}, GITHUB),
        ({"ref": "main"}, f"{GITHUB}/enterprise"),
        ({"ref": "main"}, f"{GITHUB}/"),
        ({"ref": "main"}, GITHUB.upper().replace("HTTPS", "https")),
        ({"ref": "main"}, GITLAB),
        ({"namespace_path": "acme*"}, GITLAB),
        ({"project_path": "*/app"}, GITLAB),
        ({"sub": "project_path:acme*"}, GITLAB),
        ({"x": "**"}, "https://issuer.example.org"),
        ({"iss": "https://issuer.example.org"}, "https://issuer.example.org"),
        ({"aud": "me"}, "https://issuer.example.org"),
        ({"a b": "me"}, "https://issuer.example.org"),
        ({"a": "me\n"}, "https://issuer.example.org"),
        ({"sub": "spiffe://other.org/ci/*"}, "example.org"),
        ({"sub": "spiffe://example.org/*"}, "example.org"),
        ({"sub": "spiffe://example.org*"}, "example.org"),
        ({"sub": "*"}, "example.org"),
        ({"sub": "spiffe://example.org/a//b"}, "example.org"),
        ({"sub": "spiffe://example.org/a/b", "team": "a"}, "example.org"),
        ({"team": "a"}, "example.org"),
    ],
)
def test_nobody_trusts_everybody_by_mistake(
    shared: World, claims: dict[str, str], issuer: str
) -> None:
    answer = create(shared, claims=claims, issuer=issuer)
    assert answer.status == 422, answer.json
    assert [each["field"] for each in answer.json["errors"]] == ["claims"]


@pytest.mark.parametrize(
    ("claims", "issuer", "kind"),
    [
        ({"repository": "acme/*"}, GITHUB, "oidc"),
        ({"repository_owner": "acme"}, GITHUB, "oidc"),
        ({"repository_owner_id": "2020", "event_name": "push"}, GITHUB, "oidc"),
        ({"sub": "repo:acme/app:ref:refs/heads/*"}, GITHUB, "oidc"),
        ({"repository_id": "424242"}, f"{GITHUB}/enterprise", "oidc"),
        ({"namespace_path": "acme/*"}, GITLAB, "oidc"),
        ({"project_path": "acme/app", "ref_protected": "true"}, GITLAB, "oidc"),
        ({"sub": "project_path:acme/app:*"}, GITLAB, "oidc"),
        ({"sub": "somebody"}, "https://issuer.example.org/realm", "oidc"),
        ({"sub": "somebody"}, PRIVATE, "oidc"),
        ({"sub": "spiffe://example.org/ns/ci/*"}, "example.org", "spiffe"),
        ({"sub": "spiffe://example.org/ns/ci*"}, "example.org", "spiffe"),
        ({"sub": "spiffe://example.org/ns/ci/sa/builder"}, "example.org", "spiffe"),
    ],
)
def test_rules_that_say_whom_they_mean(
    shared: World, claims: dict[str, str], issuer: str, kind: str
) -> None:
    answer = create(shared, claims=claims, issuer=issuer)
    assert answer.status == 201, answer.json
    assert answer.json["kind"] == kind


@pytest.mark.parametrize(
    "issuer",
    [
        "http://169.254.169.254",
        "https://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:9001",
        "https://127.0.0.1",
        "https://127.1",
        "https://2130706433",
        "https://0x7f000001",
        "https://[::1]",
        "https://[::ffff:127.0.0.1]",
        "https://localhost",
        "https://10.0.0.1",
        "http://issuer.example.org",
        "ftp://issuer.example.org",
        "file:///etc/passwd",
        "https://user:password@issuer.example.org",
        "https://issuer.example.org/?a=b",
        "https://issuer.example.org/#a",
        "https://",
        "Example.org",
        "example org",
    ],
)
def test_issuers_that_would_never_be_asked_are_refused(shared: World, issuer: str) -> None:
    answer = create(shared, issuer=issuer, claims={"sub": "somebody"})
    assert answer.status == 422
    assert [each["field"] for each in answer.json["errors"]] == ["issuer"]


@pytest.mark.parametrize(
    "texts",
    [["account:alice:admin"], ["repository:alice/app"], ["repository:alice/app:fly"], [" "], []],
)
def test_scopes_are_for_repositories(shared: World, texts: list[str]) -> None:
    assert create(shared, scopes=texts).status == 422


def test_an_audience_is_needed(postgres: Postgres, tmp_path: Path) -> None:
    with opened(postgres, tmp_path) as registry:
        assert create(registry).status == 422
        assert create(registry, audience="registry.example.org").status == 201
        assert create(registry, audience="ünicode").status == 422


def test_a_rule_needs_claims(shared: World) -> None:
    assert create(shared, claims={}, issuer="https://issuer.example.org").status == 422


def test_the_number_of_rules_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chalicelib.identity.trust.MOST_RULES", 1)
    assert create(world).status == 201
    assert create(world).status == 409
