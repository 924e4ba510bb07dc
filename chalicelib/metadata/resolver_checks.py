"""Copies on other networks that are looked at again now and then: whether the networks keep them,
and whether nobody noticed that something is to be done about them."""

from collections.abc import Sequence
from typing import NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.resolver_copies import (
    DATA,
    DERIVE,
    NO_JOB,
    PUT,
    SECONDS,
    UNPIN,
    WANTED,
    Place,
    complete,
)


class Kept(NamedTuple):
    """A copy that a network is asked about."""

    digest: bytes
    cid: str
    derived_cid: str | None
    root_cid: str | None


def unchecked_resolvers(runner: Runner, age: float) -> list[str]:
    """Where there are copies that the network was not asked about for ``age`` seconds; first where
    it was asked longest ago, so that one with many copies keeps no other waiting for good."""
    rows = runner.run(
        "SELECT resolver FROM resolver_copies"
        f" WHERE state = 'there' AND checked_at <= now() - {SECONDS.format('age')}"
        " GROUP BY resolver ORDER BY min(checked_at), resolver",
        age=age,
    )
    return [name for (name,) in rows]


def unchecked(runner: Runner, resolver: str, age: float, count: int) -> list[Kept]:
    """At most ``count`` copies that a network was not asked about for ``age`` seconds, the oldest
    first."""
    rows = runner.run(
        "SELECT digest, cid, derived_cid, root_cid FROM resolver_copies"
        " WHERE resolver = :resolver AND state = 'there'"
        f" AND checked_at <= now() - {SECONDS.format('age')} ORDER BY checked_at LIMIT :count",
        resolver=resolver,
        age=age,
        count=count,
    )
    return [Kept(bytes(digest), *row) for digest, *row in rows]


def checked(runner: Runner, resolver: str, digests: Sequence[bytes]) -> None:
    """A network keeps these. What nobody wants, though nobody has noticed, is doubted."""
    runner.run(
        "UPDATE resolver_copies c SET checked_at = now(),"
        f" doubted_since = coalesce(doubted_since, CASE WHEN NOT {WANTED} THEN now() END)"
        " WHERE digest = ANY(CAST(:digests AS bytea[])) AND resolver = :resolver",
        resolver=resolver,
        digests=list(digests),
    )


def lost(runner: Runner, resolver: str, digests: Sequence[bytes], error: str) -> int:
    """A network does not keep these any more: they are put there again. Gives how many."""
    rows = runner.run(
        "WITH lost AS (UPDATE resolver_copies SET state = 'waiting', cid = NULL, error = :error,"
        " changed_at = clock_timestamp()"
        " WHERE digest = ANY(CAST(:digests AS bytea[])) AND resolver = :resolver"
        " AND state = 'there' RETURNING digest, resolver)"
        f" INSERT INTO jobs (kind, data) SELECT '{PUT}', {DATA.format('l')} FROM lost l"
        " RETURNING 1",
        resolver=resolver,
        digests=list(digests),
        error=error,
    )
    return len(rows)


def lost_derived(runner: Runner, resolver: str, digests: Sequence[bytes]) -> None:
    """A network does not keep the images any more that were derived of these: they are derived
    again."""
    runner.run(
        "UPDATE resolver_copies SET complete = false, derived_cid = NULL, root_cid = NULL"
        " WHERE digest = ANY(CAST(:digests AS bytea[])) AND resolver = :resolver",
        resolver=resolver,
        digests=list(digests),
    )
    complete(runner, resolver, digests)


def mend(runner: Runner, age: float) -> int:
    """Write the jobs that are missing for copies that have not changed for ``age`` seconds, as
    where somebody dropped them; and have the network told again what it could not be told. Gives
    how many."""
    rows = runner.run(
        "WITH old AS (SELECT * FROM resolver_copies"
        f" WHERE changed_at <= now() - {SECONDS.format('age')}"
        f"), again AS (UPDATE jobs SET dead_at = NULL, tries = 0, due_at = now()"
        f" WHERE kind = '{UNPIN}' AND dead_at IS NOT NULL RETURNING 1"
        "), made AS (INSERT INTO jobs (kind, data)"
        f" SELECT '{PUT}', {DATA.format('c')} FROM old c"
        f" WHERE state = 'waiting' AND {NO_JOB.format(PUT)}"
        f" UNION ALL SELECT '{UNPIN}', {DATA.format('c')} FROM old c"
        f" WHERE state = 'leaving' AND {NO_JOB.format(UNPIN)}"
        f" UNION ALL SELECT '{DERIVE}', {DATA.format('c')} FROM old c"
        " WHERE state = 'there' AND complete AND root_cid IS NULL"
        f" AND {NO_JOB.format(DERIVE)} RETURNING 1)"
        " SELECT FROM again UNION ALL SELECT FROM made",
        age=age,
    )
    return len(rows)


def incomplete(runner: Runner) -> list[Place]:
    """Manifests that networks have and of which no image has been derived."""
    rows = runner.run(
        "SELECT c.digest, c.resolver FROM resolver_copies c"
        " WHERE c.state = 'there' AND NOT c.complete"
        " AND EXISTS (SELECT FROM manifests m WHERE m.digest = c.digest)"
        " ORDER BY c.resolver, c.digest"
    )
    return [(bytes(digest), resolver) for digest, resolver in rows]
