"""Blocked digests: what is refused, to whom it is told, and that it holds at once."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.metadata import audit
from chalicelib.registry import blocks
from chalicelib.settings import Settings
from tests.accounts import command
from tests.client import (
    Answer,
    Client,
    CoreClient,
    begin,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.images import make_bytes, make_image, make_index
from tests.servers import Registry

Block = Callable[[str], object]


@pytest.fixture
def block(request: pytest.FixtureRequest, client: Client) -> Iterator[Block]:
    """Block a digest, in whichever registry the client speaks to."""
    if isinstance(client, CoreClient):
        context = client.context
        yield lambda digest: put(context, digest)
    elif "harness" in request.node.callspec.id:
        registry: Registry = request.getfixturevalue("registry")
        yield lambda digest: command(
            registry.settings, "block", "add", digest, "--reason", "a leaked key", "--public"
        )
    else:
        found = request.getfixturevalue("lambda_registry")
        other = build_context(Settings.from_environment(found.settings))
        yield lambda digest: put(other, digest)
        other.database.close()


def put(context: Context, digest: str, *, public: bool = True) -> None:
    packed = digests.pack(digest)
    blocks.add(context.database, packed, "a leaked key", public=public, by="test")


def denied(answer: Answer, digest: str) -> None:
    assert (answer.status, answer.code) == (403, "DENIED"), answer
    [error] = answer.json["errors"]
    assert error["message"] == f"{digest} is blocked at this registry: a leaked key"
    assert error["detail"] == {"digest": digest}


def test_nobody_reads_or_pushes_a_blob(client: Client, repository: str, block: Block) -> None:
    data = make_bytes(100, repository)
    digest = push_blob(client, f"{repository}/a", data)
    path = f"/v2/{repository}/a/blobs/{digest}"
    block(digest)
    denied(client.request("GET", path), digest)
    assert client.request("HEAD", path).status == 403
    headers = {"If-None-Match": f'"{digest}"'}
    denied(client.request("GET", path, headers=headers), digest)
    for name in ("a", "b"):
        uploads = f"/v2/{repository}/{name}/blobs/uploads/"
        denied(client.request("POST", f"{uploads}?digest={digest}", data), digest)
        denied(client.request("POST", f"{uploads}?mount={digest}&from={repository}/a"), digest)
        location = client.request("PATCH", begin(client, f"{repository}/{name}"), data).location
        denied(client.request("PUT", with_query(location, digest=digest)), digest)
        assert client.request("PUT", with_query(location, digest=digest)).status == 404
    # Where it is not, nothing is told.
    assert client.request("GET", f"/v2/{repository}/b/blobs/{digest}").status == 404
    assert client.request("DELETE", path).status == 202


def test_nobody_reads_or_pushes_a_manifest(client: Client, repository: str, block: Block) -> None:
    image = make_image(seed=repository)
    digest = push_image(client, repository, image, "latest")
    other = make_image(seed=repository, architecture="arm64")
    index = make_index([image])
    block(digest)
    for reference in ("latest", digest):
        path = f"/v2/{repository}/manifests/{reference}"
        denied(client.request("GET", path), digest)
        assert client.request("HEAD", path).status == 403
        denied(push_manifest(client, repository, image.manifest, reference), digest)
    denied(push_manifest(client, repository, index), digest)
    push_image(client, repository, other, "latest")
    assert client.request("GET", f"/v2/{repository}/manifests/latest").status == 200
    tags = client.request("GET", f"/v2/{repository}/tags/list").json["tags"]
    assert tags == ["latest"]


def test_nobody_pushes_a_manifest_of_a_blocked_layer(
    client: Client, repository: str, block: Block
) -> None:
    image = make_image(seed=repository)
    for blob in image.blobs:
        push_blob(client, repository, blob.data)
    [layer] = image.layers
    block(layer.digest)
    denied(push_manifest(client, repository, image.manifest, "latest"), layer.digest)


def test_what_is_not_there_yet(file_context: Context, repository: str) -> None:
    client, data = CoreClient(file_context), make_bytes(100, repository)
    digest = sha256(data)
    put(file_context, digest)
    folder = file_context.store.folder  # type: ignore[attr-defined]
    before = set(folder.rglob("*"))
    denied(
        client.request("PUT", with_query(begin(client, repository), digest=digest), data), digest
    )
    location = client.request("PATCH", begin(client, repository), data).location
    denied(client.request("PUT", with_query(location, digest=digest)), digest)
    assert {path for path in set(folder.rglob("*")) - before if path.is_file()} == set()
    assert blocks.remove(file_context.database, digests.pack(digest), by="test")
    push_blob(client, repository, data)


def test_it_is_noted_and_may_hide_its_reason(file_context: Context, repository: str) -> None:
    client = CoreClient(file_context)
    digest = push_blob(client, repository, uuid.uuid4().bytes)
    put(file_context, digest, public=False)
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}")
    assert answer.json["errors"][0]["message"] == f"{digest} is blocked at this registry."
    assert blocks.remove(file_context.database, digests.pack(digest), by="test")
    removed, added = audit.page(file_context.database, 2)
    assert (added.event, added.subject) == ("block.add", "test")
    assert added.detail == {"digest": digest, "reason": "a leaked key", "public": False}
    assert (removed.event, removed.detail) == ("block.remove", {"digest": digest})
