"""Events: written with what causes them, and only where a webhook wants them."""

import uuid
from typing import Any

import pytest

from chalicelib.jobs import events
from chalicelib.metadata import repositories
from chalicelib.metadata.database import Database, Transaction

NEW = repositories.New("", False)


def add_webhook(
    database: Database,
    *events: str,
    account: int | None = None,
    repository: int | None = None,
    enabled: bool = True,
) -> str:
    webhook = str(uuid.uuid4())
    database.run(
        "INSERT INTO webhooks (id, account_id, repository_id, url, events, format, secret, enabled,"
        " disabled_at, created_by) VALUES (CAST(:id AS uuid), :account, :repository,"
        " 'https://x.example', CAST(:events AS text[]), 'cloudevents', '', :enabled,"
        " CASE WHEN :enabled THEN NULL ELSE now() END, '')",
        id=webhook, account=account, repository=repository, events=list(events), enabled=enabled,
    )  # fmt: skip
    return webhook


def deliveries(database: Database) -> list[tuple[str, dict[str, Any]]]:
    rows = database.run(
        "SELECT CAST(d.webhook_id AS text), d.event FROM webhook_deliveries d"
        " JOIN jobs j ON CAST(j.data ->> 'delivery' AS uuid) = d.id"
        " AND j.kind = 'webhook.deliver' ORDER BY d.number"
    )
    return [(webhook, event) for webhook, event in rows]


def add_account(database: Database, name: str) -> int:
    [[account]] = database.run(
        "INSERT INTO accounts (kind, name) VALUES ('organisation', :name) RETURNING id", name=name
    )
    return int(account)


def test_those_who_want_an_event_get_it(database: Database) -> None:
    acme, other = add_account(database, "acme"), add_account(database, "other")
    app = repositories.ensure(database, "acme/app", NEW)
    lib = repositories.ensure(database, "acme/lib", NEW)
    wanting = [
        add_webhook(database, "push", "tag", account=acme),
        add_webhook(database, "push", repository=app),
    ]
    add_webhook(database, "delete", repository=app)
    add_webhook(database, "push", repository=lib)
    add_webhook(database, "push", account=other)
    add_webhook(database, "push", repository=app, enabled=False)
    assert events.record(database, "push", "acme/app", "account:1", digest="sha256:00", size=3)
    event = {
        "kind": "push",
        "repository": "acme/app",
        "subject": "account:1",
        "detail": {"digest": "sha256:00", "size": 3},
    }
    assert sorted(deliveries(database), key=str) == sorted(((w, event) for w in wanting), key=str)


def test_several_events_are_one_statement(database: Database) -> None:
    app = repositories.ensure(database, "acme/app", NEW)
    add_webhook(database, "push", "tag", repository=app)
    assert events.record_all(
        database, "acme/app", "system", [("push", {}), ("tag", {"tag": "a"}), ("tag", {"tag": "b"})]
    )
    assert [event["detail"] for _, event in deliveries(database)] == [
        {},
        {"tag": "a"},
        {"tag": "b"},
    ]


def test_where_nobody_wants_it_nothing_is_written(database: Database) -> None:
    repositories.ensure(database, "acme/app", NEW)
    assert not events.record(database, "push", "acme/app", "system")
    assert not events.record(database, "push", "nowhere", "system")
    assert not events.record_all(database, "acme/app", "system", [])
    assert deliveries(database) == []


def test_an_event_whose_cause_is_undone_is_none(database: Database) -> None:
    app = repositories.ensure(database, "acme/app", NEW)
    add_webhook(database, "push", repository=app)

    def work(transaction: Transaction) -> None:
        assert events.record(transaction, "push", "acme/app", "system")
        raise KeyError

    with pytest.raises(KeyError):
        database.transaction(work)
    assert deliveries(database) == []


def test_there_are_no_others(database: Database) -> None:
    with pytest.raises(ValueError, match="psuh"):
        events.record(database, "psuh", "acme/app", "system")
