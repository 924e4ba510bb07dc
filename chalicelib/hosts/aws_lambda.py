"""AWS Lambda behind an API Gateway REST API: events in, answers out.

What shapes this host: a request and its answer are one JSON document each, of 6 MB at most, so a
body of bytes has about 4.5 MB as base64, and blobs are fetched by redirect. API Gateway turns
larger bodies away with the words of .chalice/resources.yaml. It keeps a path as the client sent it,
decodes the query, renames ``WWW-Authenticate`` in a function's answer (``app.challenge`` is the way
out) and may lose the ``Content-Length`` of an answer to HEAD (``Context.head_by_redirect``).
"""

import json
import logging
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from chalice.app import Response as ChaliceResponse

from chalicelib import endpoints, logs
from chalicelib.afterwards import Afterwards
from chalicelib.hosts import aws_log, aws_metrics, build_context
from chalicelib.hosts.aws_parameters import resolved
from chalicelib.hosts.aws_queue import Message, Queue, read
from chalicelib.http import Headers, Query, RegistryError, Request, Response, Unavailable
from chalicelib.metrics import requests
from chalicelib.settings import Settings, SettingsError

if TYPE_CHECKING:
    from chalicelib.context import Context

BODY_LIMIT = 6 * 2**20 - 16 * 2**10
"""The largest body that an answer may have once it is text, in bytes: Lambda's 6 MB (AWS, "Lambda
quotas") less room for the headers, to which API Gateway grants 10 KB."""

MAIL_SECONDS = 3.0
"""How long an answer takes that may have sent mail, whether or not it has: nothing runs here once
an answer is out."""

WAKE_SECONDS = 60.0
"""How long a function that the queue has woken begins jobs. The rest is the schedule's, so that the
queue's messages are soon done with."""

STOP_SECONDS = 60.0
"""How long before its time is over a function begins no more jobs."""

logger = logging.getLogger(__name__)


class Answer(ChaliceResponse):
    """A ``Response`` as Chalice and API Gateway want it."""

    def __init__(self, response: Response) -> None:
        fields: dict[str, list[str]] = {}
        for name, value in response.headers:
            fields.setdefault(name, []).append(value)
        headers = {
            name: values if len(values) > 1 else values[0] for name, values in fields.items()
        }
        super().__init__(_whole(response), headers, response.status)

    def to_dict(self, binary_types: list[str] | None = None) -> dict[str, Any]:
        """The answer as JSON.

        A text goes out as it is. Chalice would put all into base64, which API Gateway decodes
        only for a client that sends a matching Accept, and many send none.
        """
        answer = super().to_dict(None)
        answer["body"], answer["isBase64Encoded"] = _encoded(self.body)
        return answer


def answer(event: Mapping[str, Any]) -> Answer:
    """Answer one event of a Lambda proxy integration (payload format 1.0)."""
    begun = time.monotonic()
    request = request_from(event)
    given = logs.request_id(request.headers.get("x-request-id"))
    identity = given or str(event["requestContext"].get("requestId", ""))
    with logs.bound(request_id=identity), aws_metrics.written():
        answer, subject = _answered(request)
        answer.headers["X-Request-Id"] = identity
        query = f"?{request.query.raw}" if request.query.raw else ""
        seconds = time.monotonic() - begun
        aws_log.answered(
            request, event["path"] + query, answer.status_code, len(answer.body), subject, seconds
        )
        requests.count(request.method, request.path, "", answer.status_code, seconds)
    return answer


@cache
def context() -> "Context":
    """What all requests of this process share, made when the first one comes. Raises
    ``Unavailable`` where a setting is wrong, where the database does not answer, and where it
    lacks migrations, which no function applies; and tries again with the next request."""
    from chalicelib.metadata.migrate import current

    made = _context()
    if not current(made.database):
        logger.critical("the database lacks migrations of this release: openregistry migrate")
        raise Unavailable(
            "The registry's database is not ready for this release.",
            "have the registry's operator run `openregistry migrate`",
        )
    return made


@cache
def _context() -> "Context":
    try:
        settings = Settings.from_environment(resolved(os.environ))
        if not settings.secret_key:
            raise SettingsError(
                "OPENREGISTRY_SECRET_KEY",
                "is needed on Lambda, where no process can keep one for the others: use that of"
                " the registry's other hosts, or one from `openssl rand -hex 32`",
            )
        if not settings.public_url:
            raise SettingsError(
                "OPENREGISTRY_PUBLIC_URL",
                "is needed on Lambda, to tell clients where they get tokens: https:// and the"
                " domain",
            )
        if not settings.storage_url.startswith("s3://"):
            raise SettingsError(
                "OPENREGISTRY_STORAGE_URL",
                "must be s3://bucket/prefix on Lambda, where no file outlives its process",
            )
        queue = Queue(settings.queue_url) if settings.queue_url else None
        made = build_context(
            settings,
            exposed=True,
            head_by_redirect=True,
            challenges=False,
            shared=True,
            afterwards=Afterwards(least=MAIL_SECONDS),
            # Without a queue each pull is written down before its answer.
            pulls=queue,
            wake=queue.wake if queue else lambda: None,
        )
    except SettingsError as error:
        logger.critical("%s", error)
        raise Unavailable("the registry's settings are wrong", str(error)) from error
    aws_log.level(settings.log_level)
    return made


def work(seconds: float) -> int:
    """Do the jobs that are due, for at most about so many seconds; gives how many were done."""
    from chalicelib.jobs.kinds import KINDS
    from chalicelib.jobs.worker import Worker
    from chalicelib.metrics.survey import survey_jobs

    made = context()
    try:
        with aws_metrics.written():
            done = Worker(made, KINDS).drain(time.monotonic() + seconds - STOP_SECONDS)
            survey_jobs(made.database)
        return done
    finally:
        made.database.rest()


def receive(event: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Take what came from the queue (an SQS event): count the pulls, and do the jobs that are due
    where a message says that there are. Gives the messages that are to come again, as Lambda wants
    them (AWS, "Reporting batch item failures"). Raises ``Unavailable``: all come again."""
    made = context()
    failed = {record["messageId"] for record in event["Records"]}
    wakes = False
    messages = [message for record in event["Records"] if (message := read(record))]
    try:
        for counted, told in _counted(made, messages):
            failed -= {message.id for message in counted}
            wakes |= told or any(message.wakes for message in counted)
    finally:
        made.database.rest()
    if wakes:
        try:
            work(min(seconds, STOP_SECONDS + WAKE_SECONDS))
        except Exception:
            # Not raised: what was counted would come again.
            logger.warning("jobs wait for the schedule", exc_info=True)
    return {"batchItemFailures": [{"itemIdentifier": each} for each in sorted(failed)]}


def _counted(
    context: "Context", messages: "list[Message]"
) -> "Iterator[tuple[list[Message], bool]]":
    """Messages whose pulls are counted, and whether webhooks are told of any. All at once, or one
    by one where the database refuses that."""
    from chalicelib.metadata.database import DatabaseError
    from chalicelib.registry.pulls import add, added_up

    found = added_up(pulled for message in messages for pulled in message.pulls)
    try:
        yield messages, bool(found) and add(context.database, found)
    except Unavailable as error:
        logger.warning("pulls are counted later: %s", error)
    except DatabaseError:
        logger.exception("pulls of %d messages were refused", len(messages))
        if len(messages) > 1:
            for message in messages:
                yield from _counted(context, [message])


def request_from(event: Mapping[str, Any]) -> Request:
    """The request that an event tells of. Its ``Content-Length`` is that of the body, which is
    here as a whole however it was sent."""
    body = event.get("body") or ""
    data = b64decode(body) if event.get("isBase64Encoded") else body.encode()
    fields = [
        (name, value)
        for name, values in (event.get("multiValueHeaders") or {}).items()
        if name.lower() not in ("content-length", "transfer-encoding")
        for value in values
    ]
    return Request(
        method=event["httpMethod"],
        path=unquote(event["path"]),
        query=Query(
            urlencode(
                event.get("multiValueQueryStringParameters") or {}, doseq=True, quote_via=quote
            )
        ),
        headers=Headers([*fields, ("Content-Length", str(len(data)))]),
        body=data,
        client=event["requestContext"].get("identity", {}).get("sourceIp") or "",
        # API Gateway speaks nothing else.
        secure=True,
    )


def _answered(request: Request) -> tuple[Answer, str]:
    """The answer, whatever goes wrong, and who asked."""
    try:
        made = context()
        try:
            response = _answer(made, request)
            made.pulls.flush()
            return Answer(response), response.subject
        finally:
            # At last: a pull is counted by the database where there is no queue.
            made.database.rest()
    except RegistryError as error:
        failure = error
    except Exception:
        logger.exception("the event could not be answered")
        failure = RegistryError("The registry failed; its log says why.", status=500)
    return Answer(endpoints.refusal(request, failure)), ""


def _answer(context: "Context", request: Request) -> Response:
    endpoint = endpoints.find(request.method, request.path)
    if endpoint is None or endpoint.body is not endpoints.Body.STREAMED:
        return endpoints.answer(context, request)
    receiver = endpoints.receive(context, replace(request, body=b""))
    if isinstance(receiver, Response):
        return receiver
    try:
        receiver.feed([request.body])
    except RegistryError as error:
        receiver.abort()
        return error.response()
    return receiver.finish()


def _whole(response: Response) -> bytes:
    """The body. Raises ``RegistryError`` where it does not fit into one answer."""
    body = response.body
    if not isinstance(body, bytes):
        length = int(Headers(response.headers)["Content-Length"])
        if length > BODY_LIMIT:
            body.close()
            raise _unreturnable(length)
        body = b"".join(body)
    if len(_encoded(body)[0]) > BODY_LIMIT:
        raise _unreturnable(len(body))
    return body


def _encoded(body: bytes) -> tuple[str, bool]:
    """The body as a string for JSON, and whether that is base64."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return b64encode(body).decode(), True
    # Escapes can make a text of many quotation marks longer than its base64.
    if len(json.dumps(text)) > BODY_LIMIT:
        return b64encode(body).decode(), True
    return text, False


def _unreturnable(length: int) -> RegistryError:
    return RegistryError(
        f"the answer has {length} bytes, and a Lambda function returns about 4.5 MB at most",
        "ask for a smaller page (n=…), or have the registry's operator set"
        " OPENREGISTRY_DOWNLOADS=redirect",
        code="UNSUPPORTED",
        status=501,
    )
