"""Objects against digests: every object is read and hashed, in the order of digests, so that a
check that was interrupted goes on where it was."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.fsck import Finding, objects
from chalicelib.metadata import fsck
from chalicelib.metadata.fsck import Copy
from chalicelib.storage import NoSuchObject, StorageError

AT_ONCE = 4
"""Objects that are read at a time."""


class Pace:
    """So many bytes a second on average, of all threads together; any number for 0."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until it is time for so many bytes."""
        if not self._rate:
            return
        with self._lock:
            mine = self._next = max(time.monotonic(), self._next) + count / self._rate
        time.sleep(max(0.0, mine - time.monotonic()))


def read_all(
    context: Context, after: bytes, pace: Pace, *, repair: bool
) -> Iterator[tuple[Copy, Finding | None]]:
    """Each blob after a digest that is not missing, once it was read, and what is wrong with it.
    Raises ``StorageError``."""
    running: deque[tuple[Copy, Future[Finding | None]]] = deque()
    with ThreadPoolExecutor(AT_ONCE, "fsck") as pool:
        try:
            for row in fsck.there(context.database, context.store.name, after):
                running.append((row, pool.submit(_read, context, row, pace, repair)))
                if len(running) > 2 * AT_ONCE:
                    done, future = running.popleft()
                    yield done, future.result()
            for done, future in running:
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(context: Context, row: Copy, pace: Pace, repair: bool) -> Finding | None:
    try:
        # A second time, since what reads and carries bytes errs too.
        if _matches(context, row, pace) or _matches(context, row, pace):
            return None
    except NoSuchObject:
        return objects.look(context, row, repair=repair)
    except (StorageError, OSError) as error:
        return _unreadable(context, row, error, repair=repair)
    now = fsck.copy(context.database, row.digest, context.store.name)
    if now is None or now.key != row.key:
        return None
    return objects.damaged(context, now, "has other bytes than its digest names", repair=repair)


def _matches(context: Context, row: Copy, pace: Pace) -> bool:
    hashing = Hash(digests.algorithm(row.digest))
    with closing(context.store.read(row.key, 0, row.size)) as body:
        for piece in body:
            hashing.update(piece)
            pace.take(len(piece))
    return hashing.digest() == row.digest


def _unreadable(context: Context, row: Copy, error: Exception, *, repair: bool) -> Finding | None:
    """An object that cannot be read to its end. Raises ``StorageError`` where nothing can."""
    context.store.check()
    if context.store.size(row.key) != row.size:
        return objects.look(context, row, repair=repair)
    text = digests.unpack(row.digest)
    return Finding(
        "unreadable",
        f"The object {row.key} of {text} cannot be read: {str(error).rstrip('.')}."
        " Bring the disk or the bucket in order, or delete the object and check again.",
        text,
        row.key,
        size=row.size,
    )
