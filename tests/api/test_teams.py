"""Teams, and what is granted to them, to users and to robots over a whole namespace."""

import time

import pytest

from chalicelib.identity import organisations as domain
from chalicelib.identity.epoch import FRESH
from tests.api.acme import (
    Acme,
    As,
    actions,
    add_organisation,
    add_token,
    add_user,
    another_host,
    events,
)
from tests.api.conftest import World
from tests.client import CoreClient, push_blob


@pytest.fixture
def acme(world: World) -> Acme:
    """Members may do nothing by themselves here."""
    acme = add_organisation(world, "acme")
    domain.change(world.context.database, acme.id, {"member_role": "none"}, by="operator")
    return acme


def _members(acme: Acme, team: str = "devs") -> list[str]:
    answer = acme.world.call("GET", f"{acme.path}/teams/{team}/members", by="bob")
    return [each["name"] for each in answer.json["items"]]


def test_a_team_is_made_renamed_and_deleted(acme: Acme) -> None:
    world, path = acme.world, f"{acme.path}/teams"
    assert world.call("POST", path, {"name": "ops"}, by="alice").status == 201
    assert world.call("POST", path, {"name": "ops"}, by="alice").status == 409
    for name in ("A", "a:b", "@a", "", "\0"):
        assert world.call("POST", path, {"name": name}, by="alice").status == 422
    names = [each["name"] for each in world.call("GET", path, by="bob").json["items"]]
    assert names == ["devs", "ops"]
    answer = world.call("PATCH", f"{path}/ops", {"name": "devs"}, by="alice")
    assert answer.status == 409
    answer = world.call("PATCH", f"{path}/ops", {"name": "sre"}, by="alice")
    assert (answer.status, answer.json["name"]) == (200, "sre")
    assert world.call("GET", f"{path}/ops", by="bob").status == 404
    assert world.call("GET", f"{path}/sre", by="bob").json["name"] == "sre"
    assert world.call("DELETE", f"{path}/sre", by="alice").status == 204
    assert world.call("DELETE", f"{path}/sre", by="alice").status == 404
    alice = f"account:{world.ids['alice']}"
    team = events(world, acme.id)[-1][2]["team"]
    assert events(world, acme.id)[-3:] == [
        ("team.create", alice, {"team": team}),
        ("team.rename", alice, {"team": team}),
        ("team.delete", alice, {"team": team}),
    ]


def test_organisations_may_have_teams_of_the_same_name_apart(acme: Acme) -> None:
    world = acme.world
    beta = add_organisation(world, "beta")
    assert world.call("DELETE", f"{beta.path}/teams/devs", by="alice").status == 204
    assert world.call("GET", f"{acme.path}/teams/devs", by="alice").status == 200


def test_a_team_has_members_of_the_organisation_alone(acme: Acme) -> None:
    world, path = acme.world, f"{acme.path}/teams/devs/members"
    add_user(world, "carol")
    assert world.call("PUT", f"{path}/bob", by="alice").status == 204
    assert world.call("PUT", f"{path}/bob", by="alice").status == 204
    for name in ("carol", "root", "acme", "acme+ci", "nobody", "%00"):
        assert world.call("PUT", f"{path}/{name}", by="alice").status == 404, name
    assert world.call("PUT", f"{acme.path}/teams/no/members/bob", by="alice").status == 404
    assert _members(acme) == ["bob"]
    bob, alice = world.ids["bob"], f"account:{world.ids['alice']}"
    assert world.call("DELETE", f"{path}/bob", by="alice").status == 204
    assert world.call("DELETE", f"{path}/bob", by="alice").status == 404
    assert events(world, acme.id)[-2:] == [
        ("team.add", alice, {"team": acme.team, "user": bob}),
        ("team.remove", alice, {"team": acme.team, "user": bob}),
    ]


def test_a_team_may_what_is_granted_to_it(acme: Acme) -> None:
    world, bob = acme.world, acme.world.ids["bob"]
    grant = "/accounts/acme/grants/acme:devs"
    assert world.call("PUT", grant, {"role": "write"}, by="alice").status == 200
    assert actions(world, bob, "acme/app") == []
    assert world.call("PUT", f"{acme.path}/teams/devs/members/bob", by="alice").status == 204
    assert actions(world, bob, "acme/app") == ["pull", "push"]
    assert actions(world, bob, "beta/app") == []
    assert world.call("PATCH", f"{acme.path}/teams/devs", {"name": "new"}, by="alice").status == 200
    assert actions(world, bob, "acme/app") == ["pull", "push"]
    assert world.call("DELETE", f"{acme.path}/teams/new", by="alice").status == 204
    assert actions(world, bob, "acme/app") == []
    assert world.call("GET", "/accounts/acme/grants", by="alice").json["items"] == []


def test_who_leaves_a_team_loses_its_roles_on_every_host(acme: Acme) -> None:
    world, bob = acme.world, acme.world.ids["bob"]
    member = f"{acme.path}/teams/devs/members/bob"
    assert world.call("PUT", member, by="alice").status == 204
    grant = "/accounts/acme/grants/acme:devs"
    assert world.call("PUT", grant, {"role": "read"}, by="alice").status == 200
    digest = push_blob(As(world.client, "alice"), "acme/app", b"a layer")
    token = add_token(world, bob, "repository:*:*")

    def pulls(client: CoreClient) -> int:
        path = f"/v2/acme/app/blobs/{digest}"
        return As(client, "bob", token).request("HEAD", path).status

    with another_host(world) as other:
        assert pulls(other) == pulls(world.client) == 200
        assert world.call("DELETE", member, by="alice").status == 204
        time.sleep(FRESH)
        assert pulls(other) == pulls(world.client) == 404


def test_roles_are_granted_changed_and_taken_away(acme: Acme) -> None:
    world = acme.world
    carol = add_user(world, "carol")
    path = "/accounts/acme/grants"
    for role, may in (("read", ["pull"]), ("maintain", ["pull", "push", "delete"])):
        answer = world.call("PUT", f"{path}/carol", {"role": role}, by="alice")
        assert answer.json["role"] == role
        assert actions(world, carol, "acme/app") == may
    assert world.call("PUT", f"{path}/acme+ci", {"role": "write"}, by="alice").status == 200
    assert world.call("PUT", f"{path}/acme:devs", {"role": "read"}, by="alice").status == 200
    found = world.call("GET", path, by="alice").json["items"]
    assert [(each["grantee"], each["kind"], each["role"]) for each in found] == [
        ("acme+ci", "robot", "write"),
        ("acme:devs", "team", "read"),
        ("carol", "user", "maintain"),
    ]
    page = world.call("GET", f"{path}?limit=1&after=acme%2Bci", by="alice").json
    assert (page["items"][0]["grantee"], page["next"]) == ("acme:devs", "acme:devs")
    # She who may do that is none of them yet.
    assert world.call("GET", acme.path, by="carol").status == 404
    assert world.call("DELETE", f"{path}/carol", by="alice").status == 204
    assert world.call("DELETE", f"{path}/carol", by="alice").status == 404
    assert actions(world, carol, "acme/app") == []
    detail = {"kind": "user", "grantee": carol}
    assert events(world, acme.id)[-1] == (
        "grant.take",
        f"account:{world.ids['alice']}",
        detail,
    )
    assert world.call("PUT", f"{path}/carol", {"role": "none"}, by="alice").status == 422


def test_teams_and_robots_of_others_are_neither_granted_anything_nor_told(acme: Acme) -> None:
    world = acme.world
    domain.create(world.context.database, "beta", world.ids["bob"], by="")
    domain.create_team(world.context.database, acme.id, "hidden", by="")
    answers = {
        name: world.call("PUT", f"/accounts/beta/grants/{name}", {"role": "read"}, by="bob")
        for name in ("acme:hidden", "acme:absent", "acme+ci", "acme+no", "acme", "no", ":")
    }
    assert {answer.status for answer in answers.values()} == {404}
    assert len({answer.body for answer in answers.values()}) == 1


def test_a_user_grants_roles_in_their_own_namespace(world: World) -> None:
    bob = world.ids["bob"]
    assert (
        world.call("PUT", "/accounts/alice/grants/bob", {"role": "write"}, by="alice").status == 200
    )
    assert actions(world, bob, "alice/app") == ["pull", "push"]
    assert world.call("GET", "/accounts/alice/grants", by="bob").status == 404


def test_a_robot_has_no_namespace(acme: Acme) -> None:
    world = acme.world
    for method, path, body in (
        ("GET", "grants", None),
        ("PUT", "grants/bob", {"role": "read"}),
        ("POST", "robots", {"name": "x"}),
        ("GET", "robots", None),
    ):
        answer = world.call(method, f"/accounts/acme+ci/{path}", body, by="alice")
        assert answer.status == 404, (method, path)
