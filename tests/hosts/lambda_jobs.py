"""What does jobs where the registry is functions alone: the queue that wakes ``app.messages``, and
the schedule that calls ``app.work`` each minute (``app.py``)."""

import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, Self

from tests.hosts.lambda_registry import LambdaRegistry
from tests.hosts.lambda_runtime import Function, FunctionTimeoutError, RuntimeApi
from tests.servers import stopping

TIMEOUT = 900
"""Seconds that a function may take which no request waits for (``.chalice/config.json``)."""

CONCURRENCY = 2
"""How many processes take messages at once: AWS begins 5 of them (``app.py``), which have a
processor each."""

SCHEDULED: dict[str, Any] = {
    "version": "0",
    "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "account": "123456789012",
    "time": "2026-11-24T18:40:00Z",
    "region": "eu-west-1",
    "resources": ["arn:aws:events:eu-west-1:123456789012:rule/openregistry-prod-work"],
    "detail": {},
}
"""What a schedule hands to Lambda."""


def sqs_event(*bodies: object, age: float = 0) -> dict[str, Any]:
    """Messages as SQS hands them to Lambda (AWS, "Using Lambda with Amazon SQS")."""
    sent = int((time.time() - age) * 1000)
    return {
        "Records": [
            {
                "messageId": f"{number}",
                "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...",
                "body": body if isinstance(body, str) else json.dumps(body),
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": str(sent),
                    "SenderId": "AIDAIENQZJOLO23YVJ4VO",
                    "ApproximateFirstReceiveTimestamp": str(sent),
                },
                "messageAttributes": {},
                "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:openregistry",
                "awsRegion": "us-east-1",
            }
            for number, body in enumerate(bodies)
        ]
    }


class Queue(ThreadingHTTPServer):
    """A queue: takes `SendMessage` and keeps its body. ``url`` is for OPENREGISTRY_QUEUE_URL;
    ``sent`` counts what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Sending)
        self.url = f"http://127.0.0.1:{self.server_port}/1/openregistry"
        self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.sent = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Take no more messages."""
        self.shutdown()
        self.server_close()


class _Sending(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Queue

    def do_POST(self) -> None:
        assert self.headers["X-Amz-Target"] == "AmazonSQS.SendMessage"
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent += 1
        self.server.messages.put(sent["MessageBody"])
        answer = b'{"MessageId": "1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


class Messages(Protocol):
    """Where messages come from. Both methods raise ``queue.Empty``."""

    def get(self, block: bool = True, timeout: float | None = None) -> str:
        """The next message, or that which comes within so many seconds."""

    def get_nowait(self) -> str:
        """The next message that is there."""


class LambdaJobs:
    """`with LambdaJobs(directory, registry, queue.messages):` does the jobs of a registry on
    Lambda. The schedule comes every so many seconds. ``processes`` are those of the functions,
    ``work`` and ``messages`` hand events to them."""

    work: RuntimeApi
    messages: RuntimeApi

    def __init__(
        self, directory: Path, registry: LambdaRegistry, messages: Messages, every: float = 60
    ) -> None:
        self.directory = directory
        self.registry = registry
        self.every = every
        self.processes: list[Function] = []
        self._queue = messages
        self._over = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.messages = self._function(stack, "messages", CONCURRENCY)
            self.work = self._function(stack, "work", 1)
            loops = [self._take] * CONCURRENCY + [self._schedule]
            for loop in loops:
                threading.Thread(target=self._until_over, args=(loop,), daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._stack.close()

    def _function(self, stack: ExitStack, name: str, processes: int) -> RuntimeApi:
        api = RuntimeApi()
        stack.callback(api.server_close)
        stack.callback(api.shutdown)
        for number in range(processes):
            folder = self.directory / f"{name}-{number}"
            function = Function(folder, f"app.{name}", api, self.registry.settings)
            stack.enter_context(stopping(function))
            self.processes.append(function.start())
        return api

    def _until_over(self, loop: Callable[[], None]) -> None:
        while not self._over.is_set():
            with suppress(FunctionTimeoutError):
                loop()

    def _take(self) -> None:
        """Hand over what has come within a second, 100 at most."""
        with suppress(queue.Empty):
            found = [self._queue.get(timeout=1)]
            self._over.wait(1)
            while len(found) < 100:
                try:
                    found.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            answer = self.messages.invoke(sqs_event(*found), TIMEOUT)
            assert answer == {"batchItemFailures": []}

    def _schedule(self) -> None:
        self.work.invoke(SCHEDULED, TIMEOUT)
        self._over.wait(self.every)
