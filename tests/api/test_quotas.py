"""Quotas in the API: who sees them, who sets them, and what an administrator of the registry reads
in the audit log."""

from typing import Any

from chalicelib.identity import users
from tests.api.acme import As, add_organisation, events
from tests.api.conftest import World
from tests.client import push_blob, sha256


def test_members_see_what_is_used(world: World) -> None:
    add_organisation(world, "acme")
    push_blob(As(world.client, "alice"), "acme/app", b"12345")
    none = {"own": False, "bytes": None, "repositories": None}
    used = {"used_bytes": 5, "used_repositories": 1}
    assert world.call("GET", "/accounts/acme/quota", by="bob").json == {**none, **used}
    body = {"bytes": 10, "repositories": 2}
    assert world.call("PUT", "/accounts/acme/quota", body, by="root").json == {
        "own": True, **body, **used,
    }  # fmt: skip
    assert world.call("GET", "/accounts/acme/quota", by="bob").json["bytes"] == 10
    assert world.call("GET", "/accounts/alice/quota", by="bob").status == 404
    assert world.call("GET", "/accounts/acme/quota").status == 401


def test_administrators_alone_set_them(world: World) -> None:
    acme = add_organisation(world, "acme")
    for path in ("/accounts/acme/quota", "/admin/quota"):
        for method in ("PUT", "DELETE"):
            assert world.call(method, path, {"bytes": 1}, by="alice").status == 403
    path = "/accounts/acme/quota"
    assert world.call("PUT", path, {"bytes": 5}, by="root").status == 200
    assert world.call("DELETE", path, by="root").status == 204
    assert world.call("DELETE", path, by="root").status == 404
    by = f"account:{world.ids['root']}"
    assert events(world, acme.id)[-2:] == [
        ("quota.set", by, {"bytes": 5, "repositories": None}),
        ("quota.unset", by, {}),
    ]
    wrong: list[dict[str, Any]] = [
        {"bytes": -1}, {"bytes": 1 << 63}, {"bytes": "1G"}, {"size": 1},
    ]  # fmt: skip
    for body in wrong:
        assert world.call("PUT", path, body, by="root").status == 422
    for name in ("nobody", "acme+ci"):
        assert world.call("PUT", f"/accounts/{name}/quota", {}, by="root").status == 404


def test_a_default(world: World) -> None:
    path = "/admin/quota"
    assert world.call("GET", path, by="root").json == {"bytes": None, "repositories": None}
    body = {"bytes": 10, "repositories": None}
    assert world.call("PUT", path, body, by="root").json == body
    assert world.call("GET", path, by="root").json == body
    shown = world.call("GET", "/accounts/alice/quota", by="alice").json
    assert (shown["own"], shown["bytes"]) == (False, 10)
    data = b"more than ten bytes"
    path = f"/v2/alice/app/blobs/uploads/?digest={sha256(data)}"
    assert As(world.client, "alice").request("POST", path, data).code == "DENIED"
    assert world.call("DELETE", "/admin/quota", by="root").status == 204
    assert world.call("DELETE", "/admin/quota", by="root").status == 404


def test_repositories_made_and_renamed_count(world: World) -> None:
    add_organisation(world, "acme")
    assert world.call("PUT", "/accounts/acme/quota", {"repositories": 1}, by="root").status == 200
    for name, status in (("acme/a", 201), ("acme/b", 403), ("alice/b", 201)):
        answer = world.call("POST", "/repositories", {"name": name}, by="alice")
        assert answer.status == status
    path = "/repositories/alice/b/-/rename"
    answer = world.call("POST", path, {"name": "acme/b"}, by="alice")
    assert answer.status == 403
    assert answer.json["detail"].startswith("The quota of acme is 1 repositories: it has 1,")
    assert world.call("DELETE", "/repositories/acme/a", by="alice").status == 204
    assert world.call("POST", path, {"name": "acme/b"}, by="alice").status == 204


def test_a_deleted_account_leaves_no_name_behind(world: World) -> None:
    assert world.call("PUT", "/accounts/bob/quota", {"bytes": 1}, by="root").status == 200
    users.delete(world.context.database, world.ids["bob"], by="operator")
    for table in ("quotas", "quota_usage", "quota_blobs"):
        assert world.context.database.run(f"SELECT FROM {table}") == []
