"""Blobs that are on networks too: where their bytes come from, and what stands in for what.

Object storage, the networks and their gateways have the same bytes, which one wants of a setting or
of a request; the others stand in for it where it has lost the blob, is down or is slow, in the
middle of a blob too. Blocks of a network are checked by the CID, which is of the very bytes of the
digest: that was proved when they were put there (``resolvers.placing``).
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from contextvars import copy_context
from functools import partial

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import FileRegion, Stream
from chalicelib.metadata import blobs
from chalicelib.registry.blobs import REDIRECTING
from chalicelib.resolvers import ResolverError, healing
from chalicelib.resolvers.blocks import LONGEST, PATIENCE, is_shunned, probe, read, shun
from chalicelib.resolvers.gateways import gateway
from chalicelib.storage import NoSuchObject, StorageError

_log = logging.getLogger(__name__)

_STORAGE = "object storage"
_SHUNNED = 10.0
"""For how many seconds networks come before storage that is down or slow."""
_LATER = 60.0
"""After how many seconds storage that failed is asked whether it has lost the blob."""
_SLOW = "Object storage does not answer in time."
_HELD = 4
"""How many pieces of storage are held before they are sent."""

_Way = Callable[[int, int], Stream]
"""Given an offset and a length: those bytes."""


def redirect(
    context: Context, method: str, digest: bytes, found: blobs.Copy, wanted: str
) -> str | None:
    """Where to send a client for a blob, None where it is to be sent the bytes. What is looked at
    before: whether storage has the object, since a client that is sent there in vain does not
    come back."""
    at_gateways = [
        (url, cid)
        for name, cid in sorted((found.networks or {}).items())
        if (resolver := context.resolvers.get(name)) is not None
        for url in resolver.gateways
    ]
    # Those that failed lately come last.
    at_gateways.sort(key=lambda each: is_shunned(each[0]))
    presigned = wanted != "network" and context.settings.downloads in REDIRECTING
    if presigned and not (wanted == "gateway" and at_gateways):
        url = context.store.presign(method, found.key, context.settings.presign_expiry)
        if url is not None and _has(context, digest, found):
            return url
    # On Lambda a blob of more than a few megabytes cannot be sent.
    if at_gateways and (wanted == "gateway" or context.head_by_redirect):
        at, cid = at_gateways[0]
        probe(gateway(at), cid)
        return f"{at}/ipfs/{cid}"
    return None


def open_blob(
    context: Context, digest: bytes, found: blobs.Copy, start: int, length: int, wanted: str
) -> FileRegion | Stream:
    """The bytes of a blob, from wherever they are to be had: from a network first where that is
    ``wanted``, or where storage is known to fail. Raises ``StorageError`` where they are nowhere
    to be had."""
    storage: _Way = partial(_from_storage, context, digest, found)
    # Nobody waits long for a network where storage has the blob as well.
    longest = LONGEST if found.missing else PATIENCE
    network: list[_Way] = [
        partial(read, sources, cid, longest=longest)
        for cid, sources in healing.by_cid(context, found.networks or {})
    ]
    if found.missing or wanted == "network" or is_shunned(_STORAGE):
        ways = network if found.missing else [*network, storage]
    elif context.store.presign("GET", found.key, 1) is None:
        # A file, which the host sends without looking at it.
        try:
            return context.store.read(found.key, start, length)
        except StorageError as error:
            _failed(context, digest, found, error)
            ways = network
    else:
        ways = [storage, *network]
    if not ways:
        raise StorageError("It is not in storage, and no network that has it can be asked now.")
    stream = _Failover(digest, deque(ways), start, length)
    stream.begin()
    return stream


class _Failover:
    """The ``Stream`` of a part of a blob, which goes on another way where one ends too early."""

    def __init__(self, digest: bytes, ways: deque[_Way], offset: int, length: int) -> None:
        self._pieces = self._go(digest, ways, offset, length)
        self._first = b""

    def begin(self) -> None:
        """Fetch the first piece. Raises ``StorageError`` where no way leads to it."""
        self._first = next(self._pieces, b"")

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        yield from self._pieces

    def close(self) -> None:
        self._pieces.close()

    @staticmethod
    def _go(
        digest: bytes, ways: deque[_Way], offset: int, length: int
    ) -> Generator[bytes, None, None]:
        failures = 0
        while length:
            stream = None
            try:
                stream = ways[0](offset, length)
                for piece in stream:
                    failures = 0
                    offset, length = offset + len(piece), length - len(piece)
                    yield piece
                return
            except (StorageError, ResolverError, OSError) as error:
                failures += 1
                ways.rotate(-1)
                _log.warning(
                    "%s goes on elsewhere at %d: %s", digests.unpack(digest), offset, error
                )
                if failures == len(ways):
                    raise StorageError(str(error)) from error
            finally:
                if stream is not None:
                    stream.close()


class _FromStorage:
    """A ``Stream`` of object storage whose pieces are fetched by a thread, so that one which falls
    silent is left. What it raises was told to ``failed`` before."""

    def __init__(self, opened: Callable[[], Stream], failed: Callable[[Exception], None]) -> None:
        self._opened = opened
        self._failed = failed
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(_HELD)
        self._over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        run = copy_context().run
        threading.Thread(target=run, args=[self._fetch], name="storage", daemon=True).start()
        while True:
            try:
                piece = self._pieces.get(timeout=PATIENCE)
            except queue.Empty:
                piece = StorageError(_SLOW)
            if isinstance(piece, Exception):
                self._failed(piece)
                raise piece
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        self._over.set()

    def _fetch(self) -> None:
        try:
            with closing(self._opened()) as stream:
                for piece in stream:
                    if not self._give(piece):
                        return
            self._give(None)
        except Exception as error:
            self._give(error)

    def _give(self, piece: bytes | Exception | None) -> bool:
        """Hand over a piece, for as long as it takes; False where nobody wants it."""
        while not self._over.is_set():
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=1)
                return True
        return False


def _from_storage(
    context: Context, digest: bytes, found: blobs.Copy, offset: int, length: int
) -> Stream:
    return _FromStorage(
        lambda: context.store.read(found.key, offset, length),
        lambda error: _failed(context, digest, found, error),
    )


def _failed(context: Context, digest: bytes, found: blobs.Copy, error: Exception) -> None:
    """What follows from it that storage did not give a blob: it is healed, now or when storage has
    been asked whether it has the object."""
    if isinstance(error, NoSuchObject):
        _log.error("storage has lost %s at %s", digests.unpack(digest), found.key)
        blobs.mark(context.database, digest, context.store.name, found.key, missing=True)
        healing.ask(context, digest)
    else:
        shun(_STORAGE, _SHUNNED, str(error))
        healing.ask(context, digest, delay=_LATER)


def _has(context: Context, digest: bytes, found: blobs.Copy) -> bool:
    """Whether storage has an object, as it says itself in time."""
    if found.missing or is_shunned(_STORAGE):
        return False
    answers: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(context.store.size(found.key))
        except Exception as error:
            answers.put(error)

    run = copy_context().run
    threading.Thread(target=run, args=[ask], name="storage", daemon=True).start()
    try:
        size = answers.get(timeout=PATIENCE)
    except queue.Empty:
        size = StorageError(_SLOW)
    if size != found.size:
        lost = NoSuchObject(f"There is no object {found.key}.")
        _failed(context, digest, found, size if isinstance(size, Exception) else lost)
    return size == found.size
