"""The access epoch: a number that every change raises after which somebody may do less.

What a process remembers of credentials and permissions holds while it does not move
(0002_identity.sql has the triggers that raise it).
"""

import time

from chalicelib.metadata import permissions
from chalicelib.metadata.database import Database

FRESH = 0.1
"""Seconds that a read may take the epoch to be what it was: at most so much later does a
revocation bite, on every host."""


class Epoch:
    """The epoch as this process knows it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = 0
        self._asked_at = 0.0

    def now(self, *, fresh: bool) -> int:
        """The epoch: asked for, or where that will do what it was ``FRESH`` seconds ago."""
        begun = time.monotonic()
        if not fresh and begun - self._asked_at <= FRESH:
            return self._known
        # Another thread may have asked earlier, and come back later: what is returned is this
        # thread's own answer.
        epoch = permissions.epoch(self._database)
        self._known, self._asked_at = epoch, begun
        return epoch
