"""Triggers: what a signed message from elsewhere starts, and the messages that have started
something."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.grants import Place
from chalicelib.metadata.sealed import Column

SECRETS = Column("triggers", "secret")
"""Where the secrets are, sealed."""


class Trigger(NamedTuple):
    """A trigger; ``starts`` names what it starts."""

    id: str
    starts: str
    created_at: Any
    used_at: Any


class Held(NamedTuple):
    """A trigger as whoever serves its URL needs it; its secret is sealed."""

    starts: str
    place: Place
    secret: bytes


_COLUMNS = "CAST(t.id AS text), t.starts, t.created_at, t.used_at"
_OF = "(t.repository_id = CAST(:repository AS bigint) OR t.account_id = CAST(:namespace AS bigint))"


def add(
    runner: Runner, trigger_id: str, place: Place, starts: str, secret: bytes, created_by: str
) -> Trigger:
    """Keep a trigger whose secret is sealed."""
    rows = runner.run(
        "INSERT INTO triggers AS t (id, account_id, repository_id, starts, secret, created_by)"
        " VALUES (CAST(:id AS uuid), :namespace, :repository, :starts, :secret, :by)"
        f" RETURNING {_COLUMNS}",
        id=trigger_id,
        namespace=place.namespace,
        repository=place.repository,
        starts=starts,
        secret=secret,
        by=created_by,
    )
    return Trigger(*rows[0])


def count(runner: Runner, place: Place) -> int:
    """How many triggers an account or a repository has."""
    rows = runner.run(f"SELECT count(*) FROM triggers t WHERE {_OF}", **place._asdict())
    return int(rows[0][0])


def listed(runner: Runner, place: Place, after: str, limit: int) -> list[Trigger]:
    """At most ``limit`` triggers of an account or a repository, in the order of their ids, after
    ``after``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM triggers t WHERE {_OF}"
        ' AND CAST(t.id AS text) COLLATE "C" > :after ORDER BY t.id LIMIT :limit',
        after=after,
        limit=limit,
        **place._asdict(),
    )
    return [Trigger(*row) for row in rows]


def remove(runner: Runner, place: Place, trigger_id: str) -> bool:
    """Forget a trigger; False where there is none."""
    return bool(
        runner.run(
            f"DELETE FROM triggers t WHERE {_OF} AND CAST(t.id AS text) = :id RETURNING 1",
            id=trigger_id,
            **place._asdict(),
        )
    )


def find(runner: Runner, trigger_id: str) -> Held | None:
    """The trigger of that id, unless it is of an account that is suspended."""
    rows = runner.run(
        "SELECT t.starts, t.repository_id, t.account_id, t.secret FROM triggers t"
        " LEFT JOIN repositories r ON r.id = t.repository_id"
        " LEFT JOIN accounts a ON a.id = t.account_id OR a.name = split_part(r.name, '/', 1)"
        " WHERE t.id = CAST(:id AS uuid) AND a.suspended_at IS NULL",
        id=trigger_id,
    )
    if not rows:
        return None
    starts, repository, namespace, secret = rows[0]
    return Held(starts, Place(repository, namespace), bytes(secret))


def use(runner: Runner, trigger_id: str, message: str, seconds: int) -> bool:
    """Note that a message starts something, for so many seconds; False where it has already. Of two
    at once one alone gets True."""
    return bool(
        runner.run(
            "WITH noted AS (INSERT INTO trigger_messages (trigger_id, message, expires_at)"
            " VALUES (CAST(:id AS uuid), :message,"
            " now() + CAST(:seconds AS integer) * interval '1 second')"
            " ON CONFLICT DO NOTHING RETURNING trigger_id)"
            " UPDATE triggers t SET used_at = now() FROM noted WHERE t.id = noted.trigger_id"
            " RETURNING 1",
            id=trigger_id,
            message=message,
            seconds=seconds,
        )
    )


def start_retention(runner: Runner, place: Place, kind: str) -> None:
    """Add a job of that kind for the repository, or for each of the namespace, that has none
    waiting."""
    runner.run(
        "INSERT INTO jobs (kind, subject, data)"
        " SELECT :kind, 'retention:' || r.id, jsonb_build_object('repository', r.id)"
        " FROM repositories r WHERE (r.id = CAST(:repository AS bigint)"
        " OR split_part(r.name, '/', 1) = (SELECT name FROM accounts"
        " WHERE id = CAST(:namespace AS bigint)))"
        " AND NOT EXISTS (SELECT FROM jobs j WHERE j.kind = :kind"
        " AND j.subject = 'retention:' || r.id AND j.subject <> '' AND j.dead_at IS NULL"
        " AND NOT j.taken)",
        kind=kind,
        **place._asdict(),
    )


def expire(runner: Runner) -> None:
    """Forget messages that are too old to be believed again."""
    runner.run("DELETE FROM trigger_messages WHERE expires_at < now()")
