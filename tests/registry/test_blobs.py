"""Blobs: reads, ranges, conditions, and the border between repositories."""

from dataclasses import replace
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.context import Context
from chalicelib.http import RegistryError
from chalicelib.registry.blobs import region
from tests.client import Client, CoreClient, push_blob, sha256
from tests.images import make_bytes

DATA = make_bytes(2048)

# Behind a redirect these answers are storage's own.
served_here = pytest.mark.parametrize("client", ["core", "harness"], indirect=True)


@served_here
def test_get_and_head(client: Client, repository: str) -> None:
    digest = push_blob(client, repository, DATA)
    path = f"/v2/{repository}/blobs/{digest}"
    got, head = client.request("GET", path), client.request("HEAD", path)
    assert (got.status, got.body, head.status, head.body) == (200, DATA, 200, b"")
    for answer in (got, head):
        assert answer.headers["Content-Length"] == "2048"
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["ETag"] == f'"{digest}"'
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Accept-Ranges"] == "bytes"
    for method in ("GET", "HEAD"):
        again = client.request(method, path, headers={"If-None-Match": f'"{digest}"'})
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=-5000", 0, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-0", 0, 1),
        ("bytes=2047-2047", 2047, 2048),
    ],
)
def test_ranges(client: Client, repository: str, asked: str, start: int, stop: int) -> None:
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path, headers={"Range": asked})
    assert (answer.status, answer.body) == (206, DATA[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/2048"
    assert answer.headers["Content-Length"] == str(stop - start)


@served_here
@pytest.mark.parametrize(("asked", "start"), [(f"bytes=5-{10**20}", 5), (f"bytes=-{10**20}", 0)])
def test_ranges_past_any_size(client: Client, repository: str, asked: str, start: int) -> None:
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path, headers={"Range": asked})
    assert (answer.status, answer.body) == (206, DATA[start:])


@pytest.mark.parametrize(
    "asked", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", f"bytes={10**20}-"]
)
def test_ranges_that_are_not_there(client: Client, repository: str, asked: str) -> None:
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path, headers={"Range": asked})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */2048")


@served_here
@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes", "bytes=a-b", "bytes=--5"])
def test_ranges_that_are_answered_with_the_whole(
    client: Client, repository: str, asked: str
) -> None:
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path, headers={"Range": asked})
    assert (answer.status, answer.body) == (200, DATA)


@served_here
def test_a_range_of_another_version(client: Client, repository: str) -> None:
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    for condition, status in (('"other"', 200), (f'"{sha256(DATA)}"', 206)):
        headers = {"Range": "bytes=0-9", "If-Range": condition}
        assert client.request("GET", path, headers=headers).status == status


@given(st.integers(0, 50), st.text("0123456789-", max_size=8))
def test_any_range(size: int, text: str) -> None:
    first, _, last = text.partition("-")
    beyond = size == 0 or (int(first) >= size if first.isdigit() else False)
    try:
        found = region(f"bytes={text}", size)
    except RegistryError as error:
        refused = error
    else:
        if found is not None:
            start, length = found
            assert 0 <= start < start + length <= size
        return
    backward = first.isdigit() and last.isdigit() and int(last) < int(first)
    empty = first == "" and last.strip("0") == ""
    assert refused.status == 416
    assert beyond or backward or empty


def test_blobs_belong_to_repositories(client: Client, repository: str) -> None:
    digest = push_blob(client, f"{repository}/a", DATA)
    for method in ("GET", "HEAD", "DELETE"):
        answer = client.request(method, f"/v2/{repository}/b/blobs/{digest}")
        assert answer.status == 404
    push_blob(client, f"{repository}/b", DATA)
    assert client.request("DELETE", f"/v2/{repository}/a/blobs/{digest}").status == 202
    answer = client.request("DELETE", f"/v2/{repository}/a/blobs/{digest}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert client.request("GET", f"/v2/{repository}/a/blobs/{digest}").status == 404
    assert client.request("GET", f"/v2/{repository}/b/blobs/{digest}").body == DATA


@pytest.mark.parametrize(
    "digest", ["sha256:abc", "latest", "sha256:" + "G" * 64, "md5:" + "0" * 32]
)
def test_what_is_no_digest(client: Client, repository: str, digest: str) -> None:
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/v2/{repository}/blobs/{digest}")
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


def test_downloads_by_redirect(s3_context: Context, repository: str) -> None:
    client = CoreClient(s3_context)
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path)
    assert (answer.status, answer.headers["Cache-Control"]) == (307, "no-store")
    with urlopen(Request(answer.location, headers={"Range": "bytes=5-9"})) as part:
        assert part.read() == DATA[5:10]
    head = client.request("HEAD", path)
    assert (head.status, head.headers["Content-Length"]) == (200, "2048")


def test_downloads_streamed_through(s3_context: Context, repository: str) -> None:
    settings = replace(s3_context.settings, downloads="stream")
    client = CoreClient(replace(s3_context, settings=settings))
    path = f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}"
    answer = client.request("GET", path)
    assert (answer.status, answer.body) == (200, DATA)
    answer = client.request("GET", path, headers={"Range": "bytes=-7"})
    assert (answer.status, answer.body) == (206, DATA[-7:])


def test_heads_by_redirect(s3_context: Context, repository: str) -> None:
    """For a front that loses the Content-Length of answers to HEAD."""
    client = CoreClient(replace(s3_context, head_by_redirect=True))
    answer = client.request("HEAD", f"/v2/{repository}/blobs/{push_blob(client, repository, DATA)}")
    assert answer.status == 307
    with urlopen(Request(answer.location, method="HEAD")) as head:
        assert head.headers["Content-Length"] == "2048"
