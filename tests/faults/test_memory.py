"""Memory is bounded, whatever the number and size of layers."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.client import HTTPClient, begin, with_query
from tests.faults.conftest import Place
from tests.hosts.program import children, pss
from tests.hosts.wire import Wire
from tests.images import make_bytes
from tests.servers import Registry

MIB = 1 << 20
CLIENTS, BLOB, LIMIT = 16, 256, 200_000_000
"""How many push at once, how many MiB each, and how many bytes the registry may use for it."""


class Peak:
    """The most memory that all processes of a registry have used together: PSS, so that pages that
    they share count once."""

    def __init__(self, registry: Registry) -> None:
        self._processes = [registry.pid, *children(registry.pid)]
        self.bytes = self.now()

    def now(self) -> int:
        return sum(map(pss, self._processes))

    @contextmanager
    def watched(self) -> Iterator[None]:
        ending = threading.Event()

        def watch() -> None:
            while not ending.wait(0.1):
                self.bytes = max(self.bytes, self.now())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()


def push(registry: Registry, number: int) -> None:
    """Push a blob that is made as it is sent, as docker does: one stream, and an empty PUT."""
    block = bytearray(make_bytes(MIB, number))
    hashing = hashlib.sha256()
    location = begin(HTTPClient(registry.host), f"memory/{number}")
    with Wire(int(registry.host.rpartition(":")[2]), timeout=300) as wire:
        wire.head("PATCH", location, "Transfer-Encoding: chunked")
        for count in range(BLOB):
            block[:8] = count.to_bytes(8)
            hashing.update(block)
            wire.chunk(bytes(block))
        answer = wire.send("0\r\n\r\n").answer()
        assert answer.status == 202, answer
        target = with_query(answer["location"] or "", digest=f"sha256:{hashing.hexdigest()}")
        answer = wire.put(target, b"")
        assert answer.status == 201, answer


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_large_pushes_at_once(place: Place, serve: Callable[..., Registry]) -> None:
    settings = {n: v for n, v in place.settings.items() if n != "OPENREGISTRY_PART_SIZE"}
    # Of those that serve: the process that does jobs takes no part in a push.
    registry = serve(**settings, OPENREGISTRY_WORK="false")
    peak = Peak(registry)
    began = time.monotonic()
    with peak.watched(), ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda number: push(registry, number), range(CLIENTS)))
    seconds = time.monotonic() - began
    print(f"{peak.bytes / 1e6:.0f} MB, {CLIENTS * BLOB / seconds:.0f} MiB/s")
    assert peak.bytes < LIMIT
