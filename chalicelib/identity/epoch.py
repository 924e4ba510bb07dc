"""The access epoch: a number that every change raises after which somebody may do less.

What a process remembers of credentials and permissions holds while it does not move
(0002_identity.sql has the triggers that raise it).
"""

import time

from chalicelib.metadata import permissions
from chalicelib.metadata.database import Database

FRESH = 0.02
"""Seconds that a read may take the epoch to be what it was: at most so much later does a
revocation bite, on every host."""


class Epoch:
    """The epoch as this process knows it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # The epoch, and when it was asked for: one object, for threads to see both or neither.
        self._known = (0, -FRESH)

    def now(self, *, fresh: bool) -> int:
        """The epoch: asked for, or where that will do what it was ``FRESH`` seconds ago."""
        begun = time.monotonic()
        known, asked_at = self._known
        if not fresh and begun - asked_at <= FRESH:
            return known
        epoch = permissions.epoch(self._database)
        self._known = (epoch, begun)
        return epoch
