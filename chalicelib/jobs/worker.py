"""The worker: takes jobs that are due, and does them. Any number run at once, on any host.

Each job is leased. A thread of the worker's own renews the leases of all that is under way, so
that a job takes as long as it takes, and one whose worker was killed is soon taken by another.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from chalicelib.context import Context
from chalicelib.http import Unavailable
from chalicelib.jobs import GiveUp, Job, Kind, NotNow
from chalicelib.metadata import jobs
from chalicelib.metadata.database import DatabaseError, Transaction

_log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
POLL_SECONDS = 1.0
"""How often an idle worker looks for jobs."""
CLOCK_SECONDS = 10.0
"""How often a worker looks whether something that recurs is due."""
THREADS = 8
_PAUSE = 5.0
"""Seconds of patience with a database that does not answer."""
_ERROR_LENGTH = 2000


class LeaseLostError(Exception):
    """The job was taken by another worker, which does it again."""


class Worker:
    """Does jobs of ``kinds``, at most ``threads`` at once."""

    def __init__(self, context: Context, kinds: Sequence[Kind], threads: int = THREADS) -> None:
        self._context = context
        self._kinds = {kind.name: kind for kind in kinds}
        self._threads = threads
        self._held: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._clock = 0.0
        self._done = 0

    def run(self, stop: threading.Event) -> None:
        """Do jobs until told to stop, and then end those under way."""
        with self._pool() as pool:
            while not stop.is_set():
                try:
                    self._schedule()
                    taken = self._take(pool)
                except (Unavailable, DatabaseError):
                    _log.warning("no jobs can be taken; trying again", exc_info=True)
                    stop.wait(_PAUSE)
                    continue
                if not taken:
                    stop.wait(POLL_SECONDS)

    def drain(self, until: float = float("inf")) -> int:
        """Do jobs until none is due, or ``time.monotonic()`` is ``until``; gives how many were
        done. Raises ``Unavailable``."""
        with self._pool() as pool:
            self._schedule()
            while time.monotonic() < until:
                if not self._take(pool):
                    # One that ends may have others wait for it.
                    with self._changed:
                        if not self._held:
                            break
                        self._changed.wait(POLL_SECONDS)
        return self._done

    def _pool(self) -> "_Pool":
        return _Pool(self._threads, self._renew)

    def _schedule(self) -> None:
        if time.monotonic() < self._clock:
            return
        periods = {kind.name: kind.every for kind in self._kinds.values() if kind.every}
        if periods:
            jobs.schedule(self._context.database, periods)
        self._clock = time.monotonic() + CLOCK_SECONDS

    def _take(self, pool: "_Pool") -> int:
        """Begin what there is room for; gives how many. Waits where there is no room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._held) < self._threads, POLL_SECONDS)
            room = self._threads - len(self._held)
        if not room:
            return 0
        taken = jobs.take(self._context.database, list(self._kinds), room, LEASE_SECONDS)
        with self._changed:
            self._held.update({job.id: job for job in taken})
        for job in taken:
            pool.submit(self._do, job).add_done_callback(self._log_failure)
        return len(taken)

    def _do(self, job: Job) -> None:
        try:
            self._perform(job, self._kinds[job.kind])
        finally:
            with self._changed:
                del self._held[job.id]
                self._changed.notify_all()

    def _perform(self, job: Job, kind: Kind) -> None:
        database = self._context.database
        if job.tries > kind.tries:
            self._give_up(job, "Its worker ended without a word each time.")
            return
        try:
            later = kind.perform(self._context, job)

            def end(transaction: Transaction) -> None:
                # First: it locks the job's row, and tells whether it is still ours.
                if not jobs.finish(transaction, job):
                    raise LeaseLostError
                if later is not None:
                    later(transaction)

            database.transaction(end)
            self._done += 1
        except LeaseLostError:
            _log.warning("job %d (%s) took longer than its lease", job.id, job.kind)
        except NotNow as wait:
            jobs.postpone(database, job, wait.seconds)
        except GiveUp as error:
            self._give_up(job, str(error))
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]
            if job.tries >= kind.tries:
                self._give_up(job, sentence)
                return
            seconds = kind.pause(job.tries) * random.uniform(0.5, 1.5)  # noqa: S311
            _log.warning(
                "job %d (%s) is tried again in %.0f s", job.id, job.kind, seconds, exc_info=True
            )
            jobs.put_off(database, job, seconds, sentence)

    def _give_up(self, job: Job, sentence: str) -> None:
        _log.error("job %d (%s) is given up: %s", job.id, job.kind, sentence)
        recurs = self._kinds[job.kind].every is not None
        sentence = sentence[:_ERROR_LENGTH]
        jobs.give_up(self._context.database, job, sentence, recurs=recurs)

    def _renew(self) -> None:
        with self._changed:
            held = list(self._held.values())
        if held:
            with suppress(Unavailable, DatabaseError):
                jobs.renew(self._context.database, held, LEASE_SECONDS)

    def _log_failure(self, future: "Future[None]") -> None:
        # It could not even be put off: its lease runs out, and it is taken again.
        if error := future.exception():
            _log.warning("a job could not be ended: %s", error)


class _Pool(ThreadPoolExecutor):
    """Threads for jobs, and one that renews their leases until the last has ended."""

    def __init__(self, threads: int, renew: Callable[[], None]) -> None:
        super().__init__(threads, thread_name_prefix="job")
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._keep, args=[renew], daemon=True)
        self._renewing.start()

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True)
        self._ended.set()
        self._renewing.join()

    def _keep(self, renew: Callable[[], None]) -> None:
        while not self._ended.wait(LEASE_SECONDS / 3):
            renew()
