"""The outbox: what happens later, written in the transaction that causes it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Job(NamedTuple):
    """A job that was taken. ``attempt`` names the lease; ``tries`` counts from 1, again after each
    time that a person had it retried."""

    id: int
    kind: str
    subject: str
    data: dict[str, Any]
    attempt: int
    tries: int


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
    been; ``failing`` have failed and are tried again."""

    kind: str
    waiting: int
    running: int
    failing: int
    dead: int
    age: float


_SECONDS = "CAST(:{} AS double precision) * interval '1 second'"
_RUNNING = "(taken AND due_at > now())"
_STATE = (
    f"CASE WHEN dead_at IS NOT NULL THEN 'dead' WHEN {_RUNNING} THEN 'running' ELSE 'waiting' END"
)
_ENTRY = f"id, kind, subject, {_STATE}, tries, due_at, created_at, error, data"


def add(
    runner: Runner, kind: str, data: Mapping[str, Any], *, subject: str = "", delay: float = 0
) -> None:
    """Have this done, ``delay`` seconds from now. Jobs with one ``subject`` are done one after
    another."""
    runner.run(
        "INSERT INTO jobs (kind, subject, data, due_at)"
        f" VALUES (:kind, :subject, CAST(:data AS jsonb), now() + {_SECONDS.format('delay')})",
        kind=kind,
        subject=subject,
        data=json.dumps(data),
        delay=delay,
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
        " (SELECT FROM jobs j WHERE j.kind = come.kind AND dead_at IS NULL)",
        kinds=list(periods),
        seconds=list(periods.values()),
    )


def take(runner: Runner, kinds: Sequence[str], count: int, lease: float) -> list[Job]:
    """Take at most ``count`` jobs of these kinds that are due, for ``lease`` seconds: then
    another worker may take them."""
    rows = runner.run(
        "WITH due AS (SELECT id FROM jobs j"
        " WHERE due_at <= now() AND dead_at IS NULL AND kind = ANY(CAST(:kinds AS text[]))"
        " AND (subject = '' OR NOT EXISTS (SELECT FROM jobs e"
        " WHERE e.subject = j.subject AND e.subject <> '' AND e.id < j.id AND e.dead_at IS NULL))"
        " ORDER BY due_at LIMIT :count FOR UPDATE SKIP LOCKED)"
        " UPDATE jobs j SET attempt = attempt + 1, tries = tries + 1, taken = true,"
        f" due_at = now() + {_SECONDS.format('lease')} FROM due WHERE j.id = due.id"
        " RETURNING j.id, kind, subject, data, attempt, tries",
        kinds=list(kinds),
        count=count,
        lease=lease,
    )
    return [Job(*row) for row in sorted(rows)]


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
    """How many jobs of each kind there are, in the order of their names."""
    rows = runner.run(
        f"SELECT kind, count(*) FILTER (WHERE dead_at IS NULL AND NOT {_RUNNING}),"
        f" count(*) FILTER (WHERE {_RUNNING}),"
        " count(*) FILTER (WHERE dead_at IS NULL AND error <> ''),"
        " count(*) FILTER (WHERE dead_at IS NOT NULL),"
        " coalesce(extract(epoch FROM now() - min(due_at)"
        " FILTER (WHERE dead_at IS NULL AND due_at <= now())), 0)"
        " FROM jobs GROUP BY kind ORDER BY kind"
    )
    return [Depth(*row)._replace(age=float(row[5])) for row in rows]
