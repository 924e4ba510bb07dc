"""How fast what was pushed comes to an IPFS node, beside the same bytes given to the node's own
program; and what that costs the pushes."""

import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

from chalicelib.hosts import build_context
from chalicelib.metadata import resolver_progress
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.bench import processes
from tests.client import CoreClient, HTTPClient, push_blob, push_image, push_manifest
from tests.clients.build import DIRECTORY
from tests.images import CONFIG, LAYER, MANIFEST, Content, Image
from tests.servers import OPENREGISTRY, Kubo, Postgres, Registry, Server, stopping

BLOBS, LAYERS = 1000, 10
"""How many blobs, and how many of them an image has."""
GOAL = 0.95
"""Pushes with resolving beside pushes without."""
TURNS, SECONDS, CLIENTS = 6, 4.0, 4
_CHOOSE = "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{ipfs}', 'bench')"


def measure(quick: int = 1) -> Iterator[str]:
    """Lines of a table. ``quick`` divides how many blobs there are, and the seconds."""
    if not (DIRECTORY / "ipfs").exists():
        yield "resolving was not measured: ipfs is missing (`make clients` builds it)"
        return
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-"))
    place.chmod(0o755)
    try:
        with ExitStack() as stack:
            postgres = Postgres(place / "postgres")
            stack.enter_context(stopping(postgres.start()))
            yield from _copied(postgres, place, BLOBS // quick)
            yield from _pushes(postgres, place, SECONDS / quick)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sizes(count: int) -> list[int]:
    """Of blobs as images have them, in bytes: most are small, most bytes are in few."""
    chance = random.Random(0)
    ranges = [(600, 1 << 10, 64 << 10), (300, 64 << 10, 1 << 20), (90, 1 << 20, 8 << 20)]
    found = [chance.randint(low, high) for n, low, high in ranges for _ in range(n * count // 1000)]
    found += [32 << 20] * (count - len(found))
    chance.shuffle(found)
    return found


class Work(Server):
    """A worker as an operator starts it."""

    name = "work"

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory)
        self._settings = settings

    def command(self) -> list[str]:
        return [str(OPENREGISTRY), "work"]

    def environment(self) -> Mapping[str, str]:
        return self._settings

    def ready(self) -> bool:
        return True


def _settings(url: str, place: Path, node: Kubo) -> dict[str, str]:
    return {
        "OPENREGISTRY_ACCESS": "open",
        "OPENREGISTRY_DATABASE_URL": url,
        "OPENREGISTRY_DATA_DIR": str(place / "data"),
        "OPENREGISTRY_STORAGE_URL": (place / "data" / "blobs").as_uri(),
        "OPENREGISTRY_SECRET_KEY": "a secret for the bench alone",
        "OPENREGISTRY_NEW_REPOSITORIES": "public",
        "OPENREGISTRY_IPFS_NODES": node.url,
        "OPENREGISTRY_LOG_LEVEL": "warning",
    }


def _copied(postgres: Postgres, place: Path, count: int) -> Iterator[str]:
    with ExitStack() as stack:
        node = Kubo(place / "node", DIRECTORY / "ipfs")
        stack.enter_context(stopping(node.start()))
        url = postgres.new_database()
        migrate(url)
        settings = _settings(url, place, node)
        database = stack.enter_context(closing(Database(url)))
        database.run(_CHOOSE)
        folder = place / "folder"
        folder.mkdir()
        total = _push(settings, folder, count)
        busy = stack.enter_context(_Busy(node.pid))
        worker = Work(place / "work", settings)
        begun = time.monotonic()
        stack.enter_context(stopping(worker.start()))
        memory = stack.enter_context(processes.MemoryWatch(worker.pid))
        while not _all_there(database, count):
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        cpu = processes.cpu_seconds(processes.tree(node.pid))
        working = processes.cpu_seconds(processes.tree(worker.pid))
        share = busy.share()
    yield (
        f"{count} blobs, {total / 1e6:.0f} MB, to an IPFS node: {total / 1e6 / seconds:.1f} MB/s,"
        f" {count / seconds:.0f} blobs/s; the node worked in {share:.0%} of the time and took"
        f" {cpu:.1f} s of CPU, the worker {working:.1f} s and {memory.peak / 2**20:.0f} MiB at most"
    )
    with ExitStack() as stack:
        node = Kubo(place / "other node", DIRECTORY / "ipfs")
        stack.enter_context(stopping(node.start()))
        busy = stack.enter_context(_Busy(node.pid))
        begun = time.monotonic()
        node.run("add", "--recursive", "--quieter", "--progress=false", folder, api=True)
        alone = time.monotonic() - begun
        cpu = processes.cpu_seconds(processes.tree(node.pid))
        share = busy.share()
    yield (
        f"the same by `ipfs add` of a folder: {total / 1e6 / alone:.1f} MB/s,"
        f" {count / alone:.0f} blobs/s; the node worked in {share:.0%} of the time and took"
        f" {cpu:.1f} s of CPU: resolving is {alone / seconds:.2f} times as fast"
    )
    shutil.rmtree(folder)


def _push(settings: Mapping[str, str], folder: Path, count: int) -> int:
    """Push images of so many blobs, and write the blobs into a folder; gives their bytes."""
    context = build_context(Settings.from_environment(settings))
    try:
        client, total = CoreClient(context), 0
        config = Content(CONFIG, b"{}")
        push_blob(client, "bench/resolving", config.data)
        layers: list[Content] = []
        for number, size in enumerate(sizes(count)):
            layer = Content(LAYER, os.urandom(size))
            (folder / str(number)).write_bytes(layer.data)
            push_blob(client, "bench/resolving", layer.data)
            layers.append(layer)
            total += size
            if len(layers) == LAYERS:
                push_manifest(client, "bench/resolving", _manifest(config, layers))
                layers.clear()
        return total
    finally:
        context.database.close()


def _manifest(config: Content, layers: list[Content]) -> Content:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    return Content(MANIFEST, json.dumps(document).encode())


def _all_there(database: Database, count: int) -> bool:
    there = sum(t.copies for t in resolver_progress.totals(database) if t.state == "there")
    if failures := resolver_progress.failures(database):
        raise RuntimeError(failures[0].error)
    return there == count + count // LAYERS + 1 and not resolver_progress.outstanding(database)


def _pushes(postgres: Postgres, place: Path, seconds: float) -> Iterator[str]:
    """Images of 2 MiB, pushed in turns to registries that resolve them and to one that does not."""
    ways = {
        "nothing is resolved": {},
        "a worker elsewhere resolves": {"OPENREGISTRY_WORK": "false"},
        "a worker and a node on the same cores resolve": {},
    }
    with ExitStack() as stack:
        node = Kubo(place / "third node", DIRECTORY / "ipfs")
        stack.enter_context(stopping(node.start()))
        sides: dict[str, tuple[Registry, Database]] = {}
        for number, (way, more) in enumerate(ways.items()):
            url, home = postgres.new_database(), place / f"side{number}"
            registry = Registry(home, _settings(url, home, node) | more)
            stack.enter_context(stopping(registry.start()))
            database = stack.enter_context(closing(Database(url)))
            if number:
                database.run(_CHOOSE)
            sides[way] = registry, database
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(TURNS):
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                registry, database = sides[way]
                rates[way].append(_rate(registry, seconds))
                while "OPENREGISTRY_WORK" not in ways[way] and _left(database):
                    time.sleep(0.1)
    without, *others = ways
    plain = statistics.median(rates[without])
    yield f"pushes of images of 2 MiB, {CLIENTS} clients, file storage: {plain:.1f} /s"
    for way in others:
        ratio = statistics.median(
            one / two for one, two in zip(rates[way], rates[without], strict=True)
        )
        goal = f" (goal: {GOAL} or more)" if "elsewhere" in way else ""
        yield (
            f"the same while {way}: {statistics.median(rates[way]):.1f} /s, ratio {ratio:.2f}{goal}"
        )


def _left(database: Database) -> bool:
    waiting = resolver_progress.progress(database).waiting
    return bool(waiting or resolver_progress.outstanding(database))


def _rate(registry: Registry, seconds: float) -> float:
    """Images pushed a second."""
    end = time.monotonic() + seconds

    def push(number: int) -> int:
        client, count = HTTPClient(registry.host), 0
        while time.monotonic() < end:
            config, layer = Content(CONFIG, os.urandom(1000)), Content(LAYER, os.urandom(2 << 20))
            image = Image(_manifest(config, [layer]), config, (layer,), {})
            push_image(client, f"bench/{number}", image)
            count += 1
        return count

    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        count = sum(pool.map(push, range(CLIENTS)))
    return count / (time.monotonic() - begun)


class _Busy:
    """Looks every tenth of a second whether a process has used its time."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._looks: list[bool] = []

    def __enter__(self) -> "_Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def share(self) -> float:
        """Of the times that it was looked at, from the first on in which it worked."""
        looks = self._looks[self._looks.index(True) :] if True in self._looks else [False]
        return sum(looks) / len(looks)

    def _look(self) -> None:
        before = processes.cpu_seconds(processes.tree(self._root))
        while not self._done.wait(0.1):
            now = processes.cpu_seconds(processes.tree(self._root))
            self._looks.append(now > before)
            before = now


if __name__ == "__main__":
    for line in measure():
        print(line, flush=True)
