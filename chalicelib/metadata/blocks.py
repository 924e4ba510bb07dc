"""Blocked digests: blobs and manifests that nobody may read or push.

Triggers keep them from being pushed; whoever reads looks here within the statement that finds what
is read.
"""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner

REFUSAL = "(SELECT refusal FROM blocked_digests k WHERE k.digest = :wanted)"
"""An expression: what to tell whoever wants this digest because it is blocked, else null."""


class Block(NamedTuple):
    """A blocked digest. ``public``: whoever is refused is told the reason. ``blocked_by`` is the
    subject who did it."""

    digest: bytes
    reason: str
    public: bool
    blocked_by: str
    blocked_at: Any


_COLUMNS = "digest, reason, public, blocked_by, blocked_at"


def add(runner: Runner, digest: bytes, reason: str, public: bool, by: str) -> Block:
    """Block a digest, or say another reason."""
    rows = runner.run(
        "INSERT INTO blocked_digests (digest, reason, public, blocked_by)"
        " VALUES (:digest, :reason, :public, :by)"
        " ON CONFLICT (digest) DO UPDATE SET reason = excluded.reason, public = excluded.public"
        f" RETURNING {_COLUMNS}",
        digest=digest,
        reason=reason,
        public=public,
        by=by,
    )
    return Block(*rows[0])


def remove(runner: Runner, digest: bytes) -> bool:
    """Block a digest no longer; False where it was not blocked."""
    return bool(
        runner.run("DELETE FROM blocked_digests WHERE digest = :digest RETURNING 1", digest=digest)
    )


def refusal(runner: Runner, digest: bytes) -> str | None:
    """What to tell whoever wants this digest because it is blocked."""
    rows = runner.run(f"SELECT {REFUSAL}", wanted=digest)
    return None if rows[0][0] is None else str(rows[0][0])


def listed(runner: Runner, last: bytes = b"", count: int | None = None) -> list[Block]:
    """Blocked digests in their order: at most ``count`` after ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM blocked_digests WHERE digest > :last ORDER BY digest"
        " LIMIT CAST(:count AS bigint)",
        last=last,
        count=count,
    )
    return [Block(*row) for row in rows]


def holders(runner: Runner, digest: bytes) -> list[str]:
    """Names of the repositories that have a blob or a manifest of this digest."""
    rows = runner.run(
        "SELECT r.name FROM repositories r WHERE r.id IN ("
        " SELECT repository_id FROM repository_blobs WHERE digest = :digest"
        " UNION ALL SELECT repository_id FROM manifests WHERE digest = :digest) ORDER BY r.name",
        digest=digest,
    )
    return [name for (name,) in rows]
