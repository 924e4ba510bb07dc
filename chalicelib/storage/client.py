"""Requests to S3, with retries and errors of our own.

Loading this module loads botocore, which takes a while: ``chalicelib.storage.s3`` does so when it
first needs a client.
"""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError

from chalicelib import tracing
from chalicelib.metrics import catalogue
from chalicelib.storage import NoSuchObject, Refused, StorageError

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3 import S3Client

    from chalicelib.storage.s3 import Bucket

Answer = TypeVar("Answer", bound=Mapping[str, Any])

ATTEMPTS = 5
PATIENCE = 40.0
"""Seconds after which no further attempt begins."""
READ_TIMEOUT = 20
"""Seconds of silence after which an attempt has failed."""
_CONNECT_TIMEOUT = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_CONNECTIONS = 64  # that stay open; more are opened where more are needed at once
_PIECE = 256 << 10

_TRANSIENT = (HTTPClientError, NoConnection, IncompleteReadError, ResponseParserError)
_ERRORS = (BotoCoreError, ClientError, ResponseParserError)
_PRESIGNED = {"GET": "get_object", "HEAD": "head_object", "PUT": "upload_part"}
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {"OperationAborted", "RequestTimeout", "SlowDown"}

_ROUTINE = {"404", "InvalidRange", "NoSuchKey", "NoSuchUpload", "NotFound"}
"""Refusals that the store expects, and answers itself."""

_log = logging.getLogger(__name__)


@cache
def _loader() -> Loader:
    """What botocore knows of AWS's services: read once, and shared with forked processes."""
    return create_loader()


class Client:
    """Sends requests to one bucket's service. ``s3`` has botocore's methods, which ``call`` calls.

    Retries are made here, not there: a body in blocks must begin anew each time, and a retry must
    end when its upload was given up.
    """

    def __init__(self, bucket: "Bucket", endpoint: str) -> None:
        self._service = bucket.service
        config = Config(
            signature_version="s3v4",
            s3={
                "addressing_style": "path" if bucket.path_style else "auto",
                # The registry verifies digests itself, so that one pass over the bytes is enough.
                "payload_signing_enabled": False,
            },
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Bodies are blocks of memory, which would not pass.
            parameter_validation=False,
            retries={"total_max_attempts": 1},
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
        )
        try:
            session = botocore.session.Session()
            session.register_component("data_loader", _loader())
            client = session.create_client(
                "s3",
                region_name=bucket.region or None,
                endpoint_url=endpoint or None,
                aws_access_key_id=bucket.access_key or None,
                aws_secret_access_key=bucket.secret_key or None,
                config=config,
            )
        except BotoCoreError as error:
            raise self.problem(error) from error
        self.s3 = cast("S3Client", client)
        self._pace = _Pace(bucket.rate) if bucket.rate else None

    def call(
        self,
        method: Callable[..., Answer],
        *,
        attempts: int = ATTEMPTS,
        abandoned: threading.Event | None = None,
        **parameters: Any,
    ) -> Answer:
        """Send a request, and again while S3 is overloaded or out of reach, until ``abandoned``.
        ``RetryAttempts`` among the answer's metadata says how often. Raises ``Refused`` and
        ``StorageError``."""
        operation = method.__name__
        began = time.monotonic()
        outcome = "failed"
        try:
            with tracing.span(f"storage {operation}"):
                answer = self._call(method, attempts, abandoned, began, parameters)
            outcome = "ok"
        except Refused:
            outcome = "refused"
            raise
        finally:
            catalogue.STORAGE_SECONDS.observe(time.monotonic() - began, operation, outcome)
        return answer

    def _call(
        self,
        method: Callable[..., Answer],
        attempts: int,
        abandoned: threading.Event | None,
        began: float,
        parameters: Mapping[str, Any],
    ) -> Answer:
        for attempt in itertools.count(1):
            if self._pace is not None:
                self._pace.wait()
            try:
                answer = method(**parameters)
            except _ERRORS as error:
                problem = self.problem(error)
                refused = isinstance(problem, Refused)
                if refused or attempt == attempts or time.monotonic() - began > PATIENCE:
                    if not (isinstance(problem, Refused) and problem.code in _ROUTINE):
                        _log.warning("gave up after attempt %d: %s", attempt, error)
                    raise problem from error
                pause = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
                pause *= random.uniform(0.5, 1)  # noqa: S311
                _log.info("trying again in %.1f s: %s", pause, error)
                catalogue.STORAGE_RETRIES.add(1, method.__name__)
                if abandoned is None:
                    time.sleep(pause)
                elif abandoned.wait(pause):
                    raise problem from error
            else:
                answer["ResponseMetadata"]["RetryAttempts"] = attempt - 1
                return answer
        raise AssertionError

    def download(self, name: Mapping[str, Any], offset: int, length: int) -> "Download":
        """Bytes of an object, one at least."""
        return Download(self, name, offset, length)

    def presign(self, method: str, name: Mapping[str, Any], seconds: int) -> str:
        """A URL at which whoever has it may GET or HEAD an object, or PUT one part of it."""
        try:
            return self.s3.generate_presigned_url(
                _PRESIGNED[method], Params=name, ExpiresIn=seconds
            )
        except _ERRORS as error:
            raise self.problem(error) from error

    def problem(self, error: Exception) -> StorageError:
        """What went wrong, as a sentence. It does not repeat what the service or botocore said,
        where addresses and accounts may be named."""
        if isinstance(error, ClientError):
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"].get("Code", "")
            sentence = f"{self._service} answered {error.operation_name} with {status} {code}."
            if status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
                return StorageError(sentence)
            return Refused(sentence, code)
        name = type(error).__name__
        if isinstance(error, _TRANSIENT):
            return StorageError(f"{self._service} is out of reach: {name}.")
        return Refused(f"{self._service} cannot be asked: {name}.", name)


class _Pace:
    """Lets so many requests a second go, each at its time."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait until it is this request's time."""
        with self._lock:
            mine = self._next = max(time.monotonic(), self._next + self._interval)
        time.sleep(max(0.0, mine - time.monotonic()))


class Download:
    """A ``Stream`` of a part of an object. A connection that breaks is followed by another, which
    goes on where it broke."""

    def __init__(self, client: Client, name: Mapping[str, Any], offset: int, length: int) -> None:
        self._client = client
        self._name = name
        self._offset = offset
        self._end = offset + length
        self._body = self._open()

    def __iter__(self) -> Iterator[bytes]:
        failures, opened = 0, self._offset
        while self._offset < self._end:
            try:
                piece = self._body.read(min(self._end - self._offset, _PIECE))
            except _ERRORS as error:
                # What breaks after it has brought something has not failed for good.
                failures = failures + 1 if self._offset - opened < _PIECE else 1
                if failures == ATTEMPTS:
                    raise self._client.problem(error) from error
                _log.info("going on at byte %d: %s", self._offset, error)
                self.close()
                self._body, opened = self._open(), self._offset
                continue
            self._offset += len(piece)
            yield piece
        self.close()

    def close(self) -> None:
        self._body.close()

    def _open(self) -> "StreamingBody":
        try:
            answer = self._client.call(
                self._client.s3.get_object,
                **self._name,
                Range=f"bytes={self._offset}-{self._end - 1}",
            )
        except Refused as error:
            if error.code == "NoSuchKey":
                raise NoSuchObject(f"There is no object {self._name['Key']}.") from error
            if error.code == "InvalidRange":
                raise self._too_short() from error
            raise
        if answer.get("ContentLength") != self._end - self._offset:
            answer["Body"].close()
            raise self._too_short()
        return answer["Body"]

    def _too_short(self) -> StorageError:
        return StorageError(f"The object {self._name['Key']} is shorter than it should be.")
