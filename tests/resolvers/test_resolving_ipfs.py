"""The way of an image to an IPFS node, and what happens to the node meanwhile."""

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.jobs import Job, resolving
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import resolver_progress
from chalicelib.metadata.database import Database
from tests.client import CoreClient, push_image
from tests.clients.programs import Run, client
from tests.hosts.wire import until
from tests.images import Image, make_image, write_layout
from tests.resolvers.copies import RESOLVING, delete, errors, let_go, states
from tests.servers import Kubo, Registry

pytestmark = pytest.mark.long


@pytest.fixture
def crane(tmp_path: Path) -> Run:
    return client("crane", tmp_path)


def with_node(context: Context, url: str) -> Context:
    """The registry with an IPFS node, to which all public images go at once."""
    context.database.run("DELETE FROM resolver_choices")
    context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{ipfs}', 'test')"
    )
    settings = replace(context.settings, new_repositories="public", grace=0, ipfs_nodes=(url,))
    return build_context(settings)


@pytest.fixture
def working() -> Iterator[Callable[[Context], None]]:
    """Have a worker work in this process until the test ends."""
    stop, threads = threading.Event(), list[threading.Thread]()

    def begin(context: Context) -> None:
        thread = threading.Thread(target=Worker(context, RESOLVING).run, args=[stop])
        thread.start()
        threads.append(thread)

    yield begin
    stop.set()
    for thread in threads:
        thread.join()


def cids(database: Database) -> dict[str, str]:
    """The CIDs of what is there, by digest."""
    rows = database.run("SELECT digest, cid FROM resolver_copies WHERE state = 'there'")
    return {digests.unpack(digest): cid for digest, cid in rows}


def has(node: Kubo, found: dict[str, str], image: Image) -> None:
    """The node keeps every content of an image, byte for byte."""
    pinned = node.run("pin", "ls", "--type=recursive", "--quiet", api=True).stdout.split()
    for each in (*image.blobs, image.manifest):
        cid = found[each.digest]
        assert cid in pinned
        assert cat(node, cid) == each.data


def cat(node: Kubo, cid: str) -> bytes:
    """What `ipfs cat` gives whoever has a node, and no registry."""
    api = "/ip4/127.0.0.1/tcp/" + node.url.rpartition(":")[2]
    command = [str(node.program), "--api", api, "cat", cid]
    environment = {**os.environ, **node.environment()}
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def wait_for(database: Database, image: Image, within: float = 60) -> dict[str, str]:
    """The CIDs, once all of an image is there."""
    wanted = {each.digest for each in (*image.blobs, image.manifest)}
    for _ in until(within):
        found = cids(database)
        if wanted <= found.keys():
            return found
    raise AssertionError(errors(database))


def test_what_is_pushed_is_found_on_ipfs(
    crane: Run,
    kubo: Kubo,
    serve: Callable[..., Registry],
    database_url: str,
    tmp_path: Path,
) -> None:
    registry = serve(
        OPENREGISTRY_DATABASE_URL=database_url,
        OPENREGISTRY_IPFS_NODES=kubo.url,
        OPENREGISTRY_NEW_REPOSITORIES="public",
    )
    image = make_image((1000, 3_000_000, 0), seed="found on ipfs")
    with closing(Database(database_url)) as database:
        database.run(
            "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{ipfs}', 'test')"
        )
        crane("push", write_layout(tmp_path / "layout", [image]), f"{registry.host}/a/b:1")
        has(kubo, wait_for(database, image), image)


def test_a_node_that_is_down_is_waited_for(
    jobs_context: Context, new_kubo: Callable[[], Kubo], working: Callable[[Context], None]
) -> None:
    node = new_kubo()
    context = with_node(jobs_context, node.url)
    database = context.database
    working(context)
    before = make_image((1000,), seed="before")
    push_image(CoreClient(context), "a/b", before)
    wait_for(database, before)
    node.kill9()
    image = make_image((1000, 2000), seed="while it is down")
    push_image(CoreClient(context), "a/b", image)
    for _ in until(30):
        if errors(database):
            break
    time.sleep(8)
    assert {entry[0] for entry in database.run("SELECT tries FROM jobs")} <= {0, 1}
    [(there, down)] = {
        (total.state, total.failing > 0)
        for total in resolver_progress.totals(database)
        if total.state == "waiting"
    }
    assert (there, down) == ("waiting", True)
    node.start()
    has(node, wait_for(database, image), image)
    assert errors(database) == []


def test_a_node_that_is_killed_in_the_middle_gets_it_again(
    jobs_context: Context, new_kubo: Callable[[], Kubo], working: Callable[[Context], None]
) -> None:
    node = new_kubo()
    context = with_node(jobs_context, node.url)
    image = make_image((150_000_000,), seed="killed")
    push_image(CoreClient(context), "a/b", image)
    working(context)
    store = node.directory / "repo"
    for _ in until(60):
        # Files are renamed meanwhile.
        with suppress(FileNotFoundError):
            if sum(file.stat().st_size for file in store.rglob("*.data")) > 30_000_000:
                break
    node.kill9()
    assert image.layers[0].digest not in cids(context.database)
    node.start()
    has(node, wait_for(context.database, image, 120), image)


class Liar:
    """Stands between the registry and a node, and changes the CIDs that the node says."""

    def __init__(self, target: str) -> None:
        self._target = int(target.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lies = True
        self._truths: dict[bytes, bytes] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                for source, sink, honest in ((here, there, True), (there, here, False)):
                    threading.Thread(
                        target=self._carry, args=(source, sink, honest), daemon=True
                    ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, honest: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if honest:
                    for lie, truth in self._truths.items():
                        data = data.replace(lie, truth)
                elif self.lies:
                    data = re.sub(rb"baf[a-z2-7]{56}", self._lie, data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _lie(self, truth: "re.Match[bytes]") -> bytes:
        lie = truth.group()[:-4] + b"aaaa"
        self._truths[lie] = truth.group()
        return lie


def test_a_cid_that_is_another_one_is_told(jobs_context: Context, kubo: Kubo) -> None:
    with closing(Liar(kubo.url)) as liar:
        context = with_node(jobs_context, liar.url)
        database = context.database
        image = make_image((1000,), seed="lied about")
        push_image(CoreClient(context), "a/b", image)
        Worker(context, RESOLVING).drain()
        failures = resolver_progress.failures(database)
        assert {each.digest for each in failures} == {
            digests.pack(each.digest) for each in (*image.blobs, image.manifest)
        }
        for each in failures:
            assert each.given_up
            assert re.search(r"says that sha256:.* has the CID baf\w+aaaa; it has baf", each.error)
        assert cids(database) == {}
        liar.lies = False
        assert resolver_progress.retry(database) == 3
        Worker(context, RESOLVING).drain()
        has(kubo, cids(database), image)


def test_what_is_deleted_is_unpinned_and_collected(
    jobs_context: Context, new_kubo: Callable[[], Kubo]
) -> None:
    node = new_kubo()
    context = with_node(jobs_context, node.url)
    image, other = make_image((1000,), seed="goes"), make_image((1000,), seed="stays")
    for each in (image, other):
        push_image(CoreClient(context), "a/b", each)
    Worker(context, RESOLVING).drain()
    found = cids(context.database)
    has(node, found, image)
    delete(CoreClient(context), "a/b", image.manifest.digest)
    let_go(context)
    node.run("repo", "gc", "--quiet", api=True)
    for blob in (*image.blobs, image.manifest):
        done = node.run("block", "stat", "--offline", found[blob.digest], check=False, api=True)
        assert done.returncode != 0
    has(node, found, other)
    assert set(states(context.database)) == {
        content.digest for content in (*other.blobs, other.manifest)
    }


def test_what_a_node_has_lost_is_put_there_again(
    jobs_context: Context, new_kubo: Callable[[], Kubo]
) -> None:
    node = new_kubo()
    context = with_node(jobs_context, node.url)
    image = make_image((1000,), seed="lost there")
    push_image(CoreClient(context), "a/b", image)
    Worker(context, RESOLVING).drain()
    for cid in cids(context.database).values():
        node.run("pin", "rm", cid, api=True)
    node.run("repo", "gc", "--quiet", api=True)
    context.database.run("UPDATE resolver_copies SET checked_at = now() - interval '2 days'")
    resolving.check(context, Job(0, "", "", {}, 1, 1))
    assert cids(context.database) == {}
    Worker(context, RESOLVING).drain()
    has(node, cids(context.database), image)
