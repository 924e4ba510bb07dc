"""Responses as bytes on a socket (HTTP/1.1, RFC 9112)."""

import os
from http import HTTPStatus

from chalicelib.http import Response

REASONS = {status.value: status.phrase for status in HTTPStatus}
TURN = 16 << 20
"""Bytes that one thread sends before another download gets its turn."""


def head(response: Response, request_id: str, date: str) -> bytes:
    """Status line and header fields, but for ``Connection`` and the empty line at the end.

    ``Content-Length`` is added where the body is bytes and the status may have one (RFC 9110,
    section 8.6); a streamed body without one is to be sent in chunks. Raises ``ValueError`` for a
    field that would be more than one line.
    """
    status = response.status
    lines = [
        f"HTTP/1.1 {status} {REASONS.get(status, '')}",
        f"Date: {date}",
        f"X-Request-Id: {request_id}",
    ]
    counted = status in (204, 304) or status < 200
    for name, value in response.headers:
        if name.lower() == "content-length":
            if counted:
                continue
            counted = True
        lines.append(f"{name}: {value}")
    if not counted:
        if isinstance(response.body, bytes):
            lines.append(f"Content-Length: {len(response.body)}")
        else:
            lines.append("Transfer-Encoding: chunked")
    lines.append("")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise ValueError("a header field holds the end of a line")
    return text.encode("latin-1")


def has_body(request_method: str, status: int) -> bool:
    """Whether an answer to this method with this status has a body (RFC 9112, section 6.3)."""
    return request_method != "HEAD" and status >= 200 and status not in (204, 304)


def send_file(socket: int, file: int, offset: int, count: int) -> int:
    """Send from a file to a socket that does not block, without copying through Python, until
    ``count`` bytes are sent, the socket takes no more, or others want a turn. How many were sent;
    raises ``OSError``, also where the file ends too early."""
    sent = 0
    while sent < min(count, TURN):
        try:
            now = os.sendfile(socket, file, offset + sent, min(count, TURN) - sent)
        except BlockingIOError:
            break
        if now == 0:
            raise OSError("the file is shorter than its size")
        sent += now
    return sent
