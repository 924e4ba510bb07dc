"""How often manifests, tags and repositories were pulled, and when last."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Pulled(NamedTuple):
    """Pulls of one manifest by one subject. ``tag`` is "" where it was asked for by its digest;
    ``age`` is how many seconds ago the last was."""

    repository: str
    tag: str
    digest: bytes
    subject: str
    pulls: int
    age: float


class Total(NamedTuple):
    """Pulls of a repository; ``pulled_at`` is None where there were none."""

    pulls: int
    pulled_at: Any


class Counted(NamedTuple):
    """Pulls of one tag, with those of the manifest that it points to, or of one manifest, whose
    ``tag`` is ""."""

    tag: str
    digest: bytes
    pulls: int
    pulled_at: Any
    manifest_pulls: int
    manifest_pulled_at: Any


_ADD = (
    " ON CONFLICT ({}) DO UPDATE SET pulls = p.pulls + excluded.pulls,"
    " pulled_at = greatest(p.pulled_at, excluded.pulled_at)"
)


def add(runner: Runner, pulls: Sequence[Pulled]) -> set[str]:
    """Count these, and give the names of those repositories of which a webhook wants to be told.

    A manifest that was asked for by its digest counts for each tag that points to it: most clients
    look a tag up and then fetch by digest. What an index names counts for itself and not for the
    repository, since its index was pulled before. What is gone meanwhile is left out.
    """
    rows = runner.run(
        "WITH gathered AS (SELECT r.id, r.name, g.tag, g.digest,"
        " CAST(sum(g.pulls) AS bigint) AS pulls,"
        " max(now() - g.age * interval '1 second') AS pulled_at"
        " FROM unnest(CAST(:repositories AS text[]), CAST(:tags AS text[]),"
        " CAST(:digests AS bytea[]), CAST(:counts AS bigint[]),"
        " CAST(:ages AS double precision[])) AS g (repository, tag, digest, pulls, age)"
        " JOIN repositories r ON r.name = g.repository"
        " JOIN manifests m ON m.repository_id = r.id AND m.digest = g.digest"
        " GROUP BY r.id, g.tag, g.digest"
        # Each in one order, so that no two of these wait for each other.
        "), by_repository AS (INSERT INTO repository_pulls AS p"
        " SELECT g.id, CAST(coalesce(sum(g.pulls) FILTER (WHERE NOT EXISTS"
        " (SELECT FROM manifest_references c"
        " WHERE c.repository_id = g.id AND c.child = g.digest)"
        "), 0) AS bigint), max(g.pulled_at) FROM gathered g GROUP BY g.id ORDER BY g.id"
        f"{_ADD.format('repository_id')}"
        "), by_manifest AS (INSERT INTO manifest_pulls AS p"
        " SELECT id, digest, CAST(sum(pulls) AS bigint), max(pulled_at)"
        " FROM gathered GROUP BY id, digest ORDER BY id, digest"
        f"{_ADD.format('repository_id, digest')}"
        "), by_tag AS (INSERT INTO tag_pulls AS p"
        " SELECT g.id, t.name, CAST(sum(g.pulls) AS bigint), max(g.pulled_at) FROM gathered g"
        " JOIN tags t ON t.repository_id = g.id"
        " AND (t.name = g.tag OR (g.tag = '' AND t.digest = g.digest))"
        " GROUP BY g.id, t.name ORDER BY g.id, t.name"
        f"{_ADD.format('repository_id, name')}"
        ") SELECT DISTINCT g.name FROM gathered g, webhooks w"
        " WHERE w.enabled AND 'pull' = ANY(w.events) AND (w.repository_id = g.id"
        " OR w.account_id = (SELECT id FROM accounts WHERE name = split_part(g.name, '/', 1)))",
        repositories=[each.repository for each in pulls],
        tags=[each.tag for each in pulls],
        digests=[each.digest for each in pulls],
        counts=[each.pulls for each in pulls],
        ages=[each.age for each in pulls],
    )
    return {name for (name,) in rows}


def of_repository(runner: Runner, repository: str) -> Total | None:
    """All pulls of a repository; None where there is no repository of that name."""
    rows = runner.run(
        "SELECT coalesce(p.pulls, 0), p.pulled_at FROM repositories r"
        " LEFT JOIN repository_pulls p ON p.repository_id = r.id WHERE r.name = :repository",
        repository=repository,
    )
    return Total(*rows[0]) if rows else None


def of_tags(runner: Runner, repository: str, last: str, count: int) -> list[Counted]:
    """At most ``count`` tags in the order of their bytes, after ``last``."""
    rows = runner.run(
        "SELECT t.name, t.digest, coalesce(p.pulls, 0), p.pulled_at, coalesce(m.pulls, 0),"
        " m.pulled_at FROM repositories r JOIN tags t ON t.repository_id = r.id"
        " LEFT JOIN tag_pulls p ON p.repository_id = r.id AND p.name = t.name"
        " LEFT JOIN manifest_pulls m ON m.repository_id = r.id AND m.digest = t.digest"
        " WHERE r.name = :repository AND t.name > :last ORDER BY t.name LIMIT :count",
        repository=repository,
        last=last,
        count=count,
    )
    return [Counted(*row)._replace(digest=bytes(row[1])) for row in rows]


def of_manifests(runner: Runner, repository: str, last: bytes, count: int) -> list[Counted]:
    """At most ``count`` manifests in the order of their digests, after ``last``."""
    rows = runner.run(
        "SELECT '', m.digest, coalesce(p.pulls, 0), p.pulled_at, coalesce(p.pulls, 0), p.pulled_at"
        " FROM repositories r JOIN manifests m ON m.repository_id = r.id"
        " LEFT JOIN manifest_pulls p ON p.repository_id = r.id AND p.digest = m.digest"
        " WHERE r.name = :repository AND m.digest > :last ORDER BY m.digest LIMIT :count",
        repository=repository,
        last=last,
        count=count,
    )
    return [Counted(*row)._replace(digest=bytes(row[1])) for row in rows]
