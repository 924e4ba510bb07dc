"""Triggers: a signed message from elsewhere starts a job here.

Each trigger has a URL of its own, ``/hooks/{id}``, and a secret, by which its messages are signed
as ours are (Standard Webhooks). A message says nothing but that it is time: what starts, and where,
was said when the trigger was made. It works once, within five minutes.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from chalicelib.context import Context
from chalicelib.http import RegistryError, Request, Response, Unauthorized
from chalicelib.identity import letters, signatures
from chalicelib.identity.keys import SealError
from chalicelib.identity.sealing import seal_anew
from chalicelib.identity.signatures import SignatureError
from chalicelib.identity.users import Refused
from chalicelib.jobs import Job, retention
from chalicelib.metadata import audit, triggers
from chalicelib.metadata.database import Runner, Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.triggers import Trigger
from chalicelib.metadata.webhooks import account_of

SEALED_FOR = "triggers"
"""The purpose that triggers' secrets are sealed for; their owner is the trigger's id."""
MOST = 20
"""Triggers of one repository or one account."""
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MEMORY = 2 * signatures.TOLERANCE + 60
"""Seconds for which a message is remembered: longer than its time lets it be believed."""

Start = Callable[[Runner, Place], None]
STARTS: Mapping[str, Start] = {"retention": partial(triggers.start_retention, kind=retention.KIND)}
"""What a message may start: work that it cannot make do anything else."""


class Created(NamedTuple):
    """A new trigger, its URL, and the only copy of its secret."""

    trigger: Trigger
    url: str
    secret: str


def create(context: Context, place: Place, starts: str, *, by: str) -> Created:
    """Make a trigger. Raises ``Refused``."""
    if starts not in STARTS:
        raise Refused(f"A trigger starts one of {', '.join(STARTS)}.", "starts")
    trigger, secret = str(uuid.uuid4()), signatures.new_secret()
    sealed = context.keys.seal(SEALED_FOR, trigger, secret)

    def work(transaction: Transaction) -> Trigger:
        if triggers.count(transaction, place) >= MOST:
            raise Refused(f"There are at most {MOST} triggers.", conflict=True)
        _note(transaction, "create", place, trigger, by)
        return triggers.add(transaction, trigger, place, starts, sealed, by)

    made = context.database.transaction(work)
    return Created(made, url(context, trigger), signatures.shown(secret))


def remove(context: Context, place: Place, trigger: str, *, by: str) -> bool:
    """Take a trigger away; False where there is none."""

    def work(transaction: Transaction) -> bool:
        if not triggers.remove(transaction, place, trigger):
            return False
        _note(transaction, "delete", place, trigger, by)
        return True

    return context.database.transaction(work)


def url(context: Context, trigger: str) -> str:
    """Where messages for a trigger go."""
    return f"{letters.base_url(context.settings)}/hooks/{trigger}"


def receive(context: Context, request: Request) -> Response:
    """Start what a message is for. A message that comes again is taken, and starts nothing."""
    trigger = request.params["trigger"]
    found = triggers.find(context.database, trigger) if _ID.fullmatch(trigger) else None
    if found is None:
        raise RegistryError("There is nothing at this path.", code="NOT_FOUND", status=404)
    try:
        key = context.keys.unseal(SEALED_FOR, trigger, found.secret)
        message = signatures.verify(key, request.headers, request.body)
    except SealError as error:
        raise RegistryError(f"{error} Make another trigger.", status=500) from None
    except SignatureError as error:
        raise Unauthorized(str(error)) from None

    def work(transaction: Transaction) -> bool:
        if not triggers.use(transaction, trigger, message, _MEMORY):
            return False
        STARTS[found.starts](transaction, found.place)
        return True

    if context.database.transaction(work):
        context.wake()
    return Response(202)


def expire(context: Context, _job: Job) -> None:
    """Forget old messages, and seal with the key in force what a former one did."""
    triggers.expire(context.database)
    seal_anew(context.database, context.keys, SEALED_FOR, triggers.SECRETS)


def _note(transaction: Transaction, what: str, place: Place, trigger: str, by: str) -> None:
    audit.add(
        transaction, f"trigger.{what}", by,
        account=account_of(transaction, place), repository=place.repository, trigger=trigger,
    )  # fmt: skip
