"""What stands before the stack's API Gateway: a domain at the root, and AWS's limits and renames.

Neither ministack nor LocalStack has these. What passes here passes AWS, as far as
``tests/hosts/api_gateway.py`` knows it, which says of each limit and rename where it is from.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.hosts.api_gateway import (
    DROPPED_FROM_ANSWER,
    DROPPED_FROM_REQUEST,
    HEADERS_LIMIT,
    REMAPPED_IN_ANSWER,
    TIMEOUT,
    Front,
    own_answer,
)
from tests.hosts.lambda_runtime import PAYLOAD_LIMIT

_THEIRS = {"connection", "date", "server", "content-length"}
"""Fields of an answer that are of the server that API Gateway is here, not of a function."""


class Domain(ThreadingHTTPServer):
    """`with Domain(port, target, own_answers):` passes requests at the root on to ``target``, the
    URL of a stage, and what API Gateway would have refused it refuses with ``own_answers``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, target: str, own_answers: Mapping[str, Any]) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.host = f"127.0.0.1:{port}"
        self.target = urlsplit(target)
        self.own_answers = own_answers

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Request(Front):
    server: Domain

    def serve(self) -> None:
        body = self.read_body()
        if body is None or _event_size(self.headers.items(), body) > PAYLOAD_LIMIT:
            return self.refuse("REQUEST_TOO_LARGE", 413, "Request Too Long")
        target = self.server.target
        connection = HTTPConnection(target.netloc, timeout=TIMEOUT)
        try:
            connection.request(
                self.command, target.path + self.path, body or None, self.fields(body)
            )
            response = connection.getresponse()
            data = response.read()
        except TimeoutError:
            return self.refuse("INTEGRATION_TIMEOUT", 504, "Endpoint request timed out")
        finally:
            connection.close()
        fields = self.answered(response.getheaders())
        if sum(len(name) + len(value) for name, value in fields) > HEADERS_LIMIT:
            return self.refuse("INTEGRATION_FAILURE", 502, "Internal server error")
        if self.command == "HEAD":
            data = bytes(int(response.headers["Content-Length"]))
        return self.write(response.status, fields, data)

    def fields(self, body: bytes) -> dict[str, str]:
        """The request's fields."""
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in DROPPED_FROM_REQUEST
        }
        kept["X-Forwarded-For"] = self.client_address[0]
        kept["X-Forwarded-Proto"] = "https"
        if body and "Content-Type" not in self.headers:
            # API Gateway takes such a body for bytes, ministack for text.
            kept["Content-Type"] = "application/octet-stream"
        return kept

    def answered(self, fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The answer's fields: API Gateway renames those of a function, and none of its own
        answers, which bear their kind."""
        kept = [pair for pair in fields if pair[0].lower() not in _THEIRS | DROPPED_FROM_ANSWER]
        if any(name.lower() == "x-amzn-errortype" for name, _ in kept):
            return kept
        return [
            (f"x-amzn-Remapped-{name}" if name.lower() in REMAPPED_IN_ANSWER else name, value)
            for name, value in kept
        ]

    def refuse(self, kind: str, status: int, message: str) -> None:
        """Give one of API Gateway's own answers, as the template shapes it."""
        self.write(*own_answer(self.server.own_answers.get(kind, {}), kind, status, message, {}))


def _event_size(fields: Iterable[tuple[str, str]], body: bytes) -> int:
    """Bytes of the event that a request becomes, where each field stands twice."""
    return (
        len(json.dumps([[name, value, name, value] for name, value in fields])) + len(body) * 4 // 3
    )
