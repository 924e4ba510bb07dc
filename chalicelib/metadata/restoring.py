"""What is restored: blobs that object storage has lost, and rows that a database has."""

from typing import NamedTuple

from chalicelib.metadata.database import Runner


class Kept(NamedTuple):
    """A blob that a store is to have: its size in bytes, its key, and whether a read found no
    object there."""

    digest: bytes
    size: int
    key: str
    missing: bool


class Count(NamedTuple):
    """So many blobs, and their bytes."""

    blobs: int
    size: int


def kept(
    runner: Runner, store: str, after: bytes, count: int, *, missing: bool = False
) -> list[Kept]:
    """At most ``count`` blobs of a store in the order of their digests after one; those alone that
    are missing, if that is asked."""
    rows = runner.run(
        "SELECT digest, size, key, missing FROM blob_copies JOIN blobs USING (digest)"
        " WHERE store = :store AND digest > :after AND (missing OR NOT :missing)"
        " ORDER BY digest LIMIT :count",
        store=store,
        after=after,
        count=count,
        missing=missing,
    )
    return [Kept(bytes(digest), *row) for digest, *row in rows]


def total(runner: Runner, store: str, *, missing: bool = False) -> Count:
    """How many blobs a store is to have; how many are missing, if that is asked."""
    [row] = runner.run(
        "SELECT count(*), CAST(coalesce(sum(size), 0) AS bigint)"
        " FROM blob_copies JOIN blobs USING (digest)"
        " WHERE store = :store AND (missing OR NOT :missing)",
        store=store,
        missing=missing,
    )
    return Count(*row)
