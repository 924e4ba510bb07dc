"""What is measured: each workload's requests, its unit, and the ratio that it is to reach."""

import itertools
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum

from tests.bench import blobs, load, processes, scripts
from tests.bench.blobs import Blob
from tests.bench.load import Outcome, Request, Script
from tests.bench.scripts import Image, Push
from tests.bench.servers import Cpu, Side, Storage

MIB = 1 << 20
REPOSITORY = "bench/repository"
REPOSITORIES = 100
TAGS = 100
BLOBS = 64
IMAGE_SIZES = (1, 10, 100)


class Unit(StrEnum):
    """What a figure counts; MB are 10^6 bytes."""

    RATE = "/s"
    THROUGHPUT = "MB/s"
    LATENCY = "ms"
    MEMORY = "MB"


@dataclass(frozen=True, slots=True)
class AtLeast:
    """This registry's figure is to be at least so many times the peer's."""

    ratio: float

    def __str__(self) -> str:
        return f"≥ {self.ratio:g}x"

    def met(self, ours: float, peer: float | None) -> bool | None:
        """None: not known, because the peer was not measured."""
        return None if peer is None else ours >= self.ratio * peer


@dataclass(frozen=True, slots=True)
class AtMost:
    """This registry's figure is to be below a limit, whatever the peer's is."""

    limit: float
    unit: Unit

    def __str__(self) -> str:
        return f"< {self.limit:g} {self.unit}"

    def met(self, ours: float, peer: float | None) -> bool:
        """Whether it is; the peer's figure does not matter."""
        return ours < self.limit


Target = AtLeast | AtMost


@dataclass(frozen=True, slots=True)
class Measure:
    """One run of one workload on one side; CPU in seconds for all operations together."""

    value: float
    operations: int
    seconds: float
    cpu: Cpu
    generator: float
    errors: list[str]


class Site:
    """A side with what was pushed to it before the clock starts."""

    def __init__(self, side: Side, scale: int, seconds: float) -> None:
        self.side = side
        self.scale = scale
        self.seconds = seconds
        self.config = blobs.new(1024)
        self.layer = blobs.new(MIB)
        self.small = [blobs.new(1024) for _ in range(BLOBS)]
        self.manifests = [
            scripts.manifest(self.config, self.layer, f"image {n}") for n in range(TAGS)
        ]
        self.numbers = itertools.count()
        self._images: dict[int, Image] = {}
        self._large: Blob | None = None

    def blob(self, mebibytes: int) -> Blob:
        """A new blob of this size, or a part of it in a quick run."""
        return blobs.new(max(MIB, mebibytes * MIB // self.scale))

    def new_image(self, mebibytes: int) -> Image:
        """A new image whose layer is such a blob."""
        return scripts.new_image(self.blob(mebibytes))

    def seed(self) -> None:
        """Push what the reading workloads read, and see that it comes back as it went in."""
        both = (self.config, self.layer)
        self._push(scripts.push_put(REPOSITORY, blob) for blob in (*both, *self.small))
        self._push(
            scripts.put_manifest(REPOSITORY, f"tag-{n}", document)
            for n, document in enumerate(self.manifests)
        )
        # docker-registry finds repositories by walking, so these are named to stand before the
        # many that the pushing workloads make.
        others = (MANIFESTS, *(f"a/repository-{n:03}" for n in range(REPOSITORIES)))
        for repository in others:
            self._push(scripts.mount(repository, blob, REPOSITORY) for blob in both)
            self._push([scripts.put_manifest(repository, "latest", self.manifests[0])])
        self._push([scripts.pull(REPOSITORY, self.layer, verify=True)])

    def image(self, mebibytes: int) -> tuple[str, Image]:
        """The image of this size that is pulled and its repository, pushed when first asked for."""
        repository = f"zb/pull-{mebibytes}"
        if mebibytes not in self._images:
            image = self._images[mebibytes] = self.new_image(mebibytes)
            self._push([scripts.push_image(scripts.push_put, repository, image)])
        return repository, self._images[mebibytes]

    def large_blob(self) -> Blob:
        """The blob of 512 MB that is pulled, pushed when first asked for."""
        if self._large is None:
            self._large = self.blob(512)
            self._push([scripts.push_patch(REPOSITORY, self._large)])
        return self._large

    def _push(self, work: Iterable[Script]) -> None:
        outcome = load.run(self.side.address, iter(work), connections=1)
        if outcome.errors:
            raise RuntimeError(f"{self.side.name} cannot be prepared: {outcome.errors[0]}")


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table."""

    name: str
    unit: Unit
    connections: int
    work: Callable[[Site], Iterator[Script]]
    targets: Mapping[Storage, Target] = field(default_factory=dict)
    size: int = 0
    timed: bool = True
    once: bool = False

    def measure(self, site: Site) -> Measure:
        """Run it once."""
        side = site.side
        work = self.work(site)
        memory = processes.MemoryWatch(side.server.pid) if self.unit is Unit.MEMORY else None
        os.sync()
        before = side.cpu()
        with memory or nullcontext():
            outcome = load.run(
                side.address,
                work,
                connections=self.connections,
                seconds=site.seconds if self.timed else None,
            )
        cpu = side.cpu() - before
        if self.unit is Unit.MEMORY:
            assert memory is not None
            value = memory.peak / 1e6
        else:
            value = self._value(outcome, self.size // site.scale)
        return Measure(value, outcome.done, outcome.seconds, cpu, outcome.cpu, outcome.errors)

    def _value(self, outcome: Outcome, size: int) -> float:
        if not outcome.done:
            return float("nan")
        match self.unit:
            case Unit.LATENCY:
                return statistics.median(outcome.latencies[scripts.COMMIT]) * 1e3
            case Unit.THROUGHPUT:
                return outcome.done * size / outcome.seconds / 1e6
            case _:
                return outcome.done / outcome.seconds


MANIFESTS = "push/manifests"
ZB_CONNECTIONS = 4

PUSHES: Mapping[str, Push] = {"patch": scripts.push_patch, "put": scripts.push_put}
"""The two ways in which clients push: docker's, and containerd's."""

LARGE_PUSH: Mapping[Storage, Target] = {"file": AtLeast(2.5), "s3": AtLeast(1.5)}
SMALL_PUSH: Mapping[Storage, Target] = {"file": AtLeast(2), "s3": AtLeast(2)}
MANIFEST_PUT: Mapping[Storage, Target] = {"file": AtLeast(2)}
MANIFEST_GET: Mapping[Storage, Target] = {"file": AtLeast(2), "s3": AtLeast(5)}
PULL: Mapping[Storage, Target] = {"file": AtLeast(1)}
MEMORY = AtMost(200, Unit.MEMORY)
COMMIT_TIME = AtMost(50, Unit.LATENCY)


def _pushes(push: Push, mebibytes: int, count: int | None) -> Callable[[Site], Iterator[Script]]:
    """Pushes of new blobs to a few repositories: so many, or until time is over."""

    def work(site: Site) -> Iterator[Script]:
        site.blob(mebibytes)  # what blobs of this size have in common is hashed here
        numbers = itertools.count() if count is None else range(count)
        return (push(f"push/{n % 16}", site.blob(mebibytes)) for n in numbers)

    return work


def _large_pull(site: Site) -> Iterator[Script]:
    return iter((scripts.pull(REPOSITORY, site.large_blob()),))


def _manifest_puts(site: Site) -> Iterator[Script]:
    for n in site.numbers:
        document = scripts.manifest(site.config, site.layer, f"pushed {n}")
        yield scripts.put_manifest(MANIFESTS, f"tag-{n}", document)


def _reads(requests: Callable[[Site], list[Request]]) -> Callable[[Site], Iterator[Script]]:
    """One of these requests at random, again and again."""

    def work(site: Site) -> Iterator[Script]:
        choices = requests(site)
        return (scripts.read(random.choice(choices)) for _ in itertools.count())

    return work


def _by_tag(site: Site) -> list[Request]:
    return [scripts.get_manifest(REPOSITORY, f"tag-{n}") for n in range(TAGS)]


def _by_digest(site: Site) -> list[Request]:
    return [scripts.get_manifest(REPOSITORY, document.digest) for document in site.manifests]


def _blob_heads(site: Site) -> list[Request]:
    return [scripts.head_blob(REPOSITORY, blob.digest) for blob in site.small]


def _tag_list(site: Site) -> list[Request]:
    return [Request(scripts.head("GET", f"/v2/{REPOSITORY}/tags/list"))]


def _catalog(site: Site) -> list[Request]:
    return [Request(scripts.head("GET", f"/v2/_catalog?n={REPOSITORIES}"))]


def _zb(
    push: Push, sizes: Mapping[int, float], pulls: float = 0.0
) -> Callable[[Site], Iterator[Script]]:
    """Images of random sizes (MB and their weights), so many of them pulled, the rest pushed."""

    def work(site: Site) -> Iterator[Script]:
        stored = {size: site.image(size) for size in sizes}
        return (one(site, stored) for _ in itertools.count())

    def one(site: Site, stored: Mapping[int, tuple[str, Image]]) -> Script:
        (size,) = random.choices(list(sizes), list(sizes.values()))
        if random.random() < pulls:
            return scripts.pull_image(*stored[size])
        return scripts.push_image(push, f"zb/push-{next(site.numbers)}", site.new_image(size))

    return work


def _all() -> Iterator[Workload]:
    for way, push in PUSHES.items():
        yield Workload(
            f"push-512M-{way}",
            Unit.THROUGHPUT,
            1,
            _pushes(push, 512, 1),
            LARGE_PUSH,
            size=512 * MIB,
            timed=False,
        )
    yield Workload("pull-512M", Unit.THROUGHPUT, 1, _large_pull, PULL, size=512 * MIB, timed=False)
    for way, push in PUSHES.items():
        for connections in (4, 16):
            yield Workload(
                f"push-32M-{way}-c{connections}",
                Unit.THROUGHPUT,
                connections,
                _pushes(push, 32, 16),
                size=32 * MIB,
                timed=False,
            )
    for way, push in PUSHES.items():
        for connections in (4, 16):
            yield Workload(
                f"push-1M-{way}-c{connections}",
                Unit.RATE,
                connections,
                _pushes(push, 1, None),
                SMALL_PUSH,
            )
    for connections in (1, 4, 16):
        yield Workload(
            f"manifest-put-c{connections}", Unit.RATE, connections, _manifest_puts, MANIFEST_PUT
        )
    reads: tuple[tuple[str, Callable[[Site], list[Request]], Mapping[Storage, Target]], ...] = (
        ("manifest-get-tag", _by_tag, MANIFEST_GET),
        ("manifest-get-digest", _by_digest, MANIFEST_GET),
        ("blob-head", _blob_heads, {}),
        ("tag-list", _tag_list, {}),
        ("catalog", _catalog, {}),
    )
    for name, requests, targets in reads:
        for connections in (1, 16):
            yield Workload(
                f"{name}-c{connections}", Unit.RATE, connections, _reads(requests), targets
            )
    yield from _zb_workloads()
    yield Workload(
        "commit-1G",
        Unit.LATENCY,
        1,
        _pushes(scripts.push_patch, 1024, 1),
        {"s3": COMMIT_TIME},
        timed=False,
    )
    yield Workload(
        "memory-16x256M",
        Unit.MEMORY,
        16,
        _pushes(scripts.push_patch, 256, 16),
        {"file": MEMORY, "s3": MEMORY},
        timed=False,
        once=True,
    )


def _zb_workloads() -> Iterator[Workload]:
    """Those of zot's zb but the catalog, which stands above; images a second."""
    mostly_medium = {1: 0.2, 10: 0.7, 100: 0.1}
    even = {1: 1.0, 10: 1.0, 100: 1.0}
    monolith, chunk = scripts.push_put, scripts.push_patch
    plans: list[tuple[str, Callable[[Site], Iterator[Script]]]] = []
    for kind, push in (("monolith", monolith), ("chunk", chunk)):
        plans += [(f"push-{kind}-{size}M", _zb(push, {size: 1})) for size in IMAGE_SIZES]
    plans += [(f"pull-{size}M", _zb(monolith, {size: 1}, pulls=1)) for size in IMAGE_SIZES]
    plans += [
        ("pull-mixed", _zb(monolith, mostly_medium, pulls=1)),
        ("push-monolith-mixed", _zb(monolith, mostly_medium)),
        ("push-chunk-mixed", _zb(chunk, even)),
    ]
    plans += [
        (f"pull75-push25-{size}M", _zb(monolith, {size: 1}, pulls=0.75)) for size in IMAGE_SIZES
    ]
    for name, work in plans:
        yield Workload(f"zb-{name}", Unit.RATE, ZB_CONNECTIONS, work)


WORKLOADS = tuple(_all())
