"""Robots: what they may do, and when they no longer may."""

import time
from typing import Any

import pytest

from chalicelib.identity import robots, users
from chalicelib.identity.epoch import FRESH
from chalicelib.metadata import accounts
from tests.accounts import command
from tests.api.acme import (
    Acme,
    As,
    actions,
    add_organisation,
    add_token,
    add_user,
    another_host,
    call,
    events,
)
from tests.api.conftest import World
from tests.client import CoreClient, push_blob


@pytest.fixture
def acme(world: World) -> Acme:
    return add_organisation(world, "acme")


def _id(world: World, name: str) -> int:
    found = accounts.by_name(world.context.database, name)
    assert found is not None
    return found.id


def _push(client: CoreClient, token: str, repository: str = "acme/app") -> int:
    path = f"/v2/{repository}/blobs/uploads/"
    return As(client, "robot", token).request("POST", path).status


def test_a_robot_is_made_with_a_role_or_without(acme: Acme) -> None:
    world, path = acme.world, "/accounts/acme/robots"
    answer = world.call("POST", path, {"name": "builder", "role": "write"}, by="alice")
    assert answer.status == 201
    assert (answer.json["name"], answer.json["role"]) == ("acme+builder", "write")
    builder = _id(world, "acme+builder")
    assert actions(world, builder, "acme/app") == ["pull", "push"]
    assert actions(world, builder, "beta/app") == []
    assert actions(world, acme.robot, "acme/app") == []
    assert world.call("POST", path, {"name": "builder"}, by="alice").status == 409
    for body in ({"name": "A"}, {"name": "a+b"}, {"name": "x", "role": "owner"}, {"name": ""}):
        assert world.call("POST", path, body, by="alice").status == 422
    found = world.call("GET", path, by="bob").json["items"]
    assert [(each["name"], each["role"]) for each in found] == [
        ("acme+builder", "write"),
        ("acme+ci", None),
    ]
    assert events(world, acme.id)[-1] == (
        "robot.create",
        f"account:{world.ids['alice']}",
        {"robot": builder, "role": "write"},
    )


def test_a_user_has_robots_too(world: World) -> None:
    answer = world.call(
        "POST", "/accounts/alice/robots", {"name": "ci", "role": "read"}, by="alice"
    )
    assert answer.json["name"] == "alice+ci"
    assert actions(world, _id(world, "alice+ci"), "alice/app") == ["pull"]
    for method, path in (("GET", "robots"), ("DELETE", "robots/alice+ci")):
        assert world.call(method, f"/accounts/alice/{path}", by="bob").status == 404


def test_who_has_not_verified_an_email_makes_no_robots(world: World) -> None:
    add_user(world, "dave", verified=False)
    answer = world.call("POST", "/accounts/dave/robots", {"name": "ci"}, by="dave")
    assert (answer.status, answer.json["detail"]) == (403, "Verify your email first.")


def test_a_deleted_robots_tokens_die_at_once(acme: Acme) -> None:
    world = acme.world
    path = "/accounts/acme/grants/acme+ci"
    assert world.call("PUT", path, {"role": "write"}, by="alice").status == 200
    token = add_token(world, acme.robot, "repository:acme/*:*")
    digest = push_blob(As(world.client, "alice"), "acme/app", b"a layer")

    def pull(client: CoreClient) -> int:
        field = As(client, "robot", token)
        return field.request("HEAD", f"/v2/acme/app/blobs/{digest}").status

    with another_host(world) as other:
        assert _push(world.client, token) == _push(other, token) == 202
        assert pull(world.client) == pull(other) == 200
        robot = "/accounts/acme/robots/acme+ci"
        assert world.call("DELETE", robot, by="alice").status == 204
        assert _push(world.client, token) == _push(other, token) == 401
        time.sleep(FRESH)
        assert pull(world.client) == pull(other) == 401
    assert world.call("DELETE", robot, by="alice").status == 404
    assert world.call("GET", "/accounts/acme/grants", by="alice").json["items"] == []
    assert events(world, acme.id)[-1] == (
        "robot.delete",
        f"account:{world.ids['alice']}",
        {"robot": acme.robot},
    )
    # Another of its name is another.
    assert world.call("POST", "/accounts/acme/robots", {"name": "ci"}, by="alice").status == 201
    assert _push(world.client, token) == 401
    assert actions(world, _id(world, "acme+ci"), "acme/app") == []


def test_a_robot_of_another_is_not_found(acme: Acme) -> None:
    world = acme.world
    for name in ("acme+ci", "bob", "nobody", "%00"):
        answer = world.call("DELETE", f"/accounts/alice/robots/{name}", by="alice")
        assert answer.status == 404, name
    assert accounts.by_id(world.context.database, acme.robot) is not None


def test_a_suspended_owners_robots_do_nothing(world: World) -> None:
    database = world.context.database
    acme = add_organisation(world, "acme")
    for owner, name in ((acme.id, "acme"), (world.ids["alice"], "alice")):
        robot = robots.create(database, owner, name, "worker", "write", by="")
        token = add_token(world, robot, "repository:*:*", "account:*:*")
        with another_host(world) as other:
            assert _push(world.client, token, f"{name}/x") == _push(other, token, f"{name}/x")
            assert _push(other, token, f"{name}/x") == 202
            users.suspend(database, owner, suspended=True, by="")
            assert _push(world.client, token, f"{name}/x") == 401
            assert _push(other, token, f"{name}/x") == 401
            answer = call(world, token, "GET", f"/accounts/{name}/robots")
            assert answer.status == 401
            users.suspend(database, owner, suspended=False, by="")
            assert _push(other, token, f"{name}/x") == 202


def test_a_robot_goes_with_its_owner(acme: Acme) -> None:
    world = acme.world
    token = add_token(world, acme.robot, "repository:*:*")
    assert call(world, token, "GET", "/session").status == 200
    assert world.call("DELETE", acme.path, by="alice").status == 204
    assert call(world, token, "GET", "/session").status == 401
    assert accounts.by_id(world.context.database, acme.robot) is None


def test_an_operator_makes_robots_and_members(acme: Acme) -> None:
    world = acme.world
    settings: dict[str, Any] = {
        "OPENREGISTRY_DATABASE_URL": world.context.settings.database_url,
        "OPENREGISTRY_DATA_DIR": str(world.context.settings.data_dir),
    }
    made = command(settings, "robot", "add", "acme+deploy", "--role", "write")
    assert made == {"id": _id(world, "acme+deploy"), "name": "acme+deploy"}
    assert actions(world, made["id"], "acme/app") == ["pull", "push"]
    command(settings, "user", "delete", "acme+deploy")
    assert accounts.by_name(world.context.database, "acme+deploy") is None
    command(settings, "org", "member", "acme", "root", "--role", "owner")
    command(settings, "org", "member", "acme", "alice", "--remove")
    found = world.call("GET", f"{acme.path}/members", by="bob").json["items"]
    assert [(each["name"], each["role"]) for each in found] == [
        ("bob", "member"),
        ("root", "owner"),
    ]
