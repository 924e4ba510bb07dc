"""The outbox and its workers: taken once, tried again, given up, in order, and never lost."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.context import Context
from chalicelib.jobs import GiveUp, Job, Kind, Later, NotNow, worker
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database, Transaction, UniqueViolation
from tests.hosts.wire import until

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


def test_each_kind_has_its_turn(database: Database) -> None:
    """However many jobs there are of one, and however old."""
    for kind, count in (("a", 500), ("b", 3), ("c", 1)):
        database.run(
            "INSERT INTO jobs (kind, data) SELECT CAST(:kind AS text), '{}'"
            " FROM generate_series(1, CAST(:count AS integer))",
            kind=kind,
            count=count,
        )
    taken = jobs.take(database, ["a", "b", "c"], 8, 30)
    assert Counter(job.kind for job in taken) == {"a": 4, "b": 3, "c": 1}
    assert len(jobs.take(database, ["a", "b", "c"], 8, 30)) == 8


def test_subjects_have_their_turn_too(jobs_context: Context, database: Database) -> None:
    database.run(
        "INSERT INTO jobs (kind, subject, data) SELECT 'a', 's' || n % 50, '{}'"
        " FROM generate_series(1, 150) n"
    )
    jobs.add(database, "b", {}, subject="z")
    jobs.add(database, "b", {})
    order: list[str] = []
    kinds = [Kind(name, lambda _, job: order.append(job.kind)) for name in ("a", "b")]
    assert Worker(jobs_context, kinds, threads=2).drain() == 152
    assert max(place for place, kind in enumerate(order) if kind == "b") < 50


def test_a_kind_whose_jobs_hang_leaves_threads_to_the_others(
    jobs_context: Context, database: Database
) -> None:
    release = threading.Event()
    hanging: list[int] = []

    def hang(_: Context, job: Job) -> None:
        hanging.append(job.id)
        release.wait(30)

    names = ("hangs", "hangs too", "goes on")
    kinds = [*(Kind(name, hang) for name in names[:2]), Kind(names[2], lambda _, __: None)]
    for name in names:
        database.run(
            "INSERT INTO jobs (kind, data) SELECT CAST(:kind AS text), '{}'"
            " FROM generate_series(1, 20)",
            kind=name,
        )
    working = threading.Thread(target=Worker(jobs_context, kinds, threads=8).drain)
    working.start()
    try:
        for _ in until(20):
            if not jobs.page(database, 0, 1, kind="goes on"):
                break
        assert 4 <= len(hanging) < 8
    finally:
        release.set()
        working.join()


def test_one_of_a_subject_at_a_time_whichever_commits_first(database: Database) -> None:
    """An older job may come to sight when a newer one is under way."""
    connection = threading.Event()
    committed = threading.Event()

    def add_slowly(transaction: Transaction) -> None:
        jobs.add(transaction, "test", {"n": 1}, subject="s")
        connection.set()
        committed.wait(30)

    adding = threading.Thread(target=database.transaction, args=[add_slowly])
    adding.start()
    connection.wait(30)
    jobs.add(database, "test", {"n": 2}, subject="s")
    [second] = jobs.take(database, ["test"], 8, 30)
    committed.set()
    adding.join()
    assert jobs.take(database, ["test"], 8, 30) == []
    # As it is seen by one that looked before the other was taken.
    with pytest.raises(UniqueViolation):
        database.run("UPDATE jobs SET taken = true WHERE NOT taken")
    jobs.finish(database, second)
    [first] = jobs.take(database, ["test"], 8, 30)
    assert (first.data, second.data) == ({"n": 1}, {"n": 2})


def test_after_a_kill_the_job_of_a_subject_comes_before_the_others(database: Database) -> None:
    for number in (1, 2):
        jobs.add(database, "test", {"n": number}, subject="s")
    [first] = jobs.take(database, ["test"], 8, 0)
    [again] = jobs.take(database, ["test"], 8, 30)
    assert (again.id, again.attempt) == (first.id, 2)
    assert not jobs.finish(database, first)
    assert jobs.take(database, ["test"], 8, 30) == []


def test_a_dead_job_of_a_subject_is_not_waited_for(database: Database) -> None:
    for number in (1, 2):
        jobs.add(database, "test", {"n": number}, subject="s")
    [first] = jobs.take(database, ["test"], 8, 30)
    jobs.give_up(database, first, "In vain.", recurs=False)
    [second] = jobs.take(database, ["test"], 8, 30)
    assert second.data == {"n": 2}
    # Retried meanwhile, it waits like any other.
    assert jobs.retry(database, first.id)
    assert jobs.take(database, ["test"], 8, 30) == []


def test_a_running_job_is_neither_retried_nor_dropped(database: Database) -> None:
    jobs.add(database, "test", {})
    [job] = jobs.take(database, ["test"], 1, 30)
    assert not jobs.retry(database, job.id)
    assert not jobs.drop(database, job.id)
    assert jobs.finish(database, job)


@pytest.mark.parametrize("subject", ["''", "'s'", "'s' || n"])
def test_to_take_costs_the_same_however_many_wait(database: Database, subject: str) -> None:
    """None are looked at that cannot begin: neither all of one subject nor all of one kind."""

    def blocks() -> int:
        [[plan]] = database.transaction(explained)
        return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])

    def explained(transaction: Transaction) -> list[list[Any]]:
        transaction.run(jobs._PLAN)
        return transaction.run(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {jobs._TAKE}",
            kinds=["test", "other"],
            held=[0, 0],
            after=["", ""],
            count=8,
            shared=True,
            lease=30,
        )

    def add(first: int, last: int) -> None:
        database.run(
            f"INSERT INTO jobs (kind, subject, data) SELECT 'test', {subject}, '{{}}'"
            f" FROM generate_series({first}, {last}) n"
        )

    add(1, 20)
    few = blocks()
    database.run("DELETE FROM jobs")
    database.run("VACUUM jobs")
    add(1, 20_000)
    assert blocks() < 3 * few + 100


def test_what_was_done_is_counted(jobs_context: Context, database: Database) -> None:
    for number in range(3):
        jobs.add(database, "test", {"n": number})

    def perform(_: Context, job: Job) -> None:
        if job.data["n"] == 1:
            raise GiveUp("In vain.")
        if job.data["n"] == 2:
            raise ValueError("not \0 now")

    drain(jobs_context, perform)
    [depth] = jobs.depths(database)
    assert (depth.waiting, depth.failing, depth.dead) == (1, 1, 1)
    assert (depth.done, depth.failed, depth.given_up) == (1, 1, 1)
    hurry(database)
    drain(jobs_context, lambda _, __: None)
    assert jobs.depths(database)[0].done == 2


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
