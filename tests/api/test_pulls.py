"""How often things were pulled, by the API."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.client import push_image
from tests.identity.realm import Realm, realm
from tests.images import make_image
from tests.servers import Postgres

NAME = "alice/app"


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[Realm]:
    with realm(postgres, tmp_path) as found:
        yield found


def test_pulls_of_tags_and_manifests(world: Realm) -> None:
    alice = world.by("alice")
    digests = [
        push_image(alice, NAME, make_image((10,), f"pulls {number}"), f"v{number}")
        for number in range(3)
    ]
    for reference in ("v0", "v0", digests[0], "v1"):
        assert alice.request("GET", f"/v2/{NAME}/manifests/{reference}").status == 200
    world.context.pulls.flush()
    answer = alice.api("GET", f"/repositories/{NAME}")
    assert answer.json["pulls"] == 4
    assert datetime.fromisoformat(answer.json["pulled_at"]).tzinfo is not None
    path = f"/repositories/{NAME}/-/tag-pulls"
    first = alice.api("GET", f"{path}?limit=2").json
    assert [(each["tag"], each["digest"], each["pulls"], each["manifest_pulls"])
            for each in first["items"]] == [
        ("v0", digests[0], 3, 3), ("v1", digests[1], 1, 1)
    ]  # fmt: skip
    [last] = alice.api("GET", f"{path}?limit=2&after={first['next']}").json["items"]
    assert last == {
        "tag": "v2", "digest": digests[2], "pulls": 0, "pulled_at": None,
        "manifest_pulls": 0, "manifest_pulled_at": None,
    }  # fmt: skip

    found, after = {}, ""
    for _ in digests:
        page = alice.api("GET", f"/repositories/{NAME}/-/manifest-pulls?limit=1{after}").json
        [item] = page["items"]
        found[item["digest"]] = item["pulls"]
        after = f"&after={page['next']}"
    assert page["next"] is None
    assert found == dict(zip(digests, (3, 1, 0), strict=True))


def test_a_page_after_no_digest_is_refused(world: Realm) -> None:
    alice = world.by("alice")
    push_image(alice, NAME, make_image((10,), "no digest"), "1")
    answer = alice.api("GET", f"/repositories/{NAME}/-/manifest-pulls?after=v1")
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "after")


def test_who_may_not_pull_may_not_know(world: Realm) -> None:
    push_image(world.by("alice"), NAME, make_image((10,), "private"), "1")
    for noun in ("tag", "manifest"):
        assert world.by("bob").api("GET", f"/repositories/{NAME}/-/{noun}-pulls").status == 404
