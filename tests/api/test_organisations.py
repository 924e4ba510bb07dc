"""Organisations: who may do what with them, and that one always has an owner."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest

from chalicelib.api import grants, invitations, organisations, robots, teams
from chalicelib.api.operations import Operation
from chalicelib.identity import NOBODY, users
from chalicelib.identity import grants as granting
from chalicelib.identity import organisations as domain
from chalicelib.identity.epoch import FRESH
from chalicelib.metadata import accounts
from chalicelib.metadata import organisations as rows
from chalicelib.metadata.database import Database
from chalicelib.metadata.grants import Place
from tests.api.acme import (
    Acme,
    As,
    access,
    actions,
    add_organisation,
    add_token,
    add_user,
    another_host,
    call,
    events,
)
from tests.api.conftest import PASSWORD, World
from tests.client import CoreClient, push_blob


@pytest.fixture
def acme(world: World) -> Acme:
    return add_organisation(world, "acme")


# Who may call what: a method, a path and a body by the name of each operation.
_SEEN: Mapping[str, tuple[Any, ...]] = {
    "show_organisation": ("GET", "/organisations/{0}"),
    "list_members": ("GET", "/organisations/{0}/members"),
    "list_teams": ("GET", "/organisations/{0}/teams"),
    "show_team": ("GET", "/organisations/{0}/teams/devs"),
    "list_team_members": ("GET", "/organisations/{0}/teams/devs/members"),
    "list_robots": ("GET", "/accounts/{0}/robots"),
}
"""By every member."""
_MANAGED: Mapping[str, tuple[Any, ...]] = {
    "change_organisation": ("PATCH", "/organisations/{0}", {"member_role": "write"}),
    "change_member": ("PATCH", "/organisations/{0}/members/bob", {"role": "member"}),
    "remove_member": ("DELETE", "/organisations/{0}/members/bob"),
    "invite": ("POST", "/organisations/{0}/invitations", {"email": "{0}@example.net"}),
    "list_invitations": ("GET", "/organisations/{0}/invitations"),
    "revoke_invitation": ("DELETE", "/organisations/{0}/invitations/{1}"),
    "create_team": ("POST", "/organisations/{0}/teams", {"name": "new"}),
    "rename_team": ("PATCH", "/organisations/{0}/teams/devs", {"name": "new"}),
    "delete_team": ("DELETE", "/organisations/{0}/teams/devs"),
    "add_team_member": ("PUT", "/organisations/{0}/teams/devs/members/bob"),
    "remove_team_member": ("DELETE", "/organisations/{0}/teams/devs/members/alice"),
    "create_robot": ("POST", "/accounts/{0}/robots", {"name": "new"}),
    "delete_robot": ("DELETE", "/accounts/{0}/robots/{0}+ci"),
    "list_grants": ("GET", "/accounts/{0}/grants"),
    "give_grant": ("PUT", "/accounts/{0}/grants/carol", {"role": "read"}),
    "take_grant": ("DELETE", "/accounts/{0}/grants/{0}:devs"),
}
"""By owners, and by their tokens that say so."""
_OWNED: Mapping[str, tuple[Any, ...]] = {
    "delete_organisation": ("DELETE", "/organisations/{0}"),
    "transfer_organisation": ("POST", "/organisations/{0}/transfer", {"to": "bob"}),
    "change_member": ("PATCH", "/organisations/{0}/members/bob", {"role": "owner"}),
    "invite": (
        "POST",
        "/organisations/{0}/invitations",
        {"email": "{0}@example.net", "role": "owner"},
    ),
}
"""By owners themselves."""
_OWN: Mapping[str, tuple[Any, ...]] = {
    "create_organisation": ("POST", "/organisations", {"name": "new-{2}"}),
    "list_organisations": ("GET", "/organisations"),
    "list_own_invitations": ("GET", "/organisation-invitations"),
    "accept_invitation": ("POST", "/organisation-invitations/accept", {"secret": "{3}"}),
    "decline_invitation": ("POST", "/organisation-invitations/decline", {"secret": "{3}"}),
}
"""By everyone who is signed in."""

_CALLERS = (
    "nobody", "carol", "bob", "alice", "root", "alice's reading", "alice's managing",
    "alice's pushing", "bob's managing", "the robot's managing",
)  # fmt: skip
_TOKENS = {
    "reading": "account:*:read",
    "managing": "account:*:read,admin",
    "pushing": "repository:*:*",
}
_MATRIX = [
    ("seen", _SEEN, (401, 404, "ok", "ok", "ok", "ok", "ok", 403, "ok", 404)),
    ("managed", _MANAGED, (401, 404, 403, "ok", "ok", 403, "ok", 403, 403, 404)),
    ("owned", _OWNED, (401, 404, 403, "ok", "ok", 403, 403, 403, 403, 404)),
    ("own", _OWN, (401, "ok", "ok", "ok", "ok", 403, 403, 403, 403, 403)),
]


@pytest.mark.parametrize(("table", "expected"), [row[1:] for row in _MATRIX],
                         ids=[row[0] for row in _MATRIX])  # fmt: skip
def test_who_may_call_what(
    world: World, table: Mapping[str, tuple[Any, ...]], expected: tuple[Any, ...]
) -> None:
    add_user(world, "carol")
    answers: dict[str, tuple[Any, ...]] = {}
    for operation, (method, path, *bodies) in table.items():
        found: list[Any] = []
        for number, caller in enumerate(_CALLERS):
            acme = add_organisation(world, f"{operation.replace('_', '-')}-{number}")
            _fill(world, acme)
            words = (acme.name, acme.invitation, f"{operation[:6]}-{number}", acme.secret)
            body = {key: text.format(*words) for key, text in bodies[0].items()} if bodies else None
            answer = _called(world, acme, caller, method, path.format(*words), body)
            found.append("ok" if answer.status in (200, 201, 204) else answer.status)
        answers[operation] = tuple(found)
    assert answers == dict.fromkeys(table, expected)


def test_every_operation_is_asked_who_may_call_it() -> None:
    tables: list[Operation] = [
        *organisations.OPERATIONS, *teams.OPERATIONS, *invitations.OPERATIONS, *robots.OPERATIONS,
        *grants.OPERATIONS,
    ]  # fmt: skip
    asked = {*_SEEN, *_MANAGED, *_OWNED, *_OWN, "leave_organisation"}
    assert {each.id for each in tables} == asked


def _fill(world: World, acme: Acme) -> None:
    """Have there be what the operations of the table take away."""
    database = world.context.database
    domain.add_to_team(database, acme.id, acme.team, world.ids["alice"], by="operator")
    place = Place(namespace=acme.id)
    assert granting.give(database, place, acme.id, f"{acme.name}:devs", "read", by="operator")


def _called(world: World, acme: Acme, caller: str, method: str, path: str, body: Any) -> Any:
    who, _, token = caller.partition("'s ")
    if not token:
        return world.call(method, path, body, by="" if who == "nobody" else who)
    account = acme.robot if who == "the robot" else world.ids[who]
    return call(world, add_token(world, account, _TOKENS[token]), method, path, body)


# Organisations themselves.


def test_an_organisation_is_made_by_a_user_who_then_owns_it(world: World) -> None:
    answer = world.call("POST", "/organisations", {"name": "acme"}, by="alice")
    assert answer.status == 201
    assert answer.json["name"] == "acme"
    assert answer.json["member_role"] == "read"
    assert answer.json["new_repositories_public"] is None
    own = world.call("GET", "/organisations", by="alice").json
    assert own == {"items": [{"name": "acme", "role": "owner"}], "next": None}
    assert world.call("GET", "/organisations", by="bob").json["items"] == []
    acme = accounts.by_name(world.context.database, "acme")
    assert acme is not None
    alice = world.ids["alice"]
    assert events(world, acme.id) == [("organisation.create", f"account:{alice}", {"owner": alice})]
    assert "admin" in actions(world, alice, "acme/app")
    assert actions(world, world.ids["bob"], "acme/app") == []


def test_names_of_organisations_are_those_of_users(world: World) -> None:
    for name in ("Acme", "a b", "-a", "a+b", "a/b", "ü", "a\0", "\ud800", "a" * 65, ""):
        answer = world.call("POST", "/organisations", {"name": name}, by="alice")
        assert answer.status in (400, 422), name


def test_organisations_and_users_share_their_names(world: World) -> None:
    assert world.call("POST", "/organisations", {"name": "bob"}, by="alice").status == 409


def test_an_organisation_needs_a_verified_email(world: World) -> None:
    add_user(world, "dave", verified=False)
    answer = world.call("POST", "/organisations", {"name": "acme"}, by="dave")
    assert (answer.status, answer.json["detail"]) == (403, "Verify your email first.")
    assert accounts.by_name(world.context.database, "acme") is None


def test_what_members_may_do_is_a_setting(acme: Acme) -> None:
    world, bob = acme.world, acme.world.ids["bob"]
    assert actions(world, bob, "acme/app") == ["pull"]
    for role, may in (
        ("none", []),
        ("write", ["pull", "push"]),
        ("maintain", ["pull", "push", "delete"]),
        ("admin", ["pull", "push", "delete", "admin"]),
    ):
        answer = world.call("PATCH", acme.path, {"member_role": role}, by="alice")
        assert answer.json["member_role"] == role
        assert actions(world, bob, "acme/app") == may
    assert world.call("PATCH", acme.path, {"member_role": "owner"}, by="alice").status == 422
    assert events(world, acme.id)[-1] == (
        "organisation.change",
        f"account:{world.ids['alice']}",
        {"member_role": "admin"},
    )


def test_the_visibility_of_new_repositories_is_a_setting(acme: Acme) -> None:
    world = acme.world
    alice = As(world.client, "alice")
    for name, setting in (("before", None), ("public", True), ("after", False)):
        if setting is not None:
            body = {"new_repositories_public": setting}
            answer = world.call("PATCH", acme.path, body, by="alice")
            assert answer.json["new_repositories_public"] is setting
        push_blob(alice, f"acme/{name}", name.encode())
        assert access(world).actions(NOBODY, f"acme/{name}") == (["pull"] if setting else [])
    answer = world.call("PATCH", acme.path, {"new_repositories_public": None}, by="alice")
    assert answer.json["new_repositories_public"] is None
    assert answer.json["member_role"] == "read"


def test_a_user_is_no_organisation(world: World) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"member_role": "read"}),
        ("DELETE", "", None),
        ("GET", "/members", None),
        ("POST", "/teams", {"name": "devs"}),
        ("POST", "/invitations", {"email": "x@example.org"}),
        ("POST", "/transfer", {"to": "bob"}),
        ("DELETE", "/membership", None),
    ):
        answer = world.call(method, f"/organisations/alice{path}", body, by="alice")
        assert answer.status == 404, (method, path)
    assert world.call("GET", "/session", by="alice").status == 200


def test_an_organisation_is_deleted_with_all_that_it_has(acme: Acme) -> None:
    world = acme.world
    token = add_token(world, acme.robot, "repository:*:*")
    digest = push_blob(As(world.client, "alice"), "acme/app", b"a layer")
    answer = world.call("DELETE", acme.path, by="alice")
    assert answer.status == 409  # a repository is in it
    world.context.database.run("DELETE FROM repositories WHERE name = 'acme/app'")
    assert world.call("DELETE", acme.path, by="alice").status == 204
    assert world.call("GET", acme.path, by="alice").status == 404
    assert world.call("GET", "/organisations", by="bob").json["items"] == []
    path = f"/v2/acme/app/blobs/{digest}"
    assert As(world.client, "x", token).request("HEAD", path).status == 401
    assert world.call("POST", "/organisations", {"name": "acme"}, by="bob").status == 409
    left = world.context.database.run(
        "SELECT (SELECT count(*) FROM members), (SELECT count(*) FROM teams),"
        " (SELECT count(*) FROM invitations), (SELECT count(*) FROM access_tokens)"
    )
    assert left == [[0, 0, 0, 0]]
    assert events(world, acme.id)[-1][0] == "account.delete"


def test_lists_come_in_pages(world: World) -> None:
    for number in range(5):
        world.call("POST", "/organisations", {"name": f"org{number}"}, by="alice")
    found: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        page = world.call("GET", f"/organisations?limit=2&after={after}", by="alice").json
        found += [each["name"] for each in page["items"]]
        after = page["next"]
        pages += 1
    assert world.call("GET", "/organisations?after=%00", by="alice").status == 422
    assert (found, pages) == ([f"org{number}" for number in range(5)], 3)


# Members.


def _roles(acme: Acme) -> dict[str, str]:
    found = rows.members(acme.world.context.database, acme.id, "", 100)
    return {each.name: each.role for each in found}


def test_members_are_shown_to_members_without_their_emails(acme: Acme) -> None:
    answer = acme.world.call("GET", f"{acme.path}/members", by="bob")
    assert [(each["name"], each["role"]) for each in answer.json["items"]] == [
        ("alice", "owner"),
        ("bob", "member"),
    ]
    assert b"@" not in answer.body


def test_an_owner_makes_others_owners_and_members_again(acme: Acme) -> None:
    world = acme.world
    path = f"{acme.path}/members"
    assert world.call("PATCH", f"{path}/bob", {"role": "owner"}, by="alice").status == 204
    assert "admin" in actions(world, world.ids["bob"], "acme/app")
    assert world.call("PATCH", f"{path}/alice", {"role": "member"}, by="bob").status == 204
    assert _roles(acme) == {"alice": "member", "bob": "owner"}
    assert world.call("DELETE", f"{path}/bob", by="alice").status == 403
    assert world.call("PATCH", f"{path}/root", {"role": "owner"}, by="bob").status == 404
    assert world.call("PATCH", f"{path}/bob", {"role": "king"}, by="bob").status == 422
    alice, bob = world.ids["alice"], world.ids["bob"]
    assert events(world, acme.id)[-2:] == [
        ("member.role", f"account:{alice}", {"user": bob, "role": "owner"}),
        ("member.role", f"account:{bob}", {"user": alice, "role": "member"}),
    ]


def test_the_last_owner_stays(acme: Acme) -> None:
    world = acme.world
    for method, path, body in (
        ("PATCH", "/members/alice", {"role": "member"}),
        ("DELETE", "/members/alice", None),
        ("DELETE", "/membership", None),
    ):
        answer = world.call(method, f"{acme.path}{path}", body, by="alice")
        assert answer.status == 409, (method, path)
        assert "only owner" in answer.json["detail"]
    assert _roles(acme) == {"alice": "owner", "bob": "member"}
    # Others may go, the last owner notwithstanding.
    assert world.call("DELETE", f"{acme.path}/membership", by="bob").status == 204
    assert world.call("DELETE", f"{acme.path}/membership", by="bob").status == 404
    assert _roles(acme) == {"alice": "owner"}


# Ways for an owner to go: each is given a database, an organisation, the owner and another member.
_Way = Callable[[Database, int, int, int], object]
_WAYS: Mapping[str, _Way] = {
    "leave": lambda database, acme, owner, _: domain.remove_member(database, acme, owner, by=""),
    "step back": lambda database, acme, owner, _: domain.change_role(
        database, acme, owner, "member", by=""
    ),
    "transfer": lambda database, acme, owner, member: domain.transfer(
        database, acme, owner, member, by=""
    ),
    "delete the account": lambda database, acme, owner, _: users.delete(database, owner, by=""),
}


@pytest.mark.parametrize("way", _WAYS)
def test_of_owners_who_go_at_once_one_stays(world: World, way: str) -> None:
    database = world.context.database
    for number, other in enumerate([*_WAYS] * 5):
        names = [f"{role}{number}" for role in ("first", "second", "member")]
        ids = [
            users.create(database, name, f"{name}@example.org", None, by="", email_verified=True)
            for name in names
        ]
        acme = domain.create(database, f"acme{number}", ids[0], by="")
        domain.add_member(database, acme, ids[1], "owner", by="")
        domain.add_member(database, acme, ids[2], "member", by="")
        _at_once(
            lambda: _WAYS[way](database, acme, ids[0], ids[2]),  # noqa: B023
            lambda: _WAYS[other](database, acme, ids[1], ids[2]),  # noqa: B023
        )
        left = rows.members(database, acme, "", 10)
        assert [each for each in left if each.role == "owner"], (other, left)


def _at_once(*works: Callable[[], object]) -> None:
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        ready.wait()
        with suppress(users.Refused):
            work()

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Who is gone.


def test_who_leaves_loses_teams_and_grants_on_every_host(acme: Acme) -> None:
    world, database = acme.world, acme.world.context.database
    bob = world.ids["bob"]
    domain.change(database, acme.id, {"member_role": "none"}, by="")
    domain.add_to_team(database, acme.id, acme.team, bob, by="")
    digests = {name: push_blob(As(world.client, "alice"), f"acme/{name}", name.encode())
               for name in ("team", "own")}  # fmt: skip
    for name, grantee in (("team", "acme:devs"), ("own", "bob")):
        rows_ = database.run("SELECT id FROM repositories WHERE name = :name", name=f"acme/{name}")
        place = Place(repository=rows_[0][0])
        assert granting.give(database, place, acme.id, grantee, "read", by="")
    token = add_token(world, bob, "repository:*:*")

    def pulls(client: CoreClient) -> list[int]:
        return [
            As(client, "bob", secret).request("HEAD", f"/v2/acme/{name}/blobs/{digest}").status
            for name, digest in digests.items()
            for secret in (PASSWORD, token)
        ]

    with another_host(world) as other:
        assert pulls(other) == pulls(world.client) == [200] * 4
        assert world.call("DELETE", f"{acme.path}/membership", by="bob").status == 204
        time.sleep(FRESH)
        assert pulls(other) == pulls(world.client) == [404] * 4
        # Who comes back has nothing of what they had.
        domain.add_member(database, acme.id, bob, "member", by="")
        assert pulls(other) == [404] * 4
    assert events(world, acme.id)[-2] == ("member.remove", f"account:{bob}", {"user": bob})


def test_an_invitation_holds_while_who_sent_it_may_send_one(acme: Acme) -> None:
    world, database, bob = acme.world, acme.world.context.database, acme.world.ids["bob"]
    add_user(world, "carol", email="carol@example.net")
    domain.change_role(database, acme.id, bob, "owner", by="")
    body = {"email": "carol@example.net", "role": "owner"}
    sent = world.call("POST", f"{acme.path}/invitations", body, by="bob")

    def shown() -> tuple[int, int]:
        own = world.call("GET", "/organisation-invitations", by="carol").json["items"]
        everyones = world.call("GET", f"{acme.path}/invitations", by="alice").json["items"]
        return len(own), len(everyones)

    assert shown() == (1, 2)
    users.suspend(database, bob, suspended=True, by="")
    assert shown() == (0, 1)
    users.suspend(database, bob, suspended=False, by="")
    assert shown() == (1, 2)
    domain.change_role(database, acme.id, bob, "member", by="")
    assert shown() == (0, 1)
    domain.remove_member(database, acme.id, bob, by="")
    assert shown() == (0, 1)
    accept = {"id": sent.json["id"]}
    assert world.call("POST", "/organisation-invitations/accept", accept, by="carol").status == 404


def test_ownership_is_transferred_to_a_member(acme: Acme) -> None:
    world = acme.world
    add_user(world, "carol")
    path = f"{acme.path}/transfer"
    assert world.call("POST", path, {"to": "\0"}, by="alice").status == 422
    for to in ("carol", "alice", "nobody"):
        answer = world.call("POST", path, {"to": to}, by="alice")
        assert answer.status == 422
        assert answer.json["errors"][0]["field"] == "to"
    assert _roles(acme) == {"alice": "owner", "bob": "member"}
    assert world.call("POST", path, {"to": "bob"}, by="alice").status == 204
    assert _roles(acme) == {"alice": "member", "bob": "owner"}
    alice, bob = world.ids["alice"], world.ids["bob"]
    assert events(world, acme.id)[-1] == (
        "organisation.transfer",
        f"account:{alice}",
        {"former": alice, "owner": bob},
    )
    # An administrator of the registry, who is not one of them, takes nobody's place.
    assert world.call("POST", path, {"to": "alice"}, by="root").status == 204
    assert _roles(acme) == {"alice": "owner", "bob": "owner"}
