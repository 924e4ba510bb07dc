"""Quotas: how much may be kept in a namespace, the first component of repositories' names.

What is used is counted by triggers, in namespaces that have a quota, and refused by them: a push
beyond a quota is ``Denied`` at the end of its transaction.
"""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner

DEFAULT = ""
"""The namespace that stands for all that have no quota of their own."""


class Quota(NamedTuple):
    """What a namespace may use and uses. A limit is None where there is none; ``own``: it was set
    for this namespace, and not for all. ``used_bytes`` are those of its blobs, each counted once,
    and of the manifests of each repository."""

    namespace: str
    own: bool
    bytes: int | None
    repositories: int | None
    used_bytes: int
    used_repositories: int


LIMITED = "EXISTS (SELECT FROM quotas WHERE namespace IN ('', split_part(:repository, '/', 1)))"
"""An expression: whether the namespace of a repository has a quota."""

_COUNTED = "split_part(r.name, '/', 1)"


def hold(runner: Runner) -> None:
    """Let nothing be pushed or deleted until the transaction ends. To be its first statement."""
    runner.run("LOCK TABLE repositories, repository_blobs, manifests IN SHARE ROW EXCLUSIVE MODE")


def put(runner: Runner, namespace: str, limit: int | None, repositories: int | None) -> None:
    """Set the limits of a namespace, in bytes and in repositories. To be followed by ``count``."""
    runner.run(
        "INSERT INTO quotas (namespace, bytes, repositories)"
        " VALUES (:namespace, :limit, :repositories)"
        " ON CONFLICT (namespace) DO UPDATE"
        " SET bytes = excluded.bytes, repositories = excluded.repositories",
        namespace=namespace,
        limit=limit,
        repositories=repositories,
    )


def remove(runner: Runner, namespace: str) -> bool:
    """Take a namespace's limits away; False where it has none of its own. To be followed by
    ``count``."""
    return bool(
        runner.run("DELETE FROM quotas WHERE namespace = :namespace RETURNING 1",
                   namespace=namespace)
    )  # fmt: skip


def count(runner: Runner, namespace: str) -> None:
    """Count what a namespace uses if it has a quota, or of ``DEFAULT`` what all use that have one.
    Nothing may be pushed meanwhile: see ``hold``."""
    only = f"AND {_COUNTED} = :namespace" if namespace else ""
    for table in ("quota_blobs", "quota_usage"):
        runner.run(
            f"DELETE FROM {table}" + (" WHERE namespace = :namespace" if namespace else ""),
            namespace=namespace,
        )
    has_quota = f"EXISTS (SELECT FROM quotas WHERE namespace IN ('', {_COUNTED}))"
    runner.run(
        "INSERT INTO quota_blobs (namespace, digest, size, links)"
        f" SELECT {_COUNTED}, b.digest, b.size, count(*) FROM repositories r"
        " JOIN repository_blobs l ON l.repository_id = r.id JOIN blobs b USING (digest)"
        f" WHERE {has_quota} {only} GROUP BY 1, 2",
        namespace=namespace,
    )
    runner.run(
        "INSERT INTO quota_usage (namespace, bytes, repositories, high)"
        " SELECT u.*, is_high(quota_of(u.namespace), u.bytes, u.repositories) FROM ("
        f" SELECT n.namespace, n.manifests + CAST(coalesce((SELECT sum(size) FROM quota_blobs q"
        " WHERE q.namespace = n.namespace), 0) AS bigint) AS bytes, n.repositories FROM ("
        f" SELECT {_COUNTED} AS namespace, count(*) AS repositories,"
        " CAST(coalesce(sum((SELECT sum(octet_length(m.payload)) FROM manifests m"
        " WHERE m.repository_id = r.id)), 0) AS bigint) AS manifests"
        f" FROM repositories r WHERE {has_quota} {only} GROUP BY 1) n) u",
        namespace=namespace,
    )


def find(runner: Runner, namespace: str) -> Quota:
    """What a namespace may use and uses; without any quota its use is counted now."""
    rows = runner.run(
        "SELECT q.namespace = :namespace, q.bytes, q.repositories, u.bytes, u.repositories"
        " FROM quotas q LEFT JOIN quota_usage u ON u.namespace = :namespace"
        " WHERE q.namespace IN ('', :namespace) ORDER BY q.namespace DESC LIMIT 1",
        namespace=namespace,
    )
    if rows:
        own, limit, repositories, used_bytes, used_repositories = rows[0]
        return Quota(namespace, own, limit, repositories, used_bytes or 0, used_repositories or 0)
    [[used_bytes, used_repositories]] = runner.run(
        "SELECT CAST(coalesce((SELECT sum(size) FROM blobs WHERE digest IN (SELECT l.digest"
        f" FROM repositories r JOIN repository_blobs l ON l.repository_id = r.id"
        f" WHERE {_COUNTED} = :namespace)), 0)"
        " + coalesce((SELECT sum(octet_length(m.payload)) FROM repositories r"
        f" JOIN manifests m ON m.repository_id = r.id WHERE {_COUNTED} = :namespace), 0)"
        " AS bigint),"
        f" (SELECT count(*) FROM repositories r WHERE {_COUNTED} = :namespace)",
        namespace=namespace,
    )
    return Quota(namespace, False, None, None, used_bytes, used_repositories)


def default(runner: Runner) -> tuple[int | None, int | None]:
    """The limits in bytes and in repositories of namespaces that have none of their own."""
    rows = runner.run("SELECT bytes, repositories FROM quotas WHERE namespace = ''")
    return (rows[0][0], rows[0][1]) if rows else (None, None)


def listed(runner: Runner) -> list[Quota]:
    """Every namespace with a quota, and what it uses, by name."""
    rows: list[list[Any]] = runner.run(
        "SELECT n.namespace, n.namespace = q.namespace, q.bytes, q.repositories,"
        " coalesce(u.bytes, 0), coalesce(u.repositories, 0) FROM"
        " (SELECT namespace FROM quotas WHERE namespace <> ''"
        " UNION SELECT namespace FROM quota_usage) n"
        " CROSS JOIN LATERAL quota_of(n.namespace) q"
        " LEFT JOIN quota_usage u ON u.namespace = n.namespace"
        " WHERE q.namespace IS NOT NULL ORDER BY n.namespace"
    )
    return [Quota(*row) for row in rows]


def check(runner: Runner, repository: str, digest: bytes | None, size: int) -> int | None:
    """How many bytes a blob of a repository may have at all, None for any. Raises ``Denied`` where
    it is certain already that a push cannot be: of a blob of ``size`` bytes and this digest, where
    that is known, or into one repository too many."""
    rows = runner.run(
        "SELECT check_quota(:repository, CAST(:digest AS bytea), CAST(:size AS bigint))",
        repository=repository,
        digest=digest,
        size=size,
    )
    return None if rows[0][0] is None else int(rows[0][0])
