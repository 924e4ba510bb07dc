"""The log: one line for each event and each request, on standard error. On a terminal it is for
people, elsewhere JSON."""

import json
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

from chalicelib.identity.capabilities import PARAMETER

_PARAMETER = re.compile(r"(?<=[?&])([^?&=]+)=[^&]*")
_SECRET = (PARAMETER, "code")
"""Parameters that hold a secret: a capability, and what a browser brings back from a sign-in
elsewhere (RFC 6749, section 4.1.2)."""


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
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
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
        f"{clock} {request.method} {_masked(request.target)} {request.status}{whose}"
        f" ({sizes}, {request.seconds * 1000:.1f} ms)\n"
    )


def _as_json(request: Served) -> str:
    return json.dumps({
        "time": _time(request.ended),
        "level": "info",
        "logger": "access",
        "method": request.method,
        "path": _masked(request.target),
        "status": request.status,
        "bytes": request.sent,
        "received": request.received,
        "ms": round(request.seconds * 1000, 2),
        "client": request.client,
        "subject": request.subject,
        "request_id": request.id,
    }) + "\n"  # fmt: skip


def _masked(target: str) -> str:
    """Without the secrets in it, however their parameters' names are spelt."""
    if "%" not in target and not any(f"{name}=" in target for name in _SECRET):
        return target
    return _PARAMETER.sub(_hidden, target)


def _hidden(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}=***" if unquote(parameter[1]) in _SECRET else parameter[0]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
