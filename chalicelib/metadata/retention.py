"""Retention: policies of repositories and namespaces, and what they are about."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.collection import MANIFEST_NAMED, Due
from chalicelib.metadata.database import Runner
from chalicelib.metadata.grants import Place


class Policy(NamedTuple):
    """A tag stays that one of these rules keeps: it is among the last that were pushed, was pushed
    within so many seconds, matches a pattern, or was pulled within so many seconds. Where there is
    no such rule all stay. Manifests that have had no tag for ``untagged_after`` seconds go; None:
    they stay."""

    keep_last: int | None = None
    keep_newer: int | None = None
    keep_matching: Sequence[str] = ()
    keep_pulled: int | None = None
    untagged_after: int | None = 0


class Held(NamedTuple):
    """A repository whose policy does not change before the transaction ends. ``account`` is the id
    of its namespace's, ``now`` the time of the database's clock."""

    id: int
    name: str
    account: int | None
    now: Any
    policy: Policy


class Tag(NamedTuple):
    """A tag to be judged. ``pulled_at`` is None where it never was."""

    name: str
    digest: bytes
    pushed_at: Any
    pulled_at: Any


_POLICY = "p.keep_last, p.keep_newer, p.keep_matching, p.keep_pulled, p.untagged_after"
_AT = (
    "(p.repository_id = CAST(:repository AS bigint) OR p.namespace_id = CAST(:namespace AS bigint))"
)
_IN_FORCE = (
    "repositories r LEFT JOIN accounts n ON n.name = split_part(r.name, '/', 1)"
    " JOIN retention_policies p ON p.repository_id = r.id OR (p.namespace_id = n.id"
    " AND NOT EXISTS (SELECT FROM retention_policies o WHERE o.repository_id = r.id))"
)
_READ = f"SELECT r.id, r.name, n.id, now(), {_POLICY} FROM {_IN_FORCE} WHERE r.id = :repository"
_SECONDS = "CAST(:{} AS double precision) * interval '1 second'"
_UNTAGGED = (
    "m.repository_id = :repository"
    f" AND m.unreferenced_since <= now() - {_SECONDS.format('age')}"
)  # fmt: skip
_UNPULLED = (
    "NOT EXISTS (SELECT FROM manifest_pulls u WHERE u.repository_id = m.repository_id"
    " AND u.digest = m.digest"
    f" AND u.pulled_at > now() - {_SECONDS.format('pulled')})"
)


def lock(runner: Runner, repository_id: int) -> None:
    """Wait for those who remove something by the policy of a repository, and keep others from it
    until the transaction ends."""
    runner.run(
        "SELECT FROM repositories WHERE id = :repository FOR NO KEY UPDATE",
        repository=repository_id,
    )


def put(runner: Runner, place: Place, policy: Policy) -> None:
    """Give a place a policy, in the place of the one it has."""
    runner.run(
        "INSERT INTO retention_policies (repository_id, namespace_id, keep_last, keep_newer,"
        " keep_matching, keep_pulled, untagged_after)"
        " VALUES (:repository, :namespace, :keep_last, :keep_newer,"
        " CAST(:keep_matching AS text[]), :keep_pulled, :untagged_after)"
        f" ON CONFLICT ({'repository_id' if place.repository else 'namespace_id'}) DO UPDATE SET"
        " keep_last = excluded.keep_last, keep_newer = excluded.keep_newer,"
        " keep_matching = excluded.keep_matching, keep_pulled = excluded.keep_pulled,"
        " untagged_after = excluded.untagged_after",
        **place._asdict(),
        **policy._replace(keep_matching=list(policy.keep_matching))._asdict(),
    )


def find(runner: Runner, place: Place) -> Policy | None:
    """The policy of a place itself."""
    rows = runner.run(f"SELECT {_POLICY} FROM retention_policies p WHERE {_AT}", **place._asdict())
    return Policy(*rows[0]) if rows else None


def remove(runner: Runner, place: Place) -> bool:
    """Let a place have no policy; False where it has none."""
    return bool(
        runner.run(f"DELETE FROM retention_policies p WHERE {_AT} RETURNING 1", **place._asdict())
    )


def repositories(runner: Runner) -> list[tuple[int, str]]:
    """Every repository that a policy is about: ids and names, in the order of these."""
    rows = runner.run(f"SELECT r.id, r.name FROM {_IN_FORCE} ORDER BY r.name")
    return [(number, name) for number, name in rows]


def schedule(runner: Runner, kind: str) -> None:
    """Add a job of that kind for each repository that a policy is about and that has none waiting.
    Of jobs that were given up the last is kept."""
    runner.run(
        f"WITH due AS (SELECT r.id, 'retention:' || r.id AS subject FROM {_IN_FORCE}"
        " WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.kind = :kind"
        " AND j.subject = 'retention:' || r.id AND j.subject <> '' AND j.dead_at IS NULL)"
        "), dead AS (DELETE FROM jobs j USING due d WHERE j.kind = :kind"
        " AND j.subject = d.subject AND j.dead_at IS NOT NULL"
        ") INSERT INTO jobs (kind, subject, data)"
        " SELECT :kind, subject, jsonb_build_object('repository', id) FROM due",
        kind=kind,
    )


def hold(runner: Runner, repository_id: int) -> Held | None:
    """Keep a repository and its policy as they are; None where no policy is about it."""
    # What is true once the lock is had is for a second statement to see.
    runner.run("SELECT FROM repositories WHERE id = :id FOR SHARE", id=repository_id)
    rows = runner.run(f"{_READ} FOR SHARE OF p", repository=repository_id)
    return _held(rows)


def read(runner: Runner, repository_id: int, policy: Policy | None = None) -> Held | None:
    """A repository with the policy that is about it, or with another one; None where none is."""
    if policy is None:
        return _held(runner.run(_READ, repository=repository_id))
    rows = runner.run(
        "SELECT id, name, NULL, now() FROM repositories WHERE id = :repository",
        repository=repository_id,
    )
    return _held([[*row, *policy] for row in rows])


def tags(runner: Runner, repository_id: int) -> list[Tag]:
    """All tags of a repository, the last pushed first."""
    rows = runner.run(
        "SELECT t.name, t.digest, t.pushed_at, u.pulled_at FROM tags t"
        " LEFT JOIN tag_pulls u ON u.repository_id = t.repository_id AND u.name = t.name"
        " WHERE t.repository_id = :repository ORDER BY t.pushed_at DESC, t.name",
        repository=repository_id,
    )
    return [Tag(name, bytes(digest), pushed, pulled) for name, digest, pushed, pulled in rows]


def remove_tags(
    runner: Runner, repository_id: int, unwanted: Sequence[Tag], subject: str
) -> list[Tag]:
    """Delete tags that were not pushed since they were read; gives these."""
    rows = runner.run(
        "WITH held AS MATERIALIZED (SELECT t.name, t.digest, t.pushed_at FROM tags t"
        " JOIN unnest(CAST(:names AS text[]), CAST(:digests AS bytea[]),"
        " CAST(:times AS timestamptz[])) AS u (name, digest, pushed_at)"
        " ON u.name = t.name AND u.digest = t.digest AND u.pushed_at = t.pushed_at"
        # In the order in which a push that sets several has them.
        " WHERE t.repository_id = :repository ORDER BY t.name FOR UPDATE OF t"
        "), gone AS (DELETE FROM tags t USING held h WHERE t.repository_id = :repository"
        " AND t.name = h.name AND t.digest = h.digest AND t.pushed_at = h.pushed_at"
        " RETURNING t.name"
        ") INSERT INTO tag_history (repository_id, name, subject)"
        " SELECT :repository, name, :subject FROM gone ORDER BY name RETURNING name",
        repository=repository_id,
        names=[each.name for each in unwanted],
        digests=[each.digest for each in unwanted],
        times=[each.pushed_at.isoformat() for each in unwanted],
        subject=subject,
    )
    gone = {name for (name,) in rows}
    return [each for each in unwanted if each.name in gone]


def lock_untagged(
    runner: Runner, repository_id: int, age: float, pulled: float, after: Any, count: int
) -> Due:
    """Take at most ``count`` manifests of a repository that may have been without a tag for ``age``
    seconds and were not pulled for ``pulled`` seconds, the oldest first, for
    ``collection.judge_manifests``."""
    rows = runner.run(
        f"SELECT m.digest, m.unreferenced_since FROM manifests m WHERE {_UNTAGGED} AND {_UNPULLED}"
        " AND m.unreferenced_since >= CAST(:after AS timestamptz)"
        " ORDER BY m.unreferenced_since LIMIT :count FOR UPDATE OF m SKIP LOCKED",
        repository=repository_id,
        age=age,
        pulled=pulled,
        after=after,
        count=count,
    )
    until = max((since for _, since in rows), default=after)
    return Due([(repository_id, bytes(digest)) for digest, _ in rows], until)


def untagged(runner: Runner, repository_id: int, age: float, pulled: float) -> list[bytes]:
    """The manifests of a repository that would go now, in the order of their digests."""
    rows = runner.run(
        f"SELECT m.digest FROM manifests m WHERE {_UNTAGGED} AND {_UNPULLED}"
        f" AND NOT {MANIFEST_NAMED} ORDER BY m.digest",
        repository=repository_id,
        age=age,
        pulled=pulled,
    )
    return [bytes(digest) for (digest,) in rows]


def _held(rows: list[list[Any]]) -> Held | None:
    if not rows:
        return None
    number, name, account, now, *policy = rows[0]
    return Held(number, name, account, now, Policy(*policy))
