"""A worker with kinds of its own, in a process of its own.

`python -m tests.jobs.program DIRECTORY NAME=VALUE…`: the pairs set constants of the worker, like
`LEASE_SECONDS=1`; `clock=SECONDS` has this process's clocks go so much ahead. Settings come from
the environment. The directory holds what the jobs note, and the gates that the tests open.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.hosts.harness import log
from chalicelib.jobs import Job, Kind, Later, worker
from chalicelib.jobs.worker import Worker
from chalicelib.metadata.database import Database, Transaction
from chalicelib.settings import Settings
from tests.hosts.wire import until
from tests.servers import Server


def make_table(database: Database) -> None:
    """What jobs change in Postgres: a row each time that one is done."""
    database.run("CREATE TABLE IF NOT EXISTS effects (job bigint, n integer, attempt integer)")


def _effect(job: Job) -> Later:
    def later(transaction: Transaction) -> None:
        transaction.run(
            "INSERT INTO effects VALUES (:job, :n, :attempt)",
            job=job.id,
            n=job.data.get("n", 0),
            attempt=job.attempt,
        )

    return later


def effect(_: Context, job: Job) -> Later:
    """Change Postgres."""
    return _effect(job)


def nothing(_: Context, __: Job) -> None:
    """Change nothing."""


class Noting:
    """Jobs that a test can see and hold up."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, _: Context, job: Job) -> Later:
        with (self._directory / "begun").open("a") as file:
            file.write(f"{job.data['n']} {os.getpid()}\n")
        time.sleep(job.data.get("seconds", 0))
        while "gate" in job.data and not (self._directory / job.data["gate"]).exists():
            time.sleep(0.02)
        return _effect(job)


class Working(Server):
    """Such a process. It works on one database; its table of effects must be there."""

    name = "jobs"

    def __init__(self, directory: Path, settings: Mapping[str, str], *pairs: str) -> None:
        super().__init__(directory)
        self._settings = settings
        self._pairs = pairs

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.jobs.program", str(self.directory), *self._pairs]

    def environment(self) -> Mapping[str, str]:
        return {**self._settings, "PYTHONPATH": str(Path(__file__).parents[2])}

    def ready(self) -> bool:
        return "works" in self.output()

    def begun(self) -> list[tuple[int, int]]:
        """The number of each job that was begun, and the process that did."""
        file = self.directory / "begun"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(int(number), int(pid)) for number, pid in map(str.split, lines)]

    def wait_for(self, number: int, count: int = 1) -> None:
        """Wait until that job was begun so often."""
        for _ in until(60):
            if [each for each, _ in self.begun()].count(number) >= count:
                break


def settings_for(url: str, directory: Path) -> dict[str, str]:
    """What such a process needs to know."""
    return {
        "OPENREGISTRY_DATABASE_URL": url,
        "OPENREGISTRY_ACCESS": "open",
        "OPENREGISTRY_DATA_DIR": str(directory / "data"),
        "OPENREGISTRY_SECRET_KEY": "a secret for the tests of jobs",
    }


def _set_clocks(seconds: float) -> None:
    """Have the clocks of this process disagree with the database's."""
    now = time.time
    time.time = lambda: now() + seconds


def main(directory: Path, pairs: list[str]) -> None:
    """Work until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    log.configure("info")
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name == "clock":
            _set_clocks(float(value))
        else:
            setattr(worker, name, float(value))
    kinds = [
        Kind("effect", effect),
        Kind("nothing", nothing),
        Kind("noting", Noting(directory), first=0.1),
    ]
    context = build_context(Settings.from_environment())
    stop = threading.Event()
    working = threading.Thread(target=Worker(context, kinds).run, args=[stop])
    working.start()
    print("works", flush=True)
    signal.sigwait([signal.SIGTERM])
    stop.set()
    working.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
