"""Objects that no row knows: the keys that sweeps suspect, and what the marker in a store says."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chalicelib.metadata.database import Database, Runner, Transaction


class Marker(NamedTuple):
    """What names a database in its store: a random id, and the number of its last sweep."""

    database: str
    number: int


class Unknown(NamedTuple):
    """A key that no row knows. ``suspected`` says whether a sweep saw it before, and ``due``
    whether that was long enough ago."""

    key: str
    suspected: bool
    due: bool


_KNOWN = (
    "(EXISTS (SELECT FROM blob_copies c WHERE c.store = :store AND c.key = {key})"
    " OR EXISTS (SELECT FROM upload_keys u WHERE u.key = {key})"
    " OR EXISTS (SELECT FROM doomed_objects d WHERE d.store = :store AND d.key = {key}))"
)
"""Every table that names keys: a new one must be added here before anything is written to it. One
statement, so that a key which goes from one to another is in one of them."""

_DUE = "s.first_seen_at <= now() - CAST(:age AS integer) * interval '1 second'"


def find_marker(runner: Runner) -> Marker | None:
    """What the marker of this database says now; None where it never made a sweep."""
    rows = runner.run("SELECT CAST(database_id AS text), number FROM sweep_marker")
    return Marker(*rows[0]) if rows else None


def begin(transaction: Transaction, above: int, *, forget: bool) -> Marker:
    """Begin a sweep: its number is higher than that of any before, and than ``above``. With
    ``forget`` nothing is suspected any more."""
    [row] = transaction.run(
        "INSERT INTO sweep_marker AS m (number) VALUES (CAST(:above AS bigint) + 1)"
        " ON CONFLICT (one) DO UPDATE SET number = greatest(m.number, :above) + 1"
        " RETURNING CAST(database_id AS text), number",
        above=above,
    )
    if forget:
        transaction.run("DELETE FROM suspects")
    return Marker(*row)


def unknown(runner: Runner, store: str, keys: Sequence[str], age: int) -> list[Unknown]:
    """Which of these keys no row knows. ``age`` is how many seconds ago one must have been seen
    first to be due."""
    rows = runner.run(
        f"SELECT k.key, s.key IS NOT NULL, coalesce({_DUE}, false)"
        " FROM unnest(CAST(:keys AS text[])) AS k (key)"
        " LEFT JOIN suspects s ON s.store = :store AND s.key = k.key"
        f" WHERE NOT {_KNOWN.format(key='k.key')}",
        store=store,
        keys=list(keys),
        age=age,
    )
    return [Unknown(*row) for row in rows]


def suspect(runner: Runner, store: str, sizes: Mapping[str, int], sweep: int) -> None:
    """Remember that a sweep saw these keys, and when one did first. ``sizes`` are in bytes. What a
    newer one has seen meanwhile stays what that one saw."""
    runner.run(
        "INSERT INTO suspects AS s (store, key, size, sweep)"
        " SELECT :store, key, size, :sweep"
        " FROM unnest(CAST(:keys AS text[]), CAST(:sizes AS bigint[])) AS k (key, size)"
        " ORDER BY key ON CONFLICT (store, key) DO UPDATE"
        " SET sweep = greatest(s.sweep, excluded.sweep), size = greatest(s.size, excluded.size)",
        store=store,
        sweep=sweep,
        keys=list(sizes),
        sizes=list(sizes.values()),
    )


def acquit(runner: Runner, store: str, sweep: int) -> None:
    """Suspect no longer what a sweep did not see: it is gone, or a row knows it."""
    runner.run(
        "DELETE FROM suspects WHERE store = :store AND sweep < :sweep", store=store, sweep=sweep
    )


def condemn(
    database: Database, store: str, sweep: int, after: str, count: int, age: int
) -> list[tuple[str, int, bool]]:
    """Take at most ``count`` keys that are due from the suspects, in order from the one after
    ``after`` on: key, size, and whether no row knows it still. None where another sweep has
    begun."""

    def work(transaction: Transaction) -> list[tuple[str, int, bool]]:
        taken = transaction.run(
            "WITH due AS (SELECT key FROM suspects s"
            f" WHERE store = :store AND sweep = :sweep AND key > :after AND {_DUE}"
            " AND EXISTS (SELECT FROM sweep_marker WHERE number = :sweep)"
            " ORDER BY key LIMIT :count FOR UPDATE)"
            " DELETE FROM suspects s USING due WHERE s.store = :store AND s.key = due.key"
            " RETURNING s.key, s.size",
            store=store,
            sweep=sweep,
            after=after,
            count=count,
            age=age,
        )
        # A statement of its own: within the other, Postgres would read all of the tables.
        keys = [key for key, _ in taken]
        condemned = {each.key for each in unknown(transaction, store, keys, age)}
        return sorted((key, size, key in condemned) for key, size in taken)

    return database.transaction(work)
