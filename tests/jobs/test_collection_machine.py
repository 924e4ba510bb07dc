"""Collection against a model: pushes, mounts, HEADs, deletions and collectors in any order, a
collector also in the middle of a push, while the clock moves.

The model knows until when a client may rely on what it was told. What an acknowledged manifest
needs is there as long as the manifest must be; what nothing needs any more is gone at the end.
"""

import importlib
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.jobs import collection
from chalicelib.jobs.collection import Report
from chalicelib.settings import Settings
from tests.client import CoreClient, push_blob, push_manifest, sha256
from tests.images import INDEX, MANIFEST, Content
from tests.jobs.test_collection import pass_time
from tests.servers import Postgres

GRACE = 1000
REPOSITORIES = ("machine/a", "machine/b")
BLOBS = [b"%d" % number for number in range(4)]
NUMBERS = {sha256(data): number for number, data in enumerate(BLOBS)}
POINTS = (
    "",
    "chalicelib.metadata.repositories.ensure",
    "chalicelib.metadata.blobs.linked",
    "chalicelib.metadata.blobs.lock",
    "chalicelib.metadata.manifests.add",
    "chalicelib.metadata.tags.move",
    "chalicelib.metadata.uploads.commit",
)
"""Functions of a push after which a collector may run; none: it does not."""


def _image(*numbers: int) -> Content:
    config, *layers = [Content("application/x-test", BLOBS[number]) for number in numbers]
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    return Content(MANIFEST, json.dumps(value).encode())


IMAGES = [_image(0, 1), _image(1, 2), _image(0, 3)]
INDEXES = [
    Content(
        INDEX,
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [image.descriptor for image in images],
            }
        ).encode(),
    )
    for images in (IMAGES[:2], IMAGES[1:])
]
MANIFESTS = {content.digest: content for content in (*IMAGES, *INDEXES)}


def _named(content: Content) -> set[str]:
    """Digests of the blobs or manifests that a manifest names."""
    value = json.loads(content.data)
    found = value.get("manifests") or [value["config"], *value["layers"]]
    return {each["digest"] for each in found}


class Collected(RuleBasedStateMachine):
    """Two repositories that share blobs."""

    context: Context

    repositories = st.sampled_from(REPOSITORIES)
    numbers = st.integers(0, len(BLOBS) - 1)
    manifests = st.sampled_from(sorted(MANIFESTS))
    points = st.sampled_from(POINTS)
    tags = st.sampled_from(["", "x", "y"])

    def __init__(self) -> None:
        super().__init__()
        self.client = CoreClient(self.context)
        self.now = 0.0
        self.promised: dict[tuple[str, str], float] = {}
        self.there: set[tuple[str, str]] = set()
        self.tagged: dict[tuple[str, str], str] = {}

    def promise(self, repository: str, digest: str, seconds: float) -> None:
        until = max(self.promised.get((repository, digest), 0), self.now + seconds)
        self.promised[repository, digest] = until

    def relies(self, repository: str, digest: str) -> bool:
        """Whether a client may rely on what it was told. (A second is for the machine to work.)"""
        return self.promised.get((repository, digest), 0) > self.now + 60

    def must_be(self, repository: str, digest: str) -> bool:
        """Whether a manifest that was acknowledged may not have been collected."""
        if (repository, digest) not in self.there:
            return False
        return (
            self.relies(repository, digest)
            or digest in (self.tagged[key] for key in self.tagged if key[0] == repository)
            or any(
                digest in _named(index) and self.must_be(repository, index.digest)
                for index in INDEXES
            )
        )

    def held(self, repository: str, digest: str) -> bool:
        """Whether a manifest that must be there names a blob or a manifest."""
        return any(
            digest in _named(content) and self.must_be(repository, name)
            for name, content in MANIFESTS.items()
        )

    @contextmanager
    def collecting(self, point: str) -> Iterator[None]:
        """Run a collector once a function was called, in the transaction that it was called in."""
        with pytest.MonkeyPatch.context() as patch:
            thread = threading.Thread(target=self.collect)
            if point:
                module, _, name = point.rpartition(".")
                real = getattr(importlib.import_module(module), name)

                def also(*arguments: Any, **named: Any) -> Any:
                    result = real(*arguments, **named)
                    if not thread.ident:
                        thread.start()
                        # It may wait for a lock of this transaction.
                        thread.join(0.3)
                    return result

                patch.setattr(point, also)
            yield
        if thread.ident:
            thread.join()

    @rule(repository=repositories, number=numbers, point=points)
    def push_blob(self, repository: str, number: int, point: str) -> None:
        with self.collecting(point):
            self.promise(repository, push_blob(self.client, repository, BLOBS[number]), GRACE)

    @rule(number=numbers, backwards=st.booleans(), point=points)
    def mount(self, number: int, backwards: bool, point: str) -> None:
        source, target = reversed(REPOSITORIES) if backwards else REPOSITORIES
        digest = sha256(BLOBS[number])
        must = self.relies(source, digest) or self.held(source, digest)
        with self.collecting(point):
            answer = self.client.request(
                "POST", f"/v2/{target}/blobs/uploads/?mount={digest}&from={source}"
            )
        if answer.status == 201:
            self.promise(target, digest, GRACE)
        else:
            assert not must

    def head_blob(self, repository: str, number: int) -> bool:
        digest = sha256(BLOBS[number])
        must = self.relies(repository, digest) or self.held(repository, digest)
        if self.client.request("HEAD", f"/v2/{repository}/blobs/{digest}").status == 200:
            self.promise(repository, digest, GRACE / 2)
            return True
        assert not must
        return False

    @rule(repository=repositories, digest=manifests)
    def head_manifest(self, repository: str, digest: str) -> None:
        must = self.must_be(repository, digest)
        if self.client.request("HEAD", f"/v2/{repository}/manifests/{digest}").status == 200:
            assert (repository, digest) in self.there
            self.promise(repository, digest, GRACE / 2)
        else:
            assert not must

    @initialize(first=manifests, second=manifests)
    def begin(self, first: str, second: str) -> None:
        self.push_all(REPOSITORIES[0], first, "x", "")
        self.push_all(REPOSITORIES[1], second, "", "")

    @rule(repository=repositories, digest=manifests, tag=tags, point=points)
    def push_all(self, repository: str, digest: str, tag: str, point: str) -> None:
        """Push a manifest with all that it names, asking for blobs first as clients do."""
        for name in sorted(_named(MANIFESTS[digest])):
            if name in MANIFESTS:
                self.push_all(repository, name, "", "")
            elif not self.head_blob(repository, NUMBERS[name]):
                self.push_blob(repository, NUMBERS[name], point)
        self.push_manifest(repository, digest, tag, point)
        assert (repository, digest) in self.there

    @rule(repository=repositories, digest=manifests, tag=tags, point=points)
    def push_manifest(self, repository: str, digest: str, tag: str, point: str) -> None:
        content = MANIFESTS[digest]
        relied = all(
            self.held(repository, name)
            or (
                self.must_be(repository, name)
                if name in MANIFESTS
                else self.relies(repository, name)
            )
            for name in _named(content)
        )
        with self.collecting(point):
            status = push_manifest(self.client, repository, content, tag or digest).status
        if status != 201:
            assert not relied
            return
        self.there.add((repository, digest))
        self.promise(repository, digest, GRACE)
        if tag:
            self.untag(repository, tag)
            self.tagged[repository, tag] = digest

    def untag(self, repository: str, tag: str) -> None:
        if before := self.tagged.pop((repository, tag), ""):
            self.promise(repository, before, GRACE)

    def lost(self, repository: str, digest: str) -> None:
        """A manifest is gone: what it named has its grace."""
        self.there.discard((repository, digest))
        self.promised.pop((repository, digest), None)
        for name in _named(MANIFESTS[digest]):
            if name not in MANIFESTS or (repository, name) in self.there:
                self.promise(repository, name, GRACE)

    @rule(repository=repositories, digest=manifests)
    def delete_manifest(self, repository: str, digest: str) -> None:
        target = f"/v2/{repository}/manifests/{digest}"
        was = self.must_be(repository, digest)
        status = self.client.request("DELETE", target).status
        if status == 202:
            for key in [key for key in self.tagged if self.tagged[key] == digest]:
                if key[0] == repository:
                    del self.tagged[key]
            self.lost(repository, digest)
        else:
            assert status == 405 or not was

    @rule(repository=repositories, tag=tags)
    def delete_tag(self, repository: str, tag: str) -> None:
        if not tag:
            return
        answer = self.client.request("DELETE", f"/v2/{repository}/manifests/{tag}")
        assert (answer.status == 202) == ((repository, tag) in self.tagged)
        self.untag(repository, tag)

    @rule(repository=repositories, number=numbers)
    def delete_blob(self, repository: str, number: int) -> None:
        digest = sha256(BLOBS[number])
        status = self.client.request("DELETE", f"/v2/{repository}/blobs/{digest}").status
        if status == 202:
            assert not self.held(repository, digest)
            self.promised.pop((repository, digest), None)

    @rule(asking=st.booleans(), seconds=st.sampled_from([100, GRACE * 0.6, GRACE]))
    def wait(self, asking: bool, seconds: float) -> None:
        if asking:
            for repository in REPOSITORIES:
                for number in range(len(BLOBS)):
                    self.head_blob(repository, number)
        pass_time(self.context.database, seconds)
        self.now += seconds
        self.collect()

    def collect(self) -> None:
        collection.collect(self.context, GRACE, Report())

    @rule()
    def delete_objects(self) -> None:
        collection.delete_objects(self.context, 0, Report())

    @invariant()
    def what_clients_rely_on_is_there(self) -> None:
        for repository, digest in self.promised:
            if digest not in MANIFESTS and self.relies(repository, digest):
                answer = self.client.request("GET", f"/v2/{repository}/blobs/{digest}")
                assert answer.status == 200

    @invariant()
    def what_must_be_there_pulls_completely(self) -> None:
        for repository, digest in sorted(self.there):
            answer = self.client.request("GET", f"/v2/{repository}/manifests/{digest}")
            if answer.status != 200:
                assert not self.must_be(repository, digest)
                self.lost(repository, digest)
                continue
            assert answer.body == MANIFESTS[digest].data
            for name in _named(MANIFESTS[digest]):
                kind = "manifests" if name in MANIFESTS else "blobs"
                part = self.client.request("GET", f"/v2/{repository}/{kind}/{name}")
                assert (part.status, sha256(part.body)) == (200, name)

    def rows(self, *tables: str) -> str:
        """What is in some tables, and of blobs that lost a link, for a failure's message."""
        return "".join(
            f"\n{name}: {self.context.database.run(f'SELECT * FROM {name}')}"
            for name in (*tables, "unlinked_blobs", "uploads")
        )

    def teardown(self) -> None:
        self.what_must_be_there_pulls_completely()
        for _ in range(4):  # an index, its manifests, their blobs
            self.wait(False, 2 * GRACE)
            self.collect()
            self.delete_objects()
            self.what_must_be_there_pulls_completely()
        assert all(self.must_be(*each) for each in self.there)
        needed = {name for _, digest in self.there for name in _named(MANIFESTS[digest])}
        copies = {
            digests.unpack(bytes(digest)): key
            for digest, key in self.context.database.run("SELECT digest, key FROM blob_copies")
        }
        assert copies.keys() == needed - MANIFESTS.keys(), self.rows("repository_blobs")
        kept = {key for key, _, _ in self.context.store.list()}
        assert kept == set(copies.values()), self.rows("doomed_objects", "upload_keys")
        # The next begins with nothing.
        for table in ("manifest_references", "manifests", "repository_blobs"):
            self.context.database.run(f"DELETE FROM {table}")
        collection.run(self.context, 0, lambda _: None)


@pytest.fixture
def collected(core_settings: Settings, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres.migrated_database())
        context = build_context(
            replace(
                core_settings,
                database_url=url,
                storage_url=tmp_path.as_uri(),
                grace=GRACE,
                collect_untagged=GRACE,
            )
        )
        stack.callback(context.database.close)
        yield context


def _run(context: Context, examples: int, steps: int) -> None:
    machine = type("Machine", (Collected,), {"context": context})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_collection(collected: Context) -> None:
    _run(collected, 6, 15)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_collection_at_length(collected: Context) -> None:
    _run(collected, 150, 40)
