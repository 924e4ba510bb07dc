"""The certificate that the registry gets itself (RFC 8555): in use as soon as it is there, and what
its authority asks for on the way. `chalicelib.jobs.certificates` orders it."""

import logging
import re
import ssl
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from threading import Event
from urllib.parse import quote

from chalicelib.context import Context
from chalicelib.endpoints import Body
from chalicelib.hosts import open_database
from chalicelib.hosts.harness.certificates import context_of
from chalicelib.hosts.harness.functions import Turn
from chalicelib.http import RegistryError, Request, Response
from chalicelib.identity.keys import SealError
from chalicelib.jobs.certificates import KEYS, KIND
from chalicelib.metadata import certificates, jobs
from chalicelib.metadata.database import DatabaseError
from chalicelib.settings import Settings

_log = logging.getLogger(__name__)

_CHALLENGE = re.compile(r"/\.well-known/acme-challenge/([A-Za-z0-9_-]{1,256})")


class Ordered:
    """The certificate of this registry's names; until there is one, one that it has signed itself
    and that nobody trusts."""

    def __init__(self, context: Context) -> None:
        self._functions = context
        self._known: str | None = None
        self.context = _self_signed(context.settings.acme_domains)

    def refresh(self) -> None:
        settings = self._functions.settings
        try:
            found = certificates.find_newer(
                self._functions.database,
                settings.acme_directory,
                settings.acme_domains,
                self._known,
            )
            if found is not None:
                self._known = found.id
                key = self._functions.keys.unseal(KEYS, found.id, found.key)
                self.context = context_of(key + found.chain.encode())
                _log.info("a certificate that holds until %s is in use", found.not_after)
        except (RegistryError, DatabaseError, SealError, OSError) as error:
            _log.warning("no newer certificate can be had; the former stays: %s", error)


class Challenges:
    """What answers without TLS: ``Functions`` of the harness. An authority finds what it asks for
    (RFC 8555, section 8.3), and everybody else the way to HTTPS."""

    limit = 0

    def __init__(self, context: Context) -> None:
        self._context = context

    def wants(self, _request: Request) -> Body:
        return Body.NONE

    def turn(self, _request: Request) -> Turn:
        return Turn.QUICK

    def act(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except RegistryError as error:
            return error.response()
        except DatabaseError:
            _log.exception("a challenge cannot be looked up")
            return RegistryError("The registry failed; its log says why.", status=500).response()

    health = ready = answer = receive = act

    def flush(self) -> None: ...

    def end(self) -> None: ...

    def work(self, stop: Event) -> None: ...

    def _answer(self, request: Request) -> Response:
        if asked := _CHALLENGE.fullmatch(request.path):
            found = certificates.challenge(self._context.database, asked[1])
            if found is None:
                raise RegistryError("There is nothing at this path.", code="NOT_FOUND", status=404)
            body = found.encode()
            length = ("Content-Length", str(len(body)))
            return Response(200, [("Content-Type", "application/octet-stream"), length], body)
        names = self._context.settings.acme_domains
        # Not to any Host: anybody may send any.
        host = request.headers.get("host", "").partition(":")[0].lower()
        url = f"https://{host if host in names else names[0]}{quote(request.path)}"
        if request.query.raw:
            url += f"?{request.query.raw}"
        return Response(308, [("Location", url), ("Content-Length", "0")])


def begin(settings: Settings) -> None:
    """Have a worker look at once whether a certificate is to be ordered."""
    # Not the workers' database: they must not share a connection.
    with closing(open_database(settings)) as database:
        jobs.add_once(database, KIND, {}, subject="")


def _self_signed(names: Sequence[str]) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "OpenRegistry")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return context_of(pem + certificate.public_bytes(Encoding.PEM))
