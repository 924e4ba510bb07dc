"""The status page: probes, the days made of them, and by whom the registry tries itself."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import NamedTuple

from chalicelib.metadata.database import Runner

DAYS = 90
"""For how many days there is a row of each."""
STALE = 960.0
"""Seconds after which the last probe says nothing of now: three are missing."""
_KEPT = "interval '3 days'"
"""How long probes are: longer than the two days that are made anew with each of them."""


class Probe(NamedTuple):
    """One probe. Milliseconds of each step that worked, and what failed, if something did."""

    at: datetime
    sign_in: float | None
    push: float | None
    pull: float | None
    failed: str | None
    status: int
    code: str
    error: str


class Day(NamedTuple):
    """A step on one day of UTC: how often it was tried and failed, and milliseconds where it
    worked."""

    day: date
    step: str
    tried: int
    failed: int
    median: float | None
    percentile_95: float | None


class Robot(NamedTuple):
    """By whom the registry tries itself."""

    account_id: int
    token: bytes


_PROBE = "at, sign_in, push, pull, failed, status, code, error"
_STEPS = (
    "(VALUES ('sign-in', p.sign_in), ('push', p.push), ('pull', p.pull)) AS s (step, ms)"
    " ON s.ms IS NOT NULL OR p.failed = s.step"
)
"""The steps of a probe that were tried."""
_STATISTICS = (
    "count(*), count(*) FILTER (WHERE s.ms IS NULL),"
    " percentile_cont(0.5) WITHIN GROUP (ORDER BY s.ms),"
    " percentile_cont(0.95) WITHIN GROUP (ORDER BY s.ms)"
)
_DAY = "CAST(p.at AT TIME ZONE 'UTC' AS date)"
_TODAY = "CAST(now() AT TIME ZONE 'UTC' AS date)"


def add(
    runner: Runner,
    milliseconds: Mapping[str, float],
    failed: str | None,
    status: int,
    code: str,
    error: str,
) -> None:
    """Keep a probe that was just made, make its day anew, and forget what is too old."""
    runner.run(
        "INSERT INTO status_probes (sign_in, push, pull, failed, status, code, error)"
        " VALUES (:sign_in, :push, :pull, :failed, :status, :code, :error)",
        sign_in=milliseconds.get("sign-in"),
        push=milliseconds.get("push"),
        pull=milliseconds.get("pull"),
        failed=failed,
        status=status,
        code=code,
        error=error,
    )
    runner.run(
        "INSERT INTO status_days AS d (day, step, tried, failed, median, percentile_95)"
        f" SELECT {_DAY}, s.step, {_STATISTICS} FROM status_probes p JOIN LATERAL {_STEPS}"
        f" WHERE {_DAY} >= {_TODAY} - 1 GROUP BY 1, 2"
        " ON CONFLICT (day, step) DO UPDATE SET tried = excluded.tried, failed = excluded.failed,"
        " median = excluded.median, percentile_95 = excluded.percentile_95"
    )
    runner.run(f"DELETE FROM status_probes WHERE at < now() - {_KEPT}")
    runner.run(f"DELETE FROM status_days WHERE day <= {_TODAY} - {DAYS}")


def newest(runner: Runner) -> tuple[Probe, float] | None:
    """The last probe, and how many seconds ago it was."""
    rows = runner.run(
        f"SELECT {_PROBE}, CAST(extract(epoch FROM now() - at) AS double precision)"
        " FROM status_probes ORDER BY at DESC, id DESC LIMIT 1"
    )
    return (Probe(*rows[0][:-1]), rows[0][-1]) if rows else None


def state(runner: Runner) -> str:
    """What the last probe says of now: ``works``, ``fails``, or ``unknown`` where it is stale."""
    found = newest(runner)
    if found is None or found[1] > STALE:
        return "unknown"
    return "fails" if found[0].failed else "works"


def failures(runner: Runner, count: int) -> list[Probe]:
    """The last ``count`` probes that failed, the newest first."""
    rows = runner.run(
        f"SELECT {_PROBE} FROM status_probes WHERE failed IS NOT NULL"
        " ORDER BY at DESC, id DESC LIMIT :count",
        count=count,
    )
    return [Probe(*row) for row in rows]


def last_day(runner: Runner) -> list[Day]:
    """The steps in the last 24 hours; ``day`` is today."""
    rows = runner.run(
        f"SELECT {_TODAY}, s.step, {_STATISTICS} FROM status_probes p JOIN LATERAL {_STEPS}"
        " WHERE p.at > now() - interval '24 hours' GROUP BY s.step"
    )
    return [Day(*row) for row in rows]


def today(runner: Runner) -> tuple[date, float]:
    """The day of UTC that it is, and how many seconds of it have gone."""
    rows = runner.run(
        f"SELECT {_TODAY}, CAST(extract(epoch FROM now() AT TIME ZONE 'UTC') AS double precision)"
    )
    return rows[0][0], rows[0][1] % 86400


def days(runner: Runner) -> list[Day]:
    """The steps of each day that is kept, the oldest first."""
    rows = runner.run(
        "SELECT day, step, tried, failed, median, percentile_95 FROM status_days"
        f" WHERE day > {_TODAY} - {DAYS} ORDER BY day"
    )
    return [Day(*row) for row in rows]


def robot(runner: Runner) -> Robot | None:
    """By whom the registry tries itself, None where nobody was chosen or it is gone."""
    rows = runner.run(
        "SELECT r.account_id, r.token FROM status_robot r JOIN accounts a ON a.id = r.account_id"
        " WHERE a.deleted_at IS NULL"
    )
    return Robot(rows[0][0], bytes(rows[0][1])) if rows else None


def set_robot(runner: Runner, robot: Robot) -> None:
    """Have it be this one."""
    runner.run(
        "INSERT INTO status_robot (account_id, token) VALUES (:account, :token)"
        ' ON CONFLICT ("only") DO UPDATE SET account_id = :account, token = :token',
        account=robot.account_id,
        token=robot.token,
    )


def clear(runner: Runner, repository: str) -> None:
    """Delete what probes have left in their repository: where its tag was, and manifests of those
    that were cut short."""
    for table, column in (("manifests", "pushed_at"), ("tag_history", "moved_at")):
        runner.run(
            f"DELETE FROM {table} WHERE {column} < now() - interval '1 hour'"
            " AND repository_id = (SELECT id FROM repositories WHERE name = :name)",
            name=repository,
        )
