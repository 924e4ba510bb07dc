"""Direct uploads: what an upload has besides, whose parts clients send to object storage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.metadata import uploads
from chalicelib.metadata.database import Runner, Transaction
from chalicelib.metadata.uploads import DEADLINE, Upload

_HELD = "now() + CAST(:hold AS integer) * interval '1 second'"
_MINE = (
    "u.id = CAST(:id AS uuid) AND u.state = 'open' AND u.epoch = :epoch AND u.expires_at > now()"
)
_COLUMNS = (
    "CAST(d.upload_id AS text), d.subject, d.key, d.multipart_id, d.part_size, d.digest, d.size,"
    " d.states, d.pieces, d.pieces_verified, d.bytes_verified, d.refusal"
)


@dataclass(frozen=True, slots=True)
class Direct:
    """What is known of a direct upload beside its ``Upload``. ``digest`` and ``size`` (bytes) are
    those that the client has named. Once it is committed there are ``states``, those at the parts'
    ends one after another, and ``pieces``, which are verified apart from each other. ``refusal``
    says why it became no blob: code, message and detail."""

    upload_id: str
    subject: str
    key: str
    multipart_id: str
    part_size: int
    digest: bytes | None
    size: int | None
    states: bytes | None = None
    pieces: int | None = None
    pieces_verified: int = 0
    bytes_verified: int = 0
    refusal: Mapping[str, Any] | None = None


def add(runner: Runner, direct: Direct, hold: int) -> None:
    """Make an upload a direct one, and hold it for ``hold`` seconds."""
    runner.run(
        "INSERT INTO direct_uploads (upload_id, subject, key, multipart_id, part_size, digest,"
        " size, held_until) VALUES (CAST(:id AS uuid), :subject, :key, :multipart, :part_size,"
        f" :digest, :size, {_HELD})",
        id=direct.upload_id,
        subject=direct.subject,
        key=direct.key,
        multipart=direct.multipart_id,
        part_size=direct.part_size,
        digest=direct.digest,
        size=direct.size,
        hold=hold,
    )


def take_over(
    runner: Runner,
    repository: str,
    subject: str,
    *,
    digest: bytes | None,
    size: int | None,
    first: bytes | None,
    most: int,
    seconds: int,
    hold: int,
) -> tuple[Direct, int] | None:
    """Take over the newest upload of this subject in a repository that is open, held by nobody, and
    of the same blob: by its digest, or by the state at the end of its first part; ``most`` of its
    parts must be enough. It is of this digest and size from now on: what was known before may be
    another blob's that begins alike. Gives it and its epoch, None where there is none. Of several
    at once, one gets it."""
    rows = runner.run(
        "WITH found AS (SELECT u.id FROM uploads u JOIN direct_uploads d ON d.upload_id = u.id"
        " WHERE d.upload_id IN (SELECT upload_id FROM direct_uploads WHERE digest = :digest"
        " UNION ALL SELECT upload_id FROM direct_states WHERE part = 1 AND state = :first)"
        " AND u.repository = :repository AND d.subject = :subject"
        " AND u.state = 'open' AND u.expires_at > now() AND d.held_until < now()"
        " AND (CAST(:size AS bigint) IS NULL OR :size <= d.part_size * :most"
        " AND (d.size IS NULL OR d.size = :size))"
        " ORDER BY d.digest IS NULL, d.held_until DESC LIMIT 1 FOR UPDATE OF u SKIP LOCKED),"
        f" taken AS (UPDATE uploads u SET epoch = epoch + 1, expires_at = {DEADLINE} FROM found"
        " WHERE u.id = found.id RETURNING u.id, u.epoch)"
        f" UPDATE direct_uploads d SET held_until = {_HELD}, digest = :digest, size = :size"
        " FROM taken"
        f" WHERE d.upload_id = taken.id RETURNING {_COLUMNS}, taken.epoch",
        repository=repository,
        subject=subject,
        digest=digest,
        size=size,
        first=first,
        most=most,
        seconds=seconds,
        hold=hold,
    )
    return (Direct(*rows[0][:-1]), rows[0][-1]) if rows else None


def find(runner: Runner, upload_id: str) -> Direct | None:
    """What is known of a direct upload."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM direct_uploads d WHERE d.upload_id = CAST(:id AS uuid)",
        id=upload_id,
    )
    return Direct(*rows[0]) if rows else None


def touch(runner: Runner, upload_id: str, epoch: int, seconds: int, hold: int) -> bool:
    """Put off the expiry of an open upload, and hold it; a ``hold`` of 0 lets go of it. False
    where another has taken it over, or it has ended."""
    return bool(
        runner.run(
            f"WITH mine AS (UPDATE uploads u SET expires_at = {DEADLINE} WHERE {_MINE}"
            " RETURNING u.id)"
            f" UPDATE direct_uploads d SET held_until = {_HELD} FROM mine"
            " WHERE d.upload_id = mine.id RETURNING 1",
            id=upload_id,
            epoch=epoch,
            seconds=seconds,
            hold=hold,
        )
    )


def add_states(runner: Runner, upload_id: str, states: Mapping[int, bytes]) -> None:
    """Remember the states at the ends of these parts."""
    runner.run(
        "INSERT INTO direct_states (upload_id, part, state)"
        " SELECT CAST(:id AS uuid), part, state"
        " FROM unnest(CAST(:parts AS integer[]), CAST(:states AS bytea[])) AS s (part, state)"
        " ORDER BY part ON CONFLICT (upload_id, part) DO UPDATE SET state = excluded.state",
        id=upload_id,
        parts=list(states),
        states=list(states.values()),
    )


def forget_states(runner: Runner, upload_id: str, parts: Sequence[int]) -> None:
    """Forget the states at the ends of these parts, which are about to be sent, and perhaps with
    other bytes. That of the first stays: the upload is found by it, by those who have it too."""
    runner.run(
        "DELETE FROM direct_states WHERE upload_id = CAST(:id AS uuid) AND part > 1"
        " AND part = ANY(CAST(:parts AS integer[]))",
        id=upload_id,
        parts=list(parts),
    )


def states(runner: Runner, upload_id: str) -> dict[int, bytes]:
    """The states that were told, by part."""
    return dict(
        runner.run(
            "SELECT part, state FROM direct_states WHERE upload_id = CAST(:id AS uuid)",
            id=upload_id,
        )
    )


def committing(
    runner: Runner, repository: str, subject: str, digest: bytes
) -> tuple[Upload, Direct] | None:
    """An upload of this subject in a repository that it has committed with this digest, and that is
    not verified yet."""
    rows = runner.run(
        "SELECT CAST(u.id AS text) FROM direct_uploads d JOIN uploads u ON u.id = d.upload_id"
        " WHERE d.digest = :digest AND d.subject = :subject AND u.repository = :repository"
        " AND u.digest = :digest AND u.state = 'committing' AND u.expires_at > now()"
        " AND d.refusal IS NULL ORDER BY u.expires_at DESC LIMIT 1",
        repository=repository,
        subject=subject,
        digest=digest,
    )
    upload = uploads.find(runner, rows[0][0], repository) if rows else None
    found = find(runner, upload.id) if upload is not None else None
    return None if upload is None or found is None else (upload, found)


def settle(runner: Runner, upload_id: str, digest: bytes, size: int, states: bytes) -> None:
    """Keep what a commit has said. The states that were told before are not needed any more."""
    runner.run(
        "WITH old AS (DELETE FROM direct_states WHERE upload_id = CAST(:id AS uuid))"
        " UPDATE direct_uploads SET digest = :digest, size = :size, states = :states"
        " WHERE upload_id = CAST(:id AS uuid)",
        id=upload_id,
        digest=digest,
        size=size,
        states=states,
    )


def begin_verifying(transaction: Transaction, upload_id: str, pieces: int) -> bool:
    """Say in how many pieces it is verified; False where that was said before."""
    return bool(
        transaction.run(
            "UPDATE direct_uploads SET pieces = :pieces"
            " WHERE upload_id = CAST(:id AS uuid) AND pieces IS NULL RETURNING 1",
            id=upload_id,
            pieces=pieces,
        )
    )


def count_verified(transaction: Transaction, upload: Upload, length: int, seconds: int) -> bool:
    """Note that one more piece was verified, of ``length`` bytes; gives whether it was the last
    one. Then the upload is verified. Puts off its expiry."""
    rows = transaction.run(
        "WITH counted AS (UPDATE direct_uploads SET pieces_verified = pieces_verified + 1,"
        " bytes_verified = bytes_verified + :length WHERE upload_id = CAST(:id AS uuid)"
        " RETURNING pieces_verified = pieces AS whole)"
        f" UPDATE uploads u SET verified = counted.whole, expires_at = {DEADLINE} FROM counted"
        " WHERE u.id = CAST(:id AS uuid) AND u.state = 'committing' RETURNING verified",
        id=upload.id,
        length=length,
        seconds=seconds,
    )
    return bool(rows and rows[0][0])


def refuse(runner: Runner, upload_id: str, refusal: Mapping[str, Any]) -> None:
    """Note why an upload becomes no blob, unless that was said before. It means nothing where
    another request has made it one meanwhile."""
    runner.run(
        "UPDATE direct_uploads SET refusal = CAST(:refusal AS jsonb)"
        " WHERE upload_id = CAST(:id AS uuid) AND refusal IS NULL",
        id=upload_id,
        refusal=json.dumps(refusal),
    )
