"""Blobs that a network has too: where they come from, and what stands in for what."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blobs as rows
from chalicelib.registry import blobs, networks
from chalicelib.resolvers import blocks
from chalicelib.resolvers.unixfs import UNIXFS_V1_2025
from chalicelib.storage import NoSuchObject, StorageError
from tests.client import Answer, CoreClient, push_blob, push_manifest
from tests.images import CONFIG, LAYER, MANIFEST, Content, make_bytes
from tests.jobs.conftest import jobs_context
from tests.resolvers.trees import Memory, tree

__all__ = ["jobs_context"]

DATA = make_bytes((3 << 20) + 5)
CID, BLOCKS = tree(DATA, UNIXFS_V1_2025)
FAULTS = ("gone", "down", "hangs", "breaks", "falls silent")
GATEWAY = "https://gateway.example"


class Ailing:
    """A store that presigns as S3 does, and may have faults."""

    name = "filesystem"

    def __init__(self, store: Any) -> None:
        self._store = store
        self.fault = ""
        self.asked = 0
        self.released = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def presign(self, method: str, key: str, seconds: int) -> str:
        return f"https://storage.example/{key}"

    def size(self, key: str) -> int | None:
        self._fail()
        found: int | None = self._store.size(key)
        return None if self.fault == "gone" else found

    def read(self, key: str, offset: int, length: int) -> "Pieces":
        self._fail()
        if self.fault == "gone":
            raise NoSuchObject("It is gone.")
        return Pieces(self, self._store.read(key, offset, length))

    def _fail(self) -> None:
        self.asked += 1
        if self.fault == "hangs":
            self.released.wait(60)
        if self.fault == "down":
            raise StorageError("It is down.")


class Pieces:
    def __init__(self, store: Ailing, body: Any) -> None:
        self._store = store
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for number, piece in enumerate(self._body):
            yield piece
            if number == 0 and self._store.fault == "breaks":
                raise StorageError("It broke.")
            if number == 0 and self._store.fault == "falls silent":
                self._store.released.wait(60)

    def close(self) -> None:
        self._body.close()


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of whom nothing is known yet."""
    monkeypatch.setattr(blocks, "_shunned", {})
    monkeypatch.setattr(blocks, "_probed", {})
    for module in (blocks, networks):
        monkeypatch.setattr(module, "PATIENCE", 0.3)


@pytest.fixture
def network() -> Memory:
    return Memory("memory", BLOCKS)


@pytest.fixture
def store(jobs_context: Context) -> Iterator[Ailing]:
    store = Ailing(jobs_context.store)
    yield store
    store.released.set()


@pytest.fixture
def context(jobs_context: Context, store: Ailing, network: Memory) -> Context:
    """A registry whose public images go to a network."""
    jobs_context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{memory}', 'test')"
    )
    jobs_context.resolvers.own["memory"] = network  # type: ignore[assignment]
    return with_downloads(replace(jobs_context, store=store), "stream")


def with_downloads(context: Context, downloads: str) -> Context:
    return replace(context, settings=replace(context.settings, downloads=downloads))


@pytest.fixture
def digest(context: Context) -> str:
    """A blob that is in storage and on the network."""
    digest = push_blob(CoreClient(context), "a/b", DATA)
    context.database.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid)"
        " VALUES (:digest, 'memory', :size, 'there', :cid)",
        digest=digests.pack(digest),
        size=len(DATA),
        cid=CID,
    )
    return digest


def ask(
    context: Context, digest: str, method: str = "GET", query: str = "", **headers: str
) -> Answer:
    target = f"/v2/a/b/blobs/{digest}{query}"
    return CoreClient(context).request(method, target, headers=headers)


def lose(context: Context, digest: str) -> None:
    found = rows.copy(context.database, digests.pack(digest), context.store.name)
    assert found is not None
    context.store.delete([found.key])


def work(context: Context) -> None:
    Worker(context, [kind for kind in KINDS if kind.name == "heal"]).drain()


def jobs(context: Context) -> int:
    return int(context.database.run("SELECT count(*) FROM jobs WHERE kind = 'heal'")[0][0])


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_lost_blob_is_served_and_healed(
    kind: str, context: Context, digest: str, network: Memory
) -> None:
    if kind == "file":
        # Whose files are sent without being looked at.
        context = replace(context, store=context.store._store)  # type: ignore[attr-defined]
    lose(context, digest)
    got = ask(context, digest)
    assert (got.status, got.body == DATA) == (200, True)
    assert got.headers["ETag"] == f'"{digest}"'
    part = ask(context, digest, Range=f"bytes={len(DATA) - 7}-")
    assert (part.status, part.body) == (206, DATA[-7:])
    head = ask(context, digest, "HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    assert jobs(context) == 1
    work(context)
    asked = len(network.asked)
    assert ask(context, digest).body == DATA
    assert (len(network.asked), jobs(context)) == (asked, 0)


def test_what_is_told_to_be_here_may_be_named(context: Context, digest: str) -> None:
    lose(context, digest)
    client = CoreClient(context)
    assert ask(context, digest).status == ask(context, digest, "HEAD").status == 200
    layer = {"mediaType": LAYER, "digest": digest, "size": len(DATA)}
    config = Content(CONFIG, b"{}")
    push_blob(client, "a/b", config.data)
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor}
    manifest = Content(MANIFEST, json.dumps({**body, "layers": [layer]}).encode())
    context.database.run("UPDATE resolver_copies SET state = 'leaving'")
    refused = push_manifest(client, "a/b", manifest)
    assert (refused.status, refused.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    context.database.run("UPDATE resolver_copies SET state = 'there'")
    assert push_manifest(client, "a/b", manifest).status == 201


@pytest.mark.parametrize("fault", FAULTS)
def test_storage_with_a_fault_is_left_for_the_network(
    fault: str, context: Context, digest: str, store: Ailing, network: Memory
) -> None:
    store.fault = fault
    began = time.monotonic()
    assert ask(context, digest).body == DATA
    assert network.asked
    assert (time.monotonic() - began > 0.3) == (fault in ("hangs", "falls silent"))
    assert jobs(context) == 1
    asked = store.asked
    assert ask(context, digest).body == DATA
    assert store.asked == asked, "the network comes first for a while"


@pytest.mark.parametrize("fault", ["down", "hangs", "lies"])
@pytest.mark.parametrize("healthy", [0, 3])
def test_a_network_with_a_fault_is_left_for_storage(
    fault: str, healthy: int, context: Context, digest: str, network: Memory
) -> None:
    network.fault, network.healthy = fault, healthy
    begun = time.monotonic()
    assert ask(context, digest, query="?source=network").body == DATA
    assert time.monotonic() - begun < blocks.LONGEST / 2
    network.released.set()


def test_neither_has_it(context: Context, digest: str, store: Ailing, network: Memory) -> None:
    store.fault = network.fault = "down"
    answer = ask(context, digest)
    assert (answer.status, answer.code) == (503, "UNAVAILABLE")


def test_the_resolver_is_not_there_now(context: Context, digest: str, store: Ailing) -> None:
    del context.resolvers.own["memory"]
    assert ask(context, digest, query="?source=network").body == DATA
    # Found lost, and known to be; in a bucket, and in a folder.
    for each in (context, replace(context, store=store._store)):
        context.database.run("UPDATE blob_copies SET missing = false, key = 'lost'")
        answers = [ask(each, digest) for _ in range(2)]
        assert [(each.status, each.code) for each in answers] == [(503, "UNAVAILABLE")] * 2


def test_a_blob_that_no_network_has_is_as_it_was(
    context: Context, digest: str, store: Ailing
) -> None:
    context.database.run("DELETE FROM resolver_copies")
    store.fault = "down"
    assert ask(context, digest).status == 503
    store.fault = "gone"
    assert [ask(context, digest, method).status for method in ("GET", "HEAD")] == [404, 404]
    store.fault = ""
    assert ask(context, digest, "HEAD").status == 200
    assert jobs(context) == 0


def test_only_a_repository_with_resolvers_looks_there(
    context: Context, digest: str, network: Memory
) -> None:
    context.database.run("UPDATE repositories SET resolvers = '{other}'")
    assert ask(context, digest, query="?source=network").body == DATA
    lose(context, digest)
    assert [ask(context, digest).status for _ in range(2)] == [404, 404]
    assert not network.asked


def test_where_a_blob_comes_from_by_request(
    context: Context, digest: str, store: Ailing, network: Memory
) -> None:
    assert ask(context, digest).body == DATA
    assert not network.asked
    assert ask(context, digest, query="?source=gateway").status == 200, "there is none"
    network.gateways = (GATEWAY,)
    got = ask(context, digest, query="?source=gateway")
    assert (got.status, got.location) == (307, f"{GATEWAY}/ipfs/{CID}")
    assert got.headers["Cache-Control"] == "no-store"
    assert ask(context, digest, "HEAD", "?source=gateway").status == 200
    asked = store.asked
    assert ask(context, digest, query="?source=network").body == DATA
    assert store.asked == asked
    wrong = ask(context, digest, query="?source=elsewhere")
    assert (wrong.status, wrong.code) == (400, "SOURCE_INVALID")
    assert ask(context, digest, query="?source=network", **{"If-None-Match": "*"}).status == 304


def test_where_a_blob_comes_from_by_setting(
    context: Context, digest: str, store: Ailing, network: Memory
) -> None:
    network.gateways = (GATEWAY,)
    assert ask(with_downloads(context, "network"), digest).body == DATA
    assert network.asked
    by_gateway = with_downloads(context, "gateway")
    assert ask(by_gateway, digest).location == f"{GATEWAY}/ipfs/{CID}"
    assert "storage.example" in ask(by_gateway, digest, query="?source=storage").location
    context.database.run("DELETE FROM resolver_copies")
    assert "storage.example" in ask(by_gateway, digest).location
    assert ask(with_downloads(context, "network"), digest).status == 200


@pytest.mark.parametrize("fault", ["gone", "down", "hangs"])
def test_no_client_is_sent_to_storage_in_vain(
    fault: str, context: Context, digest: str, store: Ailing, network: Memory
) -> None:
    context = with_downloads(context, "redirect")
    assert "storage.example" in ask(context, digest).location
    store.fault = fault
    assert ask(context, digest).body == DATA
    assert jobs(context) == 1
    # Where a function can send no large blob, a gateway does.
    network.gateways = (GATEWAY,)
    on_lambda = replace(context, head_by_redirect=True)
    for method in ("GET", "HEAD"):
        assert ask(on_lambda, digest, method).location == f"{GATEWAY}/ipfs/{CID}"


def test_a_gateway_that_fails_comes_after_the_others(
    context: Context, digest: str, network: Memory
) -> None:
    network.gateways = (GATEWAY, "https://other.example")
    blocks.shun(GATEWAY, 30, "it is down")
    got = ask(context, digest, query="?source=gateway")
    assert got.location == f"https://other.example/ipfs/{CID}"


def test_a_client_that_goes_away_leaves_nothing_behind(context: Context, digest: str) -> None:
    found = rows.find(context.database, "a/b", digests.pack(digest), context.store.name)
    assert found is not None
    for wanted in blobs.SOURCES:
        before = threading.active_count()
        body = networks.open_blob(context, digests.pack(digest), found, 0, len(DATA), wanted)
        body.close()
        end = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.02)
        assert threading.active_count() <= before
