"""What is restored: blobs that object storage has lost, and rows that a database has."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chalicelib.metadata.database import Runner, Transaction


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


def choose(runner: Runner, repository_id: int, resolvers: Sequence[str], insisted: bool) -> None:
    """Choose these resolvers for a repository, unless that is what it has."""
    runner.run(
        "INSERT INTO resolver_choices (repository_id, resolvers, insisted, chosen_by)"
        " SELECT id, CAST(:resolvers AS text[]), :insisted, '' FROM repositories"
        " WHERE id = :id AND (resolvers <> CAST(:resolvers AS text[]) OR insisted <> :insisted)"
        " ON CONFLICT (repository_id) DO NOTHING",
        id=repository_id,
        resolvers=list(resolvers),
        insisted=insisted,
    )


def note_copies(runner: Runner, resolver: str, copies: Mapping[bytes, tuple[int, str]]) -> None:
    """Take contents, given by their digests with size and CID, for there at a resolver until it is
    asked, which is soon."""
    ordered = sorted(copies.items())
    runner.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid, checked_at)"
        " SELECT digest, :resolver, size, 'there', cid, '-infinity'"
        " FROM unnest(CAST(:digests AS bytea[]), CAST(:sizes AS bigint[]), CAST(:cids AS text[]))"
        " AS c (digest, size, cid) ORDER BY digest ON CONFLICT (digest, resolver) DO NOTHING",
        resolver=resolver,
        digests=[digest for digest, _ in ordered],
        sizes=[size for _, (size, _) in ordered],
        cids=[cid for _, (_, cid) in ordered],
    )


def wanting(runner: Runner, digests: Sequence[bytes], store: str) -> set[bytes]:
    """Which of these are no blobs that the store has."""
    rows = runner.run(
        "SELECT digest FROM unnest(CAST(:digests AS bytea[])) AS d (digest) WHERE NOT EXISTS"
        " (SELECT FROM blob_copies c WHERE c.digest = d.digest AND store = :store AND NOT missing)",
        digests=list(digests),
        store=store,
    )
    return {bytes(digest) for (digest,) in rows}


def adopt(transaction: Transaction, store: str, key: str, digest: bytes, size: int) -> None:
    """Make an object that no row knows the copy of a blob. No sweep suspects it from now on."""
    transaction.run(
        "DELETE FROM suspects WHERE store = :store AND key = :key", store=store, key=key
    )
    transaction.run(
        "WITH made AS (INSERT INTO blobs (digest, size) VALUES (:digest, :size)"
        " ON CONFLICT (digest) DO UPDATE SET size = blobs.size RETURNING digest)"
        " INSERT INTO blob_copies AS c (digest, store, key) SELECT digest, :store, :key FROM made"
        " ON CONFLICT (digest, store) DO UPDATE SET key = excluded.key, missing = false"
        " WHERE c.missing",
        digest=digest,
        size=size,
        store=store,
        key=key,
    )


def tags(runner: Runner, repository_id: int) -> dict[str, bytes]:
    """To which manifest each tag of a repository points."""
    rows = runner.run(
        "SELECT name, digest FROM tags WHERE repository_id = :repository", repository=repository_id
    )
    return {name: bytes(digest) for name, digest in rows}


def manifests(runner: Runner, repository_id: int) -> set[bytes]:
    """The digests of a repository's manifests."""
    rows = runner.run(
        "SELECT digest FROM manifests WHERE repository_id = :repository", repository=repository_id
    )
    return {bytes(digest) for (digest,) in rows}


def linked(runner: Runner, repository_id: int, store: str) -> set[bytes]:
    """The digests of a repository's blobs that the store has."""
    rows = runner.run(
        "SELECT digest FROM repository_blobs JOIN blob_copies USING (digest)"
        " WHERE repository_id = :repository AND store = :store AND NOT missing",
        repository=repository_id,
        store=store,
    )
    return {bytes(digest) for (digest,) in rows}
