"""Uploads: one row each, taken further by whoever raised its epoch last.

States: ``open``, then ``committing`` (digest and staged bytes are settled, the object may not be
one yet), then ``committed`` or ``cancelled``.
"""

import json
from dataclasses import asdict, dataclass, replace

from chalicelib.metadata import repositories
from chalicelib.metadata.blocks import REFUSAL
from chalicelib.metadata.database import Runner
from chalicelib.metadata.quotas import LIMITED
from chalicelib.storage import Staged

_COLUMNS = "state, epoch, algorithm, received, hash_state, staged, digest, verified"
DEADLINE = "now() + (CAST(:seconds AS integer) + 60) * interval '1 second'"
"""When an upload expires whose newest capability lasts for so many seconds from now: a little later
than that, since it is issued with the answer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as a request found it; ``received`` in bytes. Whoever begins to stage bytes is told
    whether its namespace has a quota (``limited``), and what to tell because its digest is blocked
    (``refusal``)."""

    id: str
    repository: str
    state: str
    epoch: int
    algorithm: str
    received: int
    hash_state: bytes | None
    staged: Staged | None
    digest: bytes | None
    verified: bool
    limited: bool = False
    refusal: str | None = None


def create(runner: Runner, upload_id: str, repository: str, algorithm: str, seconds: int) -> bool:
    """Begin an upload whose capabilities last for so many seconds; gives whether its namespace has
    a quota."""
    rows = runner.run(
        "INSERT INTO uploads (id, repository, algorithm, expires_at)"
        f" VALUES (CAST(:id AS uuid), :repository, :algorithm, {DEADLINE}) RETURNING {LIMITED}",
        id=upload_id,
        repository=repository,
        algorithm=algorithm,
        seconds=seconds,
    )
    return bool(rows[0][0])


def find(runner: Runner, upload_id: str, repository: str) -> Upload | None:
    """An upload of this repository that has not expired."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM uploads WHERE id = CAST(:id AS uuid)"
        " AND repository = :repository AND expires_at > now()",
        id=upload_id,
        repository=repository,
    )
    return _upload(upload_id, repository, rows)


def renew(runner: Runner, upload_id: str, seconds: int) -> None:
    """Put off an open upload's expiry: a fresh capability for it is about to be issued."""
    runner.run(
        f"UPDATE uploads SET expires_at = greatest(expires_at, {DEADLINE})"
        " WHERE id = CAST(:id AS uuid) AND state = 'open'",
        id=upload_id,
        seconds=seconds,
    )


def begin(
    runner: Runner,
    upload_id: str,
    repository: str,
    offset: int | None,
    key: str,
    seconds: int,
    digest: bytes | None = None,
) -> Upload | None:
    """Raise the epoch of an open upload and record the key of the request that is about to stage
    bytes, and to commit that digest if it names one. None where it is not open, or has not received
    ``offset`` bytes exactly."""
    rows = runner.run(
        "WITH begun AS ("
        f" UPDATE uploads SET epoch = epoch + 1, expires_at = {DEADLINE}"
        " WHERE id = CAST(:id AS uuid) AND repository = :repository AND state = 'open'"
        " AND expires_at > now()"
        " AND (CAST(:offset AS bigint) IS NULL OR received = CAST(:offset AS bigint))"
        f" RETURNING id, {_COLUMNS}"
        "), noted AS (INSERT INTO upload_keys (key, upload_id) SELECT :key, id FROM begun)"
        f" SELECT {_COLUMNS}, {LIMITED}, {REFUSAL} FROM begun",
        id=upload_id,
        repository=repository,
        offset=offset,
        key=key,
        seconds=seconds,
        wanted=digest,
    )
    found = _upload(upload_id, repository, [row[:-2] for row in rows])
    if found is None:
        return None
    limited, refusal = rows[0][-2:]
    return replace(found, limited=limited, refusal=refusal)


def reserve(runner: Runner, upload: Upload, count: int, seconds: int) -> int | None:
    """The first of so many part numbers that no other request of this upload is given, None where
    another request has taken the upload over. Puts off its expiry too; a ``count`` of 0 does
    nothing else."""
    rows = runner.run(
        "UPDATE uploads SET next_part = next_part + :count,"
        f" expires_at = {DEADLINE}"
        " WHERE id = CAST(:id AS uuid) AND state = 'open' AND epoch = :epoch"
        " RETURNING next_part - :count",
        id=upload.id,
        epoch=upload.epoch,
        count=count,
        seconds=seconds,
    )
    return int(rows[0][0]) if rows else None


def save(
    runner: Runner,
    upload: Upload,
    received: int,
    hash_state: bytes | None,
    staged: Staged,
    seconds: int,
) -> bool:
    """What a request that succeeded leaves behind; False where it was overtaken."""
    return bool(
        runner.run(
            "UPDATE uploads SET received = :received, hash_state = :hash_state,"
            f" staged = CAST(:staged AS jsonb), expires_at = {DEADLINE}"
            " WHERE id = CAST(:id AS uuid) AND state = 'open' AND epoch = :epoch RETURNING 1",
            id=upload.id,
            epoch=upload.epoch,
            received=received,
            hash_state=hash_state,
            staged=json.dumps(asdict(staged)),
            seconds=seconds,
        )
    )


def settle(
    runner: Runner, upload: Upload, digest: bytes, staged: Staged, verified: bool, seconds: int
) -> bool:
    """From ``open`` to ``committing``; False where the request was overtaken."""
    return bool(
        runner.run(
            "UPDATE uploads SET state = 'committing', digest = :digest, verified = :verified,"
            f" received = :size, staged = CAST(:staged AS jsonb), expires_at = {DEADLINE}"
            " WHERE id = CAST(:id AS uuid) AND state = 'open' AND epoch = :epoch RETURNING 1",
            id=upload.id,
            epoch=upload.epoch,
            digest=digest,
            verified=verified,
            size=staged.size,
            staged=json.dumps(asdict(staged)),
            seconds=seconds,
        )
    )


def commit(
    runner: Runner,
    upload: Upload,
    digest: bytes,
    staged: Staged,
    store: str,
    instead_of: str,
    new: repositories.New,
) -> str | None:
    """Link the blob into the repository, which may be ``new``, and go to ``committed``: from
    ``committing`` with that digest whoever settled it, or from ``open`` by the newest request.
    None where it is neither.

    Gives the key that the blob has in this store, which is another than the upload's where somebody
    was earlier. ``instead_of`` names a key whose object was found missing: that one is replaced.
    The blob's row is locked until the transaction ends, and manifests that were admitted without
    the blob hold it from now on. One statement, since every push waits for it.
    """
    rows = runner.run(
        "WITH done AS ("
        " UPDATE uploads SET state = 'committed', digest = :digest, received = :size,"
        " hash_state = NULL, staged = NULL"
        " WHERE id = CAST(:id AS uuid)"
        " AND (state = 'committing' AND digest = :digest OR state = 'open' AND epoch = :epoch)"
        " RETURNING repository"
        "), known AS ("
        " SELECT r.id FROM repositories r JOIN done ON r.name = done.repository"
        "), made AS ("
        " INSERT INTO repositories (name, public, created_by)"
        " SELECT repository, :public, :created_by FROM done"
        " WHERE NOT EXISTS (SELECT FROM known) ON CONFLICT (name)"
        " DO UPDATE SET created_by = repositories.created_by RETURNING id"
        "), home AS (SELECT id FROM known UNION ALL SELECT id FROM made"
        "), blob AS ("
        " INSERT INTO blobs (digest, size) SELECT :digest, :size FROM done"
        " ON CONFLICT (digest) DO UPDATE SET size = blobs.size RETURNING digest"
        "), copy AS ("
        " INSERT INTO blob_copies AS c (digest, store, key)"
        " SELECT digest, :store, :key FROM blob"
        " ON CONFLICT (digest, store) DO UPDATE"
        " SET key = CASE WHEN c.key = :instead_of THEN excluded.key ELSE c.key END,"
        " missing = false RETURNING key"
        "), link AS ("
        " INSERT INTO repository_blobs (repository_id, digest)"
        " SELECT home.id, blob.digest FROM home, blob"
        " ON CONFLICT (repository_id, digest)"
        " DO UPDATE SET linked_at = now(), unreferenced_since = clock_timestamp()"
        "), held AS ("
        " UPDATE manifest_references f SET blob = f.digest FROM home"
        " WHERE f.repository_id = home.id AND f.digest = :digest"
        " AND blob IS NULL AND child IS NULL AND NOT is_manifest"
        ") SELECT key FROM copy",
        id=upload.id,
        epoch=upload.epoch,
        digest=digest,
        size=staged.size,
        store=store,
        key=staged.key,
        instead_of=instead_of,
        public=new.public,
        created_by=new.created_by,
    )
    return str(rows[0][0]) if rows else None


def put_back(
    runner: Runner,
    upload: Upload,
    digest: bytes,
    size: int,
    store: str,
    instead_of: str,
    key: str,
) -> bool:
    """Go to ``committed`` with an object that takes the place of a missing one of an existing blob;
    False, and nothing done, where the upload has ended or the blob's row is not as it was."""
    return bool(
        runner.run(
            "WITH lost AS ("
            " SELECT digest FROM blob_copies WHERE digest = :digest AND store = :store"
            " AND key = :instead_of AND missing FOR UPDATE"
            "), done AS ("
            " UPDATE uploads SET state = 'committed', digest = :digest, received = :size"
            " FROM lost WHERE id = CAST(:id AS uuid) AND state = 'open' AND epoch = :epoch"
            " RETURNING 1)"
            " UPDATE blob_copies c SET key = :key, missing = false FROM lost, done"
            " WHERE c.digest = lost.digest AND c.store = :store RETURNING 1",
            id=upload.id,
            epoch=upload.epoch,
            digest=digest,
            size=size,
            store=store,
            instead_of=instead_of,
            key=key,
        )
    )


def cancel(runner: Runner, upload_id: str, repository: str) -> bool:
    """End an upload that is open, or whose bytes turned out not to be its digest's; False where
    there is none."""
    return bool(
        runner.run(
            "UPDATE uploads SET state = 'cancelled'"
            " WHERE id = CAST(:id AS uuid) AND repository = :repository AND expires_at > now()"
            " AND state IN ('open', 'committing') RETURNING 1",
            id=upload_id,
            repository=repository,
        )
    )


def expired(runner: Runner, count: int) -> list[str]:
    """Ids of at most ``count`` uploads that no capability reaches any more. Those that were still
    open are cancelled: a request that still runs for them fails."""
    rows = runner.run(
        "WITH late AS (SELECT id FROM uploads WHERE expires_at < now()"
        " ORDER BY expires_at LIMIT :count FOR UPDATE SKIP LOCKED)"
        " UPDATE uploads u SET state = CASE WHEN state = 'committed' THEN state"
        " ELSE 'cancelled' END FROM late WHERE u.id = late.id RETURNING CAST(u.id AS text)",
        count=count,
    )
    return [upload_id for (upload_id,) in rows]


def keys(runner: Runner, upload_id: str, store: str) -> list[tuple[str, bool]]:
    """Every key that the upload's requests were given, and whether a blob's copy is there now, or
    was, which collection deletes in its time."""
    rows = runner.run(
        "SELECT k.key, c.key IS NOT NULL OR d.key IS NOT NULL FROM upload_keys k"
        " LEFT JOIN blob_copies c ON c.key = k.key AND c.store = :store"
        " LEFT JOIN doomed_objects d ON d.key = k.key AND d.store = :store"
        " WHERE k.upload_id = CAST(:id AS uuid)",
        id=upload_id,
        store=store,
    )
    return [(key, kept) for key, kept in rows]


def put_off(runner: Runner, upload_id: str, seconds: int) -> None:
    """Let an upload that could not be cleared wait for the next time."""
    runner.run(
        "UPDATE uploads SET expires_at = now() + CAST(:seconds AS integer) * interval '1 second'"
        " WHERE id = CAST(:id AS uuid)",
        id=upload_id,
        seconds=seconds,
    )


def forget(runner: Runner, upload_id: str) -> None:
    """Drop the row of an upload that expired and whose keys were cleared."""
    runner.run(
        "DELETE FROM uploads WHERE id = CAST(:id AS uuid) AND expires_at < now()", id=upload_id
    )


def _upload(upload_id: str, repository: str, rows: list[list[object]]) -> Upload | None:
    if not rows:
        return None
    state, epoch, algorithm, received, hash_state, staged, digest, verified = rows[0]
    return Upload(
        id=upload_id,
        repository=repository,
        state=str(state),
        epoch=int(str(epoch)),
        algorithm=str(algorithm),
        received=int(str(received)),
        hash_state=bytes(hash_state) if isinstance(hash_state, bytes) else None,
        staged=Staged(**staged) if isinstance(staged, dict) else None,
        digest=bytes(digest) if isinstance(digest, bytes) else None,
        verified=bool(verified),
    )
