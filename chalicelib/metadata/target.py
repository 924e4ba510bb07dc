"""Where Postgres is, and how to reach it: a ``postgresql://`` URL, as libpq takes it.

Source: PostgreSQL documentation, "Connection Strings" and "SSL Support".
"""

import getpass
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

_SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
_CHANNEL_BINDINGS = ("disable", "prefer", "require")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart. A ``host`` that begins with a slash is the directory of a Unix socket."""

    user: str
    password: str | None = field(repr=False)
    host: str
    port: int
    database: str
    application_name: str
    sslmode: str
    sslrootcert: str
    sslcert: str
    sslkey: str
    channel_binding: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        """From ``postgresql://user:password@host:port/database?sslmode=...``. Raises ``ValueError``
        with a sentence that shows nothing of the password."""
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            port = int(query.pop("port", parts.port or 5432))
        except ValueError:
            raise ValueError(
                "the database URL cannot be read: it is"
                " postgresql://user:password@host:port/database, with special characters as %XX"
            ) from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("the database URL begins with postgresql://")
        user = query.pop("user", unquote(parts.username or "")) or getpass.getuser()
        target = cls(
            user=user,
            password=query.pop("password", unquote(parts.password or "")) or None,
            host=query.pop("host", unquote(parts.hostname or "")) or "localhost",
            port=port,
            database=query.pop("dbname", unquote(parts.path.lstrip("/"))) or user,
            application_name=query.pop("application_name", "openregistry"),
            sslmode=_one_of(query, "sslmode", _SSL_MODES),
            sslrootcert=_file(query, "sslrootcert"),
            sslcert=_file(query, "sslcert"),
            sslkey=_file(query, "sslkey"),
            channel_binding=_one_of(query, "channel_binding", _CHANNEL_BINDINGS),
        )
        if query:
            raise ValueError(f"the database URL has an unknown parameter, {min(query)}")
        return target

    @property
    def socket(self) -> str | None:
        """The path of the Unix socket, if it is one."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    def tls(self) -> ssl.SSLContext | bool | None:
        """What pg8000 takes: a context, False for no TLS, None for TLS where the server has it.
        Raises ``OSError`` for a certificate that cannot be read."""
        if self.sslmode == "disable" or self.socket:
            return False
        if self.sslmode == "prefer":
            return None
        return _context(self.sslmode, self.sslrootcert, self.sslcert, self.sslkey)


@lru_cache
def _context(mode: str, root: str, certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=root if root != "system" else None)
    context.check_hostname = mode == "verify-full"
    if mode == "require" and not root:  # libpq, too, verifies where a root is named
        context.verify_mode = ssl.CERT_NONE
    # RFC 5280 to the letter, Python's default since 3.13, refuses certificates that libpq takes.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if certificate:
        context.load_cert_chain(certificate, key or None)
    return context


def _one_of(query: dict[str, str], name: str, values: tuple[str, ...]) -> str:
    value = query.pop(name, "prefer")
    if value not in values:
        raise ValueError(f"{name} in the database URL is one of {', '.join(values)}")
    return value


def _file(query: dict[str, str], name: str) -> str:
    value = query.pop(name, "")
    if value and value != "system" and not Path(value).is_file():
        raise ValueError(f"{name} in the database URL names no file: {value}")
    return value
