"""Blocked digests in the API: who blocks them, and how it is told."""

from tests.api.acme import As
from tests.api.conftest import World
from tests.api.people import events
from tests.client import push_blob, sha256

PATH = "/admin/blocked-digests"


def test_an_administrator_blocks_a_digest(world: World) -> None:
    alice = As(world.client, "alice")
    digest = push_blob(alice, "alice/app", b"a secret")
    answer = world.call("PUT", f"{PATH}/{digest}", {"reason": "leaked"}, by="root")
    assert answer.status == 200
    block = answer.json
    assert block.pop("repositories") == ["alice/app"]
    assert block.pop("blocked_at")
    by = f"account:{world.ids['root']}"
    assert block == {"digest": digest, "reason": "leaked", "public": False, "blocked_by": by}
    answer = alice.request("HEAD", f"/v2/alice/app/blobs/{digest}")
    assert answer.status == 403
    answer = alice.request("GET", f"/v2/alice/app/blobs/{digest}")
    assert (answer.status, answer.code) == (403, "DENIED")
    assert b"leaked" not in answer.body
    body = {"reason": "leaked", "public": True}
    assert world.call("PUT", f"{PATH}/{digest}", body, by="root").status == 200
    assert b"leaked" in alice.request("GET", f"/v2/alice/app/blobs/{digest}").body
    assert world.call("DELETE", f"{PATH}/{digest}", by="root").status == 204
    assert world.call("DELETE", f"{PATH}/{digest}", by="root").status == 404
    assert alice.request("GET", f"/v2/alice/app/blobs/{digest}").status == 200
    assert events(world)[-3:] == ["block.add", "block.add", "block.remove"]


def test_they_are_listed_in_pages(world: World) -> None:
    wanted = sorted(sha256(bytes([number])) for number in range(3))
    for digest in wanted:
        assert world.call("PUT", f"{PATH}/{digest}", {"reason": "x"}, by="root").status == 200
    found, after = [], ""
    while True:
        answer = world.call("GET", f"{PATH}?limit=2&after={after}", by="root").json
        found += [each["digest"] for each in answer["items"]]
        after = answer["next"]
        if after is None:
            break
    assert found == wanted
    assert world.call("GET", f"{PATH}?after=x", by="root").status == 422


def test_nobody_else_does(world: World) -> None:
    digest = sha256(b"anything")
    for by, status in (("alice", 403), ("", 401)):
        for method, path, body in (
            ("GET", PATH, None),
            ("PUT", f"{PATH}/{digest}", {"reason": "x"}),
            ("DELETE", f"{PATH}/{digest}", None),
        ):
            assert world.call(method, path, body, by=by).status == status
    assert world.call("PUT", f"{PATH}/sha256:ab", {"reason": "x"}, by="root").status == 404
    for body in ({"reason": ""}, {"reason": " "}, {}):
        assert world.call("PUT", f"{PATH}/{digest}", body, by="root").status == 422
