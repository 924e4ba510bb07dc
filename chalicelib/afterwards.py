"""Work that answers do not wait for: how long it takes must not tell what was found.

Mail is sent so. It may be lost where the process ends meanwhile; whoever misses it asks again.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from chalicelib.http import Unavailable

_log = logging.getLogger(__name__)

AT_ONCE = 32
"""Pieces of work that may be under way."""
_PAUSE = 0.1
"""Seconds for the answer to leave before the work begins, whose load it might show."""
_PATIENCE = 1.0
"""Seconds that a request waits for others' work."""


class Afterwards:
    """Does work once the answer is on its way. With ``least``, in seconds, for a host that stands
    still between requests, it is done before the answer instead, which then comes no sooner than
    that: whether there was anything to do is told by neither."""

    def __init__(self, least: float = 0) -> None:
        self._least = least
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def do(self, work: Callable[[], object]) -> None:
        """Do this. What it raises is logged. Raises ``Unavailable`` where too much is under way."""
        if not self._room.acquire(timeout=_PATIENCE):
            raise Unavailable("Too much mail waits to be sent.")
        if self._least:
            end = time.monotonic() + self._least
            self._run(work)
            time.sleep(max(0, end - time.monotonic()))
        else:
            thread = threading.Timer(_PAUSE, copy_context().run, [self._run, work])
            thread.daemon = True
            thread.start()

    def wait(self) -> None:
        """Come back when all is done that was under way."""
        for _ in range(AT_ONCE):
            self._room.acquire()
        self._room.release(AT_ONCE)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            _log.exception("what was to be done after an answer failed")
        finally:
            self._room.release()
