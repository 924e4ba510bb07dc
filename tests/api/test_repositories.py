"""Repositories by the API: made, found, changed, renamed, deleted, and granted."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib.identity import repositories as domain
from chalicelib.identity import users
from chalicelib.identity.epoch import FRESH
from chalicelib.metadata import audit
from tests.client import Answer, begin, push_blob, push_image, push_manifest, sha256, with_query
from tests.identity.realm import PASSWORD, Basic, ByToken, Realm, basic, realm
from tests.images import make_image, make_index
from tests.servers import Postgres


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[Realm]:
    with realm(postgres, tmp_path) as found:
        yield found


def events(world: Realm, account: str) -> list[tuple[str, dict[str, Any]]]:
    """What the audit log says of an account, the oldest first."""
    found = audit.page(world.context.database, 100, account=world.ids[account])
    return [(each.event, each.detail) for each in reversed(found)]


def names(answer: Answer) -> list[str]:
    """The names of a list."""
    assert answer.status == 200, answer
    return [each["name"] for each in answer.json["items"]]


# Making.


def test_a_repository_is_made(world: Realm) -> None:
    alice = world.by("alice")
    body = {"name": "alice/app", "description": "An app, für alle"}
    answer = alice.api("POST", "/repositories", body)
    assert answer.status == 201
    assert answer.json["created_at"]
    assert {**answer.json, "created_at": None} == {
        "name": "alice/app",
        "visibility": "private",
        "description": "An app, für alle",
        "created_at": None,
        "role": "admin",
        "tags": 0,
        "size": 0,
        "pushed_at": None,
        "pulls": 0,
        "pulled_at": None,
    }
    assert alice.api("GET", "/repositories/alice/app").json == answer.json
    again = alice.api("POST", "/repositories", {"name": "alice/app"})
    assert (again.status, again.json["errors"][0]["field"]) == (409, "name")
    assert events(world, "alice")[-1] == ("repository.create", {"public": False})
    push_image(alice, "alice/app", make_image(), "1")


@pytest.mark.parametrize("chosen", [None, True, False])
@pytest.mark.parametrize("visibility", [None, "public", "private"])
def test_visibility_is_what_is_asked_or_what_the_account_has_chosen(
    world: Realm, chosen: bool | None, visibility: str | None
) -> None:
    world.run("UPDATE accounts SET new_repositories_public = :c WHERE name = 'alice'", c=chosen)
    body = {"name": "alice/app", "visibility": visibility}
    answer = world.by("alice").api("POST", "/repositories", body)
    wanted = visibility or ("public" if chosen else "private")
    assert (answer.status, answer.json["visibility"]) == (201, wanted)
    assert world.actions("bob", "alice/app") == (["pull"] if wanted == "public" else [])


@pytest.mark.parametrize(
    "name", ["Alice/app", "alice//app", "alice/app/", "alice/-", "alice/-/grants", "al ice", "\0"]
)
def test_names_that_none_can_have(world: Realm, name: str) -> None:
    answer = world.by("alice").api("POST", "/repositories", {"name": name})
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "name")


def test_who_may_make_one(world: Realm) -> None:
    """Who has write in the namespace; what others are told is the same whatever is there."""
    world.grant("bob", "write", namespace="alice")
    world.grant("dave", "read", namespace="alice")
    push_blob(world.by("alice"), "alice/there", b"blob")
    for who, name, status in (
        ("alice", "alice", 201),
        ("bob", "alice/bobs", 201),
        ("alice", "bob/x", 403),
        ("dave", "alice/new", 403),
        ("carol", "alice/new", 403),
        ("carol", "alice/there", 403),
        ("carol", "nobody/new", 403),
        ("carol", "corp/new", 201),
        ("erin", "corp/other", 403),
        ("una", "una/own", 403),
        ("root", "alice/by-root", 201),
    ):
        answer = world.by(who).api("POST", "/repositories", {"name": name})
        assert answer.status == status, (who, name, answer)
    there, new = (
        world.by("carol").api("POST", "/repositories", {"name": f"alice/{name}"}).body
        for name in ("there", "other")
    )
    assert there.replace(b"there", b"other") == new
    answer = Basic(world.client, "", "").client.request("POST", "/api/v1/repositories")
    assert answer.status == 401
    narrow = world.by("alice", world.token("alice", "repository:alice/a*:pull,push").token)
    assert narrow.api("POST", "/repositories", {"name": "alice/ab"}).status == 201
    assert narrow.api("POST", "/repositories", {"name": "alice/ba"}).status == 403


# Finding.


def test_one_finds_what_one_may_read(world: Realm) -> None:
    for who, name, description in (
        ("alice", "alice/web", "Serves 100% of_it"),
        ("alice", "alice/secret", "the Web's back"),
        ("bob", "bob/web", ""),
        ("bob", "bob/other", "a WEB thing"),
        ("carol", "corp/web", ""),
    ):
        body = {"name": name, "description": description}
        assert world.by(who).api("POST", "/repositories", body).status == 201
    world.by("alice").api("PATCH", "/repositories/alice/web", {"visibility": "public"})
    mine, open_ = ["bob/other", "bob/web"], ["alice/web"]
    bob = world.by("bob")
    assert names(bob.api("GET", "/repositories")) == [*open_, *mine]
    assert names(bob.api("GET", "/repositories?search=web")) == [*open_, *mine]
    assert names(bob.api("GET", "/repositories?search=WEB&account=bob")) == mine
    assert names(bob.api("GET", "/repositories?search=serves")) == open_
    assert names(bob.api("GET", "/repositories?search=100%25")) == open_
    assert names(bob.api("GET", "/repositories?search=s%25b")) == []
    assert names(bob.api("GET", "/repositories?search=f_i")) == open_
    assert names(bob.api("GET", "/repositories?search=secret")) == []
    assert names(bob.api("GET", "/repositories?search=back")) == []
    assert names(bob.api("GET", "/accounts/bob/repositories")) == mine
    assert names(bob.api("GET", "/accounts/alice/repositories")) == open_
    assert names(bob.api("GET", "/accounts/corp/repositories")) == []
    assert names(bob.api("GET", "/accounts/nobody/repositories")) == []
    assert names(world.client.request("GET", "/api/v1/repositories")) == open_
    assert names(world.by("dave").api("GET", "/repositories?search=web")) == [*open_, "corp/web"]
    assert len(names(world.by("root").api("GET", "/repositories"))) == 5
    scoped = world.by("bob", world.token("bob", "repository:*/web:pull").token)
    assert names(scoped.api("GET", "/repositories")) == [*open_, "bob/web"]
    [found] = bob.api("GET", "/repositories?account=alice").json["items"]
    assert (found["role"], found["visibility"]) == ("read", "public")


def test_lists_come_in_pages(world: Realm) -> None:
    for number in range(7):
        for who in ("alice", "bob"):
            world.by(who).api("POST", "/repositories", {"name": f"{who}/{number}"})
    bob, found, after = world.by("bob"), [], ""
    for size in (3, 3, 1):
        answer = bob.api("GET", f"/repositories?limit=3&after={after}")
        assert len(names(answer)) == size
        found += names(answer)
        after = answer.json["next"]
    assert after is None
    assert found == [f"bob/{number}" for number in range(7)]
    for query in ("limit=0", "limit=101", "limit=x", f"search={'x' * 101}"):
        assert bob.api("GET", f"/repositories?{query}").status == 422


def test_detail(world: Realm) -> None:
    alice = world.by("alice")
    one, two = make_image((1000,), 1), make_image((1000, 500), 2)
    push_image(alice, "alice/app", one, "1")
    push_image(alice, "alice/app", one, "2")
    push_image(alice, "alice/app", two)
    answer = alice.api("GET", "/repositories/alice/app").json
    blobs = {each.digest: len(each.data) for image in (one, two) for each in image.blobs}
    assert answer["tags"] == 2
    assert answer["size"] == sum(blobs.values())
    assert answer["pushed_at"] >= answer["created_at"]
    # Who may not know of it is told nothing, and who may is told what they may do.
    for path in ("/repositories/alice/app", "/repositories/alice/not"):
        assert world.by("bob").api("GET", path).status == 404
        assert world.client.request("GET", f"/api/v1{path}").status == 401
    told = [
        world.by("bob").api(method, f"/repositories/alice/{name}", body).body
        for name in ("app", "not")
        for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None))
    ]
    assert told[:3] == told[3:]
    for role in ("read", "write", "maintain", "admin"):
        world.grant("bob", role, repository="alice/app")
        assert world.by("bob").api("GET", "/repositories/alice/app").json["role"] == role
    assert world.by("root").api("GET", "/repositories/alice/app").json["role"] == "admin"
    world.grant("una", "admin", repository="alice/app")
    assert world.by("una").api("GET", "/repositories/alice/app").json["role"] == "read"


# Changing.


def test_visibility_and_description_are_changed(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, "alice/app", make_image(), "1")
    path, anybody = "/repositories/alice/app", ByToken(world.client)
    target = "/v2/alice/app/manifests/1"
    assert anybody.request("GET", target).status == 401
    answer = alice.api("PATCH", path, {"visibility": "public", "description": "For all"})
    assert (answer.json["visibility"], answer.json["description"]) == ("public", "For all")
    assert anybody.request("GET", target).status == 200
    answer = alice.api("PATCH", path, {"description": ""})
    assert (answer.json["visibility"], answer.json["description"]) == ("public", "")
    assert alice.api("PATCH", path, {}).json == answer.json
    assert world.client.request("GET", f"/api/v1{path}").json["role"] == "read"
    wrong: list[Any] = [{"visibility": "open"}, {"description": "x" * 1001}, {"description": 1}, []]
    assert {alice.api("PATCH", path, body).status for body in wrong} == {422}
    assert events(world, "alice")[-1] == ("repository.visibility", {"public": True})


def test_who_may_change_one(world: Realm) -> None:
    push_blob(world.by("alice"), "alice/app", b"blob")
    path = "/repositories/alice/app"
    for role, status in (("read", 403), ("write", 403), ("maintain", 403), ("admin", 200)):
        world.grant("bob", role, repository="alice/app")
        bob = world.by("bob")
        assert bob.api("PATCH", path, {"description": role}).status == status
        assert bob.api("GET", f"{path}/-/grants").status == status
        if status == 403:
            assert bob.api("DELETE", path).status == 403
            assert bob.api("POST", f"{path}/-/rename", {"name": "bob/app"}).status == 403
            assert bob.api("PUT", f"{path}/-/grants/bob", {"role": "admin"}).status == 403
            assert bob.api("DELETE", f"{path}/-/grants/bob").status == 403
    for scope, status in (("pull,push,delete", 403), ("pull,admin", 200)):
        token = world.token("alice", f"repository:alice/app:{scope}").token
        answer = world.by("alice", token).api("PATCH", path, {"description": scope})
        assert answer.status == status
    for role in ("write", "maintain"):
        world.grant("alice+ci", role, namespace="alice")
        assert world.by("alice+ci").api("PATCH", path, {}).status == 403


# Renaming.


def rename(client: Basic, name: str, to: str) -> Answer:
    """Give a repository another name, and wait until every reader sees it."""
    answer = client.api("POST", f"/repositories/{name}/-/rename", {"name": to})
    time.sleep(FRESH)
    return answer


def reads(client: Basic, name: str) -> str:
    """Where a read of a repository's tag is sent: "" where it is answered there."""
    answer = client.request("GET", f"/v2/{name}/manifests/1")
    if answer.status == 307:
        return answer.location.removeprefix("/v2/").removesuffix("/manifests/1")
    return "" if answer.status == 200 else str(answer.status)


def test_a_former_name_leads_to_the_new_one(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, "alice/one", make_image(), "1")
    assert rename(alice, "alice/one", "alice/two").status == 204
    assert (reads(alice, "alice/one"), reads(alice, "alice/two")) == ("alice/two", "")
    for path in ("tags/list?n=5&last=%2Fa", f"blobs/{sha256(b'x')}", f"referrers/{sha256(b'x')}"):
        answer = alice.request("GET", f"/v2/alice/one/{path}")
        assert (answer.status, answer.location) == (307, f"/v2/alice/two/{path}")
        assert answer.json["errors"][0]["detail"] == {"name": "alice/two"}
    for method, path in (
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/1"),
        ("DELETE", "manifests/1"),
    ):
        answer = alice.request(method, f"/v2/alice/one/{path}")
        assert (answer.status, answer.code) == (403, "DENIED")
        assert "alice/two" in str(answer.json)
    moved = alice.api("GET", "/repositories/alice/one")
    assert (moved.status, moved.location) == (307, "/api/v1/repositories/alice/two")
    moved = alice.api("GET", "/repositories/alice/one/-/grants?limit=5")
    assert moved.location == "/api/v1/repositories/alice/two/-/grants?limit=5"
    assert world.by("bob").api("GET", "/repositories/alice/one").status == 404
    assert names(alice.api("GET", "/repositories")) == ["alice/two"]
    assert alice.request("GET", "/v2/_catalog").json == {"repositories": ["alice/two"]}
    assert events(world, "alice")[-1] == (
        "repository.rename",
        {"before": "one", "after": "two", "to_account": world.ids["alice"]},
    )


def test_chains_and_cycles_of_names(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, "alice/one", make_image(), "1")
    rename(alice, "alice/one", "alice/two")
    rename(alice, "alice/two", "alice/three")
    where = [reads(alice, f"alice/{name}") for name in ("one", "two", "three")]
    assert where == ["alice/three", "alice/three", ""]
    assert rename(alice, "alice/three", "alice/one").status == 204
    where = [reads(alice, f"alice/{name}") for name in ("one", "two", "three")]
    assert where == ["", "alice/one", "alice/one"]
    assert rename(alice, "alice/one", "alice/one").status == 204
    assert reads(alice, "alice/one") == ""
    push_image(alice, "alice/one", make_image((10,), 2), "2")


def test_a_former_name_is_free_for_another(world: Realm) -> None:
    """By the API: a push to it might be meant for the repository that had it."""
    alice = world.by("alice")
    push_image(alice, "alice/one", make_image(), "1")
    rename(alice, "alice/one", "alice/two")
    assert alice.request("POST", "/v2/alice/one/blobs/uploads/").status == 403
    assert alice.api("POST", "/repositories", {"name": "alice/one"}).status == 201
    assert reads(alice, "alice/one") == "404"
    push_image(alice, "alice/one", make_image((10,), 2), "1")
    assert rename(alice, "alice/one", "alice/two").status == 409
    assert rename(alice, "alice/one", "alice/new").status == 204
    push_image(alice, "alice/other", make_image((10,), 3), "1")
    assert rename(alice, "alice/other", "alice/one").status == 204
    assert [reads(alice, f"alice/{name}") for name in ("one", "new", "other")] == [
        "", "", "alice/one",
    ]  # fmt: skip


def test_names_that_one_cannot_rename_to(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, "alice/one", make_image(), "1")
    push_image(alice, "alice/two", make_image(), "1")
    push_image(world.by("bob"), "bob/x", make_image(), "1")
    for to, status in (("alice/two", 409), ("Alice", 422), ("bob/x", 403), ("bob/y", 403)):
        assert rename(alice, "alice/one", to).status == status, to
        assert reads(alice, "alice/one") == ""
    assert rename(alice, "alice/absent", "alice/new").status == 404
    assert rename(world.by("bob"), "alice/one", "bob/stolen").status == 404
    assert rename(world.by("carol"), "bob/x", "corp/x").status == 404


def test_a_repository_is_transferred(world: Realm) -> None:
    """With what users were granted in it, and without what teams and robots of the former
    namespace were; who may no longer read it is not told where it is."""
    carol, dave, corp = world.by("carol"), world.by("dave"), world.ids["corp"]
    push_image(carol, "corp/app", make_image(), "1")
    world.add_robot("corp", "ci")
    for to in ("corp:devs", "corp+ci", "bob", "alice"):
        world.grant(to, "write", repository="corp/app")
    world.grant("carol", "write", namespace="alice")
    assert rename(dave, "corp/app", "dave/app").status == 403
    assert rename(carol, "corp/app", "alice/app").status == 204
    assert world.actions("bob", "alice/app") == ["pull", "push"]
    for who in ("erin", "dave", "corp+ci"):
        assert world.actions(who, "alice/app") == []
        assert world.actions(who, "corp/app") == []
        assert reads(world.by(who), "corp/app") == reads(world.by(who), "corp/absent") == "404"
    assert reads(world.by("bob"), "corp/app") == "alice/app"
    # The former owner may write in the new place still, until they may not.
    assert reads(carol, "corp/app") == "alice/app"
    world.run("DELETE FROM grants WHERE account_id = :id", id=world.ids["carol"])
    assert reads(carol, "corp/app") == "404"
    answer = carol.request("POST", "/v2/corp/app/blobs/uploads/")
    assert (answer.status, answer.code) == (403, "DENIED")
    assert "alice" not in str(answer.json)
    assert carol.api("POST", "/repositories", {"name": "corp/app"}).status == 201
    push_image(carol, "corp/app", make_image((10,), 2), "1")
    assert reads(world.by("bob"), "corp/app") == "404"
    for account in ("corp", "alice"):
        assert (
            "repository.rename",
            {"before": "app", "after": "app", "to_account": world.ids["alice"]},
        ) in events(world, account)
    assert corp


def test_a_name_goes_with_its_account(world: Realm) -> None:
    world.grant("bob", "write", namespace="alice")
    push_image(world.by("bob"), "bob/app", make_image(), "1")
    rename(world.by("bob"), "bob/app", "alice/app")
    users.delete(world.context.database, world.ids["bob"], by="operator")
    assert reads(world.by("alice"), "bob/app") == "404"
    assert world.run("SELECT name FROM repository_renames") == []


def test_of_two_that_take_a_name_one_gets_it(world: Realm) -> None:
    for number in range(4):
        push_blob(world.by("alice"), f"alice/{number}", b"blob")
    database, failed = world.context.database, []

    def take(number: int) -> None:
        try:
            domain.rename(database, f"alice/{number}", "alice/prize", by="operator")
        except users.Refused as error:
            failed.append(error.conflict)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [True] * 3
    assert len(names(world.by("alice").api("GET", "/repositories"))) == 4


# Deleting.


def test_all_of_a_repository_goes(world: Realm) -> None:
    alice = world.by("alice")
    images = [make_image((100,), number) for number in range(3)]
    for image in images:
        push_image(alice, "alice/app", image)
    index = make_index(images)
    assert push_manifest(alice, "alice/app", index, "all").status == 201
    rename(alice, "alice/app", "alice/now")
    world.grant("bob", "write", repository="alice/now")
    push_image(alice, "alice/kept", images[0], "1")
    [[repository]] = world.run("SELECT id FROM repositories WHERE name = 'alice/now'")
    begun = alice.request("PATCH", begin(alice, "alice/now"), b"beg")
    whole = begin(alice, "alice/now")

    assert alice.api("DELETE", "/repositories/alice/now").status == 204
    for name in ("now", "app"):
        assert alice.request("GET", f"/v2/alice/{name}/manifests/all").status == 404
        assert alice.api("GET", f"/repositories/alice/{name}").status == 404
    assert alice.api("DELETE", "/repositories/alice/now").status == 404
    for table in ("manifests", "manifest_references", "repository_blobs", "tags", "tag_history",
                  "grants", "repository_renames"):  # fmt: skip
        rows = world.run(f"SELECT FROM {table} WHERE repository_id = :id", id=repository)
        assert rows == [], table
    for location, data in ((begun.location, b"un"), (whole, b"begun")):
        answer = alice.request("PUT", with_query(location, digest=sha256(b"begun")), data)
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert names(alice.api("GET", "/repositories")) == ["alice/kept"]
    assert alice.request("GET", "/v2/alice/kept/manifests/1").body == images[0].manifest.data
    assert events(world, "alice")[-1] == ("repository.delete", {"path": "now"})
    # Its name is free; nothing of it comes back.
    push_blob(alice, "alice/now", b"new")
    assert world.actions("bob", "alice/now") == []
    assert alice.request("GET", "/v2/alice/now/tags/list").json["tags"] == []


def test_a_repository_is_deleted_while_others_push(world: Realm) -> None:
    """Every push is wholly there afterwards, or wholly gone."""
    alice, stop, statuses = world.by("alice"), threading.Event(), set()
    images = [make_image((100,), number) for number in range(4)]

    def push(image: Any) -> None:
        client = world.by("alice")
        while not stop.is_set():
            for blob in image.blobs:
                location = begin(client, "alice/app")
                answer = client.request("PUT", with_query(location, digest=blob.digest), blob.data)
                statuses.add(answer.status)
            statuses.add(push_manifest(client, "alice/app", image.manifest, "1").status)

    threads = [threading.Thread(target=push, args=(image,)) for image in images]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert alice.api("DELETE", "/repositories/alice/app").status in (204, 404)
    stop.set()
    for thread in threads:
        thread.join()
    # 404: an upload that was ended, a blob that is gone.
    assert statuses <= {201, 404}
    orphans = world.run(
        "SELECT FROM manifest_references f LEFT JOIN repository_blobs l"
        " ON l.repository_id = f.repository_id AND l.digest = f.blob"
        " WHERE f.blob IS NOT NULL AND l.digest IS NULL"
    )
    assert orphans == []


# Grants.


def test_grants_of_a_repository(world: Realm) -> None:
    carol = world.by("carol")
    push_blob(carol, "corp/app", b"blob")
    world.add_robot("corp", "ci")
    path = "/repositories/corp/app/-/grants"
    for to, kind, who in (
        ("bob", "user", "bob"),
        ("corp+ci", "robot", "corp+ci"),
        ("corp:devs", "team", "erin"),
    ):
        for role, actions in (("write", ["pull", "push"]), ("admin", None)):
            answer = carol.api("PUT", f"{path}/{to}", {"role": role})
            assert (answer.status, answer.json["grantee"]) == (200, to)
            assert (answer.json["kind"], answer.json["role"]) == (kind, role)
            found = world.actions(who, "corp/app")
            assert found == (actions or ["pull", "push", "delete", "admin"])
            assert world.actions(who, "corp/other") == (["pull"] if who == "erin" else [])
    listed = carol.api("GET", path).json["items"]
    assert [each["grantee"] for each in listed] == ["bob", "corp+ci", "corp:devs"]
    first = carol.api("GET", f"{path}?limit=1").json
    assert (len(first["items"]), first["next"]) == (1, "bob")
    for to in ("bob", "corp+ci", "corp:devs"):
        assert carol.api("DELETE", f"{path}/{to}").status == 204
        assert carol.api("DELETE", f"{path}/{to}").status == 404
    assert world.actions("erin", "corp/app") == ["pull"]
    assert [event for event, _ in events(world, "corp")][-3:] == ["grant.take"] * 3


def test_whom_one_can_grant_nothing(world: Realm) -> None:
    """Others' teams and robots are not even told from those that are not there."""
    push_blob(world.by("alice"), "alice/app", b"blob")
    world.add_robot("bob", "ci")
    alice, path = world.by("alice"), "/repositories/alice/app/-/grants"
    answers = [
        alice.api("PUT", f"{path}/{to}", {"role": "read"})
        for to in ("corp:devs", "corp:none", "bob+ci", "bob+none", "nobody", "corp", "x:y:z", ":")
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(404, answers[0].body)}
    assert alice.api("PUT", f"{path}/bob", {"role": "owner"}).status == 422
    assert alice.api("PUT", "/repositories/alice/no/-/grants/bob", {"role": "read"}).status == 404
    assert world.by("bob").api("GET", path).status == 404


def test_a_repository_may_be_called_as_a_path_of_the_api_is(world: Realm) -> None:
    alice = world.by("alice")
    for name in ("alice/grants", "alice/rename", "alice/app/grants/bob"):
        assert alice.api("POST", "/repositories", {"name": name}).status == 201
        assert alice.api("GET", f"/repositories/{name}").json["name"] == name
        assert alice.api("GET", f"/repositories/{name}/-/grants").json == {
            "items": [], "next": None,
        }  # fmt: skip
        assert alice.api("DELETE", f"/repositories/{name}").status == 204


def test_by_browser_and_by_whom_else(world: Realm) -> None:
    """A session's cookie does; a registry token is for /v2/ alone."""
    push_blob(world.by("alice"), "alice/app", b"blob")
    body = json.dumps({"name": "alice", "password": PASSWORD}).encode()
    fields = {"Content-Type": "application/json"}
    signed_in = world.client.request("POST", "/api/v1/session", body, fields)
    cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
    target = "/api/v1/repositories/alice/app"
    assert world.client.request("GET", target, headers={"Cookie": cookie}).status == 200
    token = ByToken(world.client, basic("alice", PASSWORD)).ask("repository:alice/app:pull")
    bearer = {"Authorization": f"Bearer {token.json['token']}"}
    assert world.client.request("GET", target, headers=bearer).status == 401
