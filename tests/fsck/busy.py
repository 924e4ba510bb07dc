"""A registry that is used while it is checked."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chalicelib.context import Context
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from tests.client import CoreClient, begin, push_image
from tests.contract.stores import content
from tests.images import Image, make_image


def run_jobs(context: Context, names: tuple[str, ...]) -> None:
    """Do these jobs now."""
    chosen = [kind for kind in KINDS if kind.name in names]
    assert len(chosen) == len(names)
    for kind in chosen:
        context.database.run(
            "INSERT INTO jobs (kind, data) VALUES (:kind, CAST('{}' AS jsonb))", kind=kind.name
        )
    Worker(context, chosen).drain()


@dataclass
class Busy:
    """Pushes images, deletes every other one, gives uploads up, and collects, all at once."""

    context: Context
    pushed: dict[str, Image] = field(default_factory=dict)
    """Those that are to stay, by repository and tag."""
    failures: list[BaseException] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do so on threads until the block is left."""
        works = (self.push, self.push, self.give_up, self.collect)
        threads = [
            threading.Thread(target=self._repeat, args=(work, number * 1_000_000))
            for number, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _repeat(self, work: Callable[[int], None], first: int) -> None:
        try:
            for turn in itertools.count(first):
                if self._stopped.is_set():
                    return
                work(turn)
        except BaseException as error:
            self.failures.append(error)

    def push(self, seed: int) -> None:
        """Push an image that no other seed gives, and delete it if the seed is odd."""
        client, image = CoreClient(self.context), make_image(sizes=(2000, 20_000), seed=seed)
        path = f"/v2/busy/{seed % 4}/manifests/"
        push_image(client, f"busy/{seed % 4}", image, f"t{seed}")
        if seed % 2:
            for reference in (f"t{seed}", image.manifest.digest):
                assert client.request("DELETE", path + reference).status == 202
        else:
            self.pushed[f"{path}t{seed}"] = image

    def give_up(self, seed: int) -> None:
        """Begin an upload whose client is not seen again."""
        client = CoreClient(self.context)
        client.request("PATCH", begin(client, "busy/open"), content(3000, seed))
        self.context.database.run(
            "UPDATE uploads SET expires_at = now() WHERE repository = 'busy/open'"
        )
        time.sleep(0.05)

    def collect(self, seed: int) -> None:
        """Remove what is due."""
        run_jobs(self.context, ("collect", "uploads.expire"))
        time.sleep(0.05)

    def check_pushed(self) -> None:
        """All that was to stay is there, byte for byte."""
        client = CoreClient(self.context)
        for path, image in self.pushed.items():
            assert client.request("GET", path).body == image.manifest.data
            blobs = path.partition("/manifests/")[0] + "/blobs/"
            for blob in image.blobs:
                assert client.request("GET", blobs + blob.digest).body == blob.data
