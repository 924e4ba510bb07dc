"""`openregistry work` and `openregistry jobs`, as an operator types them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from chalicelib.jobs import GiveUp, Kind
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from chalicelib.settings import Settings
from tests.hosts.wire import until
from tests.identity.test_command import Desk
from tests.servers import OPENREGISTRY, Postgres


class Place(NamedTuple):
    """Where an operator sits, and what is behind."""

    desk: Desk
    database: Database


@pytest.fixture
def place(postgres: Postgres, tmp_path: Path) -> Iterator[Place]:
    with postgres.migrated_database() as url:
        database = Database(url)
        settings = {
            "OPENREGISTRY_DATABASE_URL": url,
            "OPENREGISTRY_DATA_DIR": str(tmp_path),
            "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
        }
        yield Place(Desk(settings), database)
        database.close()


def fail(place: Place) -> int:
    """Have a job fail for good; gives its id."""

    def perform(_: object, __: jobs.Job) -> None:
        raise GiveUp("The receiver is gone.")

    jobs.add(place.database, "test", {"n": 1})
    context = type("Context", (), {"database": place.database, "settings": Settings()})()
    Worker(context, [Kind("test", perform)]).drain()
    [dead] = jobs.page(place.database, 0, 1, state="dead")
    return dead.id


def test_a_job_that_failed_is_looked_at_retried_and_dropped(place: Place) -> None:
    say, read = place.desk.say, place.desk.json
    job = fail(place)
    jobs.add(place.database, "other", {}, delay=60)

    [first, second] = read("jobs", "list")
    assert (first["id"], first["state"], second["state"]) == (job, "dead", "waiting")
    assert [each["id"] for each in read("jobs", "list", "--state", "dead")] == [job]
    assert [each["kind"] for each in read("jobs", "list", "--kind", "other")] == ["other"]
    assert read("jobs", "list", "--after", str(second["id"])) == []
    [line, _] = say("jobs", "list").splitlines()
    assert line.split()[:4] == [str(job), "dead", "test", "1"]
    assert line.endswith("The receiver is gone.")

    assert read("jobs", "show", str(job))["data"] == {"n": 1}
    assert "error        The receiver is gone." in say("jobs", "show", str(job)).splitlines()

    [other, test] = read("jobs", "status")
    assert (other["waiting"], test["dead"], test["given_up"]) == (1, 1, 1)
    [header, _, line] = say("jobs", "status").splitlines()
    assert header.split()[0] == "KIND"
    assert line.split()[:5] == ["test", "0", "0", "0", "1"]

    assert read("jobs", "retry", str(job)) == {"id": job, "retried": True}
    assert say("jobs", "drop", str(job)) == f"{job} is dropped\n"
    assert "may have been done" in place.desk.refused("jobs", "show", str(job))
    rows = place.database.run("SELECT event, subject, detail FROM audit ORDER BY id")
    detail = {"job": job, "kind": "test"}
    assert rows == [["job.retry", "operator", detail], ["job.drop", "operator", detail]]


def test_what_cannot_be(place: Place) -> None:
    assert "there is no job 7" in place.desk.refused("jobs", "retry", "7")
    assert "there is no job 7" in place.desk.refused("jobs", "drop", "7", "--json")
    for wrong in (("list", "--state", "late"), ()):
        assert place.desk.run("jobs", *wrong).returncode == 2
    too_large = "99999999999999999999"
    for *words, job in (
        ("show", "x"), ("retry", "-1"), ("drop", too_large), ("list", "--after", too_large)
    ):  # fmt: skip
        done = place.desk.run("jobs", *words, job)
        assert done.returncode == 2
        assert f"{job!r} must be a number from 0 to 9223372036854775807" in done.stderr.decode()
    away = Desk({**place.desk.settings, "OPENREGISTRY_DATABASE_URL": "postgresql://127.0.0.1:9/x"})
    assert "does not answer" in away.refused("work", "--once")
    assert "does not answer" in away.refused("jobs", "list")


def test_work_once(place: Place) -> None:
    """What recurs is due when it is first looked at."""
    done = place.desk.json("work", "--once")["done"]
    assert done >= 2
    assert place.desk.say("work", "--once") == "0 jobs done\n"


def test_an_embedded_postgres_is_started_for_work(tmp_path: Path) -> None:
    """And stopped afterwards."""
    desk = Desk({"OPENREGISTRY_DATA_DIR": str(tmp_path)})
    assert desk.json("work", "--once")["done"] >= 2
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_ends_when_told_to(place: Place, number: signal.Signals) -> None:
    working = subprocess.Popen(
        [OPENREGISTRY, "work"], env={"PATH": os.environ["PATH"], **place.desk.settings}
    )
    try:
        for _ in until():
            # The first is a migration's.
            if place.database.run("SELECT count(*) > 1 FROM schedules") == [[True]]:
                break
        working.send_signal(number)
        assert working.wait(10) == 0
    finally:
        working.kill()


def test_no_thread_of_work_takes_its_signals(place: Place) -> None:
    """One that sends traces would be ended by them, and the process with it."""
    environment = {
        "PATH": os.environ["PATH"],
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_SAMPLER": "always_off",
        **place.desk.settings,
    }
    working = subprocess.Popen([OPENREGISTRY, "work"], env=environment)
    try:
        for _ in until():
            threads = Path(f"/proc/{working.pid}/task").iterdir()
            # The first waits for them.
            others = [thread for thread in threads if thread.name != str(working.pid)]
            if len(others) >= 3:
                break
        for thread in others:
            blocked = re.search(r"SigBlk:\s*(\w+)", (thread / "status").read_text())
            assert blocked is not None
            for number in (signal.SIGTERM, signal.SIGINT):
                assert int(blocked[1], 16) >> (number - 1) & 1
        working.send_signal(signal.SIGTERM)
        assert working.wait(10) == 0
    finally:
        working.kill()


HANGING = """
import sys, time
from chalicelib.jobs import command, kinds, Kind
def hang(context, job):
    open(sys.argv[1], "w").close()
    time.sleep(60)
kinds.KINDS = (Kind("hangs", hang, every=60),)
command.STOP_SECONDS = float(sys.argv[2])
from chalicelib.cli import main
sys.exit(main(["work"]))
"""


@pytest.mark.parametrize(("patience", "signals"), [("1", 1), ("60", 2)])
def test_a_job_that_hangs_does_not_keep_work_from_ending(
    place: Place, tmp_path: Path, patience: str, signals: int
) -> None:
    """It is waited for in patience, or until the second signal."""
    working = subprocess.Popen(
        [sys.executable, "-c", HANGING, tmp_path / "begun", patience],
        env={"PATH": os.environ["PATH"], **place.desk.settings},
    )
    try:
        for _ in until():
            if (tmp_path / "begun").exists():
                break
        for _ in range(signals):
            working.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert working.wait(10) == 0
    finally:
        working.kill()
    [job] = jobs.page(place.database, 0, 2)
    assert (job.kind, job.state) == ("hangs", "running")
