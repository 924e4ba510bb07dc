"""Webhooks, which are told of what happens, and triggers, by which others start something here: of
an account, or of one repository."""

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Literal, cast

import msgspec

from chalicelib.api.operations import (
    Call,
    Needs,
    Operation,
    Page,
    PagingByNumber,
    PagingByUuid,
    page,
)
from chalicelib.api.problems import Problem
from chalicelib.api.robots import owner_of_namespace
from chalicelib.http import NameUnknown
from chalicelib.jobs import triggers
from chalicelib.metadata import repositories
from chalicelib.metadata import triggers as trigger_rows
from chalicelib.metadata import webhooks as rows
from chalicelib.metadata.grants import Place
from chalicelib.registry import webhooks

Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Kind = Literal["push", "pull", "delete", "tag", "scan", "quota", "retention"]
Kinds = Annotated[list[Kind], msgspec.Meta(min_length=1, max_length=20)]
Format = Literal["cloudevents", "docker"]
State = Literal["waiting", "delivered", "failed"]


class NewWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """Where to tell of what. ``format`` is that of the bodies: CloudEvents, or the envelope of
    Docker's notifications."""

    url: Url
    events: Kinds
    format: Format = "cloudevents"


class WebhookChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another; what is left out stays."""

    url: Url | None = None
    events: Kinds | None = None
    format: Format | None = None
    enabled: bool | None = None


class Webhook(msgspec.Struct):
    """A webhook. ``disabled_reason`` is why the registry disabled it, "" where a person did;
    ``failing_since``: since then every attempt has failed; ``rotating_until``: until then its
    former secret signs too."""

    id: str
    url: str
    events: list[str]
    format: Format
    enabled: bool
    disabled_reason: str
    disabled_at: datetime | None
    failing_since: datetime | None
    rotating_until: datetime | None
    created_at: datetime


class CreatedWebhook(Webhook):
    """A new webhook, and its secret (Standard Webhooks), which is shown this once."""

    secret: str


class WebhookSecret(msgspec.Struct):
    """Another secret, which is shown this once; the one before signs too for a day."""

    secret: str


class Delivery(msgspec.Struct):
    """An event for a webhook. ``id`` is that of the event; ``attempts`` is how many there were."""

    id: str
    state: State
    event: str
    repository: str
    created_at: datetime
    attempts: int


class Attempt(msgspec.Struct):
    """What was sent, and what came of it within ``seconds``: both cut short. ``status`` is None
    where no answer came; ``error`` is why the event was not taken, "" where it was."""

    at: datetime
    seconds: float
    request: str
    status: int | None
    answer: str
    error: str


class DeliveryDetail(Delivery):
    """A delivery, with what was told and every attempt, the oldest first."""

    detail: dict[str, Any]
    history: list[Attempt]


class Sent(msgspec.Struct):
    """The id of a delivery that is made now."""

    delivery: str


class NewTrigger(msgspec.Struct, forbid_unknown_fields=True):
    """What a message is to start."""

    starts: Literal["retention"]


class Trigger(msgspec.Struct):
    """A trigger: a message that is signed with its secret (Standard Webhooks) and sent to ``url``
    by POST starts something."""

    id: str
    url: str
    starts: str
    created_at: datetime
    used_at: datetime | None


class CreatedTrigger(Trigger):
    """A new trigger, and its secret, which is shown this once."""

    secret: str


def create_webhook(call: Call) -> CreatedWebhook:
    """Have events told to a URL."""
    body: NewWebhook = call.body
    made = webhooks.create(
        call.context, _place(call), body.url, body.events, body.format, by=call.subject.id
    )
    return CreatedWebhook(**_fields(made.webhook), secret=made.secret)


def list_webhooks(call: Call) -> Page[Webhook]:
    """Whom events are told."""
    limit = call.query.limit
    found = rows.listed(call.context.database, _place(call), call.query.after, limit + 1)
    return page([_shown(each) for each in found], limit, lambda each: each.id)


def show_webhook(call: Call) -> Webhook:
    """A webhook."""
    return _shown(_webhook(call))


def change_webhook(call: Call) -> Webhook:
    """Change a webhook, enable or disable it."""
    body: WebhookChanges = call.body
    changed = webhooks.change(
        call.context, _place(call), call.params["webhook"],
        url=body.url, wanted=body.events, body_format=body.format, enabled=body.enabled,
        by=call.subject.id,
    )  # fmt: skip
    if changed is None:
        raise _absent()
    return _shown(changed)


def delete_webhook(call: Call) -> None:
    """Tell of nothing any more, and forget the history."""
    if not webhooks.remove(call.context, _place(call), call.params["webhook"], by=call.subject.id):
        raise _absent()


def rotate_webhook_secret(call: Call) -> WebhookSecret:
    """Sign with another secret."""
    webhook = _webhook(call).id
    secret = webhooks.rotate(call.context, _place(call), webhook, by=call.subject.id)
    if secret is None:
        raise _absent()
    return WebhookSecret(secret)


def test_webhook(call: Call) -> Sent:
    """Send an event that only tests the webhook, even where it is disabled."""
    webhook = call.params["webhook"]
    delivery = webhooks.test(call.context, _place(call), webhook, by=call.subject.id)
    if delivery is None:
        raise _absent()
    return Sent(delivery)


def list_webhook_deliveries(call: Call) -> Page[Delivery]:
    """What a webhook was told, the newest first."""
    limit = call.query.limit
    before = int(call.query.after) if call.query.after else None
    found = rows.deliveries(call.context.database, _webhook(call).id, before, limit + 1)
    shown = page(found, limit, lambda each: each.number)
    return Page([_delivery(each) for each in shown.items], shown.next)


def show_webhook_delivery(call: Call) -> DeliveryDetail:
    """What a webhook was told, and what came of it."""
    database = call.context.database
    found = rows.delivery(database, _webhook(call).id, call.params["delivery"])
    if found is None:
        raise Problem(404, "There is no such delivery, or not any more.")
    history = [
        msgspec.convert(each._asdict(), Attempt) for each in rows.attempts(database, found.id)
    ]
    shown = msgspec.structs.asdict(_delivery(found))
    return DeliveryDetail(**shown, detail=found.event["detail"], history=history)


def redeliver_webhook_delivery(call: Call) -> Sent:
    """Send an event once more, under its id."""
    webhook, delivery = _webhook(call).id, call.params["delivery"]
    if not webhooks.redeliver(call.context, webhook, delivery):
        if rows.delivery(call.context.database, webhook, delivery) is None:
            raise Problem(404, "There is no such delivery, or not any more.")
        raise Problem(409, "This event is on its way already.")
    return Sent(delivery)


def create_trigger(call: Call) -> CreatedTrigger:
    """Let signed messages start something."""
    made = triggers.create(call.context, _place(call), call.body.starts, by=call.subject.id)
    return CreatedTrigger(**made.trigger._asdict(), url=made.url, secret=made.secret)


def list_triggers(call: Call) -> Page[Trigger]:
    """What messages can start."""
    limit, context = call.query.limit, call.context
    found = trigger_rows.listed(context.database, _place(call), call.query.after, limit + 1)
    shown = [Trigger(**each._asdict(), url=triggers.url(context, each.id)) for each in found]
    return page(shown, limit, lambda each: each.id)


def delete_trigger(call: Call) -> None:
    """Let messages start this no longer."""
    if not triggers.remove(call.context, _place(call), call.params["trigger"], by=call.subject.id):
        raise Problem(404, "There is no such trigger.")


def _place(call: Call) -> Place:
    """What the path is about."""
    name = call.params.get("repository")
    if name is None:
        return Place(namespace=owner_of_namespace(call))
    found = repositories.find(call.context.database, name)
    if found is None:
        raise NameUnknown("There is no such repository, or it is not yours to know of.")
    return Place(repository=found.id)


def _webhook(call: Call) -> rows.Webhook:
    found = rows.find(call.context.database, _place(call), call.params["webhook"])
    if found is None:
        raise _absent()
    return found


def _absent() -> Problem:
    return Problem(404, "There is no such webhook.")


def _fields(webhook: rows.Webhook) -> dict[str, Any]:
    return webhook._asdict()


def _shown(webhook: rows.Webhook) -> Webhook:
    return msgspec.convert(_fields(webhook), Webhook)


def _delivery(found: rows.Delivery) -> Delivery:
    return Delivery(
        id=found.id,
        state=cast("State", found.state),
        event=found.event["kind"],
        repository=found.event["repository"],
        created_at=found.created_at,
        attempts=found.attempts,
    )


def _operations(prefix: str, noun: str, needs: Needs) -> list[Operation]:
    """The same of an account and of a repository."""

    def row(method: str, path: str, function: Callable[[Call], Any], summary: str,
            **options: Any) -> Operation:  # fmt: skip
        @wraps(function)
        def named(call: Call) -> Any:
            return function(call)

        verb, _, rest = function.__name__.partition("_")
        named.__name__ = f"{verb}_{noun}_{rest}"
        return Operation(method, prefix + path, named, needs, f"{summary} ({noun})", **options)

    hooks, hook = "/webhooks", "/webhooks/{webhook}"
    deliveries, delivery = f"{hook}/deliveries", f"{hook}/deliveries/{{delivery}}"
    return [
        row("POST", hooks, create_webhook, "Have events told to a URL",
            body=NewWebhook, answer=CreatedWebhook, status=201, problems=(409,)),
        row("GET", hooks, list_webhooks, "Whom events are told",
            query=PagingByUuid, answer=Page[Webhook]),
        row("GET", hook, show_webhook, "A webhook", answer=Webhook),
        row("PATCH", hook, change_webhook, "Change a webhook", body=WebhookChanges,
            answer=Webhook),
        row("DELETE", hook, delete_webhook, "Remove a webhook"),
        row("POST", f"{hook}/secret", rotate_webhook_secret, "Give a webhook another secret",
            answer=WebhookSecret),
        row("POST", f"{hook}/test", test_webhook, "Send a webhook an event that tests it",
            answer=Sent, status=202),
        row("GET", deliveries, list_webhook_deliveries, "What a webhook was told",
            query=PagingByNumber, answer=Page[Delivery]),
        row("GET", delivery, show_webhook_delivery, "What was sent, and what came back",
            answer=DeliveryDetail),
        row("POST", f"{delivery}/redeliver", redeliver_webhook_delivery,
            "Send an event once more", answer=Sent, status=202, problems=(409,)),
        row("POST", "/triggers", create_trigger, "Let signed messages start something",
            body=NewTrigger, answer=CreatedTrigger, status=201, problems=(409,)),
        row("GET", "/triggers", list_triggers, "What messages can start",
            query=PagingByUuid, answer=Page[Trigger]),
        row("DELETE", "/triggers/{trigger}", delete_trigger, "Remove a trigger"),
    ]  # fmt: skip


OPERATIONS = (
    *_operations("/accounts/{account}", "account", Needs.ACCOUNT_ADMIN),
    *_operations("/repositories/{repository}/-", "repository", Needs.REPOSITORY_ADMIN),
)
