"""What a check of the whole registry reads and mends: rows page by page, so that memory stays flat
whatever their number."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Database, Runner, Transaction

PAGE = 1000
_MANIFESTS = 16
"""Manifests of a page: some have megabytes."""

# LIMIT stands within: where Postgres knows no figures of its tables, or old ones, it would rather
# join all of them, for every page.


class Copy(NamedTuple):
    """Where a store is to have a blob of ``size`` bytes, and whether a read found no object
    there."""

    key: str
    digest: bytes
    size: int
    missing: bool


class Reference(NamedTuple):
    """A row about what a manifest names. ``held``: it cannot be deleted from under it. ``there``:
    the repository has it."""

    digest: bytes
    is_manifest: bool
    held: bool
    there: bool


class Manifest(NamedTuple):
    """A manifest with the rows about what it names."""

    repository_id: int
    repository: str
    digest: bytes
    media_type: str
    subject: bytes | None
    payload: bytes
    references: list[Reference]


class Stuck(NamedTuple):
    """An upload that expired so many seconds ago and is still there."""

    id: str
    repository: str
    state: str
    seconds: float


def copies(database: Database, store: str) -> Iterator[Copy]:
    """All copies of a store, in the order of their keys."""
    after = ""
    # Without `store = …`, of which Postgres would guess that it leaves few rows, to be sorted.
    while rows := database.run(
        "SELECT store, key, c.digest, size, missing FROM ("
        "SELECT store, key, digest, missing FROM blob_copies"
        " WHERE (store, key) > (:store, :after) ORDER BY store, key LIMIT :count) c"
        " CROSS JOIN LATERAL (SELECT size FROM blobs b WHERE b.digest = c.digest LIMIT 1) b"
        " ORDER BY store, key",
        store=store,
        after=after,
        count=PAGE,
    ):
        for place, key, digest, size, missing in rows:
            if place != store:
                return
            yield Copy(key, bytes(digest), size, missing)
        after = rows[-1][1]


def there(database: Database, store: str, after: bytes) -> Iterator[Copy]:
    """All copies of a store that are not missing, in the order of their digests after one."""
    place = store
    while rows := database.run(
        "SELECT store, key, c.digest, size, missing FROM ("
        "SELECT store, key, digest, missing FROM blob_copies"
        " WHERE (digest, store) > (:after, :place) ORDER BY digest, store LIMIT :count) c"
        " CROSS JOIN LATERAL (SELECT size FROM blobs b WHERE b.digest = c.digest LIMIT 1) b"
        " ORDER BY digest, store",
        after=after,
        place=place,
        count=PAGE,
    ):
        for place, key, digest, size, missing in rows:
            after = bytes(digest)
            if place == store and not missing:
                yield Copy(key, after, size, missing)


def copy(runner: Runner, digest: bytes, store: str) -> Copy | None:
    """A blob's copy as it is now."""
    rows = runner.run(
        "SELECT key, digest, size, missing FROM blob_copies JOIN blobs USING (digest)"
        " WHERE digest = :digest AND store = :store",
        digest=digest,
        store=store,
    )
    return Copy(rows[0][0], digest, *rows[0][2:]) if rows else None


def uncopied(database: Database, store: str) -> Iterator[tuple[bytes, int]]:
    """Blobs that have no copy in a store: digest, and size in bytes."""
    after = b""
    # Pages of all blobs: to look for the next thousand without a copy would take as long as all.
    while rows := database.run(
        "SELECT b.digest, size, c.digest IS NOT NULL FROM (SELECT digest, size FROM blobs"
        " WHERE digest > :after ORDER BY digest LIMIT :count) b"
        " LEFT JOIN LATERAL (SELECT c.digest FROM blob_copies c"
        " WHERE c.digest = b.digest AND c.store = :store LIMIT 1) c ON true ORDER BY b.digest",
        store=store,
        after=after,
        count=PAGE,
    ):
        for digest, size, copied in rows:
            if not copied:
                yield bytes(digest), size
        after = bytes(rows[-1][0])


def note_lost(runner: Runner, digest: bytes, store: str, key: str) -> None:
    """Give a blob without a copy one that is missing, at a key that nothing has: it can be pushed
    again, and healed."""
    runner.run(
        "INSERT INTO blob_copies (digest, store, key, missing)"
        " SELECT digest, :store, :key, true FROM blobs WHERE digest = :digest"
        " ON CONFLICT (digest, store) DO NOTHING",
        digest=digest,
        store=store,
        key=key,
    )


def quarantine(
    runner: Runner, digest: bytes, store: str, key: str, instead: str, seconds: int
) -> bool:
    """Take the object at ``key`` for no copy of a blob any more: the blob is missing, at a key that
    nothing has. Collection deletes the object in so many seconds. False where another object is
    its copy by now."""
    return bool(
        runner.run(
            "WITH taken AS (UPDATE blob_copies c SET key = :instead, missing = true FROM blobs b"
            " WHERE c.digest = :digest AND c.store = :store AND c.key = :key"
            " AND b.digest = c.digest RETURNING b.size)"
            " INSERT INTO doomed_objects (store, key, size, doomed_at)"
            " SELECT :store, :key, size, now() + CAST(:seconds AS integer) * interval '1 second'"
            " FROM taken RETURNING 1",
            digest=digest,
            store=store,
            key=key,
            instead=instead,
            seconds=seconds,
        )
    )


_MANIFEST = (
    "SELECT m.repository_id, r.name, m.digest, m.media_type, m.subject, m.payload,"
    " (SELECT jsonb_agg(jsonb_build_array(encode(f.digest, 'hex'), f.is_manifest,"
    " num_nonnulls(f.blob, f.child) > 0, CASE WHEN f.is_manifest THEN EXISTS"
    " (SELECT FROM manifests c WHERE c.repository_id = f.repository_id AND c.digest = f.digest)"
    " ELSE EXISTS (SELECT FROM repository_blobs l"
    " WHERE l.repository_id = f.repository_id AND l.digest = f.digest) END))"
    " FROM manifest_references f"
    " WHERE f.repository_id = m.repository_id AND f.manifest = m.digest)"
    " FROM {manifests} m JOIN repositories r ON r.id = m.repository_id"
)


def manifests(database: Database) -> Iterator[Manifest]:
    """All manifests, in the order of repositories and digests."""
    repository_id, digest = 0, b""
    while rows := database.run(
        _MANIFEST.format(
            manifests="(SELECT * FROM manifests"
            " WHERE (repository_id, digest) > (:repository, :digest)"
            " ORDER BY repository_id, digest LIMIT :count)"
        )
        + " ORDER BY m.repository_id, m.digest",
        repository=repository_id,
        digest=digest,
        count=_MANIFESTS,
    ):
        yield from map(_manifest, rows)
        repository_id, digest = rows[-1][0], bytes(rows[-1][2])


def count_manifests(runner: Runner) -> int:
    """How many manifests there are."""
    [[count]] = runner.run("SELECT count(*) FROM manifests")
    return int(count)


def manifest(runner: Runner, repository_id: int, digest: bytes) -> Manifest | None:
    """A manifest as it is now."""
    rows = runner.run(
        _MANIFEST.format(manifests="manifests")
        + " WHERE m.repository_id = :repository AND m.digest = :digest",
        repository=repository_id,
        digest=digest,
    )
    return _manifest(rows[0]) if rows else None


def lock_manifest(transaction: Transaction, repository_id: int, digest: bytes) -> None:
    """Keep a manifest and what it names from changing until the transaction ends."""
    transaction.run(
        "SELECT FROM manifests WHERE repository_id = :repository AND digest = :digest FOR UPDATE",
        repository=repository_id,
        digest=digest,
    )


def mend_references(
    transaction: Transaction,
    found: Manifest,
    subject: bytes | None,
    named: Iterable[tuple[bytes, bool]],
) -> None:
    """Have a manifest's rows say what it names: digests, and whether each is a manifest's; and its
    subject. What is in the repository is held."""
    wanted = sorted(named)
    place = {"repository": found.repository_id, "manifest": found.digest}
    listed = (
        "unnest(CAST(:digests AS bytea[]), CAST(:kinds AS boolean[])) AS n (digest, is_manifest)"
    )
    lists = {"digests": [each for each, _ in wanted], "kinds": [kind for _, kind in wanted]}
    transaction.run(
        "DELETE FROM manifest_references f WHERE repository_id = :repository"
        f" AND manifest = :manifest AND NOT EXISTS (SELECT FROM {listed}"
        " WHERE n.digest = f.digest AND n.is_manifest = f.is_manifest)",
        **place,
        **lists,
    )
    transaction.run(
        "INSERT INTO manifest_references AS f"
        " (repository_id, manifest, digest, is_manifest, blob, child)"
        " SELECT :repository, :manifest, n.digest, n.is_manifest, l.digest, c.digest"
        f" FROM {listed}"
        " LEFT JOIN repository_blobs l ON NOT n.is_manifest"
        " AND l.repository_id = :repository AND l.digest = n.digest"
        " LEFT JOIN manifests c ON n.is_manifest"
        " AND c.repository_id = :repository AND c.digest = n.digest ORDER BY n.digest"
        " ON CONFLICT (repository_id, manifest, digest, is_manifest)"
        " DO UPDATE SET blob = excluded.blob, child = excluded.child"
        " WHERE f.blob IS NULL AND f.child IS NULL"
        " AND num_nonnulls(excluded.blob, excluded.child) > 0",
        **place,
        **lists,
    )
    transaction.run(
        "UPDATE manifests m SET subject = :subject, had_subject = had_subject OR EXISTS"
        " (SELECT FROM manifests s WHERE s.repository_id = :repository AND s.digest = :subject)"
        " WHERE repository_id = :repository AND digest = :manifest"
        " AND subject IS DISTINCT FROM :subject",
        subject=subject,
        **place,
    )


def payloads(runner: Runner, digest: bytes) -> list[bytes]:
    """The bytes that a few repositories have for a manifest's digest."""
    rows = runner.run(
        "SELECT DISTINCT payload FROM manifests WHERE digest = :digest LIMIT 10", digest=digest
    )
    return [bytes(payload) for (payload,) in rows]


def mend_payload(runner: Runner, digest: bytes, wrong: bytes, payload: bytes) -> None:
    """Give a manifest's digest its own bytes, wherever there are these wrong ones."""
    runner.run(
        "UPDATE manifests SET payload = :payload WHERE digest = :digest AND payload = :wrong",
        digest=digest,
        wrong=wrong,
        payload=payload,
    )


def stuck(runner: Runner, seconds: int, after: str) -> Sequence[Stuck]:
    """A page of uploads that expired ``seconds`` ago or earlier, by their ids after one."""
    rows = runner.run(
        "SELECT CAST(id AS text), repository, CAST(state AS text),"
        " CAST(extract(epoch FROM now() - expires_at) AS double precision) FROM uploads"
        " WHERE expires_at < now() - CAST(:seconds AS integer) * interval '1 second'"
        " AND id > CAST(:after AS uuid) ORDER BY id LIMIT :count",
        seconds=seconds,
        after=after,
        count=PAGE,
    )
    return [Stuck(*row) for row in rows]


def _manifest(row: list[Any]) -> Manifest:
    references = [Reference(bytes.fromhex(each[0]), *each[1:]) for each in row[-1] or ()]
    return Manifest._make([*row[:-1], references])
