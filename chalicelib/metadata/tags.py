"""Tags: names that move between manifests of a repository, and where they were."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Moved(NamedTuple):
    """A tag points to another manifest than it did; ``previous`` is None where it is new."""

    name: str
    previous: bytes | None


def move(
    runner: Runner, repository_id: int, name: str, digest: bytes, subject: str
) -> Moved | None:
    """Point a tag at a manifest; a move is kept in the tag's history, and given. None where the
    tag pointed there already."""
    rows = runner.run(
        "WITH before AS (SELECT digest FROM tags WHERE repository_id = :repository"
        " AND name = :name), pushed AS ("
        " INSERT INTO tags AS t (repository_id, name, digest)"
        " VALUES (:repository, :name, :digest)"
        " ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest,"
        " pushed_at = now(),"
        " moved_at = CASE WHEN t.digest = excluded.digest THEN t.moved_at ELSE now() END"
        " RETURNING moved_at = pushed_at AS moved)"
        " INSERT INTO tag_history (repository_id, name, digest, subject)"
        " SELECT :repository, :name, :digest, :subject FROM pushed WHERE moved"
        " RETURNING (SELECT digest FROM before)",
        repository=repository_id,
        name=name,
        digest=digest,
        subject=subject,
    )
    return Moved(name, rows[0][0] and bytes(rows[0][0])) if rows else None


def remove(runner: Runner, repository: str, name: str, subject: str) -> bytes | None:
    """Delete a tag; gives the digest of its manifest, which stays. None where there is none."""
    rows = runner.run(
        "WITH gone AS ("
        " DELETE FROM tags t USING repositories r"
        " WHERE r.name = :repository AND t.repository_id = r.id AND t.name = :name"
        " RETURNING t.repository_id, t.digest)"
        " INSERT INTO tag_history (repository_id, name, subject)"
        " SELECT repository_id, :name, :subject FROM gone RETURNING (SELECT digest FROM gone)",
        repository=repository,
        name=name,
        subject=subject,
    )
    return bytes(rows[0][0]) if rows else None


def page(runner: Runner, repository: str, last: str, count: int) -> list[str]:
    """At most ``count`` tags in the order of their bytes, after ``last``."""
    rows = runner.run(
        "SELECT t.name FROM repositories r JOIN tags t ON t.repository_id = r.id"
        " WHERE r.name = :repository AND t.name > :last ORDER BY t.name LIMIT :count",
        repository=repository,
        last=last,
        count=count,
    )
    return [name for (name,) in rows]


class Entry(NamedTuple):
    """A move of a tag: to ``digest``, None where it was deleted. ``subject`` is who did it, and
    ``by`` what that account is called now; ``there``: the manifest is still in the repository."""

    id: int
    name: str
    digest: bytes | None
    subject: str
    by: str | None
    moved_at: Any
    there: bool


def history(
    runner: Runner, repository_id: int, name: str, before: int | None, count: int
) -> list[Entry]:
    """At most ``count`` moves, the newest first, older than the one of the id ``before``; of one
    tag, or of all where the name is empty."""
    rows = runner.run(
        "SELECT h.id, h.name, h.digest, h.subject, s.name, h.moved_at, m.digest IS NOT NULL"
        " FROM tag_history h LEFT JOIN accounts s"
        " ON s.id = CAST(substring(h.subject FROM '^account:([0-9]+)') AS bigint)"
        " LEFT JOIN manifests m ON m.repository_id = h.repository_id AND m.digest = h.digest"
        " WHERE h.repository_id = :repository AND (:name = '' OR h.name = :name)"
        " AND (CAST(:before AS bigint) IS NULL OR h.id < :before)"
        " ORDER BY h.id DESC LIMIT :count",
        repository=repository_id,
        name=name,
        before=before,
        count=count,
    )
    return [Entry(*row)._replace(digest=row[2] and bytes(row[2])) for row in rows]


def former(runner: Runner, repository_id: int, name: str, digest: bytes | None) -> bytes | None:
    """The manifest that a tag pointed to last, before the one that it points to now, if it does; or
    ``digest``, if it ever pointed there. None where there is no such manifest."""
    rows = runner.run(
        "SELECT h.digest FROM tag_history h"
        " LEFT JOIN tags t ON t.repository_id = h.repository_id AND t.name = h.name"
        " WHERE h.repository_id = :repository AND h.name = :name AND h.digest IS NOT NULL"
        " AND CASE WHEN CAST(:digest AS bytea) IS NULL THEN h.digest IS DISTINCT FROM t.digest"
        " ELSE h.digest = :digest END ORDER BY h.id DESC LIMIT 1",
        repository=repository_id,
        name=name,
        digest=digest,
    )
    return bytes(rows[0][0]) if rows else None
