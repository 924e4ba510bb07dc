"""The outbox: what happens later, written in the transaction that causes it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Database, Runner, Transaction


class Job(NamedTuple):
    """A job that was taken. ``attempt`` names the lease; ``tries`` counts from 1, again after each
    time that a person had it retried. ``trace`` is what caused it (``tracing.traceparent``)."""

    id: int
    kind: str
    subject: str
    data: dict[str, Any]
    attempt: int
    tries: int
    trace: str = ""


class Entry(NamedTuple):
    """A job as a person sees it. ``state`` is ``waiting``, ``running`` or ``dead``."""

    id: int
    kind: str
    subject: str
    state: str
    tries: int
    due_at: Any
    created_at: Any
    error: str
    data: dict[str, Any]


class Depth(NamedTuple):
    """How many jobs of a kind there are. ``age`` is how many seconds the oldest that is due has
    been; ``failing`` have failed and are tried again. ``done``, ``failed`` (attempts) and
    ``given_up`` count since the registry was made."""

    kind: str
    waiting: int
    running: int
    failing: int
    dead: int
    age: float
    done: int
    failed: int
    given_up: int


_SECONDS = "CAST(:{} AS double precision) * interval '1 second'"
_RUNNING = "(taken AND due_at > now())"
_STATE = (
    f"CASE WHEN dead_at IS NOT NULL THEN 'dead' WHEN {_RUNNING} THEN 'running' ELSE 'waiting' END"
)
_ENTRY = f"id, kind, subject, {_STATE}, tries, due_at, created_at, error, data"


# The next job of the next subject, which alone of its subject may begin.
_HEAD = (
    "(SELECT subject, id FROM jobs WHERE kind = {0}.kind AND subject > {0}.subject"
    " AND subject <> '' AND dead_at IS NULL ORDER BY subject, taken DESC, id LIMIT 1)"
)
# Every step ends as soon as it has found enough: what it costs does not depend on how many jobs
# there are.
_TAKE = (
    "WITH RECURSIVE asked AS (SELECT * FROM unnest(CAST(:kinds AS text[]),"
    " CAST(:held AS integer[]), CAST(:after AS text[])) AS a (kind, held, subject)),"
    " heads AS (SELECT a.kind, h.subject, h.id FROM asked a CROSS JOIN LATERAL "
    + _HEAD.format("a")
    + " h UNION ALL SELECT p.kind, h.subject, h.id FROM heads p CROSS JOIN LATERAL "
    + _HEAD.format("p")
    + " h), unordered AS (SELECT a.kind, a.held, j.id, j.due_at FROM asked a CROSS JOIN LATERAL"
    " (SELECT id, due_at FROM jobs WHERE kind = a.kind AND subject = '' AND dead_at IS NULL"
    " AND due_at <= now() ORDER BY due_at LIMIT :count FOR UPDATE SKIP LOCKED) j),"
    " ordered AS (SELECT h.kind, j.id, j.due_at FROM heads h CROSS JOIN LATERAL"
    " (SELECT id, due_at FROM jobs WHERE id = h.id AND dead_at IS NULL AND due_at <= now()"
    " FOR UPDATE SKIP LOCKED) j LIMIT :count),"
    " due AS (SELECT * FROM unordered UNION ALL"
    " SELECT kind, held, id, due_at FROM ordered JOIN asked USING (kind)),"
    " ranked AS (SELECT id, due_at, held"
    " + row_number() OVER (PARTITION BY kind ORDER BY due_at, id) AS place FROM due),"
    " placed AS (SELECT id, place, row_number() OVER (ORDER BY place, due_at, id) AS position"
    " FROM ranked),"
    " chosen AS (SELECT id FROM placed WHERE position <= :count"
    " AND (NOT :shared OR place <= :count - position + 1))"
    " UPDATE jobs j SET attempt = attempt + 1, tries = tries + 1, taken = true,"
    f" due_at = now() + {_SECONDS.format('lease')} FROM chosen WHERE j.id = chosen.id"
    " RETURNING j.id, kind, subject, data, attempt, tries, trace"
)


def add(
    runner: Runner, kind: str, data: Mapping[str, Any], *, subject: str = "", delay: float = 0
) -> None:
    """Have this done, ``delay`` seconds from now. Jobs of one kind with one ``subject`` are done
    one after another, in the order in which they were added."""
    runner.run(
        "INSERT INTO jobs (kind, subject, data, due_at)"
        f" VALUES (:kind, :subject, CAST(:data AS jsonb), now() + {_SECONDS.format('delay')})",
        kind=kind,
        subject=subject,
        data=json.dumps(data),
        delay=delay,
    )


def add_all(runner: Runner, kind: str, data: Sequence[Mapping[str, Any]]) -> None:
    """Have all of these done, in any order: thousands in one statement."""
    runner.run(
        "INSERT INTO jobs (kind, data, due_at) SELECT :kind, CAST(data AS jsonb), now()"
        " FROM unnest(CAST(:data AS text[])) AS d (data)",
        kind=kind,
        data=[json.dumps(each) for each in data],
    )


def add_once(
    runner: Runner, kind: str, data: Mapping[str, Any], *, subject: str, delay: float = 0
) -> bool:
    """Have this done, unless a job of that kind and subject is to be done, runs, or was given up
    less than an hour ago; gives whether it was added. One that was given up earlier is forgotten.
    Two that ask at one moment may both add it."""
    return bool(
        runner.run(
            "WITH lately AS (SELECT dead_at FROM jobs WHERE kind = :kind AND subject = :subject"
            " AND (dead_at IS NULL OR dead_at > now() - interval '1 hour')),"
            " older AS (DELETE FROM jobs WHERE kind = :kind AND subject = :subject"
            " AND dead_at IS NOT NULL AND NOT EXISTS (SELECT FROM lately))"
            " INSERT INTO jobs (kind, subject, data, due_at)"
            f" SELECT :kind, :subject, CAST(:data AS jsonb), now() + {_SECONDS.format('delay')}"
            " WHERE NOT EXISTS (SELECT FROM lately) RETURNING 1",
            kind=kind,
            subject=subject,
            data=json.dumps(data),
            delay=delay,
        )
    )


def schedule(runner: Runner, periods: Mapping[str, int]) -> None:
    """Add a job of each kind whose time has come. ``periods`` are in seconds. Any number may do
    this at once; where the job before has not ended, none is added."""
    runner.run(
        "WITH periods AS (SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:seconds AS integer[]))"
        " AS p (kind, seconds)), come AS ("
        " INSERT INTO schedules AS s (kind, due_at)"
        " SELECT kind, now() + seconds * interval '1 second' FROM periods ORDER BY kind"
        " ON CONFLICT (kind) DO UPDATE SET due_at = excluded.due_at WHERE s.due_at <= now()"
        " RETURNING kind)"
        " INSERT INTO jobs (kind, data) SELECT kind, '{}' FROM come WHERE NOT EXISTS"
        " (SELECT FROM jobs j WHERE j.kind = come.kind AND subject = '' AND dead_at IS NULL)",
        kinds=list(periods),
        seconds=list(periods.values()),
    )


# A plan is made once, perhaps while there are few jobs, and has to do when there are many.
_PLAN = (
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),"
    " set_config('enable_mergejoin', 'off', true), set_config('plan_cache_mode',"
    " 'force_generic_plan', true)"
)


def take(
    database: Database,
    kinds: Sequence[str],
    count: int,
    lease: float,
    *,
    held: Mapping[str, int] | None = None,
    after: Mapping[str, str] | None = None,
) -> list[Job]:
    """Take at most ``count`` jobs of these kinds that are due, for ``lease`` seconds: then
    another worker may take them.

    Each kind has its turn, however many jobs there are of another. With ``held``, how many of each
    kind the caller has under way, none gets more than half of what is then free: one that hangs
    leaves room for the others. Subjects are looked at from the one ``after`` which the caller last
    took a job of that kind. Raises ``UniqueViolation`` where another worker takes a job of the same
    subject at that moment.
    """

    def work(transaction: Transaction) -> list[list[Any]]:
        transaction.run(_PLAN)
        return transaction.run(
            _TAKE,
            kinds=list(kinds),
            held=[(held or {}).get(kind, 0) for kind in kinds],
            after=[(after or {}).get(kind, "") for kind in kinds],
            count=count,
            shared=held is not None,
            lease=lease,
        )

    return [Job(*row) for row in sorted(database.transaction(work))]


def renew(runner: Runner, held: Sequence[Job], lease: float) -> None:
    """Keep jobs that are under way from being taken by others for another ``lease`` seconds."""
    runner.run(
        f"UPDATE jobs j SET due_at = now() + {_SECONDS.format('lease')}"
        " FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS integer[])) AS h (id, attempt)"
        " WHERE j.id = h.id AND j.attempt = h.attempt AND taken",
        ids=[job.id for job in held],
        attempts=[job.attempt for job in held],
        lease=lease,
    )


def finish(runner: Runner, job: Job) -> bool:
    """A job is done; False where its lease was lost, and another attempt will do it again."""
    return bool(
        runner.run(
            "DELETE FROM jobs WHERE id = :id AND attempt = :attempt AND dead_at IS NULL"
            " RETURNING 1",
            id=job.id,
            attempt=job.attempt,
        )
    )


def put_off(runner: Runner, job: Job, seconds: float, error: str) -> None:
    """Have a job that failed tried again."""
    runner.run(
        f"UPDATE jobs SET due_at = now() + {_SECONDS.format('seconds')}, taken = false,"
        " error = :error WHERE id = :id AND attempt = :attempt AND dead_at IS NULL",
        id=job.id,
        attempt=job.attempt,
        seconds=seconds,
        error=error,
    )


def postpone(runner: Runner, job: Job, seconds: float) -> None:
    """Have a job begin later that was taken and not tried."""
    runner.run(
        f"UPDATE jobs SET due_at = now() + {_SECONDS.format('seconds')}, taken = false,"
        " tries = tries - 1 WHERE id = :id AND attempt = :attempt AND dead_at IS NULL",
        id=job.id,
        attempt=job.attempt,
        seconds=seconds,
    )


def give_up(runner: Runner, job: Job, error: str, *, recurs: bool) -> None:
    """A job has failed for good. Of what recurs, the last failure is kept alone."""
    runner.run(
        "WITH older AS (DELETE FROM jobs"
        " WHERE :recurs AND kind = :kind AND dead_at IS NOT NULL AND id <> :id)"
        " UPDATE jobs SET dead_at = now(), taken = false, error = :error"
        " WHERE id = :id AND attempt = :attempt AND dead_at IS NULL",
        id=job.id,
        attempt=job.attempt,
        error=error,
        recurs=recurs,
        kind=job.kind,
    )


def count(runner: Runner, totals: Mapping[str, Mapping[str, int]]) -> None:
    """Add to what was ``done``, what ``failed`` and what was ``given_up``, by kind."""
    kinds = sorted(totals)
    columns = ("done", "failed", "given_up")
    runner.run(
        "INSERT INTO job_totals AS t (kind, done, failed, given_up) SELECT * FROM"
        " unnest(CAST(:kinds AS text[]), CAST(:done AS bigint[]), CAST(:failed AS bigint[]),"
        " CAST(:given_up AS bigint[])) AS n (kind, done, failed, given_up) ORDER BY kind"
        " ON CONFLICT (kind) DO UPDATE SET done = t.done + excluded.done,"
        " failed = t.failed + excluded.failed, given_up = t.given_up + excluded.given_up",
        kinds=kinds,
        **{column: [totals[kind].get(column, 0) for kind in kinds] for column in columns},
    )


def page(runner: Runner, after: int, count: int, *, kind: str = "", state: str = "") -> list[Entry]:
    """At most ``count`` jobs with ids above ``after``; of one kind or state where these are
    named."""
    rows = runner.run(
        f"SELECT * FROM (SELECT {_ENTRY} FROM jobs WHERE id > :after) AS"
        " j (id, kind, subject, state, tries, due_at, created_at, error, data)"
        " WHERE (:kind = '' OR kind = :kind) AND (:state = '' OR state = :state)"
        " ORDER BY id LIMIT :count",
        after=after,
        count=count,
        kind=kind,
        state=state,
    )
    return [Entry(*row) for row in rows]


def find(runner: Runner, job_id: int) -> Entry | None:
    """One job, None where it was done or dropped."""
    rows = runner.run(f"SELECT {_ENTRY} FROM jobs WHERE id = :id", id=job_id)
    return Entry(*rows[0]) if rows else None


def retry(runner: Runner, job_id: int) -> bool:
    """Have a job begin now that was given up or waits; False where there is none, or it runs."""
    return bool(
        runner.run(
            "UPDATE jobs SET due_at = now(), dead_at = NULL, tries = 0, taken = false"
            f" WHERE id = :id AND NOT {_RUNNING} RETURNING 1",
            id=job_id,
        )
    )


def drop(runner: Runner, job_id: int) -> bool:
    """Forget a job; False where there is none, or it runs."""
    return bool(
        runner.run(f"DELETE FROM jobs WHERE id = :id AND NOT {_RUNNING} RETURNING 1", id=job_id)
    )


def depths(runner: Runner) -> list[Depth]:
    """How many jobs of each kind there are and were, in the order of their names."""
    rows = runner.run(
        "SELECT kind, coalesce(waiting, 0), coalesce(running, 0), coalesce(failing, 0),"
        " coalesce(dead, 0), coalesce(age, 0), coalesce(done, 0), coalesce(failed, 0),"
        " coalesce(given_up, 0) FROM (SELECT kind,"
        f" count(*) FILTER (WHERE dead_at IS NULL AND NOT {_RUNNING}) AS waiting,"
        f" count(*) FILTER (WHERE {_RUNNING}) AS running,"
        " count(*) FILTER (WHERE dead_at IS NULL AND error <> '') AS failing,"
        " count(*) FILTER (WHERE dead_at IS NOT NULL) AS dead,"
        " CAST(extract(epoch FROM now() - min(due_at)"
        " FILTER (WHERE dead_at IS NULL AND due_at <= now())) AS double precision) AS age"
        " FROM jobs GROUP BY kind) j FULL JOIN job_totals USING (kind) ORDER BY kind"
    )
    return [Depth(*row) for row in rows]
