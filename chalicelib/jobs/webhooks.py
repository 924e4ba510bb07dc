"""Delivers events to webhooks: at least once, signed, and so that no receiver holds up others.

An attempt may take ``SECONDS``. A process makes a few at once for one webhook, and a few more in
all. Once a webhook has failed a few times in a row it is left alone for a while between attempts,
and after a day of nothing but failures it is disabled, which its owners are told.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache

from chalicelib import tracing
from chalicelib.context import Context
from chalicelib.identity import letters, signatures
from chalicelib.identity.keys import SealError
from chalicelib.identity.sealing import seal_anew
from chalicelib.jobs import DAY, HOUR, MINUTE, Job, Later, NotNow, TryAgain, bodies
from chalicelib.metadata import audit, jobs, webhooks
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.webhooks import Attempt, Due
from chalicelib.outbound import Outbound, OutboundError

SEALED_FOR = "webhooks"
"""The purpose that webhooks' secrets are sealed for; their owner is the webhook's id."""
NOTIFY = "webhook.notify"
"""The kind of job that tells the owners of a webhook that it was disabled."""
TRIES, FIRST, MOST = 19, 5, 3 * HOUR
"""A delivery is tried over about a day: after 5 seconds, and then twice as long each time."""
SECONDS = 10.0
"""An attempt may take so long."""
KEPT = 4096
"""Bytes of a request and of an answer that the history keeps."""
AT_ONCE, AT_ONCE_IN_ALL = 2, 5
"""Attempts that a process has under way, of one webhook and of all."""
_PATIENT, _LASTING = 24, DAY
"""A webhook is disabled after more failures in a row than this, over more seconds than this."""
_REST, _LONGEST_REST = 5.0, 5 * MINUTE
_GONE = 410
_TOO_OLD = 3 * DAY
_HISTORY = 14 * DAY
_BATCH = 1000

_lock = threading.Lock()
_under_way: Counter[str] = Counter()


def deliver(context: Context, job: Job) -> Later | None:
    """Deliver an event to a webhook."""
    due = webhooks.due(context.database, job.data["delivery"])
    if due is None or due.state != "waiting":
        return None
    if not job.data.get("asked"):
        if not due.enabled or due.age > _TOO_OLD:
            return _ended(due, "failed")
        _wait(context, due)
    with _room(due.webhook):
        attempt = _attempted(context, due)
    if attempt.error:
        return _failed(context, job, due, attempt)

    def delivered(transaction: Transaction) -> None:
        webhooks.note(transaction, due.id, attempt)
        webhooks.end(transaction, due.id, "delivered")
        webhooks.succeed(transaction, due.webhook)

    return delivered


def _wait(context: Context, due: Due) -> None:
    """Leave a webhook alone that fails all the time, but for an attempt now and then."""
    if due.rest > 0:
        raise NotNow(due.rest + random.uniform(0, 2))  # noqa: S311
    if due.failures > 2 and not webhooks.probe(context.database, due.webhook, SECONDS + 1):
        raise NotNow(random.uniform(1, SECONDS))  # noqa: S311


def _failed(context: Context, job: Job, due: Due, attempt: Attempt) -> Later:
    """Count a failure. Raises ``TryAgain`` where the event is to be sent again."""
    gone = attempt.status == _GONE

    def count(transaction: Transaction) -> None:
        webhooks.note(transaction, due.id, attempt)
        seconds = webhooks.fail(transaction, due.webhook, _PATIENT, _REST, _LONGEST_REST)
        if gone or seconds > _LASTING:
            _disable(transaction, due.webhook, attempt.error)

    context.database.transaction(count)
    if gone or job.tries >= TRIES or due.event["kind"] == webhooks.PING:
        return _ended(due, "failed")
    raise TryAgain(attempt.error)


def notify(context: Context, job: Job) -> None:
    """Tell the owners of a webhook that it was disabled."""
    where = letters.base_url(context.settings)
    for email, name in webhooks.owners(context.database, job.data["webhook"]):
        context.mailer.send(
            letters.webhook_disabled(email, name, where, job.data["url"], job.data["reason"])
        )


def expire(context: Context, _job: Job) -> None:
    """Forget old deliveries and secrets, and seal with the key in force what a former one did."""
    database = context.database
    while webhooks.expire(database, _HISTORY, _BATCH) == _BATCH:
        pass
    webhooks.forget_former(database)
    for column in webhooks.SECRETS:
        seal_anew(database, context.keys, SEALED_FOR, column)


def outbound(context: Context) -> Outbound:
    """What webhooks are sent by: to public addresses, and to those that the settings name."""
    return _outbound(context.settings.private_webhooks)


@lru_cache(maxsize=4)
def _outbound(private: tuple[str, ...]) -> Outbound:
    return Outbound(private)


def _attempted(context: Context, due: Due) -> Attempt:
    """One request, and what came of it."""
    source = letters.base_url(context.settings)
    media_type, body = bodies.rendered(due, source)
    begun, at = time.monotonic(), datetime.now(UTC)
    status, answer, error, fields = None, "", "", {"Content-Type": media_type}
    try:
        fields.update(signatures.headers(_secrets(context, due), due.id, body))
        if trace := tracing.traceparent():
            fields["Traceparent"] = trace
        reply = outbound(context).send(
            due.url, body, {**fields, "Accept": "*/*"}, seconds=SECONDS, kept=KEPT
        )
        status, answer = reply.status, reply.body.decode(errors="replace").replace("\0", "\ufffd")
        if not 200 <= status < 300:
            error = f"The receiver answered with {status}{' (gone)' if status == _GONE else ''}."
    except OutboundError as refused:
        error = refused.sentence
    except SealError as lost:
        error = f"{lost} Rotate the webhook's secret."
    head = "".join(f"{name}: {value}\n" for name, value in fields.items())
    request = f"POST {due.url}\n{head}\n{body[:KEPT].decode(errors='ignore')}"
    return Attempt(at, time.monotonic() - begun, request, status, answer, error)


def _secrets(context: Context, due: Due) -> list[bytes]:
    """What signs, the secret in force first. Raises ``SealError`` where that one is lost."""
    in_force, *former = due.secrets
    secrets = [context.keys.unseal(SEALED_FOR, due.webhook, in_force)]
    # One that is lost was rotated for that reason.
    with suppress(SealError):
        secrets += [context.keys.unseal(SEALED_FOR, due.webhook, each) for each in former]
    return secrets


def _ended(due: Due, state: str) -> Later:
    return lambda transaction: webhooks.end(transaction, due.id, state)


def _disable(transaction: Transaction, webhook: str, error: str) -> None:
    """Tell a webhook of events no longer: noted, and told to its owners."""
    place, url = webhooks.disable(transaction, webhook, error) or (None, "")
    if place is None:
        return
    audit.add(
        transaction, "webhook.disable", "system",
        account=webhooks.account_of(transaction, place), repository=place.repository,
        webhook=webhook,
    )  # fmt: skip
    jobs.add(transaction, NOTIFY, {"webhook": webhook, "url": url, "reason": error})


@contextmanager
def _room(webhook: str) -> Iterator[None]:
    """Make an attempt where not too many are under way. Raises ``NotNow``."""
    with _lock:
        if _under_way[webhook] >= AT_ONCE or _under_way.total() >= AT_ONCE_IN_ALL:
            raise NotNow(random.uniform(0.5, 2))  # noqa: S311
        _under_way[webhook] += 1
    try:
        yield
    finally:
        with _lock:
            _under_way[webhook] -= 1
            if not _under_way[webhook]:
                del _under_way[webhook]
