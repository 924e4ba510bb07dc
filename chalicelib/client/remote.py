"""A registry elsewhere, asked over HTTP: tokens, retries, redirects, and errors as sentences.

Tokens are had as the distribution project's "Token Authentication Specification" and "Oauth2 Token
Authentication" have it. An Authorization goes to the registry's own origin and to no other, be it
that of a redirect or of a Location.
"""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, SSLError
from urllib3.response import BaseHTTPResponse

from chalicelib import __version__
from chalicelib.client.credentials import Credentials
from chalicelib.client.names import Registry
from chalicelib.http import Headers, Piece
from chalicelib.settings import is_loopback

Body = Piece | Callable[[], Iterable[Piece]]
"""What is sent: bytes, or a function that gives them from the first on, for each attempt anew. With
the latter ``Content-Length`` is among the headers, or the body is sent in chunks."""

ATTEMPTS = 6
PATIENCE = 60.0
"""Seconds after which no further attempt begins."""
SILENCE = 60.0
"""Seconds without a byte after which an attempt has failed."""
BODY_LIMIT = 32 << 20
"""Bytes of an answer that is not streamed."""
PIECE = 256 << 10
"""Bytes of a piece of a streamed answer, at most."""

_CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds
_LONGEST_WAIT = 60.0  # seconds of a Retry-After that are waited
_CONNECTIONS = 16  # that stay open to one host
_HOPS = 5

_OVERLOADED = {429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}

_CLIENT_ID = "openregistry"
_LEAST_SECONDS = 60
"""A token whose answer says nothing is good for so long."""


class RemoteError(Exception):
    """A registry did not do what it was asked. ``sentence`` quotes its own message, so that nothing
    in it moves a terminal's cursor; ``status`` is 0 where it did not answer, and ``code`` the
    specification's, or empty."""

    def __init__(self, sentence: str, status: int = 0, code: str = "", detail: Any = None) -> None:
        sentence = "".join(each if each.isprintable() else "?" for each in sentence)
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Reply:
    """An answer of any status, from ``url``, which is where redirects led. ``body`` is whole, or
    empty where the answer is streamed: then read ``pieces``, and ``close`` it."""

    url: str
    status: int
    headers: Headers
    body: bytes = field(default=b"", repr=False)
    _response: BaseHTTPResponse | None = field(default=None, repr=False)
    _live: set[BaseHTTPResponse] = field(default_factory=set, repr=False)

    @property
    def location(self) -> str:
        """Where ``Location`` points, as a whole URL. Raises ``RemoteError``."""
        value = self.headers.get("Location")
        if not value:
            raise RemoteError(f"{_host(self.url)} left out where to go on (Location).", self.status)
        return urljoin(self.url, value)

    def json(self) -> Any:
        """The body as JSON. Raises ``RemoteError``."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise RemoteError(
                f"{_host(self.url)} answered with something else than JSON.", self.status
            ) from None

    def check(self, *statuses: int) -> "Reply":
        """The same, where it has one of these statuses. Raises ``RemoteError``."""
        if self.status not in statuses:
            raise self.error()
        return self

    def error(self) -> RemoteError:
        """What the answer says is wrong. Reads a streamed one and closes it."""
        body = self.body
        if self._response is not None:
            body = _drop(self)
        code, message, detail = _said(body)
        sentence = f"{_host(self.url)} answered {self.status}"
        if code or message:
            sentence += f": {': '.join(filter(None, (code, message)))}"
        return RemoteError(f"{sentence.rstrip('.')}.", self.status, code, detail)

    def pieces(self) -> Iterator[bytes]:
        """The streamed body, in the pieces in which it comes. Raises ``RemoteError`` where it
        breaks off."""
        if self._response is None:
            yield self.body
            return
        try:
            while piece := self._response.read1(PIECE, decode_content=False):
                if self._response not in self._live:
                    break  # hung up meanwhile: what comes now need not be of the answer
                yield piece
            else:
                return
        except (HTTPError, OSError) as error:
            raise RemoteError(f"{_host(self.url)} broke off: {_reason(error)}.") from error
        raise _Final("Given up.")

    def close(self) -> None:
        """Be done with a streamed answer: its connection is used again if it was read to its end,
        and hung up otherwise."""
        if self._response is not None:
            self._live.discard(self._response)
            self._response.close()
            self._response.release_conn()

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Remote:
    """A registry, and the account by which it is asked: nobody's where there are no credentials.
    Threads may share it."""

    def __init__(self, registry: Registry | str, credentials: Credentials | None = None) -> None:
        self.registry = Registry.parse(registry) if isinstance(registry, str) else registry
        self._credentials = credentials
        self._origin = _origin(self.registry.url)
        self._tokens: dict[str, _Token] = {}  # by scope
        self._challenge: _Challenge | None = None
        self._handshake = threading.Lock()
        self._closed = threading.Event()
        self._live: set[BaseHTTPResponse] = set()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        scope: str = "",
        authorization: str | None = None,
        stream: bool = False,
        redirects: bool = True,
        attempts: int = ATTEMPTS,
        silence: float = SILENCE,
    ) -> Reply:
        """Ask for a path of the registry's, or a URL, and give the answer whatever its status.

        ``scope`` is what the token must be for (``repository:NAME:pull,push``; several with spaces
        between). ``authorization`` is sent as it is, by somebody who does the handshake himself;
        empty, none is. Without it the handshake is done here. Either goes to the registry alone.
        GET and HEAD follow ``redirects``. Raises ``RemoteError`` where no answer comes.
        """
        if any(name.lower() == "authorization" for name in headers or ()):
            raise ValueError("what authorizes is given by itself: it must not be redirected")
        url = urljoin(self.registry.url + "/", path)
        sent = {"User-Agent": f"openregistry/{__version__}", "Accept-Encoding": "identity"}
        sent.update(headers or {})
        ask = _Ask(method, sent, body, stream, attempts, silence)
        follow = redirects and method in ("GET", "HEAD")
        for _ in range(_HOPS + 1):
            if _origin(url) != self._origin or authorization == "":
                reply = self._try(ask, url, {})
            elif authorization is not None:
                reply = self._try(ask, url, {"Authorization": authorization})
            else:
                reply = self._authorized(ask, url, scope)
            if not (follow and reply.status in _REDIRECTS and "Location" in reply.headers):
                return reply
            _drop(reply)
            url = reply.location
        raise RemoteError(f"{self.registry.host} redirects without end.")

    def close(self) -> None:
        """No further attempt begins, on whatever thread, and answers that come are broken off."""
        self._closed.set()
        # Others take theirs away meanwhile.
        for response in list(self._live):
            self._live.discard(response)
            with suppress(OSError, ValueError, RuntimeError):
                response.shutdown()
        for pool in self._pools.values():
            pool.clear()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # How the registry is asked: with a token, again after a failure, on a connection.

    def _authorized(self, ask: "_Ask", url: str, scope: str) -> Reply:
        """An answer, with a token that is had first where the registry wanted one before, and after
        a 401: a fresh one then, once."""
        authorization = self._authorization(scope)
        reply = self._try(ask, url, authorization)
        if reply.status != 401:
            return reply
        challenge = _challenge(reply.headers.get("WWW-Authenticate", ""))
        if challenge is None or (challenge.scheme == "basic" and self._credentials is None):
            return reply
        with self._handshake:
            self._challenge = challenge
            held = self._tokens.get(scope)
            if held is not None and authorization == held.header:
                del self._tokens[scope]
        again = self._authorization(scope)
        if again == authorization:
            return reply
        _drop(reply)
        return self._try(ask, url, again)

    def _authorization(self, scope: str) -> dict[str, str]:
        """The header that the registry is known to want. One thread asks for a token, the others
        wait for it."""
        with self._handshake:
            challenge = self._challenge
            if challenge is None:
                return {}
            if challenge.scheme == "basic":
                return {"Authorization": self._credentials.basic} if self._credentials else {}
            held = self._tokens.get(scope)
            if held is None or held.until < time.monotonic():
                held = self._tokens[scope] = self._new_token(challenge, scope)
            return held.header

    def _new_token(self, challenge: "_Challenge", scope: str) -> "_Token":
        realm = urljoin(self.registry.url + "/", challenge.realm)
        if self.registry.secure and urlsplit(realm).scheme != "https":
            raise RemoteError(
                f"{self.registry.host} wants tokens to be asked for at {_host(realm)} without TLS:"
                " credentials are not sent there."
            )
        # One that was asked for nothing in particular says itself what is missing.
        scopes = scope.split() or challenge.scope.split()
        credentials = self._credentials
        fields = [("service", challenge.service)] if challenge.service else []
        headers = {"User-Agent": f"openregistry/{__version__}"}
        began = time.monotonic()
        if credentials is not None and credentials.identity_token:
            fields += [
                ("grant_type", "refresh_token"),
                ("refresh_token", credentials.identity_token),
                ("client_id", _CLIENT_ID),
                ("scope", " ".join(scopes)),
            ]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            ask = _Ask("POST", headers, urlencode(fields).encode())
            reply = self._try(ask, realm, {})
        else:
            fields += [("scope", each) for each in scopes]
            basic = {}
            if credentials is not None:
                fields += [("account", credentials.username), ("client_id", _CLIENT_ID)]
                basic["Authorization"] = credentials.basic
            joint = "&" if urlsplit(realm).query else "?"
            reply = self._try(_Ask("GET", headers), f"{realm}{joint}{urlencode(fields)}", basic)
        answer = reply.check(200).json()
        text = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else ""
        if not isinstance(text, str) or not text:
            raise RemoteError(f"{_host(realm)} gave no token.", reply.status)
        seconds = answer.get("expires_in")
        if not isinstance(seconds, int | float) or seconds <= 0:
            seconds = _LEAST_SECONDS
        # Not to its last second: requests are on their way for a while.
        return _Token(text, began + seconds - min(10.0, seconds / 10))

    def _try(self, ask: "_Ask", url: str, more: Mapping[str, str]) -> Reply:
        """An answer of one server, which is asked again while it is overloaded or out of reach."""
        began = time.monotonic()
        for attempt in range(1, ask.attempts + 1):
            if self._closed.is_set():
                raise RemoteError("Given up.")
            last = attempt == ask.attempts or time.monotonic() - began > PATIENCE
            pause = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
            pause *= random.uniform(0.5, 1)  # noqa: S311
            try:
                reply = self._once(ask, url, more)
            except RemoteError as error:
                if last or isinstance(error, _Final):
                    raise
            else:
                if last or reply.status not in _OVERLOADED:
                    return reply
                _drop(reply)
                pause = max(pause, _wanted_pause(reply.headers))
            self._closed.wait(pause)
        raise AssertionError

    def _once(self, ask: "_Ask", url: str, more: Mapping[str, str]) -> Reply:
        body: Any = ask.body() if callable(ask.body) else ask.body
        if not callable(ask.body) and not isinstance(body, bytes):
            # A view of bytes would be sent item by item.
            body = memoryview(body).cast("B")
        if not callable(ask.body) and (len(body) or ask.method not in ("GET", "HEAD", "DELETE")):
            more = {**more, "Content-Length": str(len(body))}
        try:
            response = self._pool(url).request(
                ask.method,
                url,
                body=body,
                headers={**ask.headers, **more},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=ask.silence),
            )
        except LocationValueError:
            raise _Final(f"{url!r} is no URL.") from None
        except SSLError as error:
            raise _Final(f"{_host(url)} has no trusted certificate: {_reason(error)}.") from error
        except (HTTPError, OSError) as error:
            raise RemoteError(f"{_host(url)} cannot be reached: {_reason(error)}.") from error
        self._live.add(response)
        fields = Headers(list(response.headers.items()))
        reply = Reply(url, response.status, fields, b"", response, self._live)
        if self._closed.is_set():
            reply.close()
            raise _Final("Given up.")
        if ask.stream:
            return reply
        with reply:
            received = b"".join(_some(reply.pieces(), BODY_LIMIT + 1))
        if len(received) > BODY_LIMIT:
            raise _Final(f"{_host(url)} answered with more than {BODY_LIMIT >> 20} MiB.")
        return Reply(url, reply.status, fields, received)

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise _Final(f"{url!r} is no URL that can be asked.")
        host = parts.hostname or ""
        direct = is_loopback(host) or proxy_bypass(host)
        return self._pools["" if direct or parts.scheme not in self._pools else parts.scheme]

    @cached_property
    def _pools(self) -> dict[str, urllib3.PoolManager]:
        """Connections: those without a proxy under an empty name, and those through one by the
        scheme that it is for (``https_proxy``, ``http_proxy``, ``no_proxy``)."""
        import ssl

        # The system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR.
        shared: dict[str, Any] = {
            "maxsize": _CONNECTIONS,
            "num_pools": 32,
            "ssl_context": ssl.create_default_context(),
        }
        pools = {"": urllib3.PoolManager(**shared)}
        for scheme, proxy in getproxies().items():
            if scheme in ("http", "https"):
                pools[scheme] = urllib3.ProxyManager(proxy, **shared)
        return pools


class _Final(RemoteError):
    """Another attempt would be no better."""


@dataclass(frozen=True, slots=True)
class _Ask:
    method: str
    headers: Mapping[str, str]
    body: Body = b""
    stream: bool = False
    attempts: int = ATTEMPTS
    silence: float = SILENCE


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    until: float

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


@dataclass(frozen=True, slots=True)
class _Challenge:
    """What a 401 wants: Basic, or Bearer with a token of the realm's."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def _challenge(header: str) -> _Challenge | None:
    """What can be answered of a WWW-Authenticate (RFC 9110, section 11.6.1): Bearer where both are
    offered."""
    bearer = re.search(r"(?i)(?:^|,\s*)bearer\s+(.*)", header)
    if bearer is not None:
        fields = {
            name.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
            for name, quoted, plain in _PARAMETER.findall(bearer.group(1))
        }
        if fields.get("realm"):
            return _Challenge(
                "bearer", fields["realm"], fields.get("service", ""), fields.get("scope", "")
            )
    return _Challenge("basic") if re.search(r"(?i)(?:^|,\s*)basic\b", header) else None


def _said(body: bytes) -> tuple[str, str, Any]:
    """Code, message and detail of an error: the specification's, a token server's, or S3's."""
    try:
        held = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode(errors="replace")
        code = re.search(r"<Code>([^<]*)</Code>", text)
        message = re.search(r"<Message>([^<]*)</Message>", text)
        return code.group(1) if code else "", message.group(1) if message else "", None
    if not isinstance(held, dict):
        return "", "", None
    errors = held.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else held.get("error", held)
    if isinstance(first, dict):
        told = first.get("message") or first.get("details") or ""
        return str(first.get("code") or ""), str(told)[:1000], first.get("detail")
    return str(first)[:100], str(held.get("error_description") or "")[:1000], None


def _wanted_pause(headers: Headers) -> float:
    """Seconds of a Retry-After; dates are not understood, and little is waited then."""
    try:
        return max(0.0, min(float(headers.get("Retry-After", "0")), _LONGEST_WAIT))
    except ValueError:
        return 0.0


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454)."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise _Final(f"{url!r} is no URL.") from None
    return parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _some(pieces: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Pieces of a body until there are so many bytes."""
    left = most
    for piece in pieces:
        yield piece
        left -= len(piece)
        if left <= 0:
            return


def _drop(reply: Reply) -> bytes:
    """Be done with an answer whose body is short, so that its connection can be used again."""
    body = b""
    with reply, suppress(RemoteError):
        body = b"".join(_some(reply.pieces(), 64 << 10))
    return body


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in the system's words."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().rstrip(".") or type(error).__name__
