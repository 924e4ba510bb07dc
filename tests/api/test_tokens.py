"""Access tokens by the API: made by people, shown once, listed, revoked; and logins."""

import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from chalicelib.metadata import audit
from tests.client import push_image
from tests.identity.realm import PASSWORD, Basic, Realm, realm
from tests.images import make_image
from tests.servers import Postgres

BODY = {"name": "ci", "scopes": ["repository:alice/*:pull,push"]}


@pytest.fixture(scope="module")
def world(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with realm(postgres, tmp_path_factory.mktemp("tokens")) as found:
        found.add_robot("corp", "ci")
        yield found


@pytest.fixture
def alice(world: Realm) -> Basic:
    return world.by("alice")


def test_a_token_is_made_and_shown_once(world: Realm, alice: Basic) -> None:
    body = {
        "name": "the pipeline",
        "scopes": ["repository:alice/*:push,pull account:alice:read", "repository:alice/x:*"],
        "expires_in": 3600,
    }
    created = alice.api("POST", "/accounts/alice/tokens", body)
    assert (created.status, set(created.json)) == (201, {"id", "token"})
    token, token_id = created.json["token"], created.json["id"]
    assert token.startswith("orp_")
    assert created.headers["Cache-Control"] == "no-store"
    listed = alice.api("GET", "/accounts/alice/tokens")
    [found] = [each for each in listed.json["items"] if each["id"] == token_id]
    assert found["name"] == "the pipeline"
    assert found["scopes"] == [
        "repository:alice/*:pull,push",
        "account:alice:read",
        "repository:alice/x:pull,push,delete,admin",
    ]
    assert found["expires_at"] > found["created_at"]
    assert (found["used_at"], found["revoked_at"]) == (None, None)
    assert token not in listed.body.decode()
    for table in ("access_tokens", "audit"):
        assert token[4:] not in repr(world.run(f"SELECT * FROM {table}"))
    entry, *_ = audit.page(world.context.database, 1, account=world.ids["alice"])
    assert (entry.event, entry.subject) == ("token.create", f"account:{world.ids['alice']}")
    assert entry.detail == {"id": token_id}


def test_a_token_is_used_and_revoked(world: Realm, alice: Basic) -> None:
    push_image(alice, "alice/app", make_image(), "1")
    created = alice.api("POST", "/accounts/alice/tokens", BODY).json
    path = f"/accounts/alice/tokens/{created['id']}"

    def used() -> str | None:
        items = alice.api("GET", "/accounts/alice/tokens?limit=100").json["items"]
        [found] = [each["used_at"] for each in items if each["id"] == created["id"]]
        return str(found) if found else None

    machine = world.by("alice", created["token"])
    target = "/v2/alice/app/manifests/1"
    assert used() is None
    assert machine.request("GET", target).status == 200
    assert used() is not None
    assert alice.api("DELETE", path).status == 204
    assert machine.request("PUT", target, b"{}").status == 401
    assert alice.api("DELETE", path).status == 404
    assert world.by("bob").api("DELETE", path).status == 404
    entry, *_ = audit.page(world.context.database, 1, account=world.ids["alice"])
    assert (entry.event, entry.detail) == ("token.revoke", {"id": created["id"]})


def test_the_last_use_goes_on(world: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a token that is remembered, when its use has not been noted for a while."""
    monkeypatch.setattr("chalicelib.identity.authentication.USE_NOTED", 0.3)
    created = world.token("alice")
    machine = world.by("alice", created.token)
    recently = "SELECT used_at > '2021-01-01' FROM access_tokens WHERE id = CAST(:id AS uuid)"
    assert machine.request("GET", "/v2/").status == 200
    world.run(
        "UPDATE access_tokens SET used_at = '2020-01-01' WHERE id = CAST(:id AS uuid)",
        id=created.id,
    )
    assert machine.request("GET", "/v2/").status == 200
    assert world.run(recently, id=created.id) == [[False]]
    time.sleep(0.3)
    assert machine.request("GET", "/v2/").status == 200
    assert world.run(recently, id=created.id) == [[True]]


@pytest.mark.parametrize(
    ("scopes", "words"),
    [
        ([], "length"),
        ([" "], "scope"),
        (["everything"], "no scope"),
        (["repository:alice/*:pull", "repository:Alice:pull"], "no name"),
        (["repository:alice/*:fetch"], "not actions"),
        (["repository:alice/*:pull"] * 51, "length"),
        ([1], "str"),
    ],
)
def test_scopes_are_checked(alice: Basic, scopes: list[str], words: str) -> None:
    answer = alice.api("POST", "/accounts/alice/tokens", {"name": "x", "scopes": scopes})
    assert answer.status == 422
    assert words in answer.json["detail"]


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"name": "x" * 101}, {"expires_in": 0}, {"expires_in": -1}, {"expires_in": 1.5},
     {"expires_in": 10**12}, {"expires_in": "1h"}, {"scopes": None}],
)  # fmt: skip
def test_wrong_tokens(alice: Basic, change: dict[str, object]) -> None:
    assert alice.api("POST", "/accounts/alice/tokens", {**BODY, **change}).status == 422


def test_who_makes_tokens_of_whom(world: Realm) -> None:
    """One's own, and those of one's robots and one's organisations' robots. Nobody, not even an
    administrator, makes one that acts in another user's name."""
    table = {
        "alice": {"alice", "root"},
        "alice+ci": {"alice", "root"},
        "corp+ci": {"carol", "root"},
        "corp": {"carol", "root"},
        "nobody": set(),
    }
    statuses = {
        (who, of): world.by(who).api("POST", f"/accounts/{of}/tokens", BODY).status
        for who in ("alice", "bob", "carol", "dave", "root")
        for of in table
    }
    for (who, of), status in statuses.items():
        if of == "corp":  # an organisation has none
            wanted = {"dave": 403}.get(who, 404)
        elif who in table[of]:
            wanted = 403 if (who, of) == ("root", "alice") else 201
        else:
            wanted = 403 if (who, of) == ("dave", "corp+ci") else 404
        assert status == wanted, (who, of)
    for who, of in (("root", "alice"), ("carol", "corp+ci"), ("alice", "alice+ci")):
        assert world.by(who).api("GET", f"/accounts/{of}/tokens").status == 200


def test_no_token_begets_another(world: Realm) -> None:
    everything = ("repository:*:*", "account:*:*")
    for account in ("alice", "alice+ci"):
        machine = world.by(account, world.token(account, *everything).token)
        answer = machine.api("POST", f"/accounts/{account}/tokens", BODY)
        assert answer.status == 403
        assert "sign in" in answer.json["detail"]
    narrow = world.by("alice", world.token("alice", "repository:*:*").token)
    assert narrow.api("GET", "/accounts/alice/tokens").status == 403


def test_an_administrator_revokes_anybodys_token(world: Realm, alice: Basic) -> None:
    created = world.token("alice")
    path = f"/accounts/alice/tokens/{created.id}"
    assert world.by("bob").api("DELETE", path).status == 404
    assert world.by("alice", created.token).request("GET", "/v2/").status == 200
    assert world.by("root").api("DELETE", path).status == 204
    assert world.by("alice", created.token).request("GET", "/v2/").status == 401
    assert alice.api("DELETE", path).status == 404


def test_a_token_is_found_in_its_own_account_alone(world: Realm, alice: Basic) -> None:
    of_bob = world.token("bob")
    for token in (of_bob.id, str(uuid.uuid4()), "x", "%00", "'"):
        assert alice.api("DELETE", f"/accounts/alice/tokens/{token}").status == 404
    assert world.by("bob", of_bob.token).request("GET", "/v2/").status == 200


def test_tokens_come_in_pages(world: Realm) -> None:
    world.add_user("paul")
    paul = world.by("paul")
    made = {world.token("paul").id for _ in range(5)}
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = paul.api("GET", f"/accounts/paul/tokens?limit=2&after={after}").json
        found += [each["id"] for each in answer["items"]]
        after = answer["next"]
    assert (len(found), set(found)) == (5, made)
    assert paul.api("GET", "/accounts/paul/tokens?after=x").status == 422


def test_logins_are_listed_and_ended(world: Realm) -> None:
    world.add_user("lara")
    lara = world.by("lara")
    form = {
        "grant_type": "password", "username": "lara", "password": PASSWORD,
        "access_type": "offline",
    }  # fmt: skip
    for client in ("podman", "x" * 500):
        body = urlencode({**form, "client_id": client}).encode()
        assert world.client.request("POST", "/token", body).status == 200
    items = lara.api("GET", "/accounts/lara/logins").json["items"]
    assert sorted(each["client"] for each in items) == ["podman", "x" * 200]
    assert [each["access_token"] for each in items] == [None, None]
    first = lara.api("GET", "/accounts/lara/logins?limit=1").json
    rest = lara.api("GET", f"/accounts/lara/logins?after={first['next']}").json
    assert first["items"] + rest["items"] == items
    path = f"/accounts/lara/logins/{items[0]['id']}"
    assert world.by("bob").api("DELETE", path).status == 404
    assert lara.api("DELETE", path).status == 204
    assert lara.api("DELETE", path).status == 404
    assert lara.api("DELETE", "/accounts/lara/logins/x").status == 404
    assert lara.api("GET", "/accounts/lara/logins").json["items"] == [items[1]]
    entry, *_ = audit.page(world.context.database, 1, account=world.ids["lara"])
    assert (entry.event, entry.detail) == ("refresh_token.revoke", {"id": items[0]["id"]})
