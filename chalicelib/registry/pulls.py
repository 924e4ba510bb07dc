"""Pulls are counted: of a manifest each GET that is answered with its bytes.

Counting must not keep a pull waiting. So a pull is noted in memory; a host has what was noted
written down now and then, for many pulls at once.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

from chalicelib import digests
from chalicelib.http import Unavailable
from chalicelib.jobs import events
from chalicelib.metadata import pulls
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.pulls import Pulled

_log = logging.getLogger(__name__)

MOST = 10_000
"""How many different pulls (who, what) are kept while the database does not answer; further ones
are lost, and the log says how many."""


class Pulls(Protocol):
    """Counts. For any thread."""

    def count(self, repository: str, tag: str, digest: bytes, subject: str) -> None:
        """Note a pull; ``tag`` is "" where it was asked for by digest. Neither waits nor raises."""

    def flush(self) -> None:
        """Write what was noted. May block; never raises: what cannot be written now is logged, and
        kept for the next time where the host has one."""


class Gathered:
    """``Pulls`` in the memory of this process. What a process has noted and not written is lost
    when it is killed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._one = threading.Lock()
        self._noted: dict[tuple[str, str, bytes, str], tuple[int, float]] = {}
        self._lost = 0

    def count(self, repository: str, tag: str, digest: bytes, subject: str) -> None:
        self._note((repository, tag, digest, subject), 1, time.monotonic())

    def flush(self) -> None:
        with self._one:
            self._flush()

    def _note(self, key: tuple[str, str, bytes, str], count: int, at: float) -> None:
        with self._lock:
            before, last = self._noted.get(key, (0, at))
            if before or len(self._noted) < MOST:
                self._noted[key] = before + count, max(last, at)
            else:
                self._lost += count

    def _flush(self) -> None:
        with self._lock:
            noted, self._noted = self._noted, {}
            lost, self._lost = self._lost, 0
        if lost:
            _log.error("%d of the pulls were not counted: too many different ones wait", lost)
        if not noted:
            return
        now = time.monotonic()
        found = [Pulled(*key, count, now - at) for key, (count, at) in noted.items()]
        try:
            add(self._database, found)
        except Unavailable:
            _log.warning("pulls are counted later: the database does not answer")
            for key, (count, at) in noted.items():
                self._note(key, count, at)
        except Exception:
            _log.exception("%d pulls were not counted", sum(each.pulls for each in found))


def add(database: Database, found: Sequence[Pulled]) -> bool:
    """Count these and tell webhooks that want it, one event for each subject, manifest and way of
    asking for it; gives whether any is told. Raises ``Unavailable``, after which they may have been
    counted, and ``DatabaseError``."""

    def work(transaction: Transaction) -> bool:
        told = False
        watched = pulls.add(transaction, found)
        whose = attrgetter("repository", "subject")
        for (repository, subject), each in groupby(
            sorted((pulled for pulled in found if pulled.repository in watched), key=whose), whose
        ):
            recorded = [("pull", _detail(pulled)) for pulled in each]
            told |= events.record_all(transaction, repository, subject, recorded)
        return told

    return database.transaction(work)


def added_up(found: Iterable[Pulled]) -> list[Pulled]:
    """The same pulls, of each kind in one."""
    sums: dict[tuple[str, str, bytes, str], Pulled] = {}
    for pulled in found:
        before = sums.get(pulled[:4], pulled._replace(pulls=0))
        sums[pulled[:4]] = pulled._replace(
            pulls=before.pulls + pulled.pulls, age=min(before.age, pulled.age)
        )
    return list(sums.values())


def _detail(pulled: Pulled) -> dict[str, Any]:
    at = datetime.now(UTC) - timedelta(seconds=pulled.age)
    detail = {
        "digest": digests.unpack(pulled.digest),
        "count": pulled.pulls,
        "pulled_at": at.isoformat(timespec="seconds"),
    }
    return detail | ({"tag": pulled.tag} if pulled.tag else {})
