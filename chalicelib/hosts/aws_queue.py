"""The functions' queue on AWS (SQS): what one call of a function leaves for another.

Nothing runs on Lambda once an answer is out. So the pulls that a request has noted, and that it has
written jobs, leave as one message before the answer. The message is signed and sent here: to load
AWS's library takes longer than a pull does.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from chalicelib import digests
from chalicelib.hosts.aws_signing import NoCredentialsError, signed
from chalicelib.http import RegistryError
from chalicelib.metadata.pulls import Pulled

_log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds that the queue may be silent: as long as an answer is kept waiting for it."""
_TARGET = "AmazonSQS.SendMessage"
_MEDIA_TYPE = "application/x-amz-json-1.0"


class QueueError(Exception):
    """The queue refused a message; the text says why."""


class Queue:
    """Notes what one request leaves, and sends it. ``Pulls`` of a process that answers one request
    at a time; its ``wake`` is for ``Context``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts = urlsplit(url)
        self._pulls: list[tuple[str, str, str, str]] = []
        self._wake = False

    def count(self, repository: str, tag: str, digest: bytes, subject: str) -> None:
        self._pulls.append((repository, tag, digests.unpack(digest), subject))

    def wake(self) -> None:
        """Note that there are jobs to do."""
        self._wake = True

    def flush(self) -> None:
        """Send what was noted. Where that fails it is lost: pulls are not counted, and the jobs
        wait for the schedule."""
        pulls, self._pulls = self._pulls, []
        wake, self._wake = self._wake, False
        if not pulls and not wake:
            return
        message = {"pulls": pulls} if pulls else {}
        try:
            self._send(json.dumps(message | ({"wake": True} if wake else {})))
        except (OSError, HTTPException, QueueError, NoCredentialsError) as error:
            _log.warning("the queue did not take a message: %s", str(error) or repr(error))
            self._connection.close()

    @cached_property
    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(self._parts.netloc, timeout=PATIENCE)

    def _send(self, text: str) -> None:
        """Send one message. Raises ``OSError``, ``HTTPException``, ``QueueError`` and
        ``NoCredentialsError``."""
        body = json.dumps({"QueueUrl": self._url, "MessageBody": text}).encode()
        kept = self._connection.sock is not None
        try:
            status, answer = self._ask(body)
        except (ConnectionError, HTTPException):
            # What was kept open may have been closed while the process stood still.
            if not kept:
                raise
            self._connection.close()
            status, answer = self._ask(body)
        if status != 200:
            raise QueueError(f"{status} {answer[:300].decode(errors='replace')}")

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        host, now = self._parts.netloc, datetime.now(UTC)
        fields = signed("sqs", _TARGET, _MEDIA_TYPE, host, body, os.environ, now)
        self._connection.request("POST", "/", body, fields)
        response = self._connection.getresponse()
        return response.status, response.read()


class Message(NamedTuple):
    """A message that came: its id, the pulls in it, and whether it tells of jobs."""

    id: str
    pulls: Sequence[Pulled]
    wakes: bool


def read(record: Mapping[str, Any]) -> Message | None:
    """The message of one record of an event; None where it is not one of ours."""
    try:
        body = json.loads(record["body"])
        age = max(0.0, time.time() - int(record["attributes"]["SentTimestamp"]) / 1000)
        pulls = [
            Pulled(str(repository), str(tag), digests.pack(digest), str(subject), 1, age)
            for repository, tag, digest, subject in body.get("pulls", [])
        ]
        return Message(record["messageId"], pulls, bool(body.get("wake")))
    except (LookupError, ValueError, TypeError, AttributeError, RegistryError):
        _log.warning("a message in the queue is not the registry's", exc_info=True)
        return None
