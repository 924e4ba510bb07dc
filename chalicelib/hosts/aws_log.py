"""The log on Lambda: one JSON object a line, written by Powertools' formatter.

It stands in for the runtime's own handler, so that lines of every module have the request's id and
the fields that they have in the harness. CloudWatch takes what it writes to standard output.
"""

import logging
import os
import sys
from functools import cache
from typing import Any

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

from chalicelib import logs
from chalicelib.http import Request

_access = logging.getLogger("access")


class _Formatter(LambdaPowertoolsFormatter):
    """Powertools' formatter, with what is bound where a line is logged."""

    def format(self, record: logging.LogRecord) -> str:
        record.__dict__.update(logs.fields(), logger=record.name)
        return str(super().format(record))


@cache
def _formatter() -> LambdaPowertoolsFormatter:
    """What writes the lines of this process, with what is so of all of them."""
    formatter = _Formatter(
        log_record_order=["timestamp", "level", "service", "logger", "message"],
        utc=True,
        use_rfc3339=True,
        serialize_stacktrace=False,
        location=None,
        service=logs.SERVICE,
        function_name=os.environ.get("AWS_LAMBDA_FUNCTION_NAME"),
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.getLogger().handlers[:] = [handler]
    return formatter


def begin(lambda_context: Any) -> None:
    """Write what follows as lines of this call of the function."""
    formatter = _formatter()
    cold = "cold_start" not in formatter.get_current_keys()
    formatter.append_keys(function_request_id=lambda_context.aws_request_id, cold_start=cold)


def level(name: str) -> None:
    """Write no lines below this level."""
    for logger in (logging.getLogger("chalicelib"), _access):
        logger.setLevel(name.upper())


def answered(
    request: Request, target: str, status: int, size: int, subject: str, seconds: float
) -> None:
    """Write the line of a request that has been answered."""
    if not _access.isEnabledFor(logging.INFO):
        return
    path = logs.masked(target)
    _access.info(
        "%s %s %d", request.method, path, status,
        extra={
            "method": request.method,
            "path": path,
            "status": status,
            "bytes": size,
            "received": len(request.body),
            "ms": round(seconds * 1000, 2),
            "client": request.client,
            "subject": subject,
        },
    )  # fmt: skip
