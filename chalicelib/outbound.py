"""The one way in which other servers are asked and told: issuers, GitHub, trust bundles, webhooks.

Whoever writes a trust rule or makes a webhook chooses whom the registry asks, so each request is
guarded against being sent inwards (CWE-918, "server-side request forgery"): HTTPS only, to public
addresses only, and to the very address that was checked.
"""

import ipaddress
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from chalicelib import tracing
from chalicelib.settings import is_loopback

if TYPE_CHECKING:
    from ssl import SSLContext

    from urllib3.connection import HTTPConnection
    from urllib3.response import HTTPResponse

SECONDS = 5.0
"""A whole request may take so long, from the name's resolution to the body's last byte."""

BODY_LIMIT = 1 << 20
"""Bytes of an answer's body."""

_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")

_HEADER = re.compile(r"[!-~](?:[ -~]*[!-~])?")


class OutboundError(Exception):
    """There is no usable answer. The sentence says why, and nothing of what was sent or came."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: any status but a redirect, and a body that may hold secrets."""

    status: int
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON. Raises ``OutboundError`` where it is something else."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise OutboundError("The server answered with something else than JSON.") from None


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Outbound:
    """Asks other servers. ``private`` lists the origins (scheme://host[:port]) that may speak
    plain HTTP and be at private addresses. Threads may share it."""

    def __init__(self, private: Sequence[str] = ()) -> None:
        self._private = frozenset(_target(origin).origin for origin in private)

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Ask for a resource. Raises ``OutboundError``."""
        return self._ask("GET", url, None, headers or {})

    def post(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a form, URL-encoded. Raises ``OutboundError``."""
        encoded = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._ask("POST", url, urlencode(form).encode(), {**encoded, **(headers or {})})

    def post_json(
        self, url: str, value: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send JSON. Raises ``OutboundError``."""
        encoded = {"Content-Type": "application/json"}
        return self._ask("POST", url, json.dumps(value).encode(), {**encoded, **(headers or {})})

    def send(
        self, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, kept: int
    ) -> Reply:
        """Send a body as it is, for the answer's status: of the answer's own body what comes within
        ``seconds`` is kept, ``kept`` bytes at most. Raises ``OutboundError``."""
        return self._ask("POST", url, body, headers, seconds, kept)

    def is_private(self, url: str) -> bool:
        """Whether a URL is at one of the private origins. Raises ``OutboundError``."""
        return _target(url).origin in self._private

    def check(self, url: str) -> None:
        """Raise ``OutboundError`` where a URL would never be asked, whatever its name's addresses
        turn out to be. Asks nobody."""
        target = _target(url)
        if target.origin in self._private:
            return
        if target.scheme != "https":
            raise OutboundError("Only https:// URLs are asked.")
        if is_loopback(target.host):
            raise OutboundError("The server's name has no public address.")
        with suppress(OSError, UnicodeError):
            # Addresses in every notation that a resolver takes for one, like 127.1.
            for *_, address in socket.getaddrinfo(
                target.host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            ):
                if not is_public(str(address[0])):
                    raise OutboundError("The server's name has no public address.")

    def _ask(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        seconds: float | None = None,
        kept: int | None = None,
    ) -> Reply:
        deadline = time.monotonic() + (SECONDS if seconds is None else seconds)
        target = _target(url)
        private = target.origin in self._private
        if target.scheme != "https" and not private:
            raise OutboundError("Only https:// URLs are asked.")
        if not all(_HEADER.fullmatch(value) for value in headers.values()):
            raise OutboundError("A header cannot hold that.")
        addresses = _resolve(target, deadline)
        if not private and not all(map(is_public, addresses)):
            addresses = []
        if not addresses:
            # One sentence for both: nobody learns which names there are inside.
            raise OutboundError("The server's name has no public address.")
        sent = {
            "Accept": "application/json",
            "User-Agent": "openregistry",
            **headers,
            "Host": target.authority,
        }
        with (
            tracing.span(
                method, **{"http.request.method": method, "server.address": target.host}
            ) as span,
            closing(self._connect(target, addresses, deadline)) as connection,
        ):
            reply = _exchange(connection, deadline, method, target.path, body, sent, kept)
            span.set_attribute("http.response.status_code", reply.status)
            return reply

    def _connect(self, target: _Target, addresses: list[str], deadline: float) -> "HTTPConnection":
        """A connection to the first address that takes one. The connection is told the address,
        so that the name is not resolved again, and checks the certificate against the name."""
        from ssl import SSLCertVerificationError

        from urllib3.connection import HTTPConnection, HTTPSConnection
        from urllib3.exceptions import HTTPError

        for index, address in enumerate(addresses):
            seconds = _remaining(deadline) / (len(addresses) - index)
            connection = (
                HTTPSConnection(
                    address,
                    target.port,
                    timeout=seconds,
                    server_hostname=target.host,
                    ssl_context=self._tls,
                )
                if target.scheme == "https"
                else HTTPConnection(address, target.port, timeout=seconds)
            )
            try:
                connection.connect()
            except SSLCertVerificationError:
                connection.close()
                raise OutboundError(
                    "The server's certificate is not a trusted one for its name."
                ) from None
            except (HTTPError, OSError):
                connection.close()
            else:
                return connection
        _remaining(deadline)
        raise OutboundError("The server cannot be reached.")

    @cached_property
    def _tls(self) -> "SSLContext":
        import ssl

        return ssl.create_default_context()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's (IANA's special-purpose registries).
    IPv6 addresses that stand for one of IPv4 (RFC 4291, 3056, 6052) are judged by that."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(ip.packed[-4:])
        if embedded is None:
            return ip in _GLOBAL_UNICAST and ip not in _DOCUMENTATION and ip.is_global
        ip = embedded
    return ip.is_global and not ip.is_multicast and not any(ip in each for each in _SPECIAL)


# What not every release of Python knows to be no part of the internet: a cloud has had its metadata
# in the first.
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _target(url: str) -> _Target:
    """The parts of a URL, strictly read, so that no two readers can differ about its host."""
    if len(url) > 2048 or not re.fullmatch(r"[!-\[\]-~]+", url):
        raise OutboundError("That is no URL.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise OutboundError("That is no URL.") from None
    if parts.scheme not in _PORTS:
        raise OutboundError("Only https:// URLs are asked.")
    if "@" in parts.netloc:
        raise OutboundError("A URL that is asked holds no credentials.")
    host = re.sub(r":[0-9]*$", "", parts.netloc)
    if not _HOST.fullmatch(host):
        raise OutboundError("That is no URL.")
    query = f"?{parts.query}" if parts.query else ""
    return _Target(
        parts.scheme,
        host.strip("[]").lower(),
        _PORTS[parts.scheme] if port is None else port,
        (parts.path or "/") + query,
    )


def _resolve(target: _Target, deadline: float) -> list[str]:
    """The name's addresses. On a thread, which is left behind where the resolver takes too long:
    nothing can interrupt it."""
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def ask() -> None:
        found: list[str] = []
        with suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM
            ):
                found.append(str(address[0]))
        answers.put(list(dict.fromkeys(found)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        return answers.get(timeout=_remaining(deadline))
    except queue.Empty:
        raise _too_slow() from None


def _exchange(
    connection: "HTTPConnection",
    deadline: float,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    kept: int | None,
) -> Reply:
    """Send the request and read the answer: whole, or ``kept`` bytes of what comes. A socket's own
    timeout begins anew with each byte, so a timer hangs up at the deadline."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    sock = connection.sock
    connection.timeout = _remaining(deadline)
    timer = threading.Timer(connection.timeout, _hang_up, [sock])
    timer.daemon = True
    timer.start()
    try:
        connection.request(method, path, body, headers, preload_content=False, decode_content=False)
        response = connection.getresponse()
        if 300 <= response.status < 400:
            raise OutboundError("The server answered with a redirect, and none is followed.")
        if kept is not None:
            return Reply(response.status, _beginning(response, kept))
        # Compressed bodies, which nobody asked for, are not unpacked: they cannot swell.
        received = bytearray()
        while len(received) <= BODY_LIMIT and (
            piece := response.read(64 << 10, decode_content=False)
        ):
            received += piece
    except (HTTPError, HTTPException, OSError):
        _remaining(deadline)
        raise OutboundError("The server broke off its answer.") from None
    finally:
        timer.cancel()
        timer.join()
    _remaining(deadline)
    if len(received) > BODY_LIMIT:
        raise OutboundError("The server's answer is longer than 1 MiB.")
    return Reply(response.status, bytes(received))


def _beginning(response: "HTTPResponse", most: int) -> bytes:
    """What comes of a body, at most so many bytes, until it ends in whatever way."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    received = bytearray()
    with suppress(HTTPError, HTTPException, OSError):
        while len(received) < most and (
            piece := response.read1(most - len(received), decode_content=False)
        ):
            received += piece
    return bytes(received)


def _hang_up(sock: socket.socket) -> None:
    """End both directions below TLS, which another thread may be using."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise _too_slow()
    return seconds


def _too_slow() -> OutboundError:
    return OutboundError("The server did not answer in time.")
