"""Pushers, mounters, deleters and collectors at once, with a grace of seconds: what was
acknowledged pulls completely, and what nothing names is gone."""

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chalicelib.hosts import build_context
from chalicelib.settings import Settings
from tests.client import HTTPClient, begin, push_manifest, with_query
from tests.images import Image, make_image
from tests.servers import OPENREGISTRY, S3, Registry

SECONDS = 60.0
GRACE = 4
REPOSITORIES = [f"stress/{letter}" for letter in "abc"]
IMAGES = [make_image((200, 300), f"stress/{number % 6}/{number}") for number in range(24)]


class Crowd:
    """What was acknowledged, by repository and tag: each tag is one pusher's."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.end = time.monotonic() + SECONDS
        self.acknowledged: dict[tuple[str, str], Image] = {}
        self.pushed = self.deleted = self.mounted = 0
        self.failures: list[object] = []

    def run(self, work: Callable[[HTTPClient, random.Random, int], None], number: int) -> None:
        client, chance = HTTPClient(self.host), random.Random(number)
        while time.monotonic() < self.end and not self.failures:
            try:
                work(client, chance, number)
            except BaseException as error:
                self.failures.append(error)
                raise

    def push(self, client: HTTPClient, chance: random.Random, number: int) -> None:
        """Push as clients do: ask for each blob, mount or send it, then the manifest."""
        repository, image = chance.choice(REPOSITORIES), chance.choice(IMAGES)
        tag = f"tag-{number}-{chance.randrange(4)}"
        for blob in image.blobs:
            target = f"/v2/{repository}/blobs/{blob.digest}"
            if client.request("HEAD", target).status == 200:
                continue
            if chance.random() < 0.5:
                source = chance.choice(REPOSITORIES)
                answer = client.request(
                    "POST", f"/v2/{repository}/blobs/uploads/?mount={blob.digest}&from={source}"
                )
                if answer.status == 201:
                    self.mounted += 1
                    continue
            location = with_query(begin(client, repository), digest=blob.digest)
            answer = client.request("PUT", location, blob.data)
            assert answer.status == 201, answer
        answer = push_manifest(client, repository, image.manifest, tag)
        if answer.status == 201:
            self.acknowledged[repository, tag] = image
            self.pushed += 1
        else:
            # Deleters take blobs from under a push.
            assert answer.status == 404, answer

    def delete(self, client: HTTPClient, chance: random.Random, number: int) -> None:
        """Delete one's own tags, and blobs that no manifest names."""
        repository, image = chance.choice(REPOSITORIES), chance.choice(IMAGES)
        tag = f"gone-{number}"
        for blob in image.blobs:
            location = with_query(begin(client, repository), digest=blob.digest)
            assert client.request("PUT", location, blob.data).status == 201
        if push_manifest(client, repository, image.manifest, tag).status == 201:
            assert client.request("DELETE", f"/v2/{repository}/manifests/{tag}").status == 202
        blob = chance.choice(image.blobs)
        answer = client.request("DELETE", f"/v2/{repository}/blobs/{blob.digest}")
        assert answer.status in (202, 404, 405), answer
        self.deleted += 1

    def collect(self, registry: Registry) -> None:
        while time.monotonic() < self.end and not self.failures:
            try:
                gc(registry, "--grace", str(GRACE))
            except subprocess.CalledProcessError as error:
                self.failures.append(error.stderr)


def gc(registry: Registry, *options: str) -> dict[str, object]:
    done = subprocess.run(
        [OPENREGISTRY, "gc", "--json", *options],
        env={**os.environ, **registry.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("storage", ["file", "s3"])
def test_everybody_at_once(
    serve: Callable[..., Registry],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    storage: str,
) -> None:
    chosen = {"OPENREGISTRY_STORAGE_URL": tmp_path.as_uri()}
    if storage == "s3":
        server: S3 = request.getfixturevalue("s3_server")
        chosen = {
            "OPENREGISTRY_STORAGE_URL": server.new_storage_url(),
            "OPENREGISTRY_DOWNLOADS": "stream",
            **server.environment(),
        }
    registry = serve(
        **chosen,
        OPENREGISTRY_GRACE=str(GRACE),
        OPENREGISTRY_COLLECT_UNTAGGED="0",
        OPENREGISTRY_LOG_LEVEL="warning",
    )
    crowd = Crowd(registry.host)
    threads = [threading.Thread(target=crowd.run, args=[crowd.push, n]) for n in range(4)]
    threads += [threading.Thread(target=crowd.run, args=[crowd.delete, n]) for n in (10, 11)]
    threads += [threading.Thread(target=crowd.collect, args=[registry]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowd.failures == []
    assert min(crowd.pushed, crowd.deleted, crowd.mounted) > 10, vars(crowd)

    gc(registry, "--grace", "0")
    client = HTTPClient(registry.host)
    needed = set()
    for (repository, tag), image in crowd.acknowledged.items():
        answer = client.request("GET", f"/v2/{repository}/manifests/{tag}")
        assert (answer.status, answer.body) == (200, image.manifest.data)
        for blob in image.blobs:
            needed.add(blob.digest)
            answer = client.request("GET", f"/v2/{repository}/blobs/{blob.digest}")
            assert (answer.status, answer.body) == (200, blob.data)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    context = build_context(Settings.from_environment({**registry.environment()}))
    try:
        keys = [key for key, _, _ in context.store.list() if not key.startswith("openregistry-")]
    finally:
        context.database.close()
    assert len(keys) == len(needed)
