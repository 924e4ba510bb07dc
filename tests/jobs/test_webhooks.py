"""Deliveries: signed, at least once, by receivers good and bad, none of which holds up others."""

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity import signatures, users
from chalicelib.identity.keys import SealError
from chalicelib.jobs import events, kinds, webhooks
from chalicelib.jobs.worker import THREADS, Worker
from chalicelib.metadata import jobs, repositories
from chalicelib.metadata import webhooks as rows
from chalicelib.metadata.database import Database
from chalicelib.metadata.grants import Place
from chalicelib.settings import Settings
from tests.jobs import receiver
from tests.jobs.receiver import Received, Receiver
from tests.servers import OPENREGISTRY, Postgres

KINDS = [kind for kind in kinds.KINDS if kind.name.startswith("webhook.")]
NEW = repositories.New("", False)
CONFIG = b"{}"


@pytest.fixture
def server() -> Iterator[Receiver]:
    with closing(Receiver()) as started:
        yield started


@pytest.fixture(scope="module")
def registry(
    core_settings: Settings, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    """The functions over a database that these tests share."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.migrated_database())
        built = build_context(
            replace(
                core_settings,
                database_url=url,
                storage_url=tmp_path_factory.mktemp("blobs").as_uri(),
            )
        )
        stack.callback(built.database.close)
        yield built


@pytest.fixture
def context(registry: Context, server: Receiver) -> Context:
    """A registry without webhooks that may send to the receiver."""
    for table in ("webhooks", "jobs"):
        registry.database.run(f"DELETE FROM {table}")
    settings = replace(
        registry.settings,
        private_webhooks=(server.origin,),
        public_url="https://registry.example.org",
    )
    return replace(registry, settings=settings)


class Hook:
    """A webhook of the repository acme/app."""

    def __init__(
        self, context: Context, url: str, *wanted: str, body_format: str = "cloudevents"
    ) -> None:
        self.database = context.database
        self.place = Place(repository=repositories.ensure(self.database, "acme/app", NEW))
        self.id = str(uuid.uuid4())
        self.key = signatures.new_secret()
        sealed = context.keys.seal(webhooks.SEALED_FOR, self.id, self.key)
        rows.add(
            self.database,
            self.id,
            self.place,
            url,
            list(wanted or ["push"]),
            body_format,
            sealed,
            "",
        )

    @property
    def verifier(self) -> Verifier:
        return Verifier(signatures.shown(self.key))

    def push(self, **detail: Any) -> None:
        assert events.record(self.database, "push", "acme/app", "system", **detail)

    def row(self) -> rows.Webhook:
        found = rows.find(self.database, self.place, self.id)
        assert found is not None
        return found

    def deliveries(self) -> list[rows.Delivery]:
        return rows.deliveries(self.database, self.id, None, 100)

    def attempts(self) -> list[rows.Attempt]:
        [delivery] = self.deliveries()
        return rows.attempts(self.database, delivery.id)


def work(context: Context) -> int:
    return Worker(context, KINDS).drain()


def hurry(database: Database) -> None:
    """Let what was put off be due, and no webhook rest."""
    database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")
    database.run("UPDATE webhooks SET rests_until = NULL")


def verified(verifier: Verifier, request: Received) -> Any:
    return verifier.verify(request.body, request.headers)


def test_an_event_arrives_signed(context: Context, server: Receiver) -> None:
    hook = Hook(context, f"{server.origin}/hook?a=b")
    hook.push(digest="sha256:00", tags=["1"])
    assert work(context) == 1
    [request] = server.received
    assert request.path == "/hook?a=b"
    [delivery] = hook.deliveries()
    assert (delivery.state, request.headers["webhook-id"]) == ("delivered", delivery.id)
    assert verified(hook.verifier, request)["data"] == {
        "repository": "acme/app",
        "digest": "sha256:00",
        "tags": ["1"],
        "actor": {"id": "system", "name": None},
    }
    for other in (Verifier(signatures.shown(signatures.new_secret())),):
        with pytest.raises(WebhookVerificationError):
            verified(other, request)
    with pytest.raises(WebhookVerificationError):
        verified(hook.verifier, request._replace(body=request.body + b" "))
    [attempt] = hook.attempts()
    assert (attempt.status, attempt.error, attempt.answer) == (204, "", "")
    assert attempt.request.startswith(f"POST {server.origin}/hook?a=b\n")
    assert f"webhook-id: {delivery.id}\n" in attempt.request
    assert signatures.shown(hook.key) not in attempt.request
    assert attempt.request.endswith("\n\n" + request.body.decode())


def test_a_cloud_event_is_one(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    hook.push(digest="sha256:00")
    before = datetime.now(UTC)
    work(context)
    [request] = server.received
    event = from_structured_event(HTTPMessage(request.headers, request.body), JSONFormat())
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert event.get_type() == "org.openregistry.push"
    assert event.get_source() == "https://registry.example.org"
    assert event.get_id() == request.headers["webhook-id"]
    assert event.get_subject() == "acme/app"
    time_, data = event.get_time(), event.get_data()
    assert time_ is not None
    assert abs((time_ - before).total_seconds()) < 60
    assert isinstance(data, dict)
    assert data["digest"] == "sha256:00"


def test_dockers_envelope_has_an_event_for_each_tag(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin, "push", "delete", body_format="docker")
    pushed = {"digest": "sha256:00", "media_type": "a/b", "size": 7}
    hook.push(**pushed, tags=["1", "2"])
    work(context)
    [request] = server.received
    assert request.headers["content-type"] == "application/vnd.docker.distribution.events.v1+json"
    first, second = verified(hook.verifier, request)["events"]
    assert first["id"] != second["id"]
    assert [each["target"] for each in (first, second)] == [
        {
            "mediaType": "a/b",
            "digest": "sha256:00",
            "size": 7,
            "length": 7,
            "repository": "acme/app",
            "url": "https://registry.example.org/v2/acme/app/manifests/sha256:00",
            "tag": tag,
        }
        for tag in ("1", "2")
    ]
    assert (first["action"], first["request"]["method"]) == ("push", "PUT")
    assert first["source"]["addr"] == "registry.example.org"
    assert events.record(hook.database, "delete", "acme/app", "system", digest="sha256:00")
    work(context)
    [deleted] = json.loads(server.received[1].body)["events"]
    assert (deleted["action"], "tag" in deleted["target"]) == ("delete", False)


def test_it_is_told_who_it_was(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    [[account]] = hook.database.run(
        "INSERT INTO accounts (kind, name) VALUES ('user', 'alice') RETURNING id"
    )
    subject = f"account:{account}/token:x"
    assert events.record(hook.database, "push", "acme/app", subject)
    work(context)
    actor = json.loads(server.received[0].body)["data"]["actor"]
    assert actor == {"id": subject, "name": "alice"}


def test_what_was_refused_is_sent_again_under_the_same_id(
    context: Context, server: Receiver
) -> None:
    server.behave = receiver.first(receiver.status(500, b"not \0 now"), receiver.status(200, b"ok"))
    hook = Hook(context, server.origin)
    hook.push()
    assert work(context) == 0
    assert hook.row().failing_since is not None
    [entry] = jobs.page(hook.database, 0, 10)
    assert (entry.state, entry.error) == (
        "waiting",
        "The receiver answered with 500.",
    )
    assert work(context) == 0
    hurry(hook.database)
    assert work(context) == 1
    first, second = server.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert verified(hook.verifier, second)
    assert [(each.status, each.answer) for each in hook.attempts()] == [
        (500, "not \ufffd now"),
        (200, "ok"),
    ]
    assert hook.row().failing_since is None
    assert jobs.page(hook.database, 0, 10) == []


@pytest.mark.parametrize(
    ("behave", "sentence"),
    [
        (receiver.hang, "The server did not answer in time."),
        (receiver.drip, "The server did not answer in time."),
        (receiver.garbage, "The server broke off its answer."),
        (receiver.status(404), "The receiver answered with 404."),
        (
            lambda handler: handler.answer(307, Location=handler.server.origin),
            "The server answered with a redirect, and none is followed.",
        ),
    ],
    ids=["hang", "drip", "garbage", "refusal", "redirect"],
)
def test_a_bad_receiver_gets_it_again(
    behave: receiver.Behaviour,
    sentence: str,
    context: Context,
    server: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "SECONDS", 0.5)
    server.behave = behave
    hook = Hook(context, server.origin)
    hook.push()
    assert work(context) == 0
    [attempt] = hook.attempts()
    assert attempt.error == sentence
    assert attempt.seconds < 1.5
    assert len(server.received) == 1
    [delivery] = hook.deliveries()
    assert delivery.state == "waiting"


@pytest.mark.parametrize("behave", [receiver.false_length, receiver.swollen])
def test_what_follows_a_good_status_does_not_matter(
    behave: receiver.Behaviour,
    context: Context,
    server: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "SECONDS", 2)
    server.behave = behave
    hook = Hook(context, server.origin)
    hook.push()
    assert work(context) == 1
    [attempt] = hook.attempts()
    assert attempt.error == ""
    assert len(attempt.answer) in (5, webhooks.KEPT)


def test_a_private_address_is_not_sent_to(context: Context, server: Receiver) -> None:
    strict = replace(context, settings=replace(context.settings, private_webhooks=()))
    for url in (server.origin, f"https://127.0.0.1:{server.server_port}", "https://localhost"):
        hook = Hook(context, url)
        hook.push()
        assert work(strict) == 0
        [attempt] = hook.attempts()
        assert attempt.error in (
            "Only https:// URLs are asked.",
            "The server's name has no public address.",
        )
        assert rows.remove(hook.database, hook.id)
    assert server.received == []


def test_one_that_is_gone_is_disabled_at_once(context: Context, server: Receiver) -> None:
    server.behave = receiver.status(410)
    hook = Hook(context, server.origin)
    hook.push()
    hook.push()
    work(context)
    row = hook.row()
    assert (row.enabled, row.disabled_reason) == (False, "The receiver answered with 410 (gone).")
    assert {each.state for each in hook.deliveries()} == {"failed"}
    assert len(server.received) <= 2
    assert not events.record(hook.database, "push", "acme/app", "system")
    assert rows.enable(hook.database, hook.id)
    hook.push()


def test_lasting_failure_disables_it(context: Context, server: Receiver) -> None:
    server.behave = receiver.status(503)
    hook = Hook(context, server.origin)
    hook.push()
    for number in range(30):
        hurry(hook.database)
        work(context)
        if number == 10:
            # A day of failures is long, 11 are few.
            hook.database.run("UPDATE webhooks SET failing_since = now() - interval '25 hours'")
        if number == webhooks.TRIES - 1:
            assert [each.state for each in hook.deliveries()] == ["failed"]
            assert hook.row().enabled
            hook.push()
        if not hook.row().enabled:
            break
    assert len(server.received) == 25
    assert hook.row().disabled_reason == "The receiver answered with 503."
    hurry(hook.database)
    work(context)
    assert {each.state for each in hook.deliveries()} == {"failed"}
    assert len(server.received) == 25


def test_one_that_fails_is_left_alone_for_a_while(context: Context, server: Receiver) -> None:
    server.behave = receiver.status(503)
    hook = Hook(context, server.origin)
    for _ in range(20):
        hook.push()
    work(context)
    # Attempts that others began meanwhile are made.
    assert 3 <= len(server.received) <= 3 + THREADS
    before = len(server.received)
    hook.database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")
    work(context)
    assert len(server.received) == before
    # Waiting is no attempt.
    assert all(entry.tries <= 1 for entry in jobs.page(hook.database, 0, 100))
    hook.database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")
    hook.database.run("UPDATE webhooks SET rests_until = now()")
    work(context)
    assert len(server.received) == before + 1
    server.behave = receiver.status(200)
    end = time.monotonic() + 30
    while any(each.state == "waiting" for each in hook.deliveries()):
        assert time.monotonic() < end
        hurry(hook.database)
        work(context)
    assert len({each.headers["webhook-id"] for each in server.received}) == 20


def test_a_receiver_that_hangs_does_not_hold_up_others(context: Context, server: Receiver) -> None:
    with closing(Receiver()) as good:
        both = (server.origin, good.origin)
        context = replace(context, settings=replace(context.settings, private_webhooks=both))
        server.behave = receiver.hang
        bad = Hook(context, server.origin)
        for _ in range(30):
            bad.push()
        rows.disable(bad.database, bad.id, "")
        hook = Hook(context, good.origin)
        for _ in range(6):
            hook.push()
        rows.enable(bad.database, bad.id)
        stop = threading.Event()
        worker = threading.Thread(target=Worker(context, KINDS).run, args=[stop])
        begun = time.monotonic()
        worker.start()
        try:
            good.wait(6)
            assert time.monotonic() - begun < webhooks.SECONDS - 2
            server.wait(webhooks.AT_ONCE)
        finally:
            stop.set()
            server.released.set()
            worker.join()
        assert server.most_open == webhooks.AT_ONCE


def test_both_secrets_sign_while_one_replaces_the_other(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    former, hook.key = hook.verifier, signatures.new_secret()
    sealed = context.keys.seal(webhooks.SEALED_FOR, hook.id, hook.key)
    rows.rotate(hook.database, hook.id, sealed, 3600)
    assert hook.row().rotating_until is not None
    hook.push()
    work(context)
    for verifier in (former, hook.verifier):
        assert verified(verifier, server.received[0])
    hook.database.run("UPDATE webhooks SET former_until = now()")
    hook.push()
    work(context)
    assert verified(hook.verifier, server.received[1])
    with pytest.raises(WebhookVerificationError):
        verified(former, server.received[1])
    webhooks.expire(context, jobs.Job(0, "", "", {}, 0, 0))
    assert hook.database.run("SELECT former_secret FROM webhooks") == [[None]]


def test_a_secret_outlives_the_key_that_sealed_it(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    keys = type(context.keys)("another secret of the tests", "a secret for the tests alone")
    renewed = replace(context, keys=keys)
    hook.push()
    assert work(renewed) == 1
    webhooks.expire(renewed, jobs.Job(0, "", "", {}, 0, 0))
    alone = replace(context, keys=type(keys)("another secret of the tests"))
    hook.push()
    assert work(alone) == 1
    assert verified(hook.verifier, server.received[1])
    hook.push()
    assert work(context) == 0
    assert "SECRET_KEY" in rows.attempts(hook.database, hook.deliveries()[0].id)[0].error


def test_a_former_secret_that_is_lost_hinders_nothing(
    context: Context, server: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The secret key is gone, and the webhook's secret is rotated, as the error tells to."""
    hook = Hook(context, server.origin)
    lost = replace(context, keys=type(context.keys)("another secret of the tests"))
    hook.push()
    assert work(lost) == 0
    assert "Rotate" in hook.attempts()[0].error
    hook.database.run("DELETE FROM jobs")
    hook.key = signatures.new_secret()
    sealed = lost.keys.seal(webhooks.SEALED_FOR, hook.id, hook.key)
    rows.rotate(hook.database, hook.id, sealed, 3600)
    hook.push()
    assert work(lost) == 1
    assert verified(hook.verifier, server.received[0])
    keys = type(context.keys)("a third secret of the tests", "another secret of the tests")
    webhooks.expire(replace(context, keys=keys), jobs.Job(0, "", "", {}, 0, 0))
    assert hook.id in caplog.text
    hook.push()
    assert work(replace(context, keys=type(keys)("a third secret of the tests"))) == 1


def test_one_webhooks_secret_is_not_anothers(context: Context) -> None:
    hook = Hook(context, "https://x.example")
    sealed = context.keys.seal(webhooks.SEALED_FOR, hook.id, hook.key)
    for purpose, owner in (("other", hook.id), (webhooks.SEALED_FOR, "other")):
        with pytest.raises(SealError):
            context.keys.unseal(purpose, owner, sealed)


def test_those_of_a_suspended_account_are_told_nothing(context: Context, server: Receiver) -> None:
    database = context.database
    acme = users.create(
        database, "acme", "acme@example.org", None, by="operator", email_verified=True
    )
    by_repository, by_account = Hook(context, server.origin), Hook(context, server.origin)
    database.run(
        "UPDATE webhooks SET repository_id = NULL, account_id = :account"
        " WHERE id = CAST(:id AS uuid)",
        account=acme,
        id=by_account.id,
    )
    by_account.push(number=1)
    users.suspend(database, acme, suspended=True, by="operator")
    assert not events.record(database, "push", "acme/app", "system", number=2)
    work(context)
    for hook in (by_repository, by_account):
        assert [each.state for each in hook.deliveries()] == ["failed"]
    assert not server.received
    users.suspend(database, acme, suspended=False, by="operator")
    by_account.push(number=3)
    work(context)
    assert [json.loads(each.body)["data"]["number"] for each in server.received] == [3, 3]


def test_a_ping_is_sent_once_to_one_that_is_disabled(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    rows.disable(hook.database, hook.id, "")
    rows.ping(hook.database, hook.id, hook.place, "account:1")
    assert work(context) == 1
    event = verified(hook.verifier, server.received[0])
    assert (event["type"], event["subject"]) == ("org.openregistry.ping", "acme/app")
    server.behave = receiver.status(500)
    rows.ping(hook.database, hook.id, hook.place, "account:1")
    assert work(context) == 1
    assert [each.state for each in hook.deliveries()] == ["failed", "delivered"]


def test_it_can_be_delivered_again(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    hook.push()
    [delivery] = hook.deliveries()
    assert not rows.redeliver(hook.database, hook.id, delivery.id)
    work(context)
    assert rows.redeliver(hook.database, hook.id, delivery.id)
    assert not rows.redeliver(hook.database, hook.id, delivery.id)
    assert not rows.redeliver(hook.database, str(uuid.uuid4()), delivery.id)
    work(context)
    first, second = server.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert [each.state for each in hook.deliveries()] == ["delivered"]
    assert len(hook.attempts()) == 2


@pytest.mark.parametrize("end", ["DELETE FROM jobs", "UPDATE jobs SET dead_at = now()"])
def test_it_can_be_delivered_again_once_its_job_is_dropped_or_dead(
    context: Context, server: Receiver, end: str
) -> None:
    hook = Hook(context, server.origin)
    hook.push()
    hook.database.run(end)
    [delivery] = hook.deliveries()
    assert rows.redeliver(hook.database, hook.id, delivery.id)
    assert not rows.redeliver(hook.database, hook.id, delivery.id)
    work(context)
    assert [each.headers["webhook-id"] for each in server.received] == [delivery.id]
    assert [each.state for each in hook.deliveries()] == ["delivered"]


def test_one_that_waited_too_long_is_not_sent_any_more(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    hook.push()
    hook.database.run("UPDATE webhook_deliveries SET begun_at = now() - interval '73 hours'")
    assert work(context) == 1
    assert server.received == []
    [delivery] = hook.deliveries()
    assert delivery.state == "failed"
    assert rows.redeliver(hook.database, hook.id, delivery.id)
    work(context)
    assert len(server.received) == 1


def test_history_is_kept_for_a_while(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    for _ in range(3):
        hook.push()
    work(context)
    hook.push()
    hook.database.run(
        "UPDATE webhook_deliveries SET begun_at = now() - interval '15 days'"
        " WHERE number <> (SELECT min(number) FROM webhook_deliveries)"
    )
    webhooks.expire(context, jobs.Job(0, "", "", {}, 0, 0))
    assert [each.state for each in hook.deliveries()] == ["delivered"]


def test_deliveries_of_one_that_was_removed_are_dropped(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    hook.push()
    assert rows.remove(hook.database, hook.id)
    assert work(context) == 1
    assert server.received == []


def test_a_killed_workers_delivery_is_made_again(context: Context, server: Receiver) -> None:
    hook = Hook(context, server.origin)
    server.behave = receiver.hang
    hook.push()
    environment = {
        **{name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name},
        "OPENREGISTRY_ACCESS": "open",
        "OPENREGISTRY_DATABASE_URL": context.settings.database_url,
        "OPENREGISTRY_DATA_DIR": str(context.settings.data_dir),
        "OPENREGISTRY_SECRET_KEY": context.settings.secret_key,
        "OPENREGISTRY_PRIVATE_WEBHOOKS": server.origin,
    }
    with subprocess.Popen([OPENREGISTRY, "work"], env=environment) as process:
        try:
            server.wait(1)
        finally:
            process.kill()
    server.behave = receiver.status(200)
    assert work(context) == 0
    # As if its lease were over.
    hook.database.run("UPDATE jobs SET due_at = now()")
    assert work(context) == 1
    first, second = server.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert json.loads(first.body)["data"] == json.loads(second.body)["data"]
    assert [each.state for each in hook.deliveries()] == ["delivered"]
