"""Webhooks: whom events are told, the deliveries under way, and what became of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.grants import Place
from chalicelib.metadata.sealed import Column

DELIVER = "webhook.deliver"
"""The kind of job that delivers one event to one webhook."""
PING = "ping"
"""The kind of event that only tests a webhook."""
SECRETS = Column("webhooks", "secret"), Column("webhooks", "former_secret")
"""Where the secrets are, sealed."""


class Webhook(NamedTuple):
    """A webhook. ``rotating_until``: until then its former secret signs too. ``failing_since``:
    since then every attempt has failed. ``disabled_reason`` is why the registry disabled it; ""
    where a person did."""

    id: str
    url: str
    events: list[str]
    format: str
    enabled: bool
    disabled_reason: str
    disabled_at: Any
    failing_since: Any
    rotating_until: Any
    created_at: Any


class Delivery(NamedTuple):
    """An event for a webhook; ``state`` is ``waiting``, ``delivered`` or ``failed``."""

    number: int
    id: str
    state: str
    event: dict[str, Any]
    created_at: Any
    attempts: int


class Attempt(NamedTuple):
    """What was sent and what came of it. ``status`` is None where no answer came; ``error`` is a
    sentence, "" where the event was taken."""

    at: Any
    seconds: float
    request: str
    status: int | None
    answer: str
    error: str


class Due(NamedTuple):
    """A delivery, with what is needed to make it. ``actor`` is what who caused the event is called
    now. ``enabled``: it is, and its account is not suspended. ``age`` and ``rest`` are in seconds:
    how long it has waited, and how long its webhook is to be left alone yet. ``secrets`` are
    sealed, the one in force first."""

    id: str
    webhook: str
    state: str
    event: dict[str, Any]
    created_at: Any
    age: float
    actor: str | None
    url: str
    format: str
    enabled: bool
    failures: int
    rest: float
    secrets: list[bytes]


_COLUMNS = (
    "CAST(w.id AS text), w.url, w.events, w.format, w.enabled, w.disabled_reason, w.disabled_at,"
    " w.failing_since, CASE WHEN w.former_until > now() THEN w.former_until END, w.created_at"
)
_OF = "(w.repository_id = CAST(:repository AS bigint) OR w.account_id = CAST(:namespace AS bigint))"
_ID = "w.id = CAST(:id AS uuid)"


def record(
    runner: Runner,
    repository: str,
    subject: str,
    kinds: Sequence[str],
    details: Sequence[Mapping[str, Any]],
) -> bool:
    """Have events of a repository delivered to each webhook that wants their kind, of the
    repository itself or of the account in whose namespace it lies; to none while that account is
    suspended. One statement, whatever their number; False where nobody wants any."""
    return bool(
        runner.run(
            "WITH wanted AS (SELECT w.id, e.kind, e.detail, e.number FROM webhooks w JOIN"
            " unnest(CAST(:kinds AS text[]), CAST(:details AS text[]))"
            " WITH ORDINALITY AS e (kind, detail, number) ON e.kind = ANY(w.events)"
            " WHERE w.enabled AND"
            " (w.repository_id = (SELECT id FROM repositories WHERE name = :repository)"
            " OR w.account_id ="
            " (SELECT id FROM accounts WHERE name = split_part(:repository, '/', 1)))"
            " AND NOT EXISTS (SELECT FROM accounts WHERE name = split_part(:repository, '/', 1)"
            " AND suspended_at IS NOT NULL)"
            "), kept AS (INSERT INTO webhook_deliveries (id, webhook_id, event)"
            " SELECT gen_random_uuid(), id, jsonb_build_object('kind', kind, 'repository',"
            " CAST(:repository AS text), 'subject', CAST(:subject AS text),"
            " 'detail', CAST(detail AS jsonb)) FROM wanted ORDER BY number RETURNING id)"
            " INSERT INTO jobs (kind, data)"
            f" SELECT '{DELIVER}', jsonb_build_object('delivery', id) FROM kept RETURNING 1",
            kinds=list(kinds),
            details=[json.dumps(detail) for detail in details],
            repository=repository,
            subject=subject,
        )
    )


def ping(runner: Runner, webhook_id: str, place: Place, subject: str) -> str:
    """Have an event delivered to a webhook that only tests it, be it disabled or not; gives the
    delivery's id."""
    rows = runner.run(
        "WITH kept AS (INSERT INTO webhook_deliveries (id, webhook_id, event)"
        " VALUES (gen_random_uuid(), CAST(:id AS uuid), jsonb_build_object("
        f"'kind', '{PING}', 'repository', coalesce((SELECT name FROM repositories"
        " WHERE id = CAST(:repository AS bigint)), ''), 'subject', CAST(:subject AS text),"
        " 'detail', CAST('{}' AS jsonb))) RETURNING id)"
        f" INSERT INTO jobs (kind, data) SELECT '{DELIVER}',"
        " jsonb_build_object('delivery', id, 'asked', true) FROM kept"
        " RETURNING data ->> 'delivery'",
        id=webhook_id,
        repository=place.repository,
        subject=subject,
    )
    return str(rows[0][0])


def redeliver(runner: Runner, webhook_id: str, delivery_id: str) -> bool:
    """Have an event delivered once more, under the id that it had; False where it is on its way
    still, or there is none. One whose job was given up or dropped is not on its way."""
    return bool(
        runner.run(
            "WITH again AS (UPDATE webhook_deliveries SET state = 'waiting', begun_at = now()"
            " WHERE CAST(id AS text) = :id AND webhook_id = CAST(:webhook AS uuid)"
            f" AND (state <> 'waiting' OR NOT EXISTS (SELECT FROM jobs j WHERE j.kind = '{DELIVER}'"
            " AND j.data ->> 'delivery' = :id AND j.dead_at IS NULL)) RETURNING id)"
            f" INSERT INTO jobs (kind, data) SELECT '{DELIVER}',"
            " jsonb_build_object('delivery', id, 'asked', true) FROM again RETURNING 1",
            id=delivery_id,
            webhook=webhook_id,
        )
    )


def add(
    runner: Runner,
    webhook_id: str,
    place: Place,
    url: str,
    events: list[str],
    body_format: str,
    secret: bytes,
    created_by: str,
) -> Webhook:
    """Keep a webhook whose secret is sealed."""
    rows = runner.run(
        "INSERT INTO webhooks AS w"
        " (id, account_id, repository_id, url, events, format, secret, created_by)"
        " VALUES (CAST(:id AS uuid), :namespace, :repository, :url, CAST(:events AS text[]),"
        f" :format, :secret, :by) RETURNING {_COLUMNS}",
        id=webhook_id,
        namespace=place.namespace,
        repository=place.repository,
        url=url,
        events=events,
        format=body_format,
        secret=secret,
        by=created_by,
    )
    return Webhook(*rows[0])


def count(runner: Runner, place: Place) -> int:
    """How many webhooks an account or a repository has."""
    rows = runner.run(f"SELECT count(*) FROM webhooks w WHERE {_OF}", **place._asdict())
    return int(rows[0][0])


def listed(runner: Runner, place: Place, after: str, limit: int) -> list[Webhook]:
    """At most ``limit`` webhooks of an account or a repository, in the order of their ids, after
    ``after``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM webhooks w WHERE {_OF}"
        ' AND CAST(w.id AS text) COLLATE "C" > :after ORDER BY w.id LIMIT :limit',
        after=after,
        limit=limit,
        **place._asdict(),
    )
    return [Webhook(*row) for row in rows]


def find(runner: Runner, place: Place, webhook_id: str) -> Webhook | None:
    """The webhook of that id, where it is this account's or repository's."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM webhooks w WHERE {_OF} AND CAST(w.id AS text) = :id",
        id=webhook_id,
        **place._asdict(),
    )
    return Webhook(*rows[0]) if rows else None


def place_of(runner: Runner, webhook_id: str) -> Place | None:
    """Whose webhook it is."""
    rows = runner.run(
        "SELECT repository_id, account_id FROM webhooks w WHERE CAST(w.id AS text) = :id",
        id=webhook_id,
    )
    return Place(*rows[0]) if rows else None


def change(
    runner: Runner,
    webhook_id: str,
    *,
    url: str | None,
    events: list[str] | None,
    body_format: str | None,
) -> None:
    """Change what is given."""
    runner.run(
        "UPDATE webhooks w SET url = coalesce(:url, url),"
        " events = coalesce(CAST(:events AS text[]), events), format = coalesce(:format, format)"
        f" WHERE {_ID}",
        id=webhook_id,
        url=url,
        events=events,
        format=body_format,
    )


def enable(runner: Runner, webhook_id: str) -> bool:
    """Tell a webhook of events again; False where it is told already. What failed before does not
    count any more."""
    return bool(
        runner.run(
            "UPDATE webhooks w SET enabled = true, disabled_at = NULL, disabled_reason = '',"
            " failing_since = NULL, failures = 0, rests_until = NULL"
            f" WHERE {_ID} AND NOT enabled RETURNING 1",
            id=webhook_id,
        )
    )


def disable(runner: Runner, webhook_id: str, reason: str) -> tuple[Place, str] | None:
    """Tell a webhook of events no longer; gives whose it is and its URL, None where it is not told
    already."""
    rows = runner.run(
        "UPDATE webhooks w SET enabled = false, disabled_at = now(), disabled_reason = :reason"
        f" WHERE {_ID} AND enabled RETURNING repository_id, account_id, url",
        id=webhook_id,
        reason=reason,
    )
    return (Place(*rows[0][:2]), rows[0][2]) if rows else None


def rotate(runner: Runner, webhook_id: str, secret: bytes, seconds: int) -> None:
    """Sign with another secret, sealed; the one so far signs too for so many seconds."""
    runner.run(
        "UPDATE webhooks w SET former_secret = secret, secret = :secret,"
        f" former_until = now() + CAST(:seconds AS integer) * interval '1 second' WHERE {_ID}",
        id=webhook_id,
        secret=secret,
        seconds=seconds,
    )


def remove(runner: Runner, webhook_id: str) -> bool:
    """Forget a webhook and its deliveries; False where it is not there any more."""
    return bool(runner.run(f"DELETE FROM webhooks w WHERE {_ID} RETURNING 1", id=webhook_id))


def deliveries(runner: Runner, webhook_id: str, before: int | None, limit: int) -> list[Delivery]:
    """At most ``limit`` deliveries of a webhook, the newest first, older than number ``before``."""
    rows = runner.run(
        "SELECT d.number, CAST(d.id AS text), d.state, d.event, d.created_at,"
        " (SELECT count(*) FROM webhook_attempts a WHERE a.delivery_id = d.id)"
        " FROM webhook_deliveries d WHERE d.webhook_id = CAST(:webhook AS uuid)"
        " AND (CAST(:before AS bigint) IS NULL OR d.number < :before)"
        " ORDER BY d.number DESC LIMIT :limit",
        webhook=webhook_id,
        before=before,
        limit=limit,
    )
    return [Delivery(*row) for row in rows]


def delivery(runner: Runner, webhook_id: str, delivery_id: str) -> Delivery | None:
    """One delivery of a webhook."""
    rows = runner.run(
        "SELECT d.number, CAST(d.id AS text), d.state, d.event, d.created_at,"
        " (SELECT count(*) FROM webhook_attempts a WHERE a.delivery_id = d.id)"
        " FROM webhook_deliveries d WHERE d.webhook_id = CAST(:webhook AS uuid)"
        " AND CAST(d.id AS text) = :id",
        webhook=webhook_id,
        id=delivery_id,
    )
    return Delivery(*rows[0]) if rows else None


def attempts(runner: Runner, delivery_id: str) -> list[Attempt]:
    """Every attempt at a delivery, the oldest first."""
    rows = runner.run(
        "SELECT at, seconds, request, status, answer, error FROM webhook_attempts"
        " WHERE delivery_id = CAST(:id AS uuid) ORDER BY id",
        id=delivery_id,
    )
    return [Attempt(*row) for row in rows]


def due(runner: Runner, delivery_id: str) -> Due | None:
    """A delivery that is to be made; None where it, or its webhook, is not there any more."""
    rows = runner.run(
        "SELECT CAST(d.id AS text), CAST(w.id AS text), d.state, d.event, d.created_at,"
        " CAST(extract(epoch FROM now() - d.begun_at) AS double precision), s.name,"
        " w.url, w.format, w.enabled AND coalesce("
        "(SELECT a.suspended_at FROM accounts a WHERE a.id = w.account_id),"
        " (SELECT a.suspended_at FROM repositories r JOIN accounts a"
        " ON a.name = split_part(r.name, '/', 1) WHERE r.id = w.repository_id)) IS NULL,"
        " w.failures,"
        " CAST(coalesce(extract(epoch FROM w.rests_until - now()), 0) AS double precision),"
        " w.secret, CASE WHEN w.former_until > now() THEN w.former_secret END"
        " FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id LEFT JOIN accounts s ON"
        " s.id = CAST(substring(d.event ->> 'subject' FROM '^account:([0-9]+)') AS bigint)"
        " WHERE d.id = CAST(:id AS uuid)",
        id=delivery_id,
    )
    if not rows:
        return None
    *columns, secret, former = rows[0]
    return Due._make([*columns, [bytes(each) for each in (secret, former) if each is not None]])


def probe(runner: Runner, webhook_id: str, seconds: float) -> bool:
    """Leave a webhook alone for so many seconds, but for who is told True."""
    return bool(
        runner.run(
            "UPDATE webhooks w SET rests_until = now()"
            " + CAST(:seconds AS double precision) * interval '1 second'"
            f" WHERE {_ID} AND (rests_until IS NULL OR rests_until <= now()) RETURNING 1",
            id=webhook_id,
            seconds=seconds,
        )
    )


def note(runner: Runner, delivery_id: str, attempt: Attempt) -> None:
    """Add an attempt to the history of a delivery that is still there."""
    runner.run(
        "INSERT INTO webhook_attempts (delivery_id, at, seconds, request, status, answer, error)"
        " SELECT id, CAST(:at AS timestamptz), CAST(:seconds AS double precision), :request,"
        " CAST(:status AS integer), :answer, :error FROM webhook_deliveries"
        " WHERE id = CAST(:id AS uuid)",
        id=delivery_id,
        **attempt._asdict(),
    )


def succeed(runner: Runner, webhook_id: str) -> None:
    """Forget what failed before."""
    runner.run(
        "UPDATE webhooks w SET failing_since = NULL, failures = 0, rests_until = NULL"
        f" WHERE {_ID} AND failures > 0",
        id=webhook_id,
    )


def fail(runner: Runner, webhook_id: str, patient: int, first: float, most: float) -> float:
    """Count a failure; gives for how many seconds there have been nothing but failures, or 0 while
    they are ``patient`` or fewer. From the third on the webhook is left alone for a while: for
    ``first`` seconds, twice as long each time, and ``most`` at most."""
    rows = runner.run(
        "UPDATE webhooks w SET failures = failures + 1,"
        " failing_since = coalesce(failing_since, now()),"
        " rests_until = CASE WHEN failures >= 2 THEN now() + least(CAST(:most AS double precision),"
        " CAST(:first AS double precision) * power(2, least(failures - 2, 30)))"
        " * interval '1 second' END"
        f" WHERE {_ID} RETURNING CASE WHEN failures > :patient THEN"
        " CAST(extract(epoch FROM now() - failing_since) AS double precision) ELSE 0 END",
        id=webhook_id,
        patient=patient,
        first=first,
        most=most,
    )
    return float(rows[0][0]) if rows else 0.0


def end(runner: Runner, delivery_id: str, state: str) -> None:
    """A delivery was made, or never will be."""
    runner.run(
        "UPDATE webhook_deliveries SET state = :state WHERE id = CAST(:id AS uuid)",
        id=delivery_id,
        state=state,
    )


def owners(runner: Runner, webhook_id: str) -> list[tuple[str, str]]:
    """Email and name of those who look after a webhook: the user, or the organisation's owners."""
    rows = runner.run(
        "SELECT u.email, u.name FROM webhooks w LEFT JOIN repositories r ON r.id = w.repository_id"
        " JOIN accounts n ON n.id = w.account_id OR n.name = split_part(r.name, '/', 1)"
        " JOIN accounts u ON u.id = n.id OR u.id IN (SELECT user_id FROM members"
        " WHERE organisation_id = n.id AND role = 'owner')"
        f" WHERE {_ID} AND u.kind = 'user' AND u.email_verified AND u.email IS NOT NULL"
        " ORDER BY u.id",
        id=webhook_id,
    )
    return [(email, name) for email, name in rows]


def expire(runner: Runner, seconds: int, most: int) -> int:
    """Forget deliveries that were begun longer ago, at most so many; gives how many."""
    rows = runner.run(
        "WITH gone AS (DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM"
        " webhook_deliveries WHERE begun_at < now() - CAST(:seconds AS integer)"
        " * interval '1 second' ORDER BY begun_at LIMIT :most)"
        " RETURNING 1) SELECT count(*) FROM gone",
        seconds=seconds,
        most=most,
    )
    return int(rows[0][0])


def forget_former(runner: Runner) -> None:
    """Forget secrets that sign no longer."""
    runner.run(
        "UPDATE webhooks SET former_secret = NULL, former_until = NULL WHERE former_until <= now()"
    )


def account_of(runner: Runner, place: Place) -> int | None:
    """The account whose webhooks these are: itself, or that in whose namespace the repository
    lies."""
    if place.namespace is not None:
        return place.namespace
    rows = runner.run(
        "SELECT a.id FROM repositories r JOIN accounts a ON a.name = split_part(r.name, '/', 1)"
        " WHERE r.id = :repository",
        repository=place.repository,
    )
    return int(rows[0][0]) if rows else None
