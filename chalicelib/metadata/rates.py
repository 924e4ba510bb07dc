"""Counters of rate limits, each of which starts over when its window has passed. Their keys are
hashes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from chalicelib.metadata.database import Runner

CLEANED = 10_000
"""How many counters are removed at once at most."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What was counted in the present window, and in how many seconds that ends."""

    count: int
    seconds: float


def add(runner: Runner, windows: Mapping[bytes, int], count: int) -> dict[bytes, Counter]:
    """Add ``count`` to each counter. ``windows`` are the counters' keys, and how many seconds the
    window is to last that begins where none runs."""
    rows = runner.run(
        "INSERT INTO rates AS r (key, count, resets_at)"
        " SELECT key, CAST(:count AS integer), now() + seconds * interval '1 second'"
        # In one order, so that no two of these wait for each other.
        " FROM unnest(CAST(:keys AS bytea[]), CAST(:seconds AS integer[])) AS w (key, seconds)"
        " ORDER BY key"
        " ON CONFLICT (key) DO UPDATE SET"
        " count = excluded.count + CASE WHEN r.resets_at > now() THEN r.count ELSE 0 END,"
        " resets_at = CASE WHEN r.resets_at > now() THEN r.resets_at ELSE excluded.resets_at END"
        " RETURNING key, count, CAST(extract(epoch FROM resets_at - now()) AS float8)",
        keys=list(windows),
        seconds=list(windows.values()),
        count=count,
    )
    return {key: Counter(*found) for key, *found in rows}


def find(runner: Runner, keys: Collection[bytes]) -> dict[bytes, Counter]:
    """Those counters whose window runs."""
    rows = runner.run(
        "SELECT key, count, CAST(extract(epoch FROM resets_at - now()) AS float8) FROM rates"
        " WHERE key = ANY(CAST(:keys AS bytea[])) AND resets_at > now()",
        keys=list(keys),
    )
    return {key: Counter(*found) for key, *found in rows}


def keep(runner: Runner, key: bytes, seconds: int) -> None:
    """Have a counter's window last for so long from now on: what is remembered for a time is a
    counter too."""
    runner.run(
        "INSERT INTO rates (key, count, resets_at)"
        " VALUES (:key, 1, now() + CAST(:seconds AS integer) * interval '1 second')"
        " ON CONFLICT (key) DO UPDATE SET resets_at = excluded.resets_at",
        key=key,
        seconds=seconds,
    )


def remove_expired(runner: Runner) -> int:
    """Remove counters whose window has passed, ``CLEANED`` at most; gives how many."""
    rows = runner.run(
        "DELETE FROM rates WHERE key IN (SELECT key FROM rates WHERE resets_at <= now()"
        " LIMIT CAST(:most AS integer) FOR UPDATE SKIP LOCKED) RETURNING 1",
        most=CLEANED,
    )
    return len(rows)
