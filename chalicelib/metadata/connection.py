"""One connection to Postgres, and what can go wrong on it.

pg8000 connects, authenticates and converts values. Statements take a path of our own over its
socket, since pg8000 sends an unprepared one in three parts that a pooler in transaction mode may
give to three servers, asks the server to flush after every message, and carries bytea as
hexadecimal text. Here each is one round trip, and a manifest's bytes travel as bytes.

Source: PostgreSQL documentation, "Frontend/Backend Protocol".
"""

import getpass
import json
import select
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pg8000.native
from pg8000.converters import make_param
from pg8000.native import to_statement

SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
GOING_AWAY = frozenset({"57P01", "57P02", "57P03"})
"""The server stops, crashed or starts up."""

_CONNECT_SECONDS = 5.0
_MOST_STATEMENTS = 256
_BYTEA = 17


class DatabaseError(Exception):
    """Postgres refused a statement: nothing of it has happened. ``sqlstate`` is the five-letter
    code (PostgreSQL documentation, Appendix A), ``constraint`` the constraint that was violated or
    ""."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "unknown error"))
        self.sqlstate = fields.get("C", "")
        self.constraint = fields.get("n", "")
        self.detail = fields.get("D", "")
        self.fields = fields

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.sqlstate, self.args[0], self.detail)))


class UniqueViolation(DatabaseError):
    """23505: the row is there already."""


class ForeignKeyViolation(DatabaseError):
    """23503: a row that is referred to is missing, or one that is deleted is referred to."""


class ConnectionLost(Exception):
    """The connection is of no more use. ``harmless``: the statement on it has had no effect.
    ``silent``: the server did not answer in time, so that trying again would only wait again."""

    def __init__(self, reason: str, *, harmless: bool, silent: bool = False) -> None:
        super().__init__(reason)
        self.harmless = harmless
        self.silent = silent


class ConnectError(Exception):
    """No connection could be made. ``passing``: it may be possible in a moment."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Target:
    """Where and as whom to connect, from a URL as libpq takes it."""

    user: str
    database: str
    host: str
    port: int
    password: str | None = field(default=None, repr=False)
    sslmode: str = "prefer"
    sslrootcert: str = ""
    sslcert: str = ""
    sslkey: str = ""

    @classmethod
    def parse(cls, url: str) -> "Target":
        """From ``postgresql://user:password@host:port/database?sslmode=...``; a ``host`` that
        begins with a slash is the directory of a Unix socket. Raises ``ValueError`` with a
        sentence that never shows the password."""
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("the database URL must begin with postgresql://")
        try:
            query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            host, port = unquote(parts.hostname or ""), parts.port
        except ValueError as error:
            raise ValueError(f"the database URL cannot be read: {error}") from None
        host = query.pop("host", host) or "localhost"
        port = int(query.pop("port", port or 5432))
        user = query.pop("user", unquote(parts.username or "")) or getpass.getuser()
        password = query.pop("password", unquote(parts.password) if parts.password else None)
        database = query.pop("dbname", unquote(parts.path.lstrip("/"))) or user
        sslmode = query.pop("sslmode", "prefer")
        if sslmode not in SSL_MODES:
            raise ValueError(f"sslmode in the database URL is one of {', '.join(SSL_MODES)}")
        files = {name: query.pop(name, "") for name in ("sslrootcert", "sslcert", "sslkey")}
        if query:
            raise ValueError(f"the database URL has an unknown parameter: {next(iter(query))}")
        return cls(user, database, host, port, password, sslmode, **files)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}/{self.database}"

    def tls(self) -> ssl.SSLContext | bool | None:
        """What pg8000 takes: a context, False for no TLS, None for TLS if the server has it.
        As with libpq, ``require`` checks the certificate where a root is named."""
        if self.sslmode == "disable" or self.host.startswith("/"):
            return False
        if self.sslmode == "prefer":
            return None
        verify = self.sslmode.startswith("verify") or bool(self.sslrootcert)
        root = self.sslrootcert if self.sslrootcert != "system" else ""
        context = ssl.create_default_context(cafile=root or None)
        context.check_hostname = self.sslmode == "verify-full"
        if not verify:
            context.verify_mode = ssl.CERT_NONE
        # RFC 5280 to the letter, on by default since Python 3.13, fails with certificates that
        # libpq takes, some of Amazon RDS among them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.sslcert:
            context.load_cert_chain(self.sslcert, self.sslkey or None)
        return context


class _Names(dict[str, str]):
    """Given to pg8000 in place of parameters, tells the names that it asks for, in order."""

    def __missing__(self, name: str) -> str:
        return name


@lru_cache(maxsize=4 * _MOST_STATEMENTS)
def _translate(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with ``:name`` parameters as one with ``$1``, and the names in that order."""
    text, values = to_statement(sql)
    return text.encode() + b"\0", values(_Names())


_int = struct.Struct("!i")
_short = struct.Struct("!h")


def _message(code: bytes, body: bytes = b"") -> bytes:
    return code + _int.pack(len(body) + 4) + body


_SYNC = _message(b"S")
_EXECUTE = _message(b"E", b"\0" + _int.pack(0))
_DESCRIBE_PORTAL = _message(b"D", b"P\0")


def _parse(name: bytes, text: bytes) -> bytes:
    return _message(b"P", name + b"\0" + text + b"\0\0")


def _bind(name: bytes, values: Sequence[object], types: Any, formats: bytes) -> bytes:
    """A Bind message: bytes as they are, everything else as pg8000's text."""
    kinds, parts = [], []
    for value in values:
        if value is None:
            kinds.append(b"\0\0")
            parts.append(b"\xff\xff\xff\xff")
            continue
        if type(value) is bytes:
            kinds.append(b"\0\1")
            data = value
        else:
            kinds.append(b"\0\0")
            data = make_param(types, value).encode()
        parts.append(_int.pack(len(data)))
        parts.append(data)
    count = _short.pack(len(kinds))
    body = b"".join((b"\0", name, b"\0", count, *kinds, count, *parts, formats))
    return b"B" + _int.pack(len(body) + 4) + body


def _plain(text: str) -> bytes:
    """A statement without parameters or rows, up to its Sync."""
    return _parse(b"", text.encode() + b"\0") + _bind(b"", (), {}, _short.pack(0)) + _EXECUTE


_COMMIT = _plain("COMMIT") + _SYNC
_ROLLBACK = _plain("ROLLBACK") + _SYNC


def _timestamp(data: bytes) -> Any:
    text = data.decode()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    16: b"t".__eq__,
    18: bytes.decode,
    19: bytes.decode,
    20: int,
    21: int,
    23: int,
    25: bytes.decode,
    26: int,
    114: json.loads,
    1043: bytes.decode,
    1114: _timestamp,
    1184: _timestamp,
    3802: json.loads,
}


@dataclass(slots=True)
class _Statement:
    """A prepared statement: its name on the server, and how to ask for and read its rows."""

    name: bytes
    names: tuple[str, ...]
    formats: bytes
    decoders: list[Callable[[bytes], Any]]


class Connection:
    """An open connection, for one thread at a time. With ``prepare``, statements are prepared when
    first used; without, nothing is left behind on the server between transactions, so that a
    pooler may give each to another server. ``timeout`` in seconds bounds each wait for the server;
    the server itself gives a statement up a little earlier."""

    def __init__(self, target: Target, *, prepare: bool, timeout: float) -> None:
        limit = int(timeout * 800)
        parameters = {"client_encoding": "UTF8", "DateStyle": "ISO", "TimeZone": "UTC"}
        begin = "BEGIN"
        if prepare:
            parameters["statement_timeout"] = str(limit)
            parameters["idle_in_transaction_session_timeout"] = str(limit * 4)
            self._begin = _plain(begin)
        else:
            # A pooler refuses these as parameters of the connection.
            self._begin = _plain(begin) + _plain(f"SET LOCAL statement_timeout = {limit}")
        unix = target.host.startswith("/")
        try:
            self._pg = pg8000.native.Connection(
                target.user,
                host=None if unix else target.host,
                unix_sock=f"{target.host}/.s.PGSQL.{target.port}" if unix else None,
                port=target.port,
                database=target.database,
                password=target.password,
                ssl_context=target.tls(),
                timeout=min(timeout, _CONNECT_SECONDS),
                application_name="openregistry",
                startup_params=parameters,
            )
        except pg8000.native.DatabaseError as error:
            fields = error.args[0]
            passing = fields.get("C") in GOING_AWAY or fields.get("C") == "53300"
            raise ConnectError(str(DatabaseError(fields)), passing=passing) from error
        except ssl.SSLError as error:
            raise ConnectError(f"TLS: {error}", passing=False) from error
        except (pg8000.native.Error, OSError, struct.error) as error:
            cause = error.__cause__ or error.__context__
            reason = f"{error} ({cause})" if cause else str(error)
            raise ConnectError(reason, passing=True) from error
        self._socket: socket.socket = self._pg._usock
        self._read: Callable[[int], bytes] = self._pg._sock.read
        self._socket.settimeout(timeout)
        if not unix:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._idle = select.poll()
        self._idle.register(self._socket, select.POLLIN)
        self._prepare = prepare
        self._statements: dict[str, _Statement] = {}
        self._status = b"I"
        self.used = 0.0
        """When it was last given back to the pool (``time.monotonic``)."""

    @property
    def ready(self) -> bool:
        """In step with the server, and in no transaction."""
        return self._status == b"I"

    @property
    def open(self) -> bool:
        """In step with the server, in a transaction."""
        return self._status in (b"T", b"E")

    def stale(self) -> bool:
        """Whether the server has said something to an idle connection: mostly, that it ends."""
        return bool(self._idle.poll(0))

    def execute(
        self, sql: str, parameters: Mapping[str, object], *, begin: bool = False
    ) -> list[list[Any]]:
        """Run one statement, after BEGIN if so wished, in one round trip (two where it is being
        prepared). Raises ``DatabaseError`` or ``ConnectionLost``."""
        first = self._begin if begin else b""
        statement = self._statements.get(sql)
        if statement is None and self._prepare and len(self._statements) < _MOST_STATEMENTS:
            statement = self._prepare_statement(sql)
        if statement is not None:
            values = [parameters[name] for name in statement.names]
            bind = _bind(statement.name, values, self._pg.py_types, statement.formats)
            return self._exchange(first + bind + _EXECUTE + _SYNC, statement.decoders)[0]
        text, names = _translate(sql)
        values = [parameters[name] for name in names]
        bind = _bind(b"", values, self._pg.py_types, _short.pack(0))
        message = first + _parse(b"", text) + bind + _DESCRIBE_PORTAL + _EXECUTE + _SYNC
        return self._exchange(message, [])[0]

    def script(self, sql: str) -> None:
        """Run several statements, without parameters, and forget their rows."""
        self._exchange(_message(b"Q", sql.encode() + b"\0"), [])

    def commit(self) -> None:
        """End the transaction. A ``ConnectionLost`` that is not ``harmless`` leaves open whether it
        was committed."""
        tag = self._exchange(_COMMIT, [])[2]
        if tag != b"COMMIT\0":
            raise DatabaseError({"C": "25P02", "M": "the transaction had failed before its end"})

    def rollback(self) -> None:
        """Undo the transaction."""
        self._exchange(_ROLLBACK, [])

    def close(self) -> None:
        """Take leave of the server where it still listens."""
        self._status = b""
        try:
            self._socket.settimeout(0)
            self._socket.send(_message(b"X"))
        except OSError:
            pass
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket without a word: the server may still be talking to the process that
        this one was forked from."""
        self._status = b""
        try:
            self._pg._sock.close()
            self._socket.close()
        except OSError:
            pass

    def _prepare_statement(self, sql: str) -> _Statement:
        text, names = _translate(sql)
        name = b"s%d" % len(self._statements)
        describe = _message(b"D", b"S" + name + b"\0")
        columns = self._exchange(_parse(name, text) + describe + _SYNC, [])[1]
        # bytea comes as bytes, all else as text.
        formats = [1 if oid == _BYTEA else 0 for oid, _ in columns]
        statement = _Statement(
            name,
            names,
            struct.pack(f"!{len(formats) + 1}h", len(formats), *formats),
            [self._decoder(oid, kind) for (oid, _), kind in zip(columns, formats, strict=True)],
        )
        self._statements[sql] = statement
        return statement

    def _decoder(self, oid: int, kind: int) -> Callable[[bytes], Any]:
        if kind:
            return bytes
        decoder = _DECODERS.get(oid)
        if decoder is None:
            convert = self._pg.pg_types[oid]

            def decoder(data: bytes) -> Any:
                return convert(data.decode())

        return decoder

    def _exchange(
        self, message: bytes, decoders: list[Callable[[bytes], Any]]
    ) -> tuple[list[list[Any]], list[tuple[int, int]], bytes]:
        """Send a message that ends in Sync or Query; read up to ReadyForQuery. Gives rows, columns
        (type and format) and the last command's tag."""
        begun = False
        self._status = b""
        try:
            self._socket.sendall(message)
        except OSError as error:
            # Without its end, Sync, the server carries nothing out for good.
            silent = isinstance(error, TimeoutError)
            raise ConnectionLost(f"sending: {error}", harmless=True, silent=silent) from error
        read = self._read
        rows: list[list[Any]] = []
        columns: list[tuple[int, int]] = []
        tag = b""
        error: DatabaseError | None = None
        while True:
            try:
                head = read(5)
                length = _int.unpack_from(head, 1)[0] - 4
                data = read(length) if length else b""
            except (OSError, struct.error) as failure:
                if error is not None:
                    raise self._lost(error, begun) from failure
                silent = isinstance(failure, TimeoutError)
                raise ConnectionLost(
                    f"receiving: {failure}", harmless=False, silent=silent
                ) from failure
            if len(data) < length:
                raise ConnectionLost("receiving: cut short", harmless=False)
            code = head[0]
            if code == 68:  # DataRow
                row: list[Any] = []
                at = 2
                for decode in decoders:
                    (size,) = _int.unpack_from(data, at)
                    at += 4
                    if size < 0:
                        row.append(None)
                    else:
                        row.append(decode(data[at : at + size]))
                        at += size
                rows.append(row)
            elif code == 90:  # ReadyForQuery
                if error is not None and _is_stale_plan(error):
                    raise self._lost(error, begun=False)
                self._status = data
                if error is not None:
                    raise error
                return rows, columns, tag
            elif code == 50:  # BindComplete
                begun = True
            elif code == 67:  # CommandComplete
                tag = data
            elif code == 69:  # ErrorResponse
                error = error or _error(data)
            elif code == 84:  # RowDescription
                columns = _columns(data)
                decoders = [self._decoder(oid, kind) for oid, kind in columns]

    @staticmethod
    def _lost(error: DatabaseError, begun: bool) -> ConnectionLost:
        # Before BindComplete nothing was carried out; messages come in order.
        harmless = not begun and error.sqlstate in GOING_AWAY or _is_stale_plan(error)
        lost = ConnectionLost(str(error), harmless=harmless)
        lost.__cause__ = error
        return lost


def _columns(data: bytes) -> list[tuple[int, int]]:
    columns = []
    at = 2
    for _ in range(_short.unpack_from(data)[0]):
        at = data.index(b"\0", at) + 1
        _, _, oid, _, _, kind = struct.unpack_from("!ihihih", data, at)
        columns.append((oid, kind))
        at += 18
    return columns


def _error(data: bytes) -> DatabaseError:
    fields = {chr(part[0]): part[1:].decode(errors="replace") for part in data.split(b"\0") if part}
    kinds = {"23505": UniqueViolation, "23503": ForeignKeyViolation}
    return kinds.get(fields.get("C", ""), DatabaseError)(fields)


def _is_stale_plan(error: DatabaseError) -> bool:
    """Whether a new connection helps: the statement's table was migrated since it was prepared, a
    pooler has put another server behind this connection, or the server has become a standby."""
    if error.sqlstate == "0A000":
        return error.fields.get("R") == "RevalidateCachedQuery"
    return error.sqlstate in ("26000", "25006")
