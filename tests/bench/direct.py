"""How fast a large layer comes into a registry through ``openregistry proxy``, beside the bare
upload of the same parts to the same object storage; and what it costs to verify it."""

import hashlib
import http.client
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.hosts import build_context
from chalicelib.registry.commit import reread
from chalicelib.registry.verifying import Claim, verify
from chalicelib.settings import Settings
from chalicelib.storage import Staged, new_key
from tests.bench import blobs, processes
from tests.bench.blobs import Blob
from tests.client import with_query
from tests.hosts.proxies import Proxy
from tests.servers import S3, Postgres, Registry, stopping

SIZE, PART = 1 << 30, 8 << 20
TURNS = 3
IN_FLIGHT = 4
GOAL, MEMORY_GOAL = 1.2, 150
"""Times as long as the bare upload; MB of memory."""


@dataclass(frozen=True, slots=True)
class Push:
    """Seconds from the first byte until the last had come, and until the blob was there."""

    sent: float
    there: float


def measure(quick: int = 1) -> Iterator[str]:
    """Lines of a table. ``quick`` divides the layer's size."""
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-"))
    place.chmod(0o755)
    size = SIZE // quick
    try:
        with ExitStack() as stack:
            postgres = Postgres(place / "postgres")
            stack.enter_context(stopping(postgres.start()))
            s3 = S3(place / "s3")
            stack.enter_context(stopping(s3.start()))
            settings = _settings(place, postgres, s3)
            registry = Registry(place / "registry", settings)
            stack.enter_context(stopping(registry.start()))
            proxy = Proxy(place / "proxy", registry.url)
            stack.enter_context(stopping(proxy.start()))
            context = build_context(Settings.from_environment({**settings, "HOME": "/"}))
            stack.callback(context.database.close)
            yield from _pushed(context, proxy, size)
            yield from _verified(context, size)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _settings(place: Path, postgres: Postgres, s3: S3) -> Mapping[str, str]:
    os.environ.update(s3.environment())
    return {
        **s3.environment(),
        "OPENREGISTRY_ACCESS": "open",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_DATA_DIR": str(place / "data"),
        "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(),
        "OPENREGISTRY_SECRET_KEY": "a secret for the bench alone",
        "OPENREGISTRY_LOG_LEVEL": "warning",
    }


def _pushed(context: Context, proxy: Proxy, size: int) -> Iterator[str]:
    bare: list[float] = []
    pushes: list[Push] = []
    with processes.MemoryWatch(proxy.pid) as memory:
        for turn in range(TURNS):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                if side:
                    pushes.append(_push(proxy.host, blobs.new(size)))
                else:
                    bare.append(_bare(context, blobs.new(size)))
    alone = statistics.median(bare)
    sent = statistics.median(push.sent for push in pushes)
    there = statistics.median(push.there for push in pushes)
    megabytes = size / 1e6
    yield (
        f"a layer of {megabytes:.0f} MB as {PART >> 20} MiB parts, {IN_FLIGHT} at once, straight to"
        f" object storage: {alone:.1f} s, {megabytes / alone:.0f} MB/s"
    )
    yield (
        f"the same pushed through openregistry proxy: {sent:.1f} s until the last byte had come,"
        f" {sent / alone:.2f} times the bare upload (to be at most {GOAL}); {there:.1f} s, or"
        f" {there / alone:.2f} times, until it was verified too, by jobs on the same processors;"
        f" the proxy had {memory.peak / 1e6:.0f} MB at most (to be below {MEMORY_GOAL})"
    )


def _bare(context: Context, blob: Blob) -> float:
    """Send a blob as presigned parts, and complete them."""
    parts = context.store.client_parts
    if parts is None:
        raise ValueError("storage takes no parts")
    key = new_key()
    upload = parts.begin(key)
    sizes = [min(PART, blob.size - at) for at in range(0, blob.size, PART)]
    urls = [parts.presign(key, upload, n, size, 3600) for n, size in enumerate(sizes, 1)]
    bodies = _cut(blob, sizes)
    pool = urllib3.PoolManager(maxsize=IN_FLIGHT)

    def put(url: str, body: bytes) -> None:
        answer = pool.request("PUT", url, body=body)
        if answer.status != 200:
            raise RuntimeError(f"storage answered {answer.status}")

    begun = time.monotonic()
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(put, urls, bodies))
    context.store.complete(parts.staged(key, upload, PART, parts.list(key, upload)))
    seconds = time.monotonic() - begun
    context.store.delete([key])
    return seconds


def _cut(blob: Blob, sizes: Sequence[int]) -> list[bytes]:
    """The blob's parts."""
    pieces = list(blob.plain())
    # All blocks but the last few bytes are the same memory, and a whole number of parts.
    block = memoryview(pieces[0])
    steps = [bytes(block[at : at + PART]) for at in range(0, len(block), PART)]
    parts = [steps[n % len(steps)] for n in range(len(sizes))]
    last = bytearray(parts[-1][: sizes[-1]])
    last[-len(blob.last) :] = blob.last
    return [*parts[:-1], bytes(last)]


def _push(host: str, blob: Blob) -> Push:
    """Send a blob as docker does: one PATCH of unknown length, and an empty PUT."""
    with closing(http.client.HTTPConnection(host, timeout=600)) as connection:
        location = _ask(connection, "POST", "/v2/bench/layer/blobs/uploads/", 202)
        begun = time.monotonic()
        url = urlsplit(location)
        connection.putrequest("PATCH", f"{url.path}?{url.query}")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for piece in blob.chunked():
            connection.send(piece)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 202:
            raise RuntimeError(f"PATCH was answered by {answer.status}")
        sent = time.monotonic() - begun
        location = answer.headers["Location"]
        _ask(connection, "PUT", with_query(location, digest=blob.digest), 201)
        return Push(sent, time.monotonic() - begun)


def _ask(connection: http.client.HTTPConnection, method: str, target: str, status: int) -> str:
    url = urlsplit(target)
    connection.request(method, f"{url.path}?{url.query}")
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != status:
        raise RuntimeError(f"{method} was answered by {answer.status}: {body!r}")
    return answer.headers["Location"]


def _verified(context: Context, size: int) -> Iterator[str]:
    """One pass over an object, and its pieces."""
    blob = blobs.new(size)
    numbers = iter(range(1, 10_001, 32))
    writer = context.store.writer(None, new_key(), lambda _: next(numbers))
    for piece in blob.plain():
        writer.write([piece])
    staged = writer.close(final=True)
    context.store.complete(staged)
    claim = _claim(staged, blob)
    whole = _timed(lambda: reread(context, claim.digest, staged))
    each = [_timed(partial(verify, context, claim, piece)) for piece in claim.pieces]
    with ThreadPoolExecutor(8) as threads:
        together = _timed(
            lambda: list(threads.map(lambda piece: verify(context, claim, piece), claim.pieces))
        )
    context.store.delete([staged.key])
    gigabytes = size / 1e9
    wall, cpu = (sum(values) for values in zip(*each, strict=True))
    yield (
        f"verifying {gigabytes:.1f} GB in one pass: {whole[0] / gigabytes:.2f} s a GB,"
        f" {whole[1] / gigabytes:.2f} s of CPU; in {len(each)} pieces one after another:"
        f" {wall / gigabytes:.2f} s a GB, {cpu / gigabytes:.2f} s of CPU, the longest"
        f" {max(seconds for seconds, _ in each):.2f} s; eight at once in one process:"
        f" {together[0] / gigabytes:.2f} s a GB"
    )


def _claim(staged: Staged, blob: Blob) -> Claim:
    hashing, states = Hash(), b""
    left = PART
    for each in blob.plain():
        piece, at = memoryview(each), 0
        while at < len(piece):
            taken = min(left, len(piece) - at)
            hashing.update(bytes(piece[at : at + taken]))
            at, left = at + taken, left - taken
            if not left:
                states, left = states + hashing.words(), PART
    states = states[: (-(-blob.size // PART) - 1) * hashlib.sha256().digest_size]
    return Claim(staged.key, blob.size, PART, digests.pack(blob.digest), states)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu
