"""Organisations: who may do what with them, and that one always has an owner."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from chalicelib.api import grants, invitations, organisations, robots, teams
from chalicelib.api.operations import Operation
from chalicelib.identity import organisations as domain
from chalicelib.metadata import accounts
from chalicelib.metadata import organisations as rows
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
from tests.client import push_blob


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
    from chalicelib.identity import grants as granting
    from chalicelib.metadata.grants import Place

    place = Place(namespace=acme.id)
    assert granting.give(database, place, acme.id, f"{acme.name}:devs", "read", by="operator")


def _called(world: World, acme: Acme, caller: str, method: str, path: str, body: Any) -> Any:
    who, _, token = caller.partition("'s ")
    if not token:
        return world.call(method, path, body, by="" if who == "nobody" else who)
    account = acme.robot if who == "the robot" else world.ids[who]
    return call(world, add_token(world, account, _TOKENS[token]), method, path, body)
