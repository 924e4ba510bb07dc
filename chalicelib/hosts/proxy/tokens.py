"""The registry's token service, as clients find it at the proxy (the distribution project's "Token
Authentication Specification")."""

import re
import threading
from urllib.parse import parse_qs, urljoin, urlsplit

from chalicelib.client.names import Registry
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.hosts.proxy import fields
from chalicelib.http import Request

PATH = "/token"

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)'
_REALM = re.compile(
    rf"(?i)(\bbearer\s+(?:[\w-]+\s*=\s*{_VALUE}\s*,\s*)*?realm\s*=\s*)({_VALUE})"
    rf"((?:\s*,\s*[\w-]+\s*=\s*{_VALUE})*)"
)
"""A Bearer challenge: what comes before its realm, the realm, and the parameters after it."""
_SERVICE = re.compile(rf"(?i)\bservice\s*=\s*({_VALUE})")

_SERVICES = 100
"""Realms that are remembered; a registry has one, seldom a few."""


class Tokens:
    """Sends clients to the proxy for their tokens, and what they ask there on to the registry's
    realm: the one that it named for the service that they ask for, and no other."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._realms: dict[str, str] = {}
        self._servers: dict[Registry, Remote] = {}
        self._lock = threading.Lock()

    def challenge(self, header: str, url: str, host: str) -> str:
        """A WWW-Authenticate from ``url`` for a client that calls the proxy ``host``. Other schemes
        than Bearer pass as they are: Basic credentials are for the registry itself."""

        def learn(found: re.Match[str]) -> str:
            service = _SERVICE.search(found[1] + found[3])
            if len(self._realms) < _SERVICES:
                self._realms[_text(service[1]) if service else ""] = urljoin(url, _text(found[2]))
            return f'{found[1]}"http://{host}{PATH}"{found[3]}'

        return _REALM.sub(learn, header)

    def ask(self, request: Request) -> Reply:
        """The answer of the registry's realm. Raises ``RemoteError``."""
        form = parse_qs(request.body.decode(errors="replace"))
        service = request.query.get("service") or form.get("service", [""])[0]
        realm = self._realm(service)
        query = request.query.raw
        joint = "&" if urlsplit(realm).query else "?"
        return self._at(realm).send(
            request.method,
            f"{realm}{joint}{query}" if query else realm,
            headers=fields.to_registry(request.headers),
            body=request.body,
            authorization=request.headers.get("authorization", ""),
            redirects=False,
            attempts=3,
        )

    def _at(self, realm: str) -> Remote:
        """The server of a realm, to which credentials go."""
        parts = urlsplit(realm)
        server = Registry(parts.netloc, f"{parts.scheme}://{parts.netloc}")
        with self._lock:
            return self._servers.setdefault(server, Remote(server))

    def _realm(self, service: str) -> str:
        if service not in self._realms:
            # A client that remembers the challenge of a proxy that ran here before.
            reply = self._remote.send("GET", "/v2/", authorization="", attempts=3)
            self.challenge(reply.headers.get("www-authenticate", ""), reply.url, "")
        realm = self._realms.get(service) or next(iter(self._realms.values()), "")
        if not realm:
            raise RemoteError(f"{self._remote.registry.host} has no tokens.", 404, "UNSUPPORTED")
        if self._remote.registry.secure and urlsplit(realm).scheme != "https":
            raise RemoteError(
                f"{self._remote.registry.host} wants tokens to be asked for without TLS:"
                " credentials are not sent there.",
                502,
            )
        return realm


def _text(value: str) -> str:
    """What a parameter says."""
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
