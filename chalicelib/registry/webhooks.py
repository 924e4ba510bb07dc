"""Webhooks as those see them whose they are: made, changed, tested, and taken away.

A webhook is one repository's, or is for all repositories of an account. Its secret is shown once;
what Postgres has of it is sealed.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from chalicelib.context import Context
from chalicelib.identity import signatures
from chalicelib.identity.users import Refused
from chalicelib.jobs import DAY, events
from chalicelib.jobs.webhooks import SEALED_FOR, outbound
from chalicelib.metadata import audit, webhooks
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.webhooks import Webhook
from chalicelib.outbound import OutboundError

MOST = 20
"""Webhooks of one repository or one account."""
FORMATS = ("cloudevents", "docker")
ROTATION = DAY
"""Seconds for which a former secret signs too."""


class Created(NamedTuple):
    """A new webhook, and the only copy of its secret."""

    webhook: Webhook
    secret: str


def create(
    context: Context, place: Place, url: str, wanted: Sequence[str], body_format: str, *, by: str
) -> Created:
    """Have events told to a URL. Raises ``Refused``."""
    _check(context, url, wanted, body_format)
    webhook, secret = str(uuid.uuid4()), signatures.new_secret()
    sealed = context.keys.seal(SEALED_FOR, webhook, secret)

    def work(transaction: Transaction) -> Webhook:
        if webhooks.count(transaction, place) >= MOST:
            raise Refused(f"There are at most {MOST} webhooks.", conflict=True)
        kinds = list(dict.fromkeys(wanted))
        made = webhooks.add(transaction, webhook, place, url, kinds, body_format, sealed, by)
        _note(transaction, "create", place, webhook, by)
        return made

    return Created(context.database.transaction(work), signatures.shown(secret))


def change(
    context: Context,
    place: Place,
    webhook: str,
    *,
    url: str | None = None,
    wanted: Sequence[str] | None = None,
    body_format: str | None = None,
    enabled: bool | None = None,
    by: str,
) -> Webhook | None:
    """Change what is given; None where there is no such webhook. Raises ``Refused``."""
    _check(context, url, wanted, body_format)

    def work(transaction: Transaction) -> Webhook | None:
        if webhooks.find(transaction, place, webhook) is None:
            return None
        kinds = None if wanted is None else list(dict.fromkeys(wanted))
        webhooks.change(transaction, webhook, url=url, events=kinds, body_format=body_format)
        if enabled is True:
            webhooks.enable(transaction, webhook)
        elif enabled is False:
            webhooks.disable(transaction, webhook, "")
        _note(transaction, "change", place, webhook, by)
        return webhooks.find(transaction, place, webhook)

    return context.database.transaction(work)


def rotate(context: Context, place: Place, webhook: str, *, by: str) -> str | None:
    """Another secret for a webhook; for a day the former one signs too. None where there is no such
    webhook."""
    secret = signatures.new_secret()
    sealed = context.keys.seal(SEALED_FOR, webhook, secret)

    def work(transaction: Transaction) -> bool:
        if webhooks.find(transaction, place, webhook) is None:
            return False
        webhooks.rotate(transaction, webhook, sealed, ROTATION)
        _note(transaction, "rotate", place, webhook, by)
        return True

    return signatures.shown(secret) if context.database.transaction(work) else None


def remove(context: Context, place: Place, webhook: str, *, by: str) -> bool:
    """Take a webhook away, with its history; False where there is none."""

    def work(transaction: Transaction) -> bool:
        if webhooks.find(transaction, place, webhook) is None:
            return False
        webhooks.remove(transaction, webhook)
        _note(transaction, "delete", place, webhook, by)
        return True

    return context.database.transaction(work)


def test(context: Context, place: Place, webhook: str, *, by: str) -> str | None:
    """Have a webhook sent an event that only tests it, at once; gives the delivery's id, None where
    there is no such webhook."""

    def work(transaction: Transaction) -> str | None:
        if webhooks.find(transaction, place, webhook) is None:
            return None
        return webhooks.ping(transaction, webhook, place, by)

    delivery = context.database.transaction(work)
    context.wake()
    return delivery


def redeliver(context: Context, webhook: str, delivery: str) -> bool:
    """Have an event delivered once more, under the id that it had; False where it is on its way."""
    again = webhooks.redeliver(context.database, webhook, delivery)
    context.wake()
    return again


def _check(
    context: Context, url: str | None, wanted: Sequence[str] | None, body_format: str | None
) -> None:
    if url is not None:
        try:
            outbound(context).check(url)
        except OutboundError as error:
            raise Refused(error.sentence, "url") from None
    if wanted is not None and (not wanted or set(wanted) - set(events.KINDS)):
        raise Refused(f"Events are some of {', '.join(events.KINDS)}.", "events")
    if body_format is not None and body_format not in FORMATS:
        raise Refused(f"A format is one of {', '.join(FORMATS)}.", "format")


def _note(transaction: Transaction, what: str, place: Place, webhook: str, by: str) -> None:
    audit.add(
        transaction, f"webhook.{what}", by,
        account=webhooks.account_of(transaction, place), repository=place.repository,
        webhook=webhook,
    )  # fmt: skip
