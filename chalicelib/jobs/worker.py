"""The worker: takes jobs that are due, and does them. Any number run at once, on any host.

Each job is leased. A thread of the worker's own renews the leases of all that is under way, so
that a job takes as long as it takes, and one whose worker was killed is soon taken by another.
"""

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from chalicelib import logs, tracing
from chalicelib.context import Context
from chalicelib.http import Unavailable
from chalicelib.jobs import GiveUp, Job, Kind, Later, NotNow, TryAgain, as_text
from chalicelib.metadata import jobs
from chalicelib.metadata.database import DatabaseError, Transaction, UniqueViolation
from chalicelib.metrics import catalogue

_log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
POLL_SECONDS = 1.0
"""How often an idle worker looks for jobs."""
CLOCK_SECONDS = 10.0
"""How often a worker looks whether something that recurs is due."""
THREADS = 16
_GATHER = 0.003
"""Seconds until others have ended too: what takes their place is asked for at once."""
_PAUSE = 5.0
"""Seconds of patience with a database that does not answer."""
_ERROR_LENGTH = 2000


class Worker:
    """Does jobs of ``kinds``, at most ``threads`` at once. No kind gets more than half of the
    threads that are free: one whose jobs hang leaves some to the others."""

    def __init__(self, context: Context, kinds: Sequence[Kind], threads: int = THREADS) -> None:
        self._context = context
        self._kinds = {kind.name: kind for kind in kinds if kind.wanted(context.settings)}
        self._threads = threads
        self._changed = threading.Condition()
        self._held: dict[int, Job] = {}
        self._ended = 0
        self._done = 0
        self._totals: dict[str, Counter[str]] = defaultdict(Counter)
        self._clock = 0.0
        # The last subject of each kind of which a job was taken.
        self._subjects: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Do jobs until told to stop, and then end those under way."""
        with self._pool() as pool:
            while not stop.is_set():
                ended = self._ended
                try:
                    self._schedule()
                    self._take(pool)
                except (Unavailable, DatabaseError):
                    _log.warning("no jobs can be taken; trying again", exc_info=True)
                    stop.wait(_PAUSE)
                    continue
                if not self._rest(ended):
                    stop.wait(POLL_SECONDS)

    def drain(self, until: float = float("inf")) -> int:
        """Do jobs until none is due, or ``time.monotonic()`` is ``until``; gives how many were
        done. Raises ``Unavailable``."""
        with self._pool() as pool:
            self._schedule()
            while time.monotonic() < until:
                ended = self._ended
                self._take(pool)
                # One that ended may have had others wait for it, or have added some.
                if not self._rest(ended):
                    break
        return self._done

    def _pool(self) -> "_Pool":
        return _Pool(self._threads, self._keep)

    def _schedule(self) -> None:
        if time.monotonic() < self._clock:
            return
        periods = {kind.name: kind.every for kind in self._kinds.values() if kind.every}
        if periods:
            jobs.schedule(self._context.database, periods)
        self._clock = time.monotonic() + CLOCK_SECONDS

    def _take(self, pool: "_Pool") -> int:
        """Begin what there is room for; gives how many."""
        with self._changed:
            room = self._threads - len(self._held)
            held = Counter(job.kind for job in self._held.values())
        kinds = [name for name in self._kinds if held[name] < room]
        taken = self._taken(kinds, room, held) if kinds else []
        if not taken and self._subjects:
            self._subjects = {}
            taken = self._taken(kinds, room, held) if kinds else []
        with self._changed:
            self._held.update({job.id: job for job in taken})
        for job in taken:
            pool.submit(self._do, job).add_done_callback(self._log_failure)
        return len(taken)

    def _taken(self, kinds: Sequence[str], room: int, held: Mapping[str, int]) -> list[Job]:
        try:
            taken = jobs.take(
                self._context.database,
                kinds,
                room,
                LEASE_SECONDS,
                held=held,
                after=self._subjects,
            )
        except UniqueViolation:
            # Another worker took one of the same subject at that moment.
            return []
        last = sorted((job.kind, job.subject) for job in taken if job.subject)
        self._subjects = {**self._subjects, **dict(last)}
        return taken

    def _rest(self, ended: int) -> bool:
        """Wait until more than so many jobs have ended; False where none is under way."""
        with self._changed:
            if self._ended == ended and not self._held:
                return False
            self._changed.wait_for(lambda: self._ended > ended, POLL_SECONDS)
        time.sleep(_GATHER)
        return True

    def _do(self, job: Job) -> None:
        began = time.monotonic()
        outcome = "lost"
        try:
            with (
                logs.bound(job=job.id, kind=job.kind),
                tracing.job(job.kind, job.id, job.tries, job.trace) as span,
            ):
                outcome = self._perform(job, self._kinds[job.kind])
                span.set_attribute("openregistry.job.outcome", outcome)
        finally:
            catalogue.JOB_SECONDS.observe(time.monotonic() - began, job.kind, outcome)
            with self._changed:
                del self._held[job.id]
                self._ended += 1
                self._changed.notify_all()

    def _perform(self, job: Job, kind: Kind) -> str:
        """Do a job; gives what came of it, for ``catalogue.JOB_SECONDS``."""
        database = self._context.database
        if job.tries > kind.tries:
            return self._give_up(job, "Its worker ended without a word each time.")
        try:
            later = kind.perform(self._context, job)
            if later is None:
                ours = jobs.finish(database, job)
            else:
                ours = database.transaction(partial(_end, job, later))
            if not ours:
                _log.warning("job %d (%s) took longer than its lease", job.id, job.kind)
                return "lost"
            self._count(job, "done")
        except NotNow as wait:
            jobs.postpone(database, job, wait.seconds)
            return "postponed"
        except GiveUp as error:
            return self._give_up(job, str(error))
        except Exception as error:
            self._count(job, "failed")
            expected = isinstance(error, TryAgain)
            sentence = str(error) if expected else f"{type(error).__name__}: {error}"
            if job.tries >= kind.tries:
                return self._give_up(job, sentence)
            seconds = kind.pause(job.tries) * random.uniform(0.5, 1.5)  # noqa: S311
            _log.warning(
                "job %d (%s) is tried again in %.0f s: %s", job.id, job.kind, seconds, sentence,
                exc_info=not expected,
            )  # fmt: skip
            jobs.put_off(database, job, seconds, as_text(sentence, _ERROR_LENGTH))
            return "failed"
        return "done"

    def _give_up(self, job: Job, sentence: str) -> str:
        _log.error("job %d (%s) is given up: %s", job.id, job.kind, sentence)
        self._count(job, "given_up")
        recurs = self._kinds[job.kind].every is not None
        jobs.give_up(self._context.database, job, as_text(sentence, _ERROR_LENGTH), recurs=recurs)
        return "given_up"

    def _count(self, job: Job, what: str) -> None:
        with self._changed:
            self._totals[job.kind][what] += 1
            self._done += what == "done"

    def _keep(self) -> None:
        """Renew the leases of what is under way, and tell what was done since."""
        with self._changed:
            held = list(self._held.values())
            totals, self._totals = self._totals, defaultdict(Counter)
        try:
            if held:
                jobs.renew(self._context.database, held, LEASE_SECONDS)
            if totals:
                jobs.count(self._context.database, totals)
        except (Unavailable, DatabaseError):
            _log.warning("leases of jobs could not be renewed", exc_info=True)

    def _log_failure(self, future: "Future[None]") -> None:
        # It could not even be put off: its lease runs out, and it is taken again.
        if error := future.exception():
            _log.warning("a job could not be ended: %s", error)


def _end(job: Job, later: Later, transaction: Transaction) -> bool:
    """End a job with what it changes; False where it was taken by another, who does it again."""
    # First: it locks the job's row.
    if not jobs.finish(transaction, job):
        return False
    later(transaction)
    return True


class _Pool(ThreadPoolExecutor):
    """Threads for jobs, and one that calls ``keep`` now and then until the last has ended, and once
    more."""

    def __init__(self, threads: int, keep: Callable[[], None]) -> None:
        super().__init__(threads, thread_name_prefix="job")
        self._ended = threading.Event()
        self._keeping = threading.Thread(target=self._keep, args=[keep], daemon=True)
        self._keeping.start()

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True)
        self._ended.set()
        self._keeping.join()

    def _keep(self, keep: Callable[[], None]) -> None:
        while not self._ended.wait(LEASE_SECONDS / 3):
            keep()
        keep()
