"""Clients that push and pull all at once, and write down what they see."""

import http.client
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.client import (
    Answer,
    Body,
    HTTPClient,
    begin,
    pieces,
    push_manifest,
    sha256,
    with_query,
)
from tests.images import Content, Image, make_image

SIZES = (1000, 40_000, 300_000)
"""Of the layers of a crowd's images, in bytes."""


class Broken(Exception):
    """What a client tries again after: a 5xx, or a connection that ended."""


@dataclass(frozen=True)
class Pushed:
    """An image that the registry has acknowledged: its manifest was answered with 201."""

    repository: str
    image: Image


def get(client: HTTPClient, target: str) -> Answer:
    """The answer to GET, where it is a redirect that of storage."""
    answer = client.request("GET", target)
    return client.request("GET", answer.location) if answer.status == 307 else answer


def blob(host: str, repository: str, digest: str) -> bytes | None:
    """A blob's bytes; None where there is none."""
    answer = get(HTTPClient(host), f"/v2/{repository}/blobs/{digest}")
    if answer.status == 404:
        return None
    assert answer.status == 200, answer.status
    return answer.body


def whole(host: str, repository: str, image: Image, *references: str) -> bool:
    """Whether an image is there by all of these references, completely and to the byte; by none
    of them: False. Anything in between is an error."""
    client = HTTPClient(host)
    answers = [get(client, f"/v2/{repository}/manifests/{name}") for name in references]
    if {answer.status for answer in answers} == {404}:
        return False
    for answer in answers:
        assert answer.status == 200, (repository, [each.status for each in answers])
        assert answer.body == image.manifest.data
    for content in image.blobs:
        answer = get(client, f"/v2/{repository}/blobs/{content.digest}")
        assert answer.status == 200, (repository, content, answer.status)
        assert answer.body == content.data
    return True


@dataclass
class Crowd:
    """`with Crowd(host, clients=4) as crowd:` pushes and pulls until the end of the block.

    A push that broke is repeated from its first request, as clients do. ``wrong`` holds what should
    not have been answered, whatever happened to the registry.
    """

    host: str
    clients: int = 4
    sizes: tuple[int, ...] = SIZES
    pushed: list[Pushed] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    """Connections that ended before the answer."""
    pulled: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.clients):
            self._threads.append(threading.Thread(target=self._client, args=(number,)))
            self._threads[-1].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def progress(self, count: int, within: float = 60) -> None:
        """Wait until so many more images have been pushed."""
        target, end = len(self.pushed) + count, time.monotonic() + within
        while len(self.pushed) < target:
            assert not self.wrong, self.wrong
            assert time.monotonic() < end, f"{self.statuses}, {self.cut} connections were cut"
            time.sleep(0.05)

    def check(self) -> None:
        """That everything acknowledged is there, and nothing odd was answered."""
        assert not self.wrong, self.wrong
        for each in self.pushed:
            references = ("latest", each.image.manifest.digest)
            assert whole(self.host, each.repository, each.image, *references), each.repository

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        try:
            for count in itertools.count():
                # Every layer is new, so that each push has to bring its bytes.
                name = f"crowd-{number}/{count}"
                sizes = rng.sample(self.sizes, 2)
                image = make_image(sizes, f"{self.host}/{name}")
                while not self._push(HTTPClient(self.host), rng, name, image):
                    if self._ending.wait(0.1):
                        return
                if self._ending.is_set():
                    return
                self._pull(HTTPClient(self.host), rng)
        except AssertionError as error:
            self.wrong.append(str(error))

    def _push(self, client: HTTPClient, rng: random.Random, name: str, image: Image) -> bool:
        try:
            for content in image.blobs:
                self._push_blob(client, rng, name, content)
            answer = push_manifest(self._watched(client), name, image.manifest, "latest")
            assert answer.status == 201, ("manifest", name, answer)
        except Broken:
            return False
        self.pushed.append(Pushed(name, image))
        return True

    def _push_blob(
        self, client: HTTPClient, rng: random.Random, name: str, content: Content
    ) -> None:
        watched = self._watched(client)
        location = begin(watched, name)
        data = content.data
        sent = rng.choice((0, len(data) // 2, len(data)))
        if sent:
            body = pieces(data[:sent], 16_384)
            answer = watched.request("PATCH", location, body)
            assert answer.status == 202, ("PATCH", name, answer)
            location = answer.location
        answer = watched.request("PUT", with_query(location, digest=content.digest), data[sent:])
        assert answer.status == 201, ("PUT", name, answer)

    def _pull(self, client: HTTPClient, rng: random.Random) -> None:
        each = rng.choice(self.pushed)
        watched = self._watched(client)
        try:
            answer = watched.request("GET", f"/v2/{each.repository}/manifests/latest")
            assert answer.body == each.image.manifest.data, ("pull", each.repository, answer)
            for content in each.image.blobs:
                target = f"/v2/{each.repository}/blobs/{content.digest}"
                answer = watched.request("GET", target)
                if answer.status == 307:
                    answer = watched.request("GET", answer.location)
                assert answer.status == 200, ("pull", target, answer)
                assert sha256(answer.body) == content.digest, target
            self.pulled += 1
        except Broken:
            return

    def _watched(self, client: HTTPClient) -> "_Watched":
        return _Watched(client, self)


@dataclass(frozen=True)
class _Watched:
    """A client whose answers are counted; raises ``Broken``."""

    client: HTTPClient
    crowd: Crowd

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        try:
            answer = self.client.request(method, target, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.crowd.cut += 1
            raise Broken from error
        self.crowd.statuses[answer.status] += 1
        if answer.status >= 500:
            raise Broken
        return answer
