"""The log: one line for each event and each request, on standard error. On a terminal it is for
people, elsewhere JSON."""

import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from chalicelib import logs


def configure(level: str) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForPeople() if sys.stderr.isatty() else _AsJson())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


class _ForPeople(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _time(record.created),
            "level": record.levelname,
            "service": logs.SERVICE,
            "logger": record.name,
            "message": record.getMessage(),
            **logs.fields(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
            line["exception_name"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Served:
    """One request that has been answered. ``status`` 499: the client went away."""

    ended: float
    seconds: float
    method: str
    target: str
    status: int
    sent: int
    received: int
    client: str
    subject: str
    id: str
    trace: str = ""


def write(requests: list[Served]) -> None:
    """Write a line for each request, all of them with one call."""
    line = _for_people if sys.stderr.isatty() else _as_json
    data = "".join(line(request) for request in requests).encode()
    while data:
        data = data[os.write(sys.stderr.fileno(), data) :]


def _for_people(request: Served) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(request.ended))
    sizes = f"{request.received} in, " * bool(request.received) + f"{request.sent} out"
    whose = f" for {request.subject}" * bool(request.subject)
    return (
        f"{clock} {request.method} {logs.masked(request.target)} {request.status}{whose}"
        f" ({sizes}, {request.seconds * 1000:.1f} ms)\n"
    )


def _as_json(request: Served) -> str:
    path = logs.masked(request.target)
    traced = {"trace_id": request.trace} if request.trace else {}
    return json.dumps({
        "timestamp": _time(request.ended),
        "level": "INFO",
        "service": logs.SERVICE,
        "logger": "access",
        "message": f"{request.method} {path} {request.status}",
        "method": request.method,
        "path": path,
        "status": request.status,
        "bytes": request.sent,
        "received": request.received,
        "ms": round(request.seconds * 1000, 2),
        "client": request.client,
        "subject": request.subject,
        "request_id": request.id,
        **traced,
    }) + "\n"  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
