"""Who may do what. The first tests are about others' private repositories: nothing of them can be
read, written or even known to exist, in any way there is to ask."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chalicelib.http import Unauthorized
from chalicelib.identity import organisations, users
from chalicelib.identity.epoch import FRESH
from chalicelib.metadata import access_tokens, grants
from tests.accounts import add_user
from tests.client import (
    Answer,
    Client,
    HTTPClient,
    begin,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.hosts.lambda_registry import LambdaRegistry, Redirected
from tests.identity.realm import PASSWORD, Basic, ByToken, Realm, basic, challenged, realm
from tests.images import MANIFEST, Content, Image, make_image
from tests.servers import Postgres, Registry


@pytest.fixture(scope="module")
def world(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with realm(postgres, tmp_path_factory.mktemp("access")) as found:
        yield found


class Secret(NamedTuple):
    """An image in somebody's private repository, tagged ``1``, and what refers to it."""

    repository: str
    image: Image
    referrer: Content

    @property
    def absent(self) -> str:
        """A repository of the same namespace that is not there, of a name as long."""
        return self.repository[:-1] + "9"


def keep_secret(owner: Client, repository: str) -> Secret:
    """Push one."""
    image = make_image((500,), repository)
    push_image(owner, repository, image, "1")
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": image.config.descriptor,
        "layers": [],
        "subject": image.manifest.descriptor,
    }
    referrer = Content(MANIFEST, json.dumps(body).encode())
    assert push_manifest(owner, repository, referrer).status == 201
    return Secret(repository, image, referrer)


def attempts(secret: Secret) -> Iterator[tuple[str, str, bytes]]:
    """Every way to ask for something of a repository."""
    image = secret.image
    base, blob = f"/v2/{secret.repository}", image.layers[0].digest
    for method in ("GET", "HEAD"):
        yield method, f"{base}/manifests/1", b""
        yield method, f"{base}/manifests/{image.manifest.digest}", b""
        yield method, f"{base}/blobs/{blob}", b""
        yield method, f"{base}/tags/list", b""
        yield method, f"{base}/referrers/{image.manifest.digest}", b""
        yield method, f"{base}/_oci/ext/discover", b""
    yield "PUT", f"{base}/manifests/1", image.manifest.data
    yield "PUT", f"{base}/manifests/2", image.manifest.data
    yield "PUT", f"{base}/manifests/{image.manifest.digest}?tag=3", image.manifest.data
    yield "DELETE", f"{base}/manifests/1", b""
    yield "DELETE", f"{base}/manifests/{image.manifest.digest}", b""
    yield "DELETE", f"{base}/manifests/{secret.referrer.digest}", b""
    yield "DELETE", f"{base}/blobs/{blob}", b""
    yield "POST", f"{base}/blobs/uploads/", b""
    yield "POST", f"{base}/blobs/uploads/?digest={sha256(b'mine')}", b"mine"
    yield "POST", f"{base}/blobs/uploads/?mount={blob}&from={secret.repository}", b""
    yield "POST", f"{base}/blobs/uploads/?mount={blob}", b""
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        target = f"{base}/blobs/uploads/00000000-0000-4000-8000-000000000000?_state=x"
        yield method, with_query(target, digest=blob) if method == "PUT" else target, b""


_OF_THE_CONNECTION = ("date", "connection", "x-request-id", "apigw-requestid")
"""Fields by which two answers differ that say the same."""


def check_hidden(secret: Secret, owner: Client, stranger: Client) -> None:
    """That a stranger gets nothing of it, changes nothing of it, and is told of it what is told of
    a repository that is not there."""

    def told(of: str, method: str, target: str, body: bytes) -> tuple[Any, ...]:
        headers = {"Content-Type": MANIFEST} if "/manifests/" in target else {}
        answer = stranger.request(method, target.replace(secret.repository, of), body, headers)
        fields = [
            (name, value.replace(of, "NAME"))
            for name, value in answer.fields
            if name.lower() not in _OF_THE_CONNECTION
        ]
        return answer.status, sorted(fields), answer.body.replace(of.encode(), b"NAME")

    for method, target, body in attempts(secret):
        found = told(secret.repository, method, target, body)
        assert found[0] in (401, 403, 404), (method, target, found)
        assert found == told(secret.absent, method, target, body), (method, target)
    check_whole(secret, owner)


def check_whole(secret: Secret, owner: Client) -> None:
    """That the owner finds everything as it was."""
    base, image = f"/v2/{secret.repository}", secret.image
    assert owner.request("GET", f"{base}/manifests/1").body == image.manifest.data
    assert owner.request("GET", f"{base}/tags/list").json["tags"] == ["1"]
    found = owner.request("GET", f"{base}/referrers/{image.manifest.digest}").json["manifests"]
    assert [each["digest"] for each in found] == [secret.referrer.digest]
    for blob in image.blobs:
        assert owner.request("HEAD", f"{base}/blobs/{blob.digest}").status == 200


STRANGERS: dict[str, Callable[[Realm], Client]] = {
    "nobody": lambda world: world.client,
    "nobody's registry token": lambda world: ByToken(world.client),
    "another user": lambda world: world.by("bob"),
    "another user's registry token": lambda world: ByToken(world.client, basic("bob", PASSWORD)),
    "another user's access token": lambda world: world.by("bob", world.token("bob").token),
    "another user's robot": lambda world: world.by("bob+ci"),
    "an unverified user": lambda world: world.by("una"),
    "an organisation's owner": lambda world: world.by("carol"),
    "the owner's robot": lambda world: world.by("alice+ci"),
}


@pytest.fixture(scope="module")
def secret(world: Realm) -> Secret:
    world.add_robot("bob", "ci")
    return keep_secret(world.by("alice"), "alice/secret")


@pytest.mark.parametrize("who", STRANGERS)
def test_a_private_repository_is_as_if_it_were_not_there(
    world: Realm, secret: Secret, who: str
) -> None:
    check_hidden(secret, world.by("alice"), STRANGERS[who](world))


def test_the_owner_may_do_all_that_strangers_tried(world: Realm) -> None:
    """Or else they might have been refused for another reason."""
    alice = world.by("alice")
    mine = keep_secret(alice, "alice/mine")
    refused = [
        (method, target)
        for method, target, body in attempts(mine)
        if "_state=" not in target
        and alice.request(method, target, body, {"Content-Type": MANIFEST}).status >= 400
    ]
    # The second deletion of what is gone, and that of a blob which a manifest still names.
    assert [target.partition("mine/")[2] for _, target in refused] == [
        f"manifests/{mine.image.manifest.digest}",
        f"blobs/{mine.image.layers[0].digest}",
    ] or [method for method, _ in refused] == ["DELETE"] * len(refused)
    alice.api("DELETE", "/repositories/alice/mine")


def check_cannot_mount(secret: Secret, stranger: Client, repository: str) -> None:
    """That a stranger's repository gets no blob of it by its digest."""
    blob = secret.image.layers[0].digest
    base = f"/v2/{repository}"
    for parameters in (f"mount={blob}&from={secret.repository}", f"mount={blob}"):
        answer = stranger.request("POST", f"{base}/blobs/uploads/?{parameters}")
        assert answer.status == 202, answer
        assert stranger.request("HEAD", f"{base}/blobs/{blob}").status == 404
    answer = push_manifest(stranger, repository, secret.image.manifest)
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_nobody_mounts_what_they_may_not_pull(world: Realm, secret: Secret) -> None:
    check_cannot_mount(secret, world.by("bob"), "bob/thief")
    check_cannot_mount(secret, ByToken(world.client, basic("bob", PASSWORD)), "bob/thief")
    for source in (secret.repository, secret.absent):
        blob = secret.image.layers[0].digest
        target = f"/v2/bob/thief/blobs/uploads/?mount={blob}&from={source}"
        assert world.by("bob").request("POST", target).status == 202
    mounted = world.by("alice").request(
        "POST", f"/v2/alice/other/blobs/uploads/?mount={blob}&from={secret.repository}"
    )
    assert mounted.status == 201


def test_a_token_mounts_from_its_scopes_alone(world: Realm, secret: Secret) -> None:
    """One that is for the target alone, of somebody who may pull from the source, does not."""
    blob = secret.image.layers[0].digest
    token = world.token("alice", "repository:alice/other:pull,push").token
    alice = world.by("alice", token)
    for parameters in (f"mount={blob}&from={secret.repository}", f"mount={blob}"):
        assert alice.request("POST", f"/v2/alice/narrow/blobs/uploads/?{parameters}").status == 403
        answer = alice.request("POST", f"/v2/alice/other/blobs/uploads/?{parameters}")
        # Without a source the blob is mounted from wherever the token may pull: from itself.
        assert answer.status == (202 if "from" in parameters else 201), answer


def test_a_blob_is_deleted_from_one_repository(world: Realm, secret: Secret) -> None:
    bob, data = world.by("bob"), secret.image.layers[0].data
    digest = push_blob(bob, "bob/own", data)
    assert bob.request("DELETE", f"/v2/bob/own/blobs/{digest}").status == 202
    assert bob.request("HEAD", f"/v2/bob/own/blobs/{digest}").status == 404
    check_whole(secret, world.by("alice"))


def test_a_location_is_for_one_upload_in_one_repository(world: Realm, secret: Secret) -> None:
    bob = world.by("bob")
    location = begin(bob, "bob/own")
    moved = location.replace("/bob/own/", f"/{secret.repository}/")
    other = begin(bob, "bob/own").partition("?")[0] + "?" + location.partition("?")[2]
    for target in (moved, other, location.partition("?")[0], f"{location}x"):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            full = with_query(target, digest=sha256(b"data")) if method == "PUT" else target
            if method == "PUT" and "?" not in target:
                full = f"{target}?digest={sha256(b'data')}"
            answer = bob.request(method, full, b"data")
            assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN"), (method, full)
    digest = sha256(b"data")
    assert bob.request("PUT", with_query(location, digest=digest), b"data").status == 201
    assert world.by("alice").request("HEAD", f"/v2/alice/secret/blobs/{digest}").status == 404


# A capability outlives the right that it was had by; a commit does not.


# Who has the right to push to `corp/lost`, and what takes it.

Lose = Callable[[], object]


def _token(world: Realm) -> tuple[Client, Lose]:
    created = world.token("carol")
    return world.by("carol", created.token), lambda: access_tokens.revoke(
        world.context.database, created.id
    )


def _minted(world: Realm) -> tuple[Client, Lose]:
    client, revoke = _token(world)
    assert isinstance(client, Basic)
    return ByToken(world.client, client.authorization), revoke


def _granted(world: Realm) -> tuple[Client, Lose]:
    push_blob(world.by("carol"), "corp/lost", b"to have the repository")
    place = world.grant("bob", "write", repository="corp/lost")
    bob = grants.grantee(world.context.database, "bob")
    assert bob is not None
    return world.by("bob"), lambda: grants.remove(world.context.database, place, bob)


def _team(world: Realm) -> tuple[Client, Lose]:
    world.grant("corp:devs", "write", namespace="corp")
    return world.by("erin"), lambda: world.run(
        "DELETE FROM team_members WHERE user_id = :id", id=world.ids["erin"]
    )


def _team_by_token(world: Realm) -> tuple[Client, Lose]:
    _, leave = _team(world)
    return ByToken(world.client, basic("erin", PASSWORD)), leave


def _membership(world: Realm) -> tuple[Client, Lose]:
    client, _ = _team(world)
    return client, lambda: organisations.remove_member(
        world.context.database, world.ids["corp"], world.ids["erin"], by="operator"
    )


def _role(world: Realm) -> tuple[Client, Lose]:
    def members_may(role: str) -> None:
        organisations.change(
            world.context.database, world.ids["corp"], {"member_role": role}, by="operator"
        )

    members_may("write")
    return world.by("dave"), lambda: members_may("read")


def _robot(world: Realm) -> tuple[Client, Lose]:
    world.add_robot("corp", "ci")
    world.grant("corp+ci", "write", namespace="corp")
    return world.by("corp+ci"), partial(_suspend, world, "corp")


def _suspend(world: Realm, name: str) -> None:
    users.suspend(world.context.database, world.ids[name], suspended=True, by="operator")


LOSSES: dict[str, Callable[[Realm], tuple[Client, Lose]]] = {
    "an access token is revoked": _token,
    "the access token behind a registry token is revoked": _minted,
    "a grant is taken away": _granted,
    "a member leaves the team": _team,
    "a member leaves the team, and has a registry token": _team_by_token,
    "a member leaves the organisation": _membership,
    "members may do less": _role,
    "an account is suspended": lambda world: (world.by("carol"), partial(_suspend, world, "carol")),
    "a robot's owner is suspended": _robot,
    "an administrator is one no longer": lambda world: (
        world.by("root"),
        lambda: world.run("UPDATE accounts SET administrator = false WHERE name = 'root'"),
    ),
    "an email is no longer verified": lambda world: (
        world.by("carol"),
        lambda: world.run("UPDATE accounts SET email_verified = false WHERE name = 'carol'"),
    ),
}
STAYS = (
    "a member leaves the team",
    "a member leaves the team, and has a registry token",
    "members may do less",
    "an email is no longer verified",
)
"""After which one may still read."""


@pytest.fixture
def fresh(postgres: Postgres, tmp_path: Path) -> Iterator[Realm]:
    """A registry to spoil."""
    with realm(postgres, tmp_path) as found:
        yield found


@pytest.mark.parametrize("how", LOSSES)
def test_what_is_lost_is_lost_at_once_for_writes_and_soon_for_reads(fresh: Realm, how: str) -> None:
    """On every host, whatever they remember; and for an upload that began before."""
    here, lose = LOSSES[how](fresh)
    image = make_image((300,), how)
    push_image(here, "corp/lost", image, "1")
    target = "/v2/corp/lost/manifests/1"
    with fresh.another_host() as elsewhere, fresh.another_host() as one_for_reads:
        there, reader = _at(elsewhere, here), _at(one_for_reads, here)
        assert [each.request("GET", target).status for each in (there, reader)] == [200, 200]
        begun = there.request("PATCH", begin(there, "corp/lost"), b"beg")
        assert begun.status == 202

        assert reader.request("GET", target).status == 200
        lose()
        lost_at = time.monotonic()
        answer = there.request("PUT", with_query(begun.location, digest=sha256(b"begun")), b"un")
        assert (answer.status, answer.code) == (403, "DENIED")
        for client in (here, there):
            answer = client.request("POST", "/v2/corp/lost/blobs/uploads/")
            assert answer.status in (401, 403), answer
            assert push_manifest(client, "corp/lost", image.manifest, "2").status in (401, 403)
        while reader.request("GET", target).status == 200:
            if how in STAYS and time.monotonic() - lost_at > FRESH:
                break
            assert time.monotonic() - lost_at < 0.5
        else:
            assert how not in STAYS
    assert fresh.run("SELECT name FROM tags") == [["1"]]
    assert fresh.run("SELECT FROM blobs WHERE size = 5") == []


def _at(elsewhere: Realm, client: Client) -> Client:
    """The same client at another host."""
    if isinstance(client, Basic):
        there = Basic(elsewhere.client, "", "")
        there.authorization = client.authorization
        return there
    assert isinstance(client, ByToken)
    return _Held(elsewhere.client, client.authorization)


class _Held(ByToken):
    """Keeps the tokens that it got, as clients do while they hold."""

    def __init__(self, client: Client, authorization: str) -> None:
        super().__init__(client, authorization)
        self._kept: dict[str, Answer] = {}

    def ask(self, *asked: str) -> Answer:
        key = " ".join(asked)
        if key not in self._kept:
            self._kept[key] = super().ask(*asked)
        return self._kept[key]


def test_a_repository_that_becomes_private_is_hidden_soon(fresh: Realm) -> None:
    alice = fresh.by("alice")
    image = make_image((300,), "seen")
    push_image(alice, "alice/seen", image, "1")
    with fresh.another_host() as elsewhere:
        bob = Basic(elsewhere.client, "bob", PASSWORD)

        def all_readers() -> list[Client]:
            by_token = (bob.authorization, "")
            return [bob, *(_Held(elsewhere.client, each) for each in by_token)]

        readers = all_readers()
        target = "/v2/alice/seen/manifests/1"
        assert [each.request("GET", target).status for each in readers] == [404, 401, 401]
        answer = alice.api("PATCH", "/repositories/alice/seen", {"visibility": "public"})
        assert answer.json["visibility"] == "public"
        # A token without the scope is of no use later: clients ask for another.
        readers = all_readers()
        for reader in readers[1:]:
            assert isinstance(reader, _Held)
            reader.ask("repository:alice/seen:pull")
        for path in ("manifests/1", f"blobs/{image.layers[0].digest}", "tags/list"):
            answers = [each.request("GET", f"/v2/alice/seen/{path}") for each in readers]
            assert [answer.status for answer in answers] == [200, 200, 200]
        alice.api("PATCH", "/repositories/alice/seen", {"visibility": "private"})
        hidden_at = time.monotonic()
        while 200 in [each.request("GET", target).status for each in readers]:
            assert time.monotonic() - hidden_at < 0.5
        assert [each.request("GET", target).status for each in readers] == [404, 404, 401]


@pytest.mark.parametrize("role", ["read", "write", "maintain", "admin"])
def test_what_is_granted_holds_at_once_everywhere(fresh: Realm, role: str) -> None:
    alice = fresh.by("alice")
    image = make_image((300,), role)
    push_image(alice, "alice/shared", image, "1")
    may = {"read": "r", "write": "rw", "maintain": "rwd", "admin": "rwda"}[role]

    def tried(client: Client) -> str:
        missing = f"/v2/alice/shared/manifests/{sha256(b'missing')}"
        tries = (
            ("r", "GET", "/v2/alice/shared/manifests/1", 200),
            ("w", "POST", "/v2/alice/shared/blobs/uploads/", 202),
            ("d", "DELETE", missing, 404),
            ("a", "GET", "/api/v1/repositories/alice/shared/-/grants", 200),
        )
        found = [(letter, client.request(method, target)) for letter, method, target, _ in tries]
        return "".join(
            letter
            for (letter, answer), (*_, status) in zip(found, tries, strict=True)
            if answer.status == status and b"NAME_UNKNOWN" not in answer.body
        )

    with fresh.another_host() as elsewhere:
        bob = Basic(elsewhere.client, "bob", PASSWORD)
        assert tried(bob) == ""
        grant = "/repositories/alice/shared/-/grants/bob"
        assert alice.api("PUT", grant, {"role": role}).status == 200
        assert tried(bob) == may
        assert alice.api("DELETE", grant).status == 204
        time.sleep(FRESH)
        assert tried(bob) == ""


# Roles and actions.

PULL, PUSH = ["pull"], ["pull", "push"]
DELETE, ADMIN = ["pull", "push", "delete"], ["pull", "push", "delete", "admin"]


def test_who_may_do_what(fresh: Realm) -> None:
    """In a private repository of alice's, a private and a public one of corp's, where the team has
    write, and dave maintain in the private one."""
    for owner, repository in (("alice", "alice/a"), ("carol", "corp/a"), ("carol", "corp/open")):
        push_blob(fresh.by(owner), repository, b"a")
    fresh.run("UPDATE repositories SET public = true WHERE name = 'corp/open'")
    fresh.grant("corp:devs", "write", namespace="corp")
    fresh.grant("dave", "maintain", repository="corp/a")
    fresh.grant("alice+ci", "write", namespace="alice")
    fresh.grant("una", "admin", repository="corp/a")
    table: dict[str, tuple[list[str], list[str], list[str]]] = {
        "": ([], [], PULL),
        "alice": (ADMIN, [], PULL),
        "alice+ci": (PUSH, [], PULL),
        "bob": ([], [], PULL),
        "carol": ([], ADMIN, ADMIN),
        "dave": ([], DELETE, PULL),
        "erin": ([], PUSH, PUSH),
        "root": (ADMIN, ADMIN, ADMIN),
        "una": ([], PULL, PULL),
    }
    names = ("alice/a", "corp/a", "corp/open")
    found = {who: tuple(fresh.actions(who, name) for name in names) for who in table}
    assert found == table
    for name in ("alice", "corp"):
        _suspend(fresh, name)
    for who in ("alice", "alice+ci"):
        with pytest.raises(Unauthorized):
            fresh.actions(who, "corp/open")
    for role, may in (("none", []), ("write", PUSH), ("maintain", DELETE), ("admin", ADMIN)):
        fresh.run("UPDATE accounts SET member_role = :role WHERE name = 'corp'", role=role)
        assert fresh.actions("erin", "corp/a") == (may if role != "none" else PUSH)
        assert fresh.actions("erin", "corp/new") == (may if role != "none" else PUSH)


def test_who_may_make_a_repository(fresh: Realm) -> None:
    """By pushing to it: who has write in all of the namespace; a name of one component is the
    account's own."""
    fresh.grant("bob", "write", namespace="alice")
    fresh.grant("dave", "read", namespace="alice")
    for name in ("alice", "alice/new", "alice/new/er"):
        may = {who for who in fresh.ids if fresh.actions(who, name) != [] and who != "corp"}
        assert may - {"dave"} == {"alice", "bob", "root"}
        assert fresh.actions("dave", name) == PULL
    assert {who for who in fresh.ids if fresh.actions(who, "nobody/new")} == {"root"}
    created = push_blob(fresh.by("bob"), "alice/by-bob", b"blob")
    assert fresh.by("alice").request("HEAD", f"/v2/alice/by-bob/blobs/{created}").status == 200
    [[by]] = fresh.run("SELECT created_by FROM repositories WHERE name = 'alice/by-bob'")
    assert by == f"account:{fresh.ids['bob']}"


def test_nobody_helps_themselves_to_repositories_by_taking_a_name(
    postgres: Postgres, tmp_path: Path
) -> None:
    """There may be some whose namespace is nobody's: from a time when everyone could push. An
    operator says whose they are."""
    with realm(postgres, tmp_path, SIGN_UP="open") as world:
        image = make_image((100,))
        push_image(world.by("root"), "library/app", image, "1")
        alice = world.by("alice")
        assert alice.api("POST", "/organisations", {"name": "library"}).status == 409
        body = {"name": "library", "email": "library@example.org", "password": PASSWORD}
        assert alice.api("POST", "/accounts", body).status == 409
        assert alice.request("GET", "/v2/library/app/manifests/1").status == 404
        world.add_user("library")
        library = world.by("library").request("GET", "/v2/library/app/manifests/1")
        assert library.body == image.manifest.data


def test_a_new_repository_is_as_its_account_wants(fresh: Realm) -> None:
    alice = fresh.by("alice")
    push_blob(alice, "alice/one", b"1")
    fresh.run("UPDATE accounts SET new_repositories_public = true WHERE name = 'alice'")
    push_blob(alice, "alice/two", b"2")
    rows = fresh.run("SELECT name, public FROM repositories ORDER BY name")
    assert rows == [["alice/one", False], ["alice/two", True]]


def test_an_unverified_user_is_told_why(fresh: Realm) -> None:
    answer = fresh.by("una").request("POST", "/v2/una/own/blobs/uploads/")
    assert (answer.status, answer.code) == (403, "DENIED")
    assert "Verify your email" in answer.json["errors"][0]["message"]


def test_an_access_token_has_its_scopes_at_most(fresh: Realm) -> None:
    alice = fresh.by("alice")
    for name in ("alice/app", "alice/app/part", "alice/other"):
        push_image(alice, name, make_image((100,), name), "1")
    narrow = fresh.by("alice", fresh.token("alice", "repository:alice/app*:pull").token)
    for name, status in (("alice/app", 200), ("alice/app/part", 200), ("alice/other", 403)):
        assert narrow.request("GET", f"/v2/{name}/manifests/1").status == status
    assert narrow.request("GET", "/v2/alice/absent/manifests/1").status == 403
    assert narrow.request("POST", "/v2/alice/app/blobs/uploads/").status == 403
    assert narrow.request("GET", "/v2/_catalog").json == {
        "repositories": ["alice/app", "alice/app/part"]
    }
    # What the account may not, no scope gives.
    bob = fresh.by("bob", fresh.token("bob", "repository:*:*").token)
    assert bob.request("GET", "/v2/alice/app/manifests/1").status == 404


def test_an_access_token_ends_when_it_expires(fresh: Realm) -> None:
    push_image(fresh.by("alice"), "alice/app", make_image((100,)), "1")
    client = fresh.by("alice", fresh.token("alice", seconds=1).token)
    assert client.request("GET", "/v2/alice/app/manifests/1").status == 200
    minted = ByToken(fresh.client, client.authorization)
    bearer = {"Authorization": f"Bearer {minted.ask('repository:alice/app:pull').json['token']}"}
    time.sleep(1.2)
    assert client.request("GET", "/v2/alice/app/manifests/1").status == 401
    answer = fresh.client.request("GET", "/v2/alice/app/manifests/1", headers=bearer)
    assert answer.status == 401
    assert challenged(answer)["scope"] == "repository:alice/app:pull"


# The catalog.


def test_the_catalog_shows_what_one_may_see(fresh: Realm) -> None:
    for number in range(30):
        for owner in ("alice", "bob"):
            name = f"{owner}/{number:02}"
            push_image(fresh.by(owner), name, make_image((10,), number), "1")
    push_blob(fresh.by("bob"), "bob/empty", b"no manifest")
    fresh.run("UPDATE repositories SET public = true WHERE name IN ('alice/17', 'alice/29')")
    of_bob = [f"bob/{number:02}" for number in range(30)]
    assert _catalog(fresh.by("bob"), 7) == ["alice/17", "alice/29", *of_bob]
    assert _catalog(fresh.by("bob"), 1) == ["alice/17", "alice/29", *of_bob]
    assert _catalog(fresh.by("carol"), 1) == ["alice/17", "alice/29"]
    assert _catalog(fresh.by("alice"), 50) == [f"alice/{number:02}" for number in range(30)]
    assert len(_catalog(fresh.by("root"), 9)) == 60
    some = fresh.token("bob", "repository:bob/1*:pull", "repository:bob/2*:push").token
    assert _catalog(fresh.by("bob", some), 3) == [f"bob/{number}" for number in range(10, 20)]
    for who, names in (("", ["alice/17", "alice/29"]), (basic("bob", some), of_bob[10:20])):
        assert _catalog(ByToken(fresh.client, who), 4) == names


def _catalog(client: Client, count: int) -> list[str]:
    names: list[str] = []
    target = f"/v2/_catalog?n={count}"
    while target:
        answer = client.request("GET", target)
        assert answer.status == 200
        page = answer.json["repositories"]
        assert len(page) <= count
        assert page, "no page but the last is empty"
        names += page
        target = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    return names


def test_the_catalog_takes_a_token_that_is_for_it(fresh: Realm) -> None:
    answer = fresh.client.request("GET", "/v2/_catalog")
    assert answer.status == 401
    assert challenged(answer)["scope"] == "registry:catalog:*"
    bearer = ByToken(fresh.client).ask("repository:alice/app:pull").json["token"]
    fields = {"Authorization": f"Bearer {bearer}"}
    answer = fresh.client.request("GET", "/v2/_catalog", headers=fields)
    assert answer.status == 401
    assert challenged(answer)["error"] == "insufficient_scope"
    # Nor does it become one.
    again = fresh.client.request("GET", "/token?scope=registry:catalog:*", headers=fields)
    assert again.json["scope"] == ""


def test_a_former_password_ends(fresh: Realm) -> None:
    push_image(fresh.by("alice"), "alice/app", make_image((100,)), "1")
    with fresh.another_host() as elsewhere:
        alice = Basic(elsewhere.client, "alice", PASSWORD)
        target = "/v2/alice/app/manifests/1"
        assert alice.request("GET", target).status == 200
        users.change_password(
            fresh.context.database, fresh.ids["alice"], "another password", by="operator"
        )
        changed_at = time.monotonic()
        assert alice.request("POST", "/v2/alice/app/blobs/uploads/").status == 401
        while alice.request("GET", target).status == 200:
            assert time.monotonic() - changed_at < 0.5
        alice = Basic(elsewhere.client, "alice", "another password")
        assert alice.request("GET", target).status == 200


# The same over the hosts.


def test_others_repositories_over_the_harness(serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_ACCESS="accounts")
    for name in ("alice", "bob"):
        add_user(registry.settings, name, PASSWORD)
    _check_host(HTTPClient(registry.host), Basic(HTTPClient(registry.host), "alice", PASSWORD))


def test_others_repositories_over_lambda(lambda_registry: LambdaRegistry) -> None:
    for name in ("alice", "bob"):
        add_user(lambda_registry.settings, name, PASSWORD)
    owner = Redirected(lambda_registry.host, "alice", PASSWORD)
    _check_host(HTTPClient(lambda_registry.host), owner)


def _check_host(client: Client, owner: Client) -> None:
    secret = keep_secret(owner, "alice/secret")
    # API Gateway's challenge names no scope.
    scopes = [f"repository:{name}:pull,push" for name in (secret.repository, "bob/thief")]
    bob = ByToken(client, basic("bob", PASSWORD), *scopes)
    for stranger in (client, ByToken(client, "", *scopes), Basic(client, "bob", PASSWORD), bob):
        check_hidden(secret, owner, stranger)
    check_cannot_mount(secret, Basic(client, "bob", PASSWORD), "bob/thief")
    check_cannot_mount(secret, bob, "bob/thief")
