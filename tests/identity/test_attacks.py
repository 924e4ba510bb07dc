"""Attacks that belong to no single room; docs/security.md names the others."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from chalicelib.hosts.harness.functions import Registry as HarnessRegistry
from chalicelib.hosts.harness.functions import Turn
from chalicelib.http import Headers
from chalicelib.http import Request as HTTPRequest
from chalicelib.identity import users
from chalicelib.identity.epoch import FRESH
from tests.accounts import add_user, create_token
from tests.client import Answer, Client, HTTPClient, begin, push_image, sha256, with_query
from tests.identity.realm import PASSWORD, ByToken, Realm, basic, realm
from tests.images import make_image
from tests.servers import Postgres, Registry

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[Realm]:
    with realm(postgres, tmp_path) as found:
        yield found


def log_in_for_long(client: Client, name: str) -> str:
    """A refresh token."""
    form = {"grant_type": "password", "username": name, "password": PASSWORD, "client_id": "it"}
    body = urlencode({**form, "access_type": "offline"}).encode()
    return str(client.request("POST", "/token", body, FORM).json["refresh_token"])


def refreshed(client: Client, token: str) -> Answer:
    body = urlencode({"grant_type": "refresh_token", "refresh_token": token}).encode()
    return client.request("POST", "/token", body, FORM)


def registry_token(client: Client, authorization: str, scope: str) -> str:
    return str(ByToken(client, authorization).ask(scope).json["token"])


def signed_in(client: Client, name: str) -> str:
    """The cookie of a browser that is signed in."""
    body = json.dumps({"name": name, "password": PASSWORD}).encode()
    answer = client.request("POST", "/api/v1/session", body, JSON)
    return answer.headers["Set-Cookie"].partition(";")[0]


def test_who_steals_the_database_holds_no_secret(world: Realm) -> None:
    """No row of any table has in it what somebody could log in with."""
    client, alice = world.client, basic("alice", PASSWORD)
    access_token = world.token("alice").token
    session = signed_in(client, "alice")
    body = json.dumps({"email": "alice@example.org"}).encode()
    client.request("POST", "/api/v1/password-resets", body, JSON)
    world.context.afterwards.wait()
    [mail] = (world.context.settings.data_dir / "mail").glob("*.eml")
    link = re.search(r"#reset=([\w-]+)", mail.read_text())
    assert link is not None
    secrets = [
        PASSWORD,
        access_token,
        access_token.removeprefix("orp_"),
        log_in_for_long(client, "alice"),
        registry_token(client, alice, "repository:alice/app:push"),
        session.partition("=")[2],
        begin(world.by("alice"), "alice/app").partition("_state=")[2],
        link[1],
    ]
    assert all(len(secret) > 20 for secret in secrets)
    tables = world.run(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    assert len(tables) > 20
    rows = [text for (name,) in tables for (text,) in world.run(f"SELECT t::text FROM {name} t")]
    assert any("alice@example.org" in row for row in rows)
    for secret in secrets:
        for form in (secret, secret.encode().hex()):
            assert not [row for row in rows if form in row]


@pytest.mark.alone
def test_time_does_not_tell_which_names_exist(world: Realm) -> None:
    """Nor which of them have a password: each wrong one costs a hash of argon2."""
    users.create(
        world.context.database, "pat", "pat@example.org", None, by="operator", email_verified=True
    )

    def tried(name: str) -> float:
        begun = time.perf_counter()
        fields = {"Authorization": basic(name, "a wrong password")}
        answer = world.client.request("GET", "/v2/", headers=fields)
        assert (answer.status, answer.json["errors"][0]["message"]) == (
            401,
            "The name or the password is wrong.",
        )
        return time.perf_counter() - begun

    tried("somebody")
    # In turn, so that a machine that is slow for a while is so to all of them.
    rounds = [[tried(name) for name in ("bob", "pat", "nobody")] for _ in range(9)]
    known, without, unknown = map(min, zip(*rounds, strict=True))
    assert 0.3 < unknown / known < 3
    assert 0.3 < without / known < 3


def test_a_former_name_sends_nobody_elsewhere(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, "alice/old", make_image((100,)), "1")
    alice.api("POST", "/repositories/alice/old/-/rename", {"name": "alice/new"})
    time.sleep(FRESH)
    target = "/v2/alice/old/manifests/1?x=//evil.example"
    fields = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    answer = alice.request("GET", target, headers=fields)
    assert answer.status == 307
    assert answer.location.startswith("/v2/alice/new/manifests/1?")


def test_what_a_deleted_account_held_is_void(world: Realm) -> None:
    client, carol = world.client, basic("carol", PASSWORD)
    world.add_robot("bob", "ci")
    bob = basic("bob", PASSWORD)
    token, robots = world.token("bob").token, world.token("bob+ci").token
    held = [
        bob,
        basic("bob", token),
        f"Bearer {token}",
        basic("bob+ci", robots),
        f"Bearer {registry_token(client, bob, 'repository:bob/app:push')}",
    ]
    offline, cookie = log_in_for_long(client, "bob"), signed_in(client, "bob")
    location = begin(world.by("bob"), "bob/app")
    assert world.by("bob").api("DELETE", "/repositories/bob/app").status in (204, 404)

    def works(authorization: str) -> bool:
        fields = {"Authorization": authorization}
        return client.request("GET", "/v2/", headers=fields).status == 200

    assert all(map(works, held))
    users.delete(world.context.database, world.ids["bob"], by="operator")
    assert not any(map(works, held))
    assert works(carol)
    assert refreshed(client, offline).status == 401
    assert client.request("GET", "/api/v1/session", headers={"Cookie": cookie}).status == 401
    answer = client.request("PUT", with_query(location, digest=sha256(b"data")), b"data")
    assert answer.status in (403, 404)


def test_no_secret_reaches_the_log(serve: Callable[..., Registry]) -> None:
    """Of whatever way to log in, right or wrong, at the level that tells most."""
    server = serve(OPENREGISTRY_ACCESS="accounts", OPENREGISTRY_LOG_LEVEL="debug")
    add_user(server.settings, "alice", PASSWORD)
    access_token = create_token(server.settings, "alice", "repository:alice/*:pull,push")
    client, alice = HTTPClient(server.host), basic("alice", PASSWORD)
    bearer = registry_token(client, alice, "repository:alice/app:pull,push")
    secrets = {
        "the password": PASSWORD,
        "a wrong password": "a wrong and secret word",
        "Basic credentials": alice.removeprefix("Basic "),
        "an access token": access_token,
        "a registry token": bearer,
        "a refresh token": log_in_for_long(client, "alice"),
        "a session": signed_in(client, "alice").partition("=")[2],
    }
    for field in (
        alice,
        basic("alice", secrets["a wrong password"]),
        basic("alice", access_token),
        f"Bearer {access_token}",
        f"Bearer {bearer}",
        f"Bearer {bearer}x",
    ):
        client.request("GET", "/v2/", headers={"Authorization": field})
        location = client.request(
            "POST", "/v2/alice/app/blobs/uploads/", headers={"Authorization": field}
        )
    assert location.status == 401
    answer = client.request(
        "POST", "/v2/alice/app/blobs/uploads/", headers={"Authorization": alice}
    )
    secrets["a capability"] = answer.location.partition("_state=")[2]
    client.request("PATCH", answer.location, b"some")
    refreshed(client, secrets["a refresh token"])
    refreshed(client, secrets["a refresh token"])
    cookie = {"Cookie": f"openregistry-session={secrets['a session']}", **JSON}
    body = json.dumps({"current": secrets["a wrong password"], "new": PASSWORD}).encode()
    assert client.request("POST", "/api/v1/account/password", body, cookie).status == 403
    secrets["a code of another service"] = code = "0123456789abcdef0123"
    query = f"state=x&code={code}"
    client.request("GET", f"/api/v1/sign-in/github/callback?{query}")
    server.stop()
    log = server.log.read_text()
    assert '"path": "/v2/alice/app/blobs/uploads/' in log
    assert [name for name, secret in secrets.items() if secret in log] == []


def test_tokens_of_a_former_password_end_with_it(world: Realm) -> None:
    client = world.client
    alice = world.ids["alice"]
    scope = "repository:alice/app:pull,push"
    by_password = registry_token(client, basic("alice", PASSWORD), scope)
    stays = log_in_for_long(client, "alice")
    refreshed_token = str(refreshed(client, stays).json["token"])
    by_access_token = registry_token(client, basic("alice", world.token("alice").token), scope)

    def status(token: str) -> int:
        fields = {"Authorization": f"Bearer {token}"}
        return client.request("POST", "/v2/alice/app/blobs/uploads/", b"", fields).status

    assert [status(by_password), status(by_access_token)] == [202, 202]
    users.change_password(world.context.database, alice, "another one", by="operator")
    assert status(by_password) == 401
    assert (
        client.request("GET", "/v2/", b"", {"Authorization": f"Bearer {refreshed_token}"}).status
        == 401
    )
    assert status(by_access_token) == 202  # a token is revoked by itself


@pytest.mark.parametrize("password", ["orp_abcdefgh", "ghp_" + "a" * 36, "github_pat_" + "a" * 40])
def test_no_password_can_be_taken_for_a_token(world: Realm, password: str) -> None:
    with pytest.raises(users.Refused):
        users.change_password(world.context.database, world.ids["alice"], password, by="operator")


def test_a_lock_out_does_not_tell_whose_email_it_is(world: Realm) -> None:
    """Guesses at a name say nothing of the email that belongs to it."""

    def guess(name: str) -> int:
        fields = {"Authorization": basic(name, "a wrong guess")}
        return world.client.request("GET", "/token", b"", fields).status

    for _ in range(12):
        guess("bob")
    assert guess("bob") == 429
    assert guess("bob@example.org") == guess("nobody@example.org") == 401


def test_many_first_logins_at_once_cost_one_check(world: Realm) -> None:
    fields = {"Authorization": basic("carol", PASSWORD)}
    with ThreadPoolExecutor(40) as pool:
        answers = pool.map(
            lambda _: world.client.request("GET", "/token", b"", fields).status, range(40)
        )
        assert set(answers) == {200}


def test_a_name_goes_from_the_audit_log_with_its_account(world: Realm) -> None:
    client = world.client
    made = users.create(
        world.context.database, "zedname", "z@example.org", PASSWORD, by="", email_verified=True
    )
    zed = {**JSON, "Authorization": basic("zedname", PASSWORD)}
    token = {"name": "zedname's", "scopes": ["repository:zedname/*:pull"]}
    rule = {
        "issuer": "https://gitlab.com",
        "audience": "https://registry.example.org",
        "claims": {"project_path": "zedname/b"},
        "scopes": ["repository:zedname/b:push"],
    }
    for path, body in (("tokens", token), ("trust-rules", rule)):
        answer = client.request(
            "POST", f"/api/v1/accounts/zedname/{path}", json.dumps(body).encode(), zed
        )
        assert answer.status == 201, answer
    users.delete(world.context.database, made, by="operator")
    rows = world.run("SELECT CAST(a AS text) FROM audit a WHERE account_id = :id", id=made)
    assert len(rows) >= 4
    assert not [row for (row,) in rows if "zedname" in row]


def test_passwords_that_were_not_right_before_are_checked_apart(world: Realm) -> None:
    """So that those who guess delay no small reads."""

    def turn(field: str) -> Turn:
        request = HTTPRequest("GET", "/v2/", headers=Headers({"Authorization": field}))
        return HarnessRegistry(world.context).turn(request)

    right = basic("dave", PASSWORD)
    assert [turn(right), turn("basic YTpi"), turn("Bearer eyJ")] == [
        Turn.BULK,
        Turn.BULK,
        Turn.QUICK,
    ]
    assert world.client.request("GET", "/v2/", b"", {"Authorization": right}).status == 200
    assert turn(right) is Turn.QUICK
    users.change_password(world.context.database, world.ids["dave"], "another one", by="operator")
    assert world.client.request("GET", "/v2/", b"", {"Authorization": right}).status == 401
    assert turn(right) is Turn.BULK
