"""Blobs, their copies, and the repositories that link them."""

from typing import NamedTuple

from chalicelib.metadata.database import Runner


class Copy(NamedTuple):
    """Where a blob is: its size in bytes and its key in one store, and whether a read found no
    object there. ``unreferenced``: for how many seconds, at most, no manifest of the repository
    has named it; None where one does. ``refusal``: what to tell because it is blocked.
    ``networks``: its CIDs by those resolvers of the repository that have it, None for none."""

    size: int
    key: str
    missing: bool
    unreferenced: float | None
    refusal: str | None
    networks: dict[str, str] | None


_NETWORKS = (
    "CASE WHEN r.resolvers <> '{}' THEN (SELECT jsonb_object_agg(n.resolver, n.cid)"
    " FROM resolver_copies n WHERE n.digest = l.digest AND n.state = 'there'"
    " AND n.resolver = ANY(r.resolvers)) END"
)
"""An expression. Who has chosen no resolver pays nothing for it."""


def find(runner: Runner, repository: str, digest: bytes, store: str) -> Copy | None:
    """A blob, as seen through a repository."""
    rows = runner.run(
        "SELECT b.size, c.key, c.missing,"
        " CAST(extract(epoch FROM now() - l.unreferenced_since) AS double precision), k.refusal,"
        f" {_NETWORKS}"
        " FROM repositories r"
        " JOIN repository_blobs l ON l.repository_id = r.id AND l.digest = :digest"
        " JOIN blobs b ON b.digest = l.digest"
        " JOIN blob_copies c ON c.digest = l.digest AND c.store = :store"
        " LEFT JOIN blocked_digests k ON k.digest = l.digest"
        " WHERE r.name = :repository",
        repository=repository,
        digest=digest,
        store=store,
    )
    return Copy(*rows[0]) if rows else None


class Place(NamedTuple):
    """Where a store has a blob, whoever asks: its size in bytes, its key, and whether a read found
    no object there."""

    size: int
    key: str
    missing: bool


def copy(runner: Runner, digest: bytes, store: str) -> Place | None:
    """Where a blob is, for what is done with it behind repositories."""
    rows = runner.run(
        "SELECT size, key, missing FROM blobs JOIN blob_copies USING (digest)"
        " WHERE digest = :digest AND store = :store",
        digest=digest,
        store=store,
    )
    return Place(*rows[0]) if rows else None


def link(runner: Runner, repository_id: int, digest: bytes) -> None:
    """Let the repository have the blob. Manifests that were admitted without it now hold it.
    (``uploads.commit`` does this too, within its one statement.)"""
    runner.run(
        "INSERT INTO repository_blobs (repository_id, digest) VALUES (:repository, :digest)"
        " ON CONFLICT (repository_id, digest)"
        " DO UPDATE SET linked_at = now(), unreferenced_since = clock_timestamp()",
        repository=repository_id,
        digest=digest,
    )
    runner.run(
        "UPDATE manifest_references SET blob = digest"
        " WHERE repository_id = :repository AND digest = :digest"
        " AND blob IS NULL AND child IS NULL AND NOT is_manifest",
        repository=repository_id,
        digest=digest,
    )


def renew(runner: Runner, repository: str, digest: bytes) -> bool:
    """Begin the grace of a blob in a repository anew; False where it is not there any more."""
    return bool(
        runner.run(
            "UPDATE repository_blobs l SET unreferenced_since = clock_timestamp()"
            " FROM repositories r"
            " WHERE r.name = :repository AND l.repository_id = r.id AND l.digest = :digest"
            " RETURNING 1",
            repository=repository,
            digest=digest,
        )
    )


def is_copy(runner: Runner, store: str, key: str) -> bool:
    """Whether a blob's bytes are at that key."""
    return bool(
        runner.run(
            "SELECT FROM blob_copies WHERE store = :store AND key = :key", store=store, key=key
        )
    )


def mark(runner: Runner, digest: bytes, store: str, key: str, missing: bool) -> None:
    """Keep in mind that a copy's object is missing, or is back."""
    runner.run(
        "UPDATE blob_copies SET missing = :missing"
        " WHERE digest = :digest AND store = :store AND key = :key",
        digest=digest,
        store=store,
        key=key,
        missing=missing,
    )


def linked(
    runner: Runner, repository_id: int, digests: list[bytes], store: str
) -> dict[bytes, int]:
    """Which of these blobs the repository has in this store, with their sizes in bytes; or, where
    the store has lost them, on its networks: who asked for one was told that it is here."""
    rows = runner.run(
        "SELECT l.digest, size FROM repository_blobs l JOIN blobs USING (digest)"
        " JOIN blob_copies c ON c.digest = l.digest AND c.store = :store"
        " WHERE repository_id = :repository AND l.digest = ANY(CAST(:digests AS bytea[]))"
        " AND (NOT c.missing OR EXISTS (SELECT FROM resolver_copies n JOIN repositories r"
        " ON n.resolver = ANY(r.resolvers) WHERE r.id = l.repository_id AND n.digest = l.digest"
        " AND n.state = 'there'))",
        repository=repository_id,
        digests=digests,
        store=store,
    )
    return {bytes(digest): size for digest, size in rows}


def repositories(runner: Runner, digest: bytes, count: int) -> list[str]:
    """Names of at most ``count`` repositories that link a blob, for a mount that names none."""
    rows = runner.run(
        "SELECT name FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id"
        " WHERE digest = :digest ORDER BY l.repository_id LIMIT :count",
        digest=digest,
        count=count,
    )
    return [name for (name,) in rows]


def lock(runner: Runner, repository: str, digest: bytes, store: str) -> bool:
    """Hold a blob of a repository until the transaction ends; False where it has none in this
    store."""
    return bool(
        runner.run(
            "SELECT FROM blobs b JOIN repository_blobs l USING (digest)"
            " JOIN repositories r ON r.id = l.repository_id"
            " JOIN blob_copies c ON c.digest = b.digest AND c.store = :store AND NOT c.missing"
            " WHERE b.digest = :digest AND r.name = :repository FOR KEY SHARE OF b",
            repository=repository,
            digest=digest,
            store=store,
        )
    )


def unlink(runner: Runner, repository: str, digest: bytes) -> bool:
    """Take a blob out of a repository; False where it was not in it. A manifest that names it
    makes this a foreign key violation."""
    return bool(
        runner.run(
            "DELETE FROM repository_blobs l USING repositories r"
            " WHERE r.name = :repository AND l.repository_id = r.id AND l.digest = :digest"
            " RETURNING 1",
            repository=repository,
            digest=digest,
        )
    )


def named_by(runner: Runner, repository: str, digest: bytes) -> list[bytes]:
    """Digests of some manifests of the repository that name a blob or a child manifest."""
    rows = runner.run(
        "SELECT manifest FROM manifest_references f JOIN repositories r ON r.id = f.repository_id"
        " WHERE r.name = :repository AND (blob = :digest OR child = :digest)"
        " ORDER BY manifest LIMIT 10",
        repository=repository,
        digest=digest,
    )
    return [bytes(manifest) for (manifest,) in rows]
