"""Lambda's side of the Runtime API, so that the real runtime client runs our functions.

`awslambdaric` asks for events and posts results over HTTP (AWS, "Using the Lambda runtime API");
here is the server that it asks.
"""

import json
import queue
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers import Server, free_port

ROOT = Path(__file__).parents[2]

PAYLOAD_LIMIT = 6 * 2**20 + 100
"""The largest event and the largest result of a synchronous invocation, in bytes of JSON."""


class FunctionError(Exception):
    """The function raised, or what it returned was too large: the error as Lambda reports it."""


class FunctionTimeoutError(Exception):
    """The function did not answer in time."""


@dataclass
class Invocation:
    """One event on its way through the runtime."""

    event: bytes
    deadline: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: str = ""


class RuntimeApi(ThreadingHTTPServer):
    """Hands events to whichever runtime process asks next. ``invocations`` counts them, and
    ``answered`` the bytes of what came of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", free_port()), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.waiting: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
        self.running: dict[str, Invocation] = {}
        self.polls = 0
        self.invocations = 0
        self.answered = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def invoke(self, event: Mapping[str, Any], seconds: float = 29) -> Any:
        """Run the function. Raises ``FunctionError`` and ``FunctionTimeoutError``."""
        data = json.dumps(event).encode()
        if len(data) > PAYLOAD_LIMIT:
            raise ValueError(f"Lambda does not take an event of {len(data)} bytes")
        invocation = Invocation(data, time.time() + seconds)
        self.invocations += 1
        self.running[invocation.id] = invocation
        self.waiting.put(invocation)
        answered = invocation.done.wait(seconds)
        del self.running[invocation.id]
        if not answered:
            raise FunctionTimeoutError
        if invocation.error:
            raise FunctionError(invocation.error)
        return invocation.result


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without this the kernel holds back a small answer's body for 40 ms.
    disable_nagle_algorithm = True
    server: RuntimeApi

    def do_GET(self) -> None:
        assert self.path == "/2018-06-01/runtime/invocation/next", self.path
        self.server.polls += 1
        invocation = self.server.waiting.get()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Lambda-Runtime-Aws-Request-Id", invocation.id)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(int(invocation.deadline * 1000)))
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:1:f")
        self.send_header("Content-Length", str(len(invocation.event)))
        self.end_headers()
        self.wfile.write(invocation.event)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        *_, identifier, kind = self.path.split("/")
        self.server.answered += len(data)
        if invocation := self.server.running.get(identifier):
            if kind == "error":
                invocation.error = data.decode()
            elif len(data) > PAYLOAD_LIMIT:
                invocation.error = f"Function.ResponseSizeTooLarge: {len(data)} bytes"
            else:
                invocation.result = json.loads(data)
            invocation.done.set()
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Function(Server):
    """A process of a Lambda function: `python -m awslambdaric HANDLER`."""

    name = "lambda"

    def __init__(
        self, directory: Path, handler: str, api: RuntimeApi, environment: Mapping[str, str]
    ) -> None:
        super().__init__(directory)
        self.handler = handler
        self.api = api
        self._environment = environment
        self._polls = 0

    def command(self) -> list[str]:
        return [sys.executable, "-m", "awslambdaric", self.handler]

    def environment(self) -> Mapping[str, str]:
        mine = {
            "AWS_LAMBDA_RUNTIME_API": self.api.address,
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "PYTHONPATH": str(ROOT),
        }
        # The tests' process has imported app, and Chalice then writes itself into this variable.
        return {**mine, **self._environment, "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11"}

    def start(self, within: float = 60) -> "Function":
        self._polls = self.api.polls
        return super().start(within)

    def ready(self) -> bool:
        return self.api.polls > self._polls
