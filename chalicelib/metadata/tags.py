"""Tags: names that move between manifests of a repository, and where they were."""

from typing import NamedTuple

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
