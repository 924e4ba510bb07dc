"""The token server and the challenges that lead to it, as clients of registries speak with them."""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from chalicelib.identity import users
from chalicelib.metadata import access_tokens, audit
from tests.client import Answer, begin, push_image, sha256, with_query
from tests.identity.realm import PASSWORD, Basic, ByToken, Realm, basic, challenged, realm
from tests.images import make_image
from tests.servers import Postgres

ABSENT = sha256(b"absent")


@pytest.fixture(scope="module")
def world(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    """alice/app is hers, alice/open is public, and bob may pull from alice/shared."""
    with realm(postgres, tmp_path_factory.mktemp("token-server")) as found:
        for name in ("alice/app", "alice/open", "alice/shared"):
            push_image(found.by("alice"), name, make_image((100,), name), "1")
        found.by("alice").api("PATCH", "/repositories/alice/open", {"visibility": "public"})
        found.grant("bob", "read", repository="alice/shared")
        yield found


def get(world: Realm, *scopes: str, by: str = "", **parameters: str) -> Answer:
    """Ask by GET."""
    query = urlencode([*parameters.items(), *(("scope", each) for each in scopes)])
    fields = {"Authorization": basic(by, PASSWORD)} if by else {}
    return world.client.request("GET", f"/token?{query}", headers=fields)


def post(world: Realm, *scopes: str, **form: str) -> Answer:
    """Ask by POST."""
    body = urlencode([*form.items(), *(("scope", each) for each in scopes)])
    fields = {"Content-Type": "application/x-www-form-urlencoded"}
    return world.client.request("POST", "/token", body.encode(), fields)


def log_in(world: Realm, name: str, *scopes: str, **form: str) -> Answer:
    """Ask by POST with a password."""
    form = {"grant_type": "password", "service": "s", "client_id": "docker", **form}
    return post(world, *scopes, **{"username": name, "password": PASSWORD, **form})


def refresh(world: Realm, token: str, *scopes: str) -> Answer:
    """Ask by POST with a refresh token."""
    return post(world, *scopes, grant_type="refresh_token", refresh_token=token)


def granted(world: Realm, answer: Answer) -> Mapping[str, frozenset[str]]:
    """What the token of an answer is for."""
    assert answer.status == 200, answer
    assert answer.json["token"] == answer.json["access_token"]
    found = world.access.tokens.verify(answer.json["token"])
    assert found is not None
    assert found.claims is not None
    assert answer.json["scope"].split() == [
        f"{name}:{','.join(each for each in ('*', 'pull', 'push', 'delete') if each in actions)}"
        for name, actions in found.claims.items()
    ]
    return found.claims


def refused(answer: Answer, error: str, status: int) -> None:
    """That an answer refuses in OAuth's form, and in the one that clients of registries read."""
    assert answer.status == status, answer
    assert answer.json["error"] == error
    [again] = answer.json["errors"]
    assert again["message"] == answer.json["error_description"]
    assert answer.headers["Cache-Control"] == "no-store"
    if status == 401:
        challenged(answer)


APP, OPEN, SHARED, NEW = (f"repository:alice/{name}" for name in ("app", "open", "shared", "new"))
PULL, PUSH = frozenset({"pull"}), frozenset({"pull", "push"})
CASES: list[tuple[str, list[str], dict[str, frozenset[str]]]] = [
    ("", [], {}),
    ("", [f"{APP}:pull,push"], {}),
    ("", [f"{OPEN}:pull,push,delete"], {OPEN: PULL}),
    ("", ["registry:catalog:*"], {"registry:catalog": frozenset("*")}),
    ("bob", [f"{APP}:pull", f"{OPEN}:push,pull", f"{SHARED}:pull"], {OPEN: PULL, SHARED: PULL}),
    ("bob", [f"{APP}:pull {OPEN}:pull", f"{SHARED}:push"], {OPEN: PULL}),
    ("bob", ["repository:bob/new:push,pull"], {"repository:bob/new": PUSH}),
    ("alice", [f"{APP}:pull,push", f"{NEW}:pull,push"], {APP: PUSH, NEW: PUSH}),
    ("alice", [f"{APP}:pull", f"{APP}:push"], {APP: PUSH}),
    ("alice", [f"{APP}:*"], {APP: frozenset({"pull", "push", "delete"})}),
    ("alice", [f"{APP}:fetch"], {}),
    ("alice", [f"{APP}:"], {}),
    ("alice", ["repository(plugin):alice/app:pull"], {APP: PULL}),
    ("alice", ["nonsense", "a:b:c", ":::", "repository::pull", f"{APP}:pull"], {APP: PULL}),
    ("alice", ["registry:everything:*", "repository:Alice/App:pull"], {}),
    ("alice", [f"repository:alice/{'a' * 300}:pull", "repository:alice/\0:pull"], {}),
    ("alice", ["repository:alice/*:pull"], {}),
    ("una", ["repository:una/own:pull,push"], {"repository:una/own": PULL}),
    ("root", [f"{APP}:delete"], {APP: frozenset({"delete"})}),
]  # fmt: skip


@pytest.mark.parametrize(("who", "scopes", "may"), CASES)
def test_a_token_is_for_what_one_may_of_what_one_asks(
    world: Realm, who: str, scopes: list[str], may: dict[str, frozenset[str]]
) -> None:
    assert granted(world, get(world, *scopes, by=who, service="openregistry")) == may
    if who:
        assert granted(world, log_in(world, who, *scopes)) == may
        assert granted(world, log_in(world, who, " ".join(scopes))) == may


def test_no_more_scopes_are_looked_at_than_anybody_needs(world: Realm) -> None:
    scopes = [f"repository:alice/{number}:pull" for number in range(200)]
    assert len(granted(world, log_in(world, "alice", " ".join(scopes)))) == 100


def test_the_answer_is_that_of_the_specification(world: Realm) -> None:
    """Distribution, "Token Authentication Specification"."""
    answer = get(world, f"{APP}:pull", by="alice", service="openregistry", account="alice")
    assert set(answer.json) == {
        "token", "access_token", "token_type", "expires_in", "issued_at", "scope",
    }  # fmt: skip
    assert answer.json["expires_in"] == 300  # docker takes less than 60 for a mistake
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.json["issued_at"])
    assert answer.headers["Cache-Control"] == "no-store"
    bearer = {"Authorization": f"Bearer {answer.json['token']}"}
    target = "/v2/alice/app/manifests/1"
    assert world.client.request("GET", target, headers=bearer).status == 200
    assert world.client.request("GET", "/v2/", headers=bearer).status == 200
    assert world.client.request("PUT", target, b"{}", bearer).status == 401


def test_a_space_between_scopes_may_be_a_plus(world: Realm) -> None:
    fields = {"Authorization": basic("alice", PASSWORD)}
    target = f"/token?scope={APP}:pull+{OPEN}:pull"
    assert granted(world, world.client.request("GET", target, headers=fields)) == {
        APP: PULL,
        OPEN: PULL,
    }


@pytest.mark.parametrize(
    "name", ["alice", "nobody", "alice@example.org", "corp", "alice+ci", "", "\0", "a" * 5000]
)
def test_a_wrong_password_tells_nothing(world: Realm, name: str) -> None:
    """Not even whether there is such an account."""
    fields = {"Authorization": basic(name, "wrong")}
    answer = world.client.request("GET", "/token", headers=fields)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.json["errors"][0]["message"] == "The name or the password is wrong."
    challenged(answer)
    if name:
        answer = log_in(world, name, password="wrong")
        refused(answer, "invalid_grant", 401)
        assert answer.json["error_description"] == "The name or the password is wrong."


def test_an_access_token_is_a_password(world: Realm) -> None:
    """Whatever name comes with it: it says itself whose it is."""
    created = world.token("alice", "repository:alice/a*:pull")
    for name in ("alice", "anything"):
        answer = log_in(world, name, f"{APP}:pull,push", f"{OPEN}:pull", password=created.token)
        # What everyone may pull, so may who brings a token for something else.
        assert granted(world, answer) == {APP: PULL, OPEN: PULL}
    access_tokens.revoke(world.context.database, created.id)
    refused(log_in(world, "alice", password=created.token), "invalid_grant", 401)
    by_get = ByToken(world.client, basic("alice", created.token)).ask(f"{APP}:pull")
    assert by_get.status == 401
    challenged(by_get)


def test_a_suspended_account_gets_no_token(world: Realm) -> None:
    world.add_user("sue")
    token = world.token("sue").token
    offline = log_in(world, "sue", access_type="offline").json["refresh_token"]
    users.suspend(world.context.database, world.ids["sue"], suspended=True, by="operator")
    for password in (PASSWORD, token):
        answer = ByToken(world.client, basic("sue", password)).ask()
        assert answer.status == 401
        challenged(answer)
        refused(log_in(world, "sue", password=password), "invalid_grant", 401)
    refused(refresh(world, offline), "invalid_grant", 401)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "invalid_request"),
        ({"grant_type": "password", "username": "alice"}, "invalid_request"),
        ({"grant_type": "password", "username": "alice", "password": ""}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
    ],
)
def test_wrong_forms(world: Realm, form: dict[str, str], error: str) -> None:
    refused(post(world, **form, service="s"), error, 400)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff=1", b"&".join([b"a=1"] * 300), b"a"])
def test_what_is_no_form(world: Realm, body: bytes) -> None:
    answer = world.client.request("POST", "/token", body)
    assert answer.json["error"] in ("invalid_request", "unsupported_grant_type")
    assert answer.status == 400


def test_a_field_comes_once(world: Realm) -> None:
    body = f"grant_type=password&username=alice&username=bob&password={'x'}"
    answer = world.client.request("POST", "/token", body.encode())
    refused(answer, "invalid_request", 400)


# Refresh tokens.


def test_a_refresh_token_is_for_who_asks_to_stay(world: Realm) -> None:
    for answer in (
        log_in(world, "alice"),
        log_in(world, "alice", access_type="online"),
        get(world, by="alice", offline_token="true"),
        get(world, offline_token="true"),
    ):
        assert answer.status == 200
        assert "refresh_token" not in answer.json
    assert "refresh_token" in log_in(world, "alice", access_type="offline").json


def test_a_registry_token_begets_no_refresh_token(world: Realm) -> None:
    token = get(world, f"{APP}:pull", by="alice").json["token"]
    answer = log_in(world, "alice", f"{APP}:pull,push", password=token, access_type="offline")
    assert granted(world, answer) == {APP: PULL}
    assert "refresh_token" not in answer.json
    # Nor a token that outlives it, or is for more.
    assert answer.json["expires_in"] <= 300
    again = ByToken(world.client, f"Bearer {token}").ask(f"{APP}:pull,push", "registry:catalog:*")
    assert granted(world, again) == {APP: PULL}


def test_refresh_tokens_follow_one_another(world: Realm) -> None:
    first = log_in(world, "alice", f"{APP}:pull", access_type="offline").json["refresh_token"]
    answer = refresh(world, first, f"{APP}:pull,push", "repository:bob/x:pull")
    assert granted(world, answer) == {APP: PUSH}
    second = answer.json["refresh_token"]
    assert second != first
    third = refresh(world, second).json["refresh_token"]
    assert len({first, second, third}) == 3


def test_a_refresh_token_that_comes_back_ends_all_that_followed(world: Realm) -> None:
    """Somebody else has it too (RFC 9700, section 4.14.2)."""
    first = log_in(world, "alice", access_type="offline").json["refresh_token"]
    other = log_in(world, "alice", access_type="offline").json["refresh_token"]
    second = refresh(world, first).json["refresh_token"]
    refused(refresh(world, first), "invalid_grant", 401)
    refused(refresh(world, second), "invalid_grant", 401)
    entry, *_ = audit.page(world.context.database, 1, account=world.ids["alice"])
    assert (entry.event, entry.subject) == ("refresh_token.reuse", "")
    assert refresh(world, other).status == 200


def test_refresh_tokens_end(world: Realm) -> None:
    world.add_user("rita")
    database, rita = world.context.database, world.ids["rita"]

    def offline(**form: str) -> str:
        return str(log_in(world, "rita", access_type="offline", **form).json["refresh_token"])

    expired = offline()
    world.run("UPDATE refresh_tokens SET expires_at = now()")
    refused(refresh(world, expired), "invalid_grant", 401)

    created = world.token("rita", "repository:rita/*:pull")
    by_access_token = offline(password=created.token)
    answer = refresh(world, by_access_token, "repository:rita/x:pull,push")
    assert granted(world, answer) == {"repository:rita/x": PULL}
    access_tokens.revoke(database, created.id)
    assert refresh(world, answer.json["refresh_token"]).status == 401

    by_password = offline()
    browser = world.by("rita")
    [login] = browser.api("GET", "/accounts/rita/logins").json["items"]
    assert login["client"] == "docker"
    assert browser.api("DELETE", f"/accounts/rita/logins/{login['id']}").status == 204
    refused(refresh(world, by_password), "invalid_grant", 401)

    by_password = offline()
    users.change_password(database, rita, "another password", by="operator")
    refused(refresh(world, by_password), "invalid_grant", 401)


def test_a_refresh_token_is_no_password(world: Realm) -> None:
    token = log_in(world, "alice", access_type="offline").json["refresh_token"]
    for field in (basic("alice", token), f"Bearer {token}"):
        for target in ("/token", "/v2/", "/api/v1/session"):
            answer = world.client.request("GET", target, headers={"Authorization": field})
            assert answer.status == 401
    for wrong in ("", "orr_", "orr_" + "x" * 43, token + "x", "\0", "\udcff", "x" * 100_000):
        if wrong:
            body = {"grant_type": "refresh_token", "refresh_token": wrong}
            encoded = urlencode(body, errors="surrogateescape").encode()
            assert world.client.request("POST", "/token", encoded).status in (400, 401)
    assert refresh(world, token).status == 200


def test_refresh_tokens_are_stored_hashed(world: Realm) -> None:
    token = log_in(world, "alice", access_type="offline").json["refresh_token"]
    rows = world.run("SELECT hash FROM refresh_tokens")
    assert [hashlib.sha256(token.encode()).digest()] in rows
    assert token not in repr(rows)


# Challenges.


WRONG = (
    "Bearer eyJ.x.y", "Bearer ", "Bearer orp_x", "Basic", "Basic !!", "Digest x", "\xff",
    f"Basic {b64encode(b'no colon').decode()}", f"Basic {b64encode(bytes([255, 58])).decode()}",
    basic("x", "orp_x"),
)  # fmt: skip
"""Fields that are not counted as attempts on an account."""


def test_every_refusal_that_credentials_would_help_has_one_challenge(world: Realm) -> None:
    base = "/v2/alice/app"
    for method, target, scope in (
        ("GET", "/v2/", None),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
        ("GET", f"{base}/manifests/1", "repository:alice/app:pull"),
        ("HEAD", f"{base}/manifests/1", "repository:alice/app:pull"),
        ("GET", f"{base}/blobs/{ABSENT}", "repository:alice/app:pull"),
        ("GET", f"{base}/tags/list", "repository:alice/app:pull"),
        ("GET", f"{base}/referrers/{ABSENT}", "repository:alice/app:pull"),
        ("PUT", f"{base}/manifests/1", "repository:alice/app:pull,push"),
        ("POST", f"{base}/blobs/uploads/", "repository:alice/app:pull,push"),
        ("DELETE", f"{base}/manifests/1", "repository:alice/app:delete"),
        ("DELETE", f"{base}/blobs/{ABSENT}", "repository:alice/app:delete"),
    ):
        for field in (None, *WRONG):
            fields = {"Host": "registry.example.org:5000"}
            if field is not None:
                fields["Authorization"] = field
            answer = world.client.request(method, target, headers=fields)
            assert answer.status == 401, (method, target, field)
            found = challenged(answer)
            assert found["realm"] == "http://registry.example.org:5000/token"
            assert found["service"] == "openregistry"
            assert found.get("scope") == scope


def test_a_token_that_is_for_less_is_told_so(world: Realm) -> None:
    token = get(world, f"{APP}:pull", by="alice").json["token"]
    fields = {"Authorization": f"Bearer {token}"}
    for method, target, scope in (
        ("POST", "/v2/alice/app/blobs/uploads/", "repository:alice/app:pull,push"),
        ("GET", "/v2/alice/shared/tags/list", "repository:alice/shared:pull"),
        ("GET", "/v2/alice/absent/tags/list", "repository:alice/absent:pull"),
    ):
        answer = world.client.request(method, target, headers=fields)
        found = challenged(answer)
        assert (answer.status, found["error"], found["scope"]) == (401, "insufficient_scope", scope)


def test_an_upload_whose_subject_is_gone_is_refused_without_a_challenge(world: Realm) -> None:
    """No credentials would help at its Location: it is a refusal, no 401."""
    created = world.token("alice")
    location = begin(world.by("alice", created.token), "alice/app")
    access_tokens.revoke(world.context.database, created.id)
    target = with_query(location, digest=sha256(b"data"))
    answer = world.client.request("PUT", target, b"data")
    assert (answer.status, answer.code) == (403, "DENIED")


HOSTS = [
    'evil"', 'x",service="y', "a b", "a/b", "a\\b", "user@host", "a#b", "a?b", "", "[::1", "a:b",
    "a:123456", "x" * 300, "ünï", "a,b", "a\tb", "a\nb", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_none_is_not_believed(world: Realm, host: str) -> None:
    answer = world.client.request("GET", "/v2/", headers={"Host": host})
    assert challenged(answer)["realm"] == "http://127.0.0.1:5000/token"


def test_other_fields_name_no_host(world: Realm) -> None:
    fields = {
        "Host": "registry.example.org",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "Forwarded": "host=evil.example",
        "X-Original-Host": "evil.example",
    }
    answer = world.client.request("GET", "/v2/", headers=fields)
    assert challenged(answer)["realm"] == "http://registry.example.org/token"
    assert b"evil" not in json.dumps(answer.fields).encode()


@pytest.fixture(scope="module")
def named(
    world: Realm, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Realm]:
    """Another registry of the same secret, that knows what it is called."""
    with realm(
        postgres,
        tmp_path_factory.mktemp("named"),
        PUBLIC_URL="https://registry.example.org",
    ) as found:
        yield found


@pytest.mark.parametrize("host", ["evil.example", "registry.example.org", *HOSTS])
def test_a_registry_that_knows_its_name_believes_no_host(named: Realm, host: str) -> None:
    answer = named.client.request("GET", "/v2/", headers={"Host": host})
    assert challenged(answer) == {
        "realm": "https://registry.example.org/token",
        "service": "registry.example.org",
    }
    location = begin(named.by("alice"), "alice/app")
    assert location.startswith("https://registry.example.org/v2/alice/app/blobs/uploads/")


def test_a_token_of_another_registry_is_none(world: Realm, named: Realm) -> None:
    """Even where both have the same secret."""
    for one, other in ((world, named), (named, world)):
        token = get(one, f"{APP}:pull", by="alice").json["token"]
        fields = {"Authorization": f"Bearer {token}"}
        assert one.client.request("GET", "/v2/", headers=fields).status == 200
        answer = other.client.request("GET", "/v2/", headers=fields)
        assert answer.status == 401
        assert challenged(answer)["service"] == other.access.tokens.service


def test_docker_logs_in(world: Realm) -> None:
    """A ping, the challenge, a token without a scope, and the ping again."""
    client = ByToken(world.client, basic("alice", PASSWORD))
    assert client.request("GET", "/v2/").status == 200
    assert Basic(world.client, "alice", PASSWORD).request("GET", "/v2/").status == 200
    assert ByToken(world.client, basic("alice", "wrong")).request("GET", "/v2/").status == 401
    assert ByToken(world.client).request("GET", "/v2/").status == 200  # nobody's token


# A former name.


def test_a_former_name_leads_readers_on_and_tells_pushers(
    postgres: Postgres, tmp_path: Path
) -> None:
    with realm(postgres, tmp_path) as world:
        alice = world.by("alice")
        image = make_image((100,))
        push_image(alice, "alice/former", image, "1")
        body = {"name": "alice/new"}
        assert alice.api("POST", "/repositories/alice/former/-/rename", body).status == 204
        tokens = ByToken(world.client, basic("alice", PASSWORD))
        old, new = "repository:alice/former", "repository:alice/new"
        assert granted(world, tokens.ask(f"{old}:pull")) == {old: PULL, new: PULL}
        assert granted(world, tokens.ask(f"{old}:pull,push")) == {old: PUSH, new: PULL}
        asked = tokens.ask(f"{old}:pull", f"{new}:pull,push")
        assert granted_of(world, asked) == {old: PULL, new: PUSH}
        for client in (alice, tokens):
            moved = client.request("GET", "/v2/alice/former/manifests/1?n=1")
            assert (moved.status, moved.location) == (307, "/v2/alice/new/manifests/1?n=1")
            push = client.request("POST", "/v2/alice/former/blobs/uploads/")
            assert (push.status, push.code) == (403, "DENIED")
            assert "alice/new" in push.json["errors"][0]["message"]
        bearer = tokens.ask(f"{old}:pull").json["token"]
        answer = world.client.request(
            "GET", moved.location, headers={"Authorization": f"Bearer {bearer}"}
        )
        assert answer.body == image.manifest.data
        strangers = (world.by("bob"), ByToken(world.client, basic("bob", PASSWORD)), world.client)
        for stranger in strangers:
            for target in ("manifests/1", "blobs/uploads/"):
                method = "POST" if target.endswith("/") else "GET"
                former = stranger.request(method, f"/v2/alice/former/{target}")
                absent = stranger.request(method, f"/v2/alice/absent/{target}")
                assert _told(former, "alice/former") == _told(absent, "alice/absent")


def _told(answer: Answer, name: str) -> tuple[Any, ...]:
    said = str((answer.fields, answer.body))
    assert "alice/new" not in said
    return answer.status, said.replace(name, "NAME")


def granted_of(world: Realm, answer: Answer) -> Mapping[str, frozenset[str]]:
    """What the token of an answer is for, whatever its text of scopes."""
    found = world.access.tokens.verify(answer.json["token"])
    assert found is not None
    assert found.claims is not None
    return found.claims
