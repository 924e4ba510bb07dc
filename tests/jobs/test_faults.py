"""Workers that are killed, several of them on two hosts, a Postgres that restarts, and clocks that
disagree: no job is lost, and what it changes in Postgres is changed once."""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from tests.hosts.wire import until
from tests.jobs import program
from tests.jobs.program import Working
from tests.servers import OPENREGISTRY, Postgres, Registry, run, stopping

Start = Callable[..., Working]

LEASE = "LEASE_SECONDS=2"


@pytest.fixture
def own_postgres(directory: Path) -> Iterator[Postgres]:
    """One that may be stopped."""
    server = Postgres(Path(tempfile.mkdtemp(prefix="jobs-postgres-", dir=directory)))
    server.directory.chmod(0o755)
    with stopping(server):
        server.start()
        yield server


@pytest.fixture
def url(postgres: Postgres) -> str:
    made = postgres.new_database()
    migrate(made)
    return made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Where the workers of a test find their jobs, and leave their effects."""
    made = Database(url)
    program.make_table(made)
    yield made
    made.close()


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """Start workers: `start("LEASE_SECONDS=2")`. All note what they do in one directory."""
    with ExitStack() as stack:

        def started(*pairs: str) -> Working:
            made = Working(tmp_path, program.settings_for(url, tmp_path), *pairs)
            stack.enter_context(stopping(made))
            return made.start()

        yield started


def add(database: Database, count: int, kind: str = "noting", **data: object) -> None:
    for number in range(count):
        jobs.add(database, kind, {"n": number, **data})


def effects(database: Database) -> list[int]:
    return [number for (number,) in database.run("SELECT n FROM effects ORDER BY n")]


def until_done(database: Database, seconds: float = 60) -> None:
    for _ in until(seconds, 0.1):
        if jobs.page(database, 0, 1) == []:
            break


def test_a_killed_worker_is_soon_taken_over_from(
    start: Start, database: Database, tmp_path: Path
) -> None:
    add(database, 3, gate="open")
    victim = start(LEASE)
    for number in range(3):
        victim.wait_for(number)
    victim.kill9()
    (tmp_path / "open").touch()
    begun = time.monotonic()
    other = start(LEASE)
    until_done(database)
    assert time.monotonic() - begun < 20
    assert effects(database) == [0, 1, 2]
    assert [attempt for (attempt,) in database.run("SELECT attempt FROM effects")] == [2, 2, 2]
    assert {pid for _, pid in other.begun()} == {victim.process.pid, other.pid}  # type: ignore[union-attr]


def test_a_worker_that_was_stopped_for_long_ends_nothing_twice(
    start: Start, database: Database, tmp_path: Path
) -> None:
    """It wakes up when another has its job: as after a suspended machine."""
    add(database, 1, gate="open")
    sleeper = start(LEASE)
    sleeper.wait_for(0)
    sleeper.signal(signal.SIGSTOP)
    other = start(LEASE)
    other.wait_for(0, 2)
    sleeper.signal(signal.SIGCONT)
    (tmp_path / "open").touch()
    until_done(database)
    time.sleep(0.5)
    assert effects(database) == [0]


@pytest.mark.parametrize("ahead", [-100_000, 100_000])
def test_clocks_that_disagree(start: Start, database: Database, ahead: int) -> None:
    """Leases and what is due are told by Postgres's clock alone."""
    jobs.add(database, "effect", {"n": 99}, delay=3600)
    add(database, 1, seconds=2)
    start(LEASE).wait_for(0)
    add(database, 20, "effect")
    start(LEASE, f"clock={ahead}")
    for _ in until():
        if len(effects(database)) == 21:
            break
    assert [entry.data["n"] for entry in jobs.page(database, 0, 10)] == [99]
    assert [attempt for (attempt,) in database.run("SELECT attempt FROM effects")] == [1] * 21


@pytest.mark.long
def test_postgres_restarts_while_jobs_run(own_postgres: Postgres, tmp_path: Path) -> None:
    url = own_postgres.new_database()
    migrate(url)
    database = Database(url)
    program.make_table(database)
    add(database, 300, seconds=0.2)
    settings = program.settings_for(url, tmp_path)
    pairs = (LEASE, "_PAUSE=0.5")
    workers = [Working(tmp_path / name, settings, *pairs) for name in ("one", "two")]
    with ExitStack() as stack:
        for each in workers:
            stack.enter_context(stopping(each))
            each.start()
        for how in ("restart", "kill9", "restart"):
            time.sleep(1)
            if how == "kill9":
                own_postgres.kill9()
                own_postgres.start()
            else:
                own_postgres.restart()
        until_done(database, 120)
        assert all(each.alive() for each in workers)
    assert effects(database) == list(range(300))
    database.close()


@pytest.mark.long
def test_kills_again_and_again(start: Start, database: Database) -> None:
    """Every second a worker dies in mid-job."""
    add(database, 400, seconds=0.1)
    workers = [start(LEASE), start(LEASE)]
    for turn in range(6):
        time.sleep(1)
        workers[turn % 2].kill9()
        workers[turn % 2] = start(LEASE)
    until_done(database, 120)
    assert effects(database) == list(range(400))


def test_the_harness_and_a_worker_by_hand(
    serve: Callable[..., Registry], url: str, directory: Path
) -> None:
    """Both do what recurs, each time once; either alone would."""
    database = Database(url)
    server = serve(OPENREGISTRY_DATABASE_URL=url, OPENREGISTRY_WORKERS="1")
    for _ in until():
        # A migration has made the row of one kind; the harness makes those of all at once.
        rows = database.run("SELECT count(*) FROM schedules UNION ALL SELECT count(*) FROM jobs")
        if rows[0][0] > 1 and rows[1][0] == 0:
            break
    before = database.run("SELECT max(due_at) FROM schedules")
    settings: dict[str, Any] = {**server.environment()}
    assert "done" in run(OPENREGISTRY, "work", "--once", **settings).stdout
    # It had nothing to add: the other's schedule holds for it too.
    assert database.run("SELECT max(due_at) FROM schedules") == before
    database.close()


@pytest.mark.long
def test_thousands_of_jobs_with_two_workers(start: Start, database: Database) -> None:
    """None is lost, none has an effect twice; with subjects and without, some of which fail."""
    database.run(
        "INSERT INTO jobs (kind, subject, data) SELECT 'effect',"
        " CASE WHEN n % 4 = 0 THEN 's' || n % 300 ELSE '' END, jsonb_build_object('n', n)"
        " FROM generate_series(0, 9999) n"
    )
    workers = [start(), start()]
    until_done(database, 120)
    assert effects(database) == list(range(10_000))
    for each in workers:
        each.stop()
    [depth] = jobs.depths(database)
    assert (depth.done, depth.failed) == (10_000, 0)
