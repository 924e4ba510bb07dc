"""The outbox and its workers: taken once, tried again, given up, in order, and never lost."""

import threading
import time
from collections.abc import Callable

import pytest

from chalicelib.context import Context
from chalicelib.jobs import GiveUp, Job, Kind, Later, NotNow, worker
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database, Transaction

Perform = Callable[[Context, Job], Later | None]


def kind(perform: Perform, **options: float) -> Kind:
    return Kind("test", perform, **options)  # type: ignore[arg-type]


def drain(context: Context, perform: Perform, **options: float) -> int:
    return Worker(context, [kind(perform, **options)]).drain()


def hurry(database: Database) -> None:
    """Let what was put off be due."""
    database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")


def test_a_job_is_done_and_gone(jobs_context: Context, database: Database) -> None:
    jobs.add(database, "test", {"n": 1})
    seen: list[object] = []
    assert drain(jobs_context, lambda _, job: seen.append((job.data, job.tries))) == 1
    assert seen == [({"n": 1}, 1)]
    assert jobs.page(database, 0, 10) == []


def test_what_a_transaction_undoes_is_no_job(database: Database) -> None:
    def work(transaction: Transaction) -> None:
        jobs.add(transaction, "test", {})
        raise KeyError

    with pytest.raises(KeyError):
        database.transaction(work)
    assert jobs.page(database, 0, 10) == []


def test_what_it_changes_ends_with_it(jobs_context: Context, database: Database) -> None:
    """A worker that lost its lease changes nothing: another does it, once."""
    jobs.add(database, "test", {})

    def perform(_: Context, job: Job) -> Later:
        # Another worker takes it meanwhile.
        database.run("UPDATE jobs SET due_at = now()")
        assert jobs.take(database, ["test"], 1, 30)
        return lambda transaction: jobs.add(transaction, "effect", {"attempt": job.attempt})

    assert drain(jobs_context, perform) == 0
    assert [(entry.kind, entry.state) for entry in jobs.page(database, 0, 10)] == [
        ("test", "running")
    ]


def test_a_failure_is_tried_again_later_and_then_given_up(
    jobs_context: Context, database: Database
) -> None:
    jobs.add(database, "test", {})
    tries = []

    def perform(_: Context, job: Job) -> None:
        tries.append(job.tries)
        raise ValueError(f"no {job.tries}")

    for number in (1, 2):
        assert drain(jobs_context, perform, tries=3, first=100) == 0
        [entry] = jobs.page(database, 0, 10)
        assert (entry.state, entry.error) == ("waiting", f"ValueError: no {number}")
        [[pause]] = database.run("SELECT extract(epoch FROM due_at - now()) FROM jobs")
        assert 50 * number - 5 < pause < 150 * number
        assert drain(jobs_context, perform, tries=3) == 0
        assert len(tries) == number
        hurry(database)
    drain(jobs_context, perform, tries=3)
    [entry] = jobs.page(database, 0, 10)
    assert (entry.state, entry.error, entry.tries) == ("dead", "ValueError: no 3", 3)

    hurry(database)
    drain(jobs_context, perform, tries=3)
    assert tries == [1, 2, 3]
    assert jobs.retry(database, entry.id)
    assert drain(jobs_context, lambda _, job: tries.append(job.tries)) == 1
    assert tries == [1, 2, 3, 1]


def test_what_is_in_vain_is_given_up_at_once(jobs_context: Context, database: Database) -> None:
    jobs.add(database, "test", {})

    def perform(_: Context, __: Job) -> None:
        raise GiveUp("The receiver is gone.")

    drain(jobs_context, perform)
    [entry] = jobs.page(database, 0, 10)
    assert (entry.state, entry.error) == ("dead", "The receiver is gone.")
    assert jobs.drop(database, entry.id)
    assert jobs.page(database, 0, 10) == []


def test_what_is_not_to_be_done_now_has_not_failed(
    jobs_context: Context, database: Database
) -> None:
    jobs.add(database, "test", {})
    tries = []

    def perform(_: Context, job: Job) -> None:
        tries.append(job.tries)
        raise NotNow(60)

    for _ in range(3):
        assert drain(jobs_context, perform, tries=2) == 0
        [entry] = jobs.page(database, 0, 10)
        assert (entry.state, entry.error, entry.tries) == ("waiting", "", 0)
        [[pause]] = database.run("SELECT extract(epoch FROM due_at - now()) FROM jobs")
        assert 50 < pause < 61
        hurry(database)
    assert tries == [1, 1, 1]


def test_what_kills_its_workers_is_given_up(jobs_context: Context, database: Database) -> None:
    jobs.add(database, "test", {})
    for _ in range(3):
        assert jobs.take(database, ["test"], 1, 0)
    done: list[int] = []
    drain(jobs_context, lambda _, job: done.append(job.id), tries=3)
    [entry] = jobs.page(database, 0, 10)
    assert (entry.state, done) == ("dead", [])
    assert "ended without a word" in entry.error


def test_a_lease_is_renewed(
    jobs_context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.6)
    jobs.add(database, "test", {})
    taken: list[Job] = []

    def perform(_: Context, __: Job) -> None:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            taken.extend(jobs.take(database, ["test"], 1, 30))
            time.sleep(0.05)

    assert drain(jobs_context, perform) == 1
    assert taken == []


def test_jobs_of_one_subject_are_done_one_after_another(
    jobs_context: Context, database: Database
) -> None:
    for number in range(12):
        jobs.add(database, "test", {"n": number}, subject="abc"[number % 3])
    lock = threading.Lock()
    running: set[str] = set()
    order: list[tuple[str, int]] = []

    def perform(_: Context, job: Job) -> None:
        with lock:
            assert job.subject not in running
            running.add(job.subject)
        time.sleep(0.02)
        with lock:
            running.remove(job.subject)
            order.append((job.subject, job.data["n"]))

    workers = [Worker(jobs_context, [kind(perform)]) for _ in range(3)]
    threads = [threading.Thread(target=each.drain) for each in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 12
    for subject in "abc":
        numbers = [number for each, number in order if each == subject]
        assert numbers == sorted(numbers)


def test_many_workers_do_each_job_once(jobs_context: Context, database: Database) -> None:
    database.run("INSERT INTO jobs (kind, data) SELECT 'test', '{}' FROM generate_series(1, 500)")
    lock = threading.Lock()
    done: list[int] = []

    def perform(_: Context, job: Job) -> None:
        with lock:
            done.append(job.id)

    workers = [Worker(jobs_context, [kind(perform)]) for _ in range(3)]
    threads = [threading.Thread(target=each.drain) for each in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(set(done)) == 500


def test_what_recurs_is_added_when_its_time_has_come(
    jobs_context: Context, database: Database
) -> None:
    done: list[int] = []

    def perform(_: Context, job: Job) -> None:
        done.append(job.id)

    for _ in range(2):
        drain(jobs_context, perform, every=100)
    assert len(done) == 1
    database.run("UPDATE schedules SET due_at = now() - interval '1 second'")
    drain(jobs_context, perform, every=100)
    assert len(done) == 2


def test_of_what_recurs_the_last_failure_is_kept(jobs_context: Context, database: Database) -> None:
    def perform(_: Context, __: Job) -> None:
        raise GiveUp("In vain.")

    for _ in range(3):
        drain(jobs_context, perform, every=100)
        database.run("UPDATE schedules SET due_at = now() - interval '1 second'")
    assert [entry.state for entry in jobs.page(database, 0, 10)] == ["dead"]


def test_depths(jobs_context: Context, database: Database) -> None:
    jobs.add(database, "a", {})
    jobs.add(database, "a", {}, delay=60)
    jobs.add(database, "b", {})
    assert jobs.take(database, ["b"], 1, 30)
    database.run("UPDATE jobs SET due_at = due_at - interval '5 seconds' WHERE kind = 'a'")
    [first, second] = jobs.depths(database)
    assert first[:5] == ("a", 2, 0, 0, 0)
    assert 4.9 < first.age < 10
    assert second == ("b", 0, 1, 0, 0, 0.0, 0, 0, 0)
