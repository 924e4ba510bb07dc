"""Lists: tags, the catalog, extensions."""

import pytest

from tests.client import Client, CoreClient, push_blob, push_image, push_manifest
from tests.images import make_image

TAGS = ["1.0", "1.0-rc", "Z", "_x", "a", "a.b", "b"]  # in the order of their bytes


@pytest.fixture
def tagged(client: Client, repository: str) -> str:
    """A repository with tags, pushed in no order."""
    image = make_image((100,), "tagged")
    push_image(client, repository, image)
    for tag in reversed(TAGS):
        assert push_manifest(client, repository, image.manifest, tag).status == 201
    return repository


def test_all_tags(client: Client, tagged: str) -> None:
    answer = client.request("GET", f"/v2/{tagged}/tags/list")
    assert answer.json == {"name": tagged, "tags": TAGS}
    assert "Link" not in answer.headers


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 1000, 10**30])
def test_pages_of_tags(client: Client, tagged: str, count: int) -> None:
    found: list[str] = []
    target = f"/v2/{tagged}/tags/list?n={count}"
    while target:
        answer = client.request("GET", target)
        assert len(answer.json["tags"]) <= count
        found += answer.json["tags"]
        link = answer.headers.get("Link", "")
        assert link == "" or link.endswith('>; rel="next"')
        target = link.partition(">")[0].removeprefix("<")
    assert found == TAGS


def test_after_a_tag(client: Client, tagged: str) -> None:
    for last, expected in (("a", TAGS[5:]), ("aa", TAGS[6:]), ("zzz", []), ("", TAGS)):
        answer = client.request("GET", f"/v2/{tagged}/tags/list?last={last}")
        assert answer.json["tags"] == expected


def test_no_tags_at_all(client: Client, tagged: str) -> None:
    answer = client.request("GET", f"/v2/{tagged}/tags/list?n=0")
    assert (answer.status, answer.json["tags"]) == (200, [])
    assert "Link" not in answer.headers


@pytest.mark.parametrize("query", ["n=x", "n=-1", "n=", "n=1.5", "last=%00"])
def test_a_page_that_is_none(client: Client, tagged: str, query: str) -> None:
    for path in (f"/v2/{tagged}/tags/list", "/v2/_catalog"):
        answer = client.request("GET", f"{path}?{query}")
        assert answer.status == 400


def test_tags_of_no_repository(client: Client, repository: str) -> None:
    answer = client.request("GET", f"/v2/{repository}/tags/list")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    push_blob(client, repository, b"blob")
    answer = client.request("GET", f"/v2/{repository}/tags/list")
    assert answer.json == {"name": repository, "tags": []}


def test_the_catalog(client: Client, repository: str) -> None:
    image = make_image((100,), "catalog")
    names = [f"{repository}/{name}" for name in ("a", "a-b", "a/b", "b")]
    for name in reversed(names):
        push_image(client, name, image)
    push_blob(client, f"{repository}/blobs-only", b"blob")
    found: list[str] = []
    target = f"/v2/_catalog?n=3&last={repository}"
    while target:
        answer = client.request("GET", target)
        assert answer.status == 200
        found += answer.json["repositories"]
        target = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert [name for name in found if name.startswith(repository)] == names
    assert found == sorted(found)


def test_extensions(client: Client, repository: str) -> None:
    for path in ("/v2/_oci/ext/discover", f"/v2/{repository}/_oci/ext/discover"):
        answer = client.request("GET", path)
        assert answer.status == 200
        # Where storage takes parts from clients there is one (tests/registry/test_direct.py).
        assert {each["name"] for each in answer.json["extensions"]} <= {"_openregistry"}


def test_the_version(client: Client) -> None:
    for path in ("/v2/", "/v2"):
        answer = client.request("GET", path)
        assert (answer.status, answer.json) == (200, {})
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_tags_are_seen_through_another_process(client: Client, tagged: str) -> None:
    if isinstance(client, CoreClient):
        other = CoreClient(client.context)
        other.request("DELETE", f"/v2/{tagged}/manifests/a")
        assert "a" not in client.request("GET", f"/v2/{tagged}/tags/list").json["tags"]


def test_heads_of_lists(client: Client, tagged: str) -> None:
    for path in ("/v2/_catalog", f"/v2/{tagged}/tags/list", "/v2/_oci/ext/discover"):
        head = client.request("HEAD", path)
        assert (head.status, head.body) == (200, b"")
