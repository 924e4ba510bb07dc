"""Immutable tags, retention and the history of tags by the API: who may, and what is answered."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chalicelib.identity import organisations
from chalicelib.metadata import audit
from tests.api.acme import As
from tests.api.conftest import World, opened
from tests.client import Answer, CoreClient, push_image, push_manifest
from tests.images import Image, make_image
from tests.servers import Postgres

APP = "/repositories/alice/app/-"
IMAGES = [make_image((10,), f"rules {number}") for number in range(3)]


@pytest.fixture(scope="module")
def world(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Bob may push to alice/app, and root is an administrator."""
    folder: Path = tmp_path_factory.mktemp("rules")
    with opened(postgres, folder) as found:
        found.call("POST", "/repositories", {"name": "alice/app"}, by="alice")
        found.call("PUT", f"{APP}/grants/bob", {"role": "write"}, by="alice")
        for image in IMAGES:
            push_image(As(found.client, "alice"), "alice/app", image)
        yield found


def push(world: World, image: Image, tag: str, by: str = "bob") -> Answer:
    return push_manifest(As(world.client, by), "alice/app", image.manifest, tag)


def noted(world: World, kind: str) -> list[tuple[str, str]]:
    found = audit.page(world.context.database, 1000, account=world.ids["alice"])
    return [(each.event, each.subject) for each in reversed(found) if each.event.startswith(kind)]


@pytest.mark.parametrize("path", ["/accounts/alice/immutable-tags", f"{APP}/immutable-tags"])
def test_immutable_tags(world: World, path: str) -> None:
    tag = f"v{len(path)}"
    body = {"pattern": "v*", "exceptions": ["*-rc"]}
    made = world.call("POST", path, body, by="alice")
    assert made.status == 201
    rule = made.json
    assert (rule["pattern"], rule["exceptions"]) == ("v*", ["*-rc"])
    assert rule["created_by"] == f"account:{world.ids['alice']}"
    assert world.call("GET", path, by="alice").json == {"items": [rule], "next": None}
    assert push(world, IMAGES[0], tag).status == 201
    for by in ("bob", "alice"):
        answer = push(world, IMAGES[1], tag, by)
        assert (answer.status, answer.code) == (403, "DENIED")
        [error] = answer.json["errors"]
        place = "alice" if path.startswith("/accounts") else "alice/app"
        assert f"administrator of {place} remove the rule" in error["message"]
        assert error["detail"]["account"] == ("alice" if place == "alice" else None)
    assert push(world, IMAGES[0], f"{tag}-rc").status == 201
    assert push(world, IMAGES[1], f"{tag}-rc").status == 201
    assert world.call("DELETE", f"{path}/{rule['id']}", by="alice").status == 204
    assert world.call("DELETE", f"{path}/{rule['id']}", by="alice").status == 404
    assert push(world, IMAGES[1], tag).status == 201
    assert [event for event, _ in noted(world, "immutable")][-2:] == [
        "immutable_tags.create",
        "immutable_tags.delete",
    ]


def test_a_rule_is_taken_away_where_it_is(world: World) -> None:
    made = world.call("POST", f"{APP}/immutable-tags", {"pattern": "x"}, by="alice").json
    for path in ("/accounts/alice/immutable-tags", "/accounts/bob/immutable-tags"):
        for rule in (made["id"], "x", "9" * 30, "-1"):
            assert world.call("DELETE", f"{path}/{rule}", by="root").status == 404
    assert world.call("DELETE", f"{APP}/immutable-tags/{made['id']}", by="alice").status == 204


@pytest.mark.parametrize("path", ["/accounts/alice/retention", f"{APP}/retention"])
def test_retention(world: World, path: str) -> None:
    assert world.call("GET", path, by="alice").status == 404
    whole = {
        "keep_last": 3, "keep_newer": 60, "keep_matching": ["v*"], "keep_pulled": 5,
        "untagged_after": None,
    }  # fmt: skip
    assert world.call("PUT", path, whole, by="alice").json == whole
    assert world.call("GET", path, by="alice").json == whole
    default: dict[str, Any] = {
        "keep_last": None, "keep_newer": None, "keep_matching": [], "keep_pulled": None,
        "untagged_after": 0,
    }  # fmt: skip
    assert world.call("PUT", path, {}, by="alice").json == default
    assert world.call("GET", path, by="alice").json == default
    assert world.call("DELETE", path, by="alice").status == 204
    assert world.call("DELETE", path, by="alice").status == 404
    alice = f"account:{world.ids['alice']}"
    assert noted(world, "retention")[-3:] == [
        ("retention.set", alice),
        ("retention.set", alice),
        ("retention.unset", alice),
    ]


def test_a_dry_run(world: World) -> None:
    database = world.context.database
    for number, image in enumerate(IMAGES):
        push(world, image, f"dry-{number}")
    database.run("DELETE FROM tags WHERE name NOT LIKE 'dry-%'")
    path = f"{APP}/retention/dry-run"
    assert world.call("POST", path, {}, by="alice").status == 404
    answer = world.call("POST", path, {"policy": {"keep_last": 1}}, by="alice")
    assert answer.status == 200
    report = answer.json
    assert (report["removed_count"], report["kept_count"], report["manifest_count"]) == (2, 1, 0)
    assert [(each["tag"], each["why"]) for each in report["removed"]] == [
        ("dry-1", ["no rule keeps it"]),
        ("dry-0", ["no rule keeps it"]),
    ]
    [kept] = report["kept"]
    assert (kept["tag"], kept["digest"], kept["why"]) == (
        "dry-2", IMAGES[2].manifest.digest, ["among the last 1"],
    )  # fmt: skip
    world.call("PUT", f"{APP}/retention", {"keep_matching": ["dry-0"]}, by="alice")
    report = world.call("POST", path, {"policy": None}, by="alice").json
    assert [each["tag"] for each in report["kept"]] == ["dry-0"]
    world.call("DELETE", f"{APP}/retention", by="alice")
    assert len(database.run("SELECT FROM tags")) == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{APP}/retention", {"keep_last": 0}),
        (f"{APP}/retention", {"keep_last": "3"}),
        (f"{APP}/retention", {"keep_newest": 3}),
        (f"{APP}/retention", {"keep_matching": ["a b"]}),
        ("/accounts/alice/retention", {"untagged_after": -1}),
    ],
)
def test_what_is_no_policy(world: World, path: str, body: Any) -> None:
    assert world.call("PUT", path, body, by="alice").status == 422


def test_what_is_no_rule(world: World) -> None:
    for body in ({}, {"pattern": "a b"}, {"pattern": "*", "exceptions": ["%"]}):
        assert world.call("POST", f"{APP}/immutable-tags", body, by="alice").status == 422


def test_who_may_push_has_no_say_in_rules(world: World) -> None:
    """And a member of an organisation has none in its."""
    database = world.context.database
    acme = organisations.create(database, "acme", world.ids["alice"], by="operator")
    organisations.add_member(database, acme, world.ids["bob"], "member", by="operator")
    for base in (APP, "/accounts/acme"):
        for method, path, body in (
            ("POST", "/immutable-tags", {"pattern": "*"}),
            ("GET", "/immutable-tags", None),
            ("DELETE", "/immutable-tags/1", None),
            ("PUT", "/retention", {"keep_last": 1}),
            ("GET", "/retention", None),
            ("DELETE", "/retention", None),
        ):
            assert world.call(method, base + path, body, by="bob").status == 403
            assert world.call(method, base + path, body).status == 401
    assert world.call("POST", f"{APP}/retention/dry-run", {}, by="bob").status == 403


def test_a_deleted_account_has_no_rules(world: World) -> None:
    database = world.context.database
    organisations.create(database, "gone", world.ids["alice"], by="operator")
    world.call("POST", "/accounts/gone/immutable-tags", {"pattern": "*"}, by="alice")
    world.call("PUT", "/accounts/gone/retention", {"keep_last": 1}, by="alice")
    assert world.call("DELETE", "/organisations/gone", by="alice").status == 204
    for table in ("immutable_tags", "retention_policies"):
        assert database.run(f"SELECT FROM {table} WHERE namespace_id IS NOT NULL") == []


def test_the_history_of_a_tag(world: World) -> None:
    first, second, third = (image.manifest.digest for image in IMAGES)
    for image in IMAGES[:2]:
        push(world, image, "old")
    client = As(world.client, "alice")
    client.request("DELETE", "/v2/alice/app/manifests/old")
    path = f"{APP}/tag-moves?tag=old"
    moves = world.call("GET", path, by="bob").json["items"]
    assert [(each["digest"], each["exists"], each["by"]) for each in moves] == [
        (None, False, "alice"),
        (second, True, "bob"),
        (first, True, "bob"),
    ]
    page = world.call("GET", f"{path}&limit=2", by="bob").json
    assert [each["id"] for each in page["items"]] == [each["id"] for each in moves[:2]]
    page = world.call("GET", f"{path}&limit=2&after={page['next']}", by="bob").json
    assert (page["items"], page["next"]) == (moves[2:], None)

    restore = f"{APP}/tags/old/restore"
    answer = world.call("POST", restore, {}, by="bob")
    assert answer.json == {"tag": "old", "digest": second, "previous": None}
    answer = world.call("POST", restore, {"digest": first}, by="bob")
    assert answer.json == {"tag": "old", "digest": first, "previous": second}
    assert world.call("POST", restore, {"digest": third}, by="bob").status == 404
    assert world.call("POST", restore, {"digest": "sha256:x"}, by="bob").status == 422
    world.context.database.run("DELETE FROM manifests WHERE digest = decode(:hex, 'hex')",
                               hex=f"12{second.removeprefix('sha256:')}")  # fmt: skip
    gone = world.call("POST", restore, {"digest": second}, by="bob")
    assert gone.status == 409
    assert "is gone" in gone.json["detail"]

    world.call("PUT", f"{APP}/grants/bob", {"role": "read"}, by="alice")
    for method, place, body in (("GET", path, None), ("POST", restore, {})):
        assert world.call(method, place, body, by="bob").status == 403
        assert world.call(method, place, body).status == 401
    world.call("PUT", f"{APP}/grants/bob", {"role": "write"}, by="alice")


def test_workers_are_woken_for_what_follows(world: World) -> None:
    """Webhooks are told of tags and deletions, and networks get and lose what is public."""
    woken: list[bool] = []
    context = replace(world.context, wake=lambda: woken.append(True))
    waking = replace(world, client=CoreClient(context))
    world.call("POST", "/repositories", {"name": "alice/woken"}, by="alice")
    place = "/repositories/alice/woken"
    for image in IMAGES[:2]:
        push_image(As(world.client, "alice"), "alice/woken", image, "old")
    restored = waking.call("POST", f"{place}/-/tags/old/restore", {}, by="alice")
    assert (restored.status, len(woken)) == (200, 1)
    assert waking.call("PATCH", place, {"visibility": "public"}, by="alice").status == 200
    assert len(woken) == 2
    renamed = waking.call("POST", f"{place}/-/rename", {"name": "alice/renamed"}, by="alice")
    assert (renamed.status, len(woken)) == (204, 3)
    assert waking.call("DELETE", "/repositories/alice/renamed", by="alice").status == 204
    assert len(woken) == 4
