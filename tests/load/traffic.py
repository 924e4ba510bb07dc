"""Clients that come at a steady rate, whether or not the ones before have been answered."""

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.client import Answer, HTTPClient, sha256, with_query
from tests.images import Image, make_image

CLIENTS = 16
"""Connections, and so operations under way at once."""
REPOSITORIES, TAGS = 20, 10
"""Tags are moved all the time, so that what they named before is collected."""
LATE = 0.5
"""Seconds after its time from which on an operation counts as late: all clients were busy."""
MOST_ERRORS = 50

MIX = {"push": 10, "get manifest": 30, "head manifest": 20, "get blob": 25, "list tags": 15}
"""Operations of each kind in a hundred."""
LAYER_SIZES = (4_000, 50_000, 500_000)


class WrongError(Exception):
    """An answer that is not the one there should be."""


@dataclass
class Outcome:
    """What came of the requests. Latencies are in seconds, by what was asked for."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    operations: int = 0
    late: int = 0
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        return sum(map(len, self.latencies.values()))


class Traffic:
    """Sends ``rate`` operations a second to a registry, and checks every answer."""

    def __init__(self, host: str, fields: Mapping[str, str], owner: str, rate: float) -> None:
        self._host = host
        self._fields = dict(fields)
        self._owner = owner
        self._rate = rate
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._images: dict[tuple[str, str], Image] = {}
        self.outcome = Outcome()

    def run(self, seconds: float, stop: threading.Event) -> Outcome:
        """Go on for so long, or until told to stop, or until far too much has failed."""
        begun = time.monotonic()
        threads = [
            threading.Thread(target=self._client, args=[begun, begun + seconds, stop], daemon=True)
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _client(self, begun: float, end: float, stop: threading.Event) -> None:
        client = HTTPClient(self._host)
        kinds, weights = list(MIX), list(MIX.values())
        operations: dict[str, Callable[[HTTPClient, random.Random], None]] = {
            "push": self._push,
            "get manifest": self._get_manifest,
            "head manifest": self._head_manifest,
            "get blob": self._get_blob,
            "list tags": self._list_tags,
        }
        while len(self.outcome.errors) < MOST_ERRORS:
            with self._lock:
                number = next(self._numbers)
            at = begun + number / self._rate
            if at > end or stop.wait(max(0.0, at - time.monotonic())):
                return
            chance = random.Random(number)
            [kind] = chance.choices(kinds, weights)
            late = time.monotonic() - at > LATE
            try:
                operations[kind if self._images else "push"](client, chance)
            except (WrongError, OSError, AssertionError) as error:
                with self._lock:
                    self.outcome.errors.append(f"{kind}: {type(error).__name__} {error}"[:300])
                client = HTTPClient(self._host)
            with self._lock:
                self.outcome.operations += 1
                self.outcome.late += late

    def _ask(
        self, client: HTTPClient, what: str, method: str, target: str, status: int,
        body: bytes = b"", **fields: str,
    ) -> Answer:  # fmt: skip
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        begun = time.monotonic()
        answer = client.request(method, target, body, {**self._fields, **named})
        took = time.monotonic() - begun
        if answer.status != status:
            raise WrongError(f"{method} {target.partition('?')[0]}: {answer.status}")
        with self._lock:
            self.outcome.latencies[what].append(took)
        return answer

    def _push(self, client: HTTPClient, chance: random.Random) -> None:
        repository = f"{self._owner}/load-{chance.randrange(REPOSITORIES)}"
        tag = f"v{chance.randrange(TAGS)}"
        image = make_image([chance.choice(LAYER_SIZES)], seed=chance.getrandbits(64))
        for blob in image.blobs:
            begun = self._ask(
                client, "begin upload", "POST", f"/v2/{repository}/blobs/uploads/", 202
            )
            target = with_query(begun.location, digest=blob.digest)
            self._ask(client, "put blob", "PUT", target, 201, blob.data)
        manifest = image.manifest
        target = f"/v2/{repository}/manifests/{tag}"
        self._ask(
            client, "put manifest", "PUT", target, 201, manifest.data,
            Content_Type=manifest.media_type,
        )  # fmt: skip
        with self._lock:
            self._images[repository, tag] = image

    def _chosen(self, chance: random.Random) -> tuple[str, str, Image]:
        with self._lock:
            (repository, tag), image = chance.choice(list(self._images.items()))
        return repository, tag, image

    def _get_manifest(self, client: HTTPClient, chance: random.Random) -> None:
        repository, tag, _ = self._chosen(chance)
        target = f"/v2/{repository}/manifests/{tag}"
        answer = self._ask(client, "get manifest", "GET", target, 200)
        if sha256(answer.body) != answer.headers["Docker-Content-Digest"]:
            raise WrongError(f"{target}: other bytes")

    def _head_manifest(self, client: HTTPClient, chance: random.Random) -> None:
        repository, tag, _ = self._chosen(chance)
        self._ask(client, "head manifest", "HEAD", f"/v2/{repository}/manifests/{tag}", 200)

    def _get_blob(self, client: HTTPClient, chance: random.Random) -> None:
        repository, _, image = self._chosen(chance)
        blob = chance.choice(image.blobs)
        target = f"/v2/{repository}/blobs/{blob.digest}"
        answer = self._ask(client, "get blob (redirect)", "GET", target, 307)
        answer = HTTPClient(answer.location.split("/")[2]).request("GET", answer.location)
        if answer.status != 200 or sha256(answer.body) != blob.digest:
            raise WrongError(f"{target} from storage: {answer.status}, {len(answer.body)} bytes")

    def _list_tags(self, client: HTTPClient, chance: random.Random) -> None:
        repository, _, _ = self._chosen(chance)
        self._ask(client, "list tags", "GET", f"/v2/{repository}/tags/list", 200)
