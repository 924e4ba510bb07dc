"""What nothing names any more: links, manifests, blobs, and the objects of blobs that are gone.

Everything is judged in two statements of one transaction. The first locks what is due, and skips
what others hold: they name it just now, or renew it. The second sees all that was committed before
the locks were had; nothing can be added, since whoever names a thing locks its row too. One
statement that did both would judge by a snapshot that is older than its locks.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.metadata.database import Runner

BEGINNING = "-infinity"
"""The moment after which everything is."""

_SECONDS = "CAST(:{} AS double precision) * interval '1 second'"
_DUE = f"unreferenced_since <= now() - {_SECONDS.format('age')}"
_AFTER = "unreferenced_since >= CAST(:after AS timestamptz)"
_TAKEN = (
    "unnest(CAST(:repositories AS bigint[]), CAST(:digests AS bytea[]))"
    " AS t (repository_id, digest)"
)
_LINK_NAMED = (
    "EXISTS (SELECT FROM manifest_references f"
    " WHERE f.repository_id = l.repository_id AND f.blob = l.digest)"
)
MANIFEST_NAMED = (
    "(EXISTS (SELECT FROM tags t WHERE t.repository_id = m.repository_id AND t.digest = m.digest)"
    " OR EXISTS (SELECT FROM manifest_references f"
    " WHERE f.repository_id = m.repository_id AND f.child = m.digest)"
    " OR EXISTS (SELECT FROM manifests s"
    " WHERE s.repository_id = m.repository_id AND s.digest = m.subject))"
)


class Due(NamedTuple):
    """What was locked to be judged. ``until`` is the moment from which to go on: what became
    unreferenced before has been seen."""

    rows: list[tuple[int, bytes]]
    until: Any


class Item(NamedTuple):
    """A link or a manifest. ``orphan``: a manifest whose subject is gone."""

    repository_id: int
    repository: str
    digest: bytes
    orphan: bool


class Freed(NamedTuple):
    """A blob that is gone; ``size`` in bytes."""

    digest: bytes
    size: int


class Doomed(NamedTuple):
    """An object of a blob that is gone; ``size`` in bytes."""

    key: str
    size: int
    doomed_at: Any


def lock_links(runner: Runner, age: float, after: Any, count: int) -> Due:
    """Take at most ``count`` links of blobs that may have been unreferenced for ``age`` seconds,
    the oldest first."""
    return _lock(runner, f"repository_blobs WHERE {_DUE} AND {_AFTER}", age, after, count)


def judge_links(runner: Runner, due: Due) -> list[Item]:
    """Remove links that no manifest of their repository names, of those that are locked; gives
    these. The others are not looked at again before a manifest that names them goes."""
    _hold_late(runner, due, "blob", "NOT f.is_manifest")
    rows = runner.run(
        f"WITH judged AS (SELECT l.repository_id, l.digest, {_LINK_NAMED} AS named"
        f" FROM {_TAKEN} JOIN repository_blobs l USING (repository_id, digest)"
        "), kept AS (UPDATE repository_blobs l SET unreferenced_since = NULL FROM judged j"
        " WHERE named AND l.repository_id = j.repository_id AND l.digest = j.digest"
        "), gone AS (DELETE FROM repository_blobs l USING judged j"
        " WHERE NOT named AND l.repository_id = j.repository_id AND l.digest = j.digest"
        " RETURNING l.repository_id, l.digest)"
        " SELECT r.id, r.name, g.digest, false FROM gone g"
        " JOIN repositories r ON r.id = g.repository_id",
        **_taken(due),
    )
    return _items(rows)


def lock_manifests(runner: Runner, age: float, after: Any, count: int, *, orphans: bool) -> Due:
    """Take at most ``count`` manifests that may have been unreferenced for ``age`` seconds, the
    oldest first; of ``orphans``, those alone that had a subject."""
    rule = "AND had_subject" if orphans else ""
    return _lock(runner, f"manifests WHERE {_DUE} AND {_AFTER} {rule}", age, after, count)


def judge_manifests(runner: Runner, due: Due) -> list[Item]:
    """Which manifests nothing names, of those that are locked: no tag, no index, and no subject
    that is there. The others are not looked at again before that changes."""
    _hold_late(runner, due, "child", "f.is_manifest")
    rows = runner.run(
        "WITH judged AS ("
        f"SELECT m.repository_id, m.digest, m.had_subject, {MANIFEST_NAMED} AS named"
        f" FROM {_TAKEN} JOIN manifests m USING (repository_id, digest)"
        "), kept AS (UPDATE manifests m SET unreferenced_since = NULL FROM judged j"
        " WHERE named AND m.repository_id = j.repository_id AND m.digest = j.digest)"
        " SELECT r.id, r.name, j.digest, j.had_subject FROM judged j"
        " JOIN repositories r ON r.id = j.repository_id WHERE NOT named ORDER BY r.id, j.digest",
        **_taken(due),
    )
    return _items(rows)


def remove_manifests(
    runner: Runner, repository_id: int, found: Sequence[bytes], subject: str, reason: str
) -> list[bytes]:
    """Delete manifests of a repository with their tags, and note it in the audit log; gives those
    that were there. Indexes are deleted before what they hold: one that names a manifest makes this
    a foreign key violation."""
    where = "repository_id = :repository AND digest = ANY(CAST(:digests AS bytea[]))"
    runner.run(
        "INSERT INTO tag_history (repository_id, name, subject)"
        f" SELECT repository_id, name, :subject FROM tags WHERE {where} ORDER BY name",
        repository=repository_id,
        digests=list(found),
        subject=subject,
    )
    rows = runner.run(
        f"DELETE FROM manifests WHERE {where} RETURNING digest",
        repository=repository_id,
        digests=list(found),
    )
    gone = sorted(bytes(digest) for (digest,) in rows)
    runner.run(
        "INSERT INTO audit (event, subject, account_id, repository_id, detail)"
        " SELECT 'manifest.delete', :subject,"
        " (SELECT a.id FROM accounts a WHERE a.name = split_part(r.name, '/', 1)), r.id, d.detail"
        " FROM repositories r, unnest(CAST(:details AS jsonb[])) AS d (detail)"
        " WHERE r.id = :repository",
        repository=repository_id,
        subject=subject,
        details=[
            json.dumps({"digest": digests.unpack(digest), "reason": reason}) for digest in gone
        ],
    )
    return gone


def take_unlinked(
    runner: Runner, age: float, after: Any, count: int
) -> tuple[list[tuple[bytes, Any]], list[bytes]]:
    """Take at most ``count`` blobs off the list of those that lost a link ``age`` seconds ago, with
    the moment; and which of these are locked now. Those that are neither locked nor gone are for
    ``put_back``."""
    rows = runner.run(
        "DELETE FROM unlinked_blobs u USING ("
        " SELECT digest, since FROM unlinked_blobs"
        f" WHERE since <= now() - {_SECONDS.format('age')}"
        " AND since >= CAST(:after AS timestamptz) ORDER BY since LIMIT :count"
        " FOR UPDATE SKIP LOCKED) d"
        " WHERE u.digest = d.digest AND u.since = d.since RETURNING u.digest, u.since",
        age=age,
        after=after,
        count=count,
    )
    taken = [(bytes(digest), since) for digest, since in rows]
    rows = runner.run(
        "SELECT digest FROM blobs WHERE digest = ANY(CAST(:digests AS bytea[]))"
        " ORDER BY digest FOR UPDATE SKIP LOCKED",
        digests=[digest for digest, _ in taken],
    )
    return taken, [bytes(digest) for (digest,) in rows]


def put_back(runner: Runner, unlinked: Sequence[tuple[bytes, Any]]) -> None:
    """Have blobs looked at again that another transaction holds."""
    runner.run(
        "INSERT INTO unlinked_blobs (digest, since)"
        " SELECT t.digest, t.since FROM unnest(CAST(:digests AS bytea[]),"
        " CAST(:times AS timestamptz[])) AS t (digest, since) JOIN blobs b USING (digest)"
        " ON CONFLICT DO NOTHING",
        digests=[digest for digest, _ in unlinked],
        times=[since.isoformat() for _, since in unlinked],
    )


def remove_unlinked(runner: Runner, locked: Sequence[bytes]) -> list[Freed]:
    """Remove blobs that no repository links, of those that are locked, and doom their objects;
    gives these. What was unlinked again meanwhile stays until that too is long enough ago."""
    rows = runner.run(
        "WITH free AS (SELECT d.digest FROM unnest(CAST(:digests AS bytea[])) AS d (digest)"
        " WHERE NOT EXISTS (SELECT FROM repository_blobs l WHERE l.digest = d.digest)"
        " AND NOT EXISTS (SELECT FROM unlinked_blobs u WHERE u.digest = d.digest)"
        "), doomed AS (INSERT INTO doomed_objects (store, key, size)"
        " SELECT c.store, c.key, b.size FROM free JOIN blobs b USING (digest)"
        " JOIN blob_copies c USING (digest)"
        ") DELETE FROM blobs b USING free f WHERE b.digest = f.digest RETURNING b.digest, b.size",
        digests=list(locked),
    )
    return [Freed(bytes(digest), size) for digest, size in rows]


def doomed(runner: Runner, store: str, age: float, after: Any, count: int) -> list[Doomed]:
    """At most ``count`` objects of a store whose blobs have been gone for ``age`` seconds, the
    oldest first, from the moment ``after`` on."""
    rows = runner.run(
        "SELECT key, size, doomed_at FROM doomed_objects WHERE store = :store"
        f" AND doomed_at <= now() - {_SECONDS.format('age')}"
        " AND doomed_at >= CAST(:after AS timestamptz) ORDER BY doomed_at, key LIMIT :count",
        store=store,
        age=age,
        after=after,
        count=count,
    )
    return [Doomed(*row) for row in rows]


def forget_objects(runner: Runner, store: str, keys: Sequence[str]) -> list[int]:
    """Drop the rows of objects that were deleted; gives the sizes in bytes of those that nobody
    else has dropped."""
    rows = runner.run(
        "DELETE FROM doomed_objects WHERE store = :store AND key = ANY(CAST(:keys AS text[]))"
        " RETURNING size",
        store=store,
        keys=list(keys),
    )
    return [int(size) for (size,) in rows]


def moment(runner: Runner) -> Any:
    """The time of the database's clock."""
    return runner.run("SELECT now()")[0][0]


def count_doomed(runner: Runner, store: str, until: Any) -> int:
    """How many objects of a store there are to delete that were doomed before a moment."""
    rows = runner.run(
        "SELECT count(*) FROM doomed_objects"
        " WHERE store = :store AND doomed_at <= CAST(:until AS timestamptz)",
        store=store,
        until=until,
    )
    return int(rows[0][0])


def is_due(runner: Runner, age: float, untagged: float | None) -> bool:
    """Whether there is anything that a collector would look at. ``untagged`` is the age of untagged
    manifests that are collected, if they are."""
    rows = runner.run(
        f"SELECT EXISTS (SELECT FROM repository_blobs WHERE {_DUE})"
        f" OR EXISTS (SELECT FROM unlinked_blobs WHERE since <= now() - {_SECONDS.format('age')})"
        f" OR EXISTS (SELECT FROM manifests WHERE had_subject AND {_DUE})"
        " OR EXISTS (SELECT FROM manifests"
        f" WHERE unreferenced_since <= now() - {_SECONDS.format('untagged')})",
        age=age,
        untagged=untagged,
    )
    return bool(rows[0][0])


def _lock(runner: Runner, where: str, age: float, after: Any, count: int) -> Due:
    rows = runner.run(
        f"SELECT repository_id, digest, unreferenced_since FROM {where}"
        " ORDER BY unreferenced_since LIMIT :count FOR UPDATE SKIP LOCKED",
        age=age,
        after=after,
        count=count,
    )
    until = max((since for _, _, since in rows), default=after)
    return Due([(repository, bytes(digest)) for repository, digest, _ in rows], until)


def _hold_late(runner: Runner, due: Due, column: str, kind: str) -> None:
    """Have manifests hold what they were admitted without and what came at that very moment: of
    those two transactions neither saw the other's row."""
    runner.run(
        f"UPDATE manifest_references f SET {column} = f.digest FROM {_TAKEN}"
        " WHERE f.repository_id = t.repository_id AND f.digest = t.digest"
        f" AND f.blob IS NULL AND f.child IS NULL AND {kind}",
        **_taken(due),
    )


def _taken(due: Due) -> dict[str, Any]:
    return {
        "repositories": [repository for repository, _ in due.rows],
        "digests": [digest for _, digest in due.rows],
    }


def _items(rows: list[list[Any]]) -> list[Item]:
    return [Item(number, name, bytes(digest), orphan) for number, name, digest, orphan in rows]


class Foreseen(NamedTuple):
    """What a collector would remove now. ``kind`` is ``manifest``, ``link`` or ``blob``; a blob is
    of no repository, and has a size in bytes."""

    kind: str
    repository: str
    digest: bytes
    orphan: bool
    size: int


def foresee(runner: Runner, age: float, untagged: float | None) -> list[Foreseen]:
    """What a collector would remove now, as in ``lock_links`` and the others, all at one moment and
    without a lock. With an ``age`` of 0 the blobs that only such manifests name are among it; the
    manifests that are left unnamed by others are not."""
    older = f"unreferenced_since <= now() - {_SECONDS}"
    rows = runner.run(
        "WITH manifests_gone AS (SELECT repository_id, digest, had_subject FROM manifests m"
        f" WHERE (had_subject AND {older.format('age')} OR {older.format('untagged')})"
        f" AND NOT {MANIFEST_NAMED}"
        "), links_gone AS (SELECT repository_id, digest FROM repository_blobs l"
        f" WHERE ({older.format('age')} OR CAST(:age AS double precision) = 0)"
        " AND NOT EXISTS (SELECT FROM manifest_references f"
        " WHERE f.repository_id = l.repository_id AND f.blob = l.digest"
        " AND NOT (CAST(:age AS double precision) = 0 AND EXISTS (SELECT FROM manifests_gone g"
        " WHERE g.repository_id = f.repository_id AND g.digest = f.manifest)))"
        "), blobs_gone AS (SELECT digest, size FROM blobs b WHERE digest IN ("
        " SELECT digest FROM links_gone UNION SELECT digest FROM unlinked_blobs"
        f" WHERE since <= now() - {_SECONDS.format('age')})"
        " AND NOT EXISTS (SELECT FROM repository_blobs l WHERE l.digest = b.digest"
        " AND NOT EXISTS (SELECT FROM links_gone g"
        " WHERE g.repository_id = l.repository_id AND g.digest = l.digest))"
        " AND NOT EXISTS (SELECT FROM unlinked_blobs u WHERE u.digest = b.digest"
        f" AND since > now() - {_SECONDS.format('age')})"
        ") SELECT 'manifest', name, digest, had_subject, 0 FROM manifests_gone"
        " JOIN repositories r ON r.id = repository_id"
        " UNION ALL SELECT 'link', name, digest, false, 0 FROM links_gone"
        " JOIN repositories r ON r.id = repository_id"
        " UNION ALL SELECT 'blob', '', digest, false, size FROM blobs_gone",
        age=age,
        untagged=untagged,
    )
    return [
        Foreseen(kind, name, bytes(digest), orphan, size)
        for kind, name, digest, orphan, size in rows
    ]


def waiting_objects(runner: Runner, store: str) -> tuple[int, int]:
    """How many objects of a store are to be deleted already, and their size in bytes."""
    rows = runner.run(
        "SELECT count(*), CAST(coalesce(sum(size), 0) AS bigint) FROM doomed_objects"
        " WHERE store = :store",
        store=store,
    )
    return rows[0][0], rows[0][1]


def expired_uploads(runner: Runner) -> int:
    """How many uploads have expired and are not cleared away yet."""
    return int(runner.run("SELECT count(*) FROM uploads WHERE expires_at < now()")[0][0])
