"""Manifests, what they name, and what names them as its subject."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Stored(NamedTuple):
    """A manifest as it was pushed. ``unreferenced``: for how many seconds, at most, nothing has
    named it; None where something does. ``refusal``: what to tell because it is blocked.
    ``networks``: where it and what it names is on networks of the repository, itself first: digest
    in hexadecimal, whether that is a manifest's, resolver, CID, and the CID by which an image is
    pulled or None; None where it is on none."""

    digest: bytes
    media_type: str
    payload: bytes
    refusal: str | None
    networks: list[tuple[str, bool, str, str, str | None]] | None
    unreferenced: float | None = None


_NAMED = 100
"""Of so many that a manifest names it is told at most where they are."""
_NETWORKS = (
    "CASE WHEN {resolvers} <> '{{}}' THEN (SELECT jsonb_agg(jsonb_build_array("
    "encode(d.digest, 'hex'), d.is_manifest, n.resolver, n.cid, n.root_cid)"
    " ORDER BY d.digest <> m.digest, d.digest, n.resolver) FROM ("
    "SELECT m.digest, true AS is_manifest UNION ALL (SELECT f.digest, f.is_manifest"
    " FROM manifest_references f WHERE f.repository_id = m.repository_id"
    f" AND f.manifest = m.digest LIMIT {_NAMED})) d CROSS JOIN LATERAL ("
    "SELECT c.resolver, c.cid, c.root_cid FROM resolver_copies c WHERE c.digest = d.digest"
    f" AND c.state = 'there' AND c.resolver = ANY({{resolvers}}) LIMIT {_NAMED}) n) END"
)
"""An expression. Who has chosen no resolver pays nothing for it. LIMIT has each digest looked up,
rather than all copies be read."""


@dataclass(frozen=True, slots=True)
class Record:
    """A manifest to be kept. ``blobs`` and ``children`` are the digests of all that it names,
    ``subject`` apart; ``artifact_type`` and ``annotations`` are what a list of referrers shows.
    ``encrypted``: all its layers are."""

    digest: bytes
    media_type: str
    artifact_type: str
    subject: bytes | None
    payload: bytes
    annotations: dict[str, str]
    blobs: frozenset[bytes]
    children: frozenset[bytes]
    encrypted: bool = False


def by_digest(runner: Runner, repository: str, digest: bytes) -> Stored | None:
    """The manifest of that digest."""
    rows = runner.run(
        "SELECT m.digest, m.media_type, m.payload, k.refusal,"
        f" {_NETWORKS.format(resolvers='r.resolvers')},"
        " CAST(extract(epoch FROM now() - m.unreferenced_since) AS double precision)"
        " FROM repositories r"
        " JOIN manifests m ON m.repository_id = r.id AND m.digest = :digest"
        " LEFT JOIN blocked_digests k ON k.digest = m.digest"
        " WHERE r.name = :repository",
        repository=repository,
        digest=digest,
    )
    return Stored(*rows[0]) if rows else None


def by_tag(runner: Runner, repository: str, tag: str) -> Stored | None:
    """The manifest that a tag points to."""
    # LIMIT has the tag found first: in new tables Postgres would rather try each manifest.
    rows = runner.run(
        "SELECT m.digest, m.media_type, m.payload, k.refusal,"
        f" {_NETWORKS.format(resolvers='t.resolvers')} FROM ("
        " SELECT t.repository_id, t.digest, r.resolvers FROM repositories r"
        " JOIN tags t ON t.repository_id = r.id AND t.name = :tag"
        " WHERE r.name = :repository LIMIT 1"
        ") t JOIN manifests m USING (repository_id, digest)"
        " LEFT JOIN blocked_digests k ON k.digest = m.digest",
        repository=repository,
        tag=tag,
    )
    return Stored(*rows[0]) if rows else None


def renew(runner: Runner, repository: str, digest: bytes) -> bool:
    """Begin the grace of a manifest anew; False where it is not there any more."""
    return bool(
        runner.run(
            "UPDATE manifests m SET unreferenced_since = clock_timestamp() FROM repositories r"
            " WHERE r.name = :repository AND m.repository_id = r.id AND m.digest = :digest"
            " RETURNING 1",
            repository=repository,
            digest=digest,
        )
    )


def existing(runner: Runner, repository_id: int, digests: list[bytes]) -> set[bytes]:
    """Which of these manifests the repository has."""
    if not digests:
        return set()
    rows = runner.run(
        "SELECT digest FROM manifests"
        " WHERE repository_id = :repository AND digest = ANY(CAST(:digests AS bytea[]))",
        repository=repository_id,
        digests=digests,
    )
    return {bytes(digest) for (digest,) in rows}


def add(
    runner: Runner,
    repository_id: int,
    record: Record,
    blobs: frozenset[bytes],
    children: frozenset[bytes],
) -> bool:
    """Keep a manifest and its references, of which ``blobs`` and ``children`` are there. One that
    is deleted meanwhile makes this a foreign key violation. Repeating it renews the manifest, which
    then holds too what it was admitted without and is there now. Indexes that were admitted without
    it hold it from now on. An index is encrypted where all that it names is. Gives whether the
    repository has resolvers: then jobs may have been written."""
    # References come after the manifest's row (FROM kept): where that is being deleted, the former
    # references may not be gone before. In digest order, so that two pushes lock the rows that they
    # share in the same order.
    named = [(digest, False, digest in blobs) for digest in sorted(record.blobs)]
    named += [(digest, True, digest in children) for digest in sorted(record.children)]
    rows = runner.run(
        "WITH kept AS ("
        " INSERT INTO manifests"
        " (repository_id, digest, media_type, artifact_type, subject, payload, annotations,"
        " had_subject, encrypted)"
        " VALUES (:repository, :digest, :media_type, :artifact_type, :subject, :payload,"
        " :annotations, EXISTS (SELECT FROM manifests s"
        " WHERE s.repository_id = :repository AND s.digest = :subject),"
        " :encrypted OR :index AND NOT EXISTS ("
        "SELECT FROM unnest(CAST(:digests AS bytea[])) AS u (d) WHERE NOT EXISTS ("
        "SELECT FROM manifests e WHERE e.repository_id = :repository AND e.digest = u.d"
        " AND e.encrypted)))"
        " ON CONFLICT (repository_id, digest)"
        " DO UPDATE SET pushed_at = now(), unreferenced_since = clock_timestamp(),"
        " had_subject = manifests.had_subject OR excluded.had_subject,"
        " encrypted = excluded.encrypted RETURNING 1"
        "), named AS ("
        " INSERT INTO manifest_references AS f"
        " (repository_id, manifest, digest, is_manifest, blob, child)"
        " SELECT :repository, :digest, d, is_manifest,"
        " CASE WHEN there AND NOT is_manifest THEN d END,"
        " CASE WHEN there AND is_manifest THEN d END"
        " FROM kept, unnest(CAST(:digests AS bytea[]), CAST(:kinds AS boolean[]),"
        " CAST(:there AS boolean[])) AS named (d, is_manifest, there)"
        " ON CONFLICT (repository_id, manifest, digest, is_manifest)"
        " DO UPDATE SET blob = excluded.blob, child = excluded.child"
        " WHERE f.blob IS NULL AND f.child IS NULL"
        " AND num_nonnulls(excluded.blob, excluded.child) > 0"
        "), held AS (UPDATE manifest_references SET child = digest"
        " WHERE repository_id = :repository AND digest = :digest"
        " AND blob IS NULL AND child IS NULL AND is_manifest"
        ") SELECT resolvers <> '{}' FROM repositories WHERE id = :repository",
        repository=repository_id,
        digest=record.digest,
        media_type=record.media_type,
        artifact_type=record.artifact_type,
        subject=record.subject,
        payload=record.payload,
        annotations=json.dumps(record.annotations),
        encrypted=record.encrypted,
        index=bool(record.children) and not record.blobs,
        digests=[digest for digest, _, _ in named],
        kinds=[is_manifest for _, is_manifest, _ in named],
        there=[there for _, _, there in named],
    )
    return bool(rows[0][0])


def remove(runner: Runner, repository: str, digest: bytes, subject: str) -> list[str] | None:
    """Delete a manifest and its tags, which are given; None where there is none. An index that
    names it makes this a foreign key violation."""
    tags = runner.run(
        "INSERT INTO tag_history (repository_id, name, subject)"
        " SELECT t.repository_id, t.name, :subject FROM tags t"
        " JOIN repositories r ON r.id = t.repository_id"
        " WHERE r.name = :repository AND t.digest = :digest ORDER BY t.name RETURNING name",
        repository=repository,
        digest=digest,
        subject=subject,
    )
    gone = runner.run(
        "DELETE FROM manifests m USING repositories r"
        " WHERE r.name = :repository AND m.repository_id = r.id AND m.digest = :digest"
        " RETURNING 1",
        repository=repository,
        digest=digest,
    )
    return [name for (name,) in tags] if gone else None


class Referrer(NamedTuple):
    """A manifest as a list of referrers shows it; ``size`` in bytes."""

    digest: bytes
    media_type: str
    artifact_type: str
    size: int
    annotations: dict[str, Any]


def referrers(
    runner: Runner, repository: str, subject: bytes, artifact_type: str, last: bytes, count: int
) -> list[Referrer]:
    """At most ``count`` manifests with this subject, in digest order after ``last``; of one
    artifact type, or of all where that is empty."""
    rows = runner.run(
        "SELECT m.digest, m.media_type, m.artifact_type, length(m.payload), m.annotations"
        " FROM repositories r"
        " JOIN manifests m ON m.repository_id = r.id AND m.subject = :subject"
        " WHERE r.name = :repository AND m.digest > :last"
        " AND (:artifact_type = '' OR m.artifact_type = :artifact_type)"
        " ORDER BY m.digest LIMIT :count",
        repository=repository,
        subject=subject,
        artifact_type=artifact_type,
        last=last,
        count=count,
    )
    return [
        Referrer(bytes(digest), media_type, kind, size, json.loads(annotations))
        for digest, media_type, kind, size, annotations in rows
    ]
