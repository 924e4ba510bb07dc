"""Resolvers by the API: whose they are, who may choose them, and that keys never come back."""

from typing import Any

import pytest

from chalicelib.resolvers.choices import INSISTENCE
from tests.api.acme import Acme, add_organisation, add_token, add_user, call, events
from tests.api.conftest import World
from tests.resolvers.memory import Memory

ACCESS, SECRET = "THE-ACCESS-KEY", "THE-SECRET-KEY"
NEW = {
    "name": "mine",
    "address": {"bucket": "images"},
    "access_key": ACCESS,
    "secret_key": SECRET,
}
REPOSITORY, ACCOUNT, ALL = "/repositories/acme/app/-", "/accounts/acme", "/admin"
BY = {REPOSITORY: "alice", ACCOUNT: "alice", ALL: "root"}


@pytest.fixture
def acme(world: World) -> Acme:
    world.context.resolvers.own["memory"] = Memory()
    acme = add_organisation(world, "acme")
    answer = world.call("POST", "/repositories", {"name": "acme/app"}, by="alice")
    assert answer.status == 201
    return acme


def made(acme: Acme, place: str, **body: Any) -> dict[str, Any]:
    answer = acme.world.call("POST", f"{place}/resolvers", {**NEW, **body}, by=BY[place])
    assert answer.status == 201, answer
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(("place", "name"), [(ACCOUNT, "acme/mine"), (ALL, "mine")])
def test_a_resolvers_life(acme: Acme, place: str, name: str) -> None:
    world, by = acme.world, BY[place]
    answers = [world.call("POST", f"{place}/resolvers", NEW, by=by)]
    resolver = answers[0].json
    assert (resolver["name"], resolver["kind"], resolver["copies"]) == (name, "filebase", 0)
    assert resolver["address"]["bucket"] == "images"
    assert resolver["address"]["endpoint"] == "https://s3.filebase.com"
    one = f"{place}/resolvers/mine"
    keys = {"access_key": SECRET, "secret_key": ACCESS}
    for method, path, body, status in (
        ("POST", f"{place}/resolvers", NEW, 409),
        ("GET", one, None, 200),
        ("GET", f"{place}/resolvers", None, 200),
        ("PUT", f"{one}/keys", keys, 204),
        ("PUT", f"{one}/keys", {**keys, "access_key": ""}, 422),
        ("DELETE", one, None, 204),
    ):
        answers.append(world.call(method, path, body, by=by))
        assert answers[-1].status == status, answers[-1]
    assert answers[2].json == resolver
    assert answers[3].json["items"] == [resolver]
    assert world.call("GET", one, by=by).json["removed_at"] is not None
    assert world.call("DELETE", f"{one}?forget=true", by=by).status == 204
    assert world.call("GET", one, by=by).status == 404
    told = [
        (event, detail["resolver"])
        for event, _, detail in events(world, acme.id)
        if event.startswith("resolver.")
    ]
    expected = [f"resolver.{what}" for what in ("add", "keys", "remove", "remove")]
    assert told == ([(event, "mine") for event in expected] if place == ACCOUNT else [])
    answers.append(world.call("GET", f"{place}/audit", by=by))
    for answer in answers:
        assert ACCESS.encode() not in answer.body, "keys are never shown"
        assert SECRET.encode() not in answer.body


@pytest.mark.parametrize("place", BY)
def test_a_choice(acme: Acme, place: str) -> None:
    world, by = acme.world, BY[place]
    path = f"{place}/resolver-choice"
    nothing = {"resolvers": [], "insisted": False, "chosen_for": None}
    assert world.call("GET", path, by=by).json == nothing
    assert world.call("DELETE", path, by=by).status == 404
    chosen_for = {REPOSITORY: "repository", ACCOUNT: "account", ALL: "all"}[place]
    choice = {"resolvers": ["memory"], "insisted": False, "chosen_for": chosen_for}
    answer = world.call("PUT", path, {"resolvers": ["memory"]}, by=by)
    assert (answer.status, answer.json) == (200, choice)
    assert world.call("GET", path, by=by).json == choice
    shown = world.call("GET", f"{REPOSITORY}/resolver-choice", by="alice").json
    assert shown == choice
    insisting = {"resolvers": ["memory"], "insistence": INSISTENCE}
    answer = world.call("PUT", path, insisting, by=by)
    if place == ALL:
        assert answer.status == 422
        assert answer.json["errors"][0]["field"] == "insistence"
    else:
        assert answer.json == {**choice, "insisted": True}
    answer = world.call("PUT", path, {**insisting, "insistence": "yes, please"}, by=by)
    assert (answer.status, INSISTENCE in answer.body.decode()) == (422, True)
    assert world.call("PUT", path, {"resolvers": []}, by=by).json["chosen_for"] == chosen_for
    assert world.call("DELETE", path, by=by).status == 204
    assert world.call("GET", path, by=by).json == nothing
    told = [
        (event, detail["resolvers"])
        for event, _, detail in events(world, acme.id)
        if event.startswith("resolver.")
    ]
    if place != ALL:
        assert told == [
            ("resolver.choose", ["memory"]),
            ("resolver.choose", ["memory"]),
            ("resolver.choose", []),
            ("resolver.unchoose", []),
        ]


def test_others_resolvers_cannot_be_chosen(acme: Acme) -> None:
    world = acme.world
    made(acme, ACCOUNT)
    made(acme, ALL, name="common")
    answer = world.call("POST", "/accounts/bob/resolvers", NEW, by="bob")
    assert (answer.status, answer.json["name"]) == (201, "bob/mine")
    for place in (REPOSITORY, ACCOUNT):
        path = f"{place}/resolver-choice"
        mine = {"resolvers": ["acme/mine", "common"]}
        assert world.call("PUT", path, mine, by="alice").status == 200
        for name in ("bob/mine", "ipfs", "acme/other"):
            answer = world.call("PUT", path, {"resolvers": [name]}, by="alice")
            assert answer.status == 422, name
            assert answer.json["errors"][0]["field"] == "resolvers"


def test_others_have_no_part_in_it(acme: Acme) -> None:
    """Neither members nor those who may push, nobody, strangers, nor tokens without the scope; and
    only administrators say what is for all."""
    world = acme.world
    role = {"role": "write"}
    assert world.call("PUT", "/repositories/acme/app/-/grants/bob", role, by="alice").status == 200
    add_user(world, "carol")
    made(acme, ACCOUNT)
    made(acme, ALL)
    token = add_token(
        world, world.ids["alice"], "account:acme:read", "repository:acme/app:push,pull"
    )
    operations: list[tuple[str, str, Any]] = []
    for place in BY:
        choice = f"{place}/resolver-choice"
        operations += [
            ("GET", choice, None),
            ("PUT", choice, {"resolvers": ["memory"]}),
            ("DELETE", choice, None),
        ]
    for place in (ACCOUNT, ALL):
        one = f"{place}/resolvers/mine"
        operations += [
            ("POST", f"{place}/resolvers", {**NEW, "name": "another"}),
            ("GET", f"{place}/resolvers", None),
            ("GET", one, None),
            ("PUT", f"{one}/keys", {"access_key": "x", "secret_key": "x"}),
            ("DELETE", one, None),
            ("POST", f"{one}/check", None),
        ]
    for method, path, body in operations:
        assert world.call(method, path, body).status in (401, 404), path
        assert world.call(method, path, body, by="bob").status == 403, path
        assert world.call(method, path, body, by="carol").status in (403, 404), path
        assert call(world, token, method, path, body).status in (403, 404), path
        if path.startswith(ALL):
            assert world.call(method, path, body, by="alice").status == 403, path
        elif "/resolvers/" in path:
            assert world.call(method, path.replace("/mine", "/other"), body, by="alice").status in (
                404,
                405,
            )
    assert world.call("POST", "/accounts/acme+ci/resolvers", NEW, by="alice").status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"address": {"bucket": "images", "endpoint": "http://169.254.169.254"}}, "address"),
        ({"address": {"bucket": "images", "endpoint": "https://localhost"}}, "address"),
        ({"address": {"bucket": "images", "rpc": "http://127.0.0.1:5001"}}, "address"),
        ({"address": {"bucket": "images", "gateway": "https://gateway.example.org"}}, "address"),
        ({"address": {"bucket": "images", "host": "x"}}, "address"),
        ({"address": {}}, "address"),
        ({"access_key": ""}, "access_key"),
        ({"secret_key": "a b"}, "secret_key"),
        ({"name": "ipfs"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"kind": "skynet"}, "kind"),
    ],
)
def test_what_cannot_be_is_refused(acme: Acme, body: dict[str, Any], field: str) -> None:
    for place in (ACCOUNT, ALL):
        answer = acme.world.call("POST", f"{place}/resolvers", {**NEW, **body}, by=BY[place])
        assert answer.status == 422, answer
        assert answer.json["errors"][0]["field"] == field
        for key in (ACCESS, SECRET):
            assert key.encode() not in answer.body


def test_a_check(acme: Acme, monkeypatch: pytest.MonkeyPatch) -> None:
    made(acme, ACCOUNT)
    network = Memory()
    monkeypatch.setattr(acme.world.context.resolvers, "_open", lambda name, row: network)
    path = f"{ACCOUNT}/resolvers/mine/check"
    answer = acme.world.call("POST", path, by="alice")
    assert (answer.status, answer.json) == (200, {"ready": True, "error": ""})
    network.down = True
    answer = acme.world.call("POST", path, by="alice")
    assert answer.json == {"ready": False, "error": "The network is out of reach."}
