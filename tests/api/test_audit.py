"""The audit log: who reads which part of it, and that nobody changes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.identity import users
from chalicelib.metadata.database import DatabaseError
from tests.client import Answer, push_blob
from tests.identity.realm import EVERYTHING, PASSWORD, Realm, realm
from tests.servers import Postgres


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[Realm]:
    with realm(postgres, tmp_path) as found:
        yield found


def told(answer: Answer) -> list[str]:
    """The events of a list."""
    assert answer.status == 200, answer
    return [each["event"] for each in answer.json["items"]]


def test_an_account_reads_what_happened_to_it(world: Realm) -> None:
    alice = world.by("alice")
    push_blob(alice, "alice/app", b"blob")
    alice.api("PATCH", "/repositories/alice/app", {"visibility": "public"})
    world.by("bob").api("POST", "/repositories", {"name": "bob/app"})
    found = alice.api("GET", "/accounts/alice/audit").json["items"]
    newest, before, *_ = found
    assert (newest["event"], newest["detail"]) == ("repository.visibility", {"public": True})
    assert (before["event"], before["detail"]) == ("repository.create", {"public": False})
    for entry in (newest, before):
        assert entry["subject"] == f"account:{world.ids['alice']}"
        assert (entry["by"], entry["name"]) == ("alice", "alice/app")
        assert entry["account"] == world.ids["alice"]
    assert [each["id"] for each in found] == sorted((each["id"] for each in found), reverse=True)
    assert {each["account"] for each in found} == {world.ids["alice"]}


def test_who_reads_what(world: Realm) -> None:
    for who, statuses in (
        ("alice", (200, 404, 403)),
        ("bob", (404, 404, 403)),
        ("carol", (404, 200, 403)),
        ("dave", (404, 403, 403)),
        ("root", (200, 200, 200)),
    ):
        paths = ("/accounts/alice/audit", "/accounts/corp/audit", "/admin/audit")
        assert tuple(world.by(who).api("GET", path).status for path in paths) == statuses, who
    for scope, status in ((EVERYTHING, 403), ("account:alice:read", 403), ("account:a*:*", 200)):
        machine = world.by("alice", world.token("alice", scope).token)
        assert machine.api("GET", "/accounts/alice/audit").status == status
    machine = world.by("root", world.token("root", "account:*:*", EVERYTHING).token)
    assert machine.api("GET", "/admin/audit").status == 403
    assert world.client.request("GET", "/api/v1/admin/audit").status == 401


def test_the_log_comes_in_pages_the_newest_first(world: Realm) -> None:
    root = world.by("root")
    found: list[int] = []
    after = ""
    while after is not None:
        page = root.api("GET", "/admin/audit?limit=4" + (f"&after={after}" if after else "")).json
        assert len(page["items"]) <= 4
        found += [each["id"] for each in page["items"]]
        after = page["next"]
    assert len(found) > 8
    rows = world.run("SELECT id FROM audit ORDER BY id DESC")
    assert [[each] for each in found] == rows
    for query in ("after=x", "after=0", "after=99999999999999999999", "limit=101"):
        assert root.api("GET", f"/admin/audit?{query}").status == 422


def test_who_did_it_is_named_until_their_account_goes(world: Realm) -> None:
    """And a repository as long as it lies in that account's namespace: what its next owner calls it
    is not the former one's to know."""
    world.grant("bob", "write", namespace="alice")
    world.grant("alice", "write", namespace="corp")
    push_blob(world.by("bob"), "alice/app", b"blob")
    alice = world.by("alice")

    def created() -> tuple[str | None, str | None]:
        items = alice.api("GET", "/accounts/alice/audit").json["items"]
        [found] = [each for each in items if each["event"] == "repository.create"]
        assert found["subject"] == f"account:{world.ids['bob']}"
        return found["by"], found["name"]

    assert created() == ("bob", "alice/app")
    users.delete(world.context.database, world.ids["bob"], by="operator")
    assert created() == (None, "alice/app")
    alice.api("POST", "/repositories/alice/app/-/rename", {"name": "corp/secret"})
    assert created() == (None, None)
    assert world.by("carol").api("GET", "/accounts/corp/audit").json["items"][0]["name"] == (
        "corp/secret"
    )
    assert "bob" not in repr(world.run("SELECT * FROM audit"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET subject = ''",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 0",
        "TRUNCATE audit",
    ],
)
def test_nothing_is_ever_taken_out_of_the_log(world: Realm, statement: str) -> None:
    before = world.run("SELECT * FROM audit ORDER BY id")
    with pytest.raises(DatabaseError, match="never changed"):
        world.run(statement)
    assert before
    assert world.run("SELECT * FROM audit ORDER BY id") == before


def test_the_log_holds_no_secret_and_no_name(world: Realm) -> None:
    alice = world.by("alice")
    push_blob(alice, "alice/app", b"blob")
    token = alice.api("POST", "/accounts/alice/tokens", {"name": "x", "scopes": [EVERYTHING]})
    alice.api("POST", "/repositories/alice/app/-/rename", {"name": "alice/new"})
    alice.api("PUT", "/repositories/alice/new/-/grants/bob", {"role": "read"})
    alice.api("DELETE", "/repositories/alice/new")
    rows = repr(world.run("SELECT * FROM audit"))
    for secret in ("alice", "bob", "example.org", PASSWORD, token.json["token"]):
        assert secret not in rows
