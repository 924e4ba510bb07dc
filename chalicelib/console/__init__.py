"""The web page for one's account: signing in, passkeys, and what links in mails open.

It is static, and speaks to the JSON API. A link's secret stands in the fragment, which browsers
send to nobody: it reaches no log.
"""

import hashlib
from functools import cache
from pathlib import Path

from chalicelib.context import Context
from chalicelib.http import Request, Response
from chalicelib.registry.blobs import matches

_HERE = Path(__file__).parent

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def page(context: Context, request: Request) -> Response:
    """The page ``/account``."""
    return sent(context, request, "account.html", "text/html; charset=utf-8")


def script(context: Context, request: Request) -> Response:
    """Its script, ``/account.js``."""
    return sent(context, request, "account.js", "text/javascript; charset=utf-8")


def style(context: Context, request: Request) -> Response:
    """Its style, ``/account.css``."""
    return sent(context, request, "account.css", "text/css; charset=utf-8")


def sent(context: Context, request: Request, name: str, media_type: str) -> Response:
    """A file of this room."""
    content, etag = _read(name)
    headers = [("ETag", etag), ("Cache-Control", "no-cache"), *SECURITY]
    if request.secure:
        headers.append(("Strict-Transport-Security", "max-age=63072000"))
    if matches(request.headers.get("If-None-Match"), etag):
        return Response(304, headers)
    headers += [("Content-Type", media_type), ("Content-Length", str(len(content)))]
    if request.method == "HEAD" and not context.head_by_redirect:
        return Response(200, headers)
    return Response(200, headers, content)


@cache
def _read(name: str) -> tuple[bytes, str]:
    """A file and its entity tag; files change with releases alone."""
    content = (_HERE / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
