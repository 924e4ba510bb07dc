"""One connection to Postgres, and what can go wrong on it.

pg8000 connects, authenticates and converts values. Statements take a path of our own over its
socket: pg8000 sends an unprepared one in three parts, which a pooler in transaction mode gives to
three servers (behind PgBouncer it answered with another client's rows), asks the server to flush
after every message, and carries bytea as hexadecimal text. Here each is one round trip, and a
manifest's bytes travel as bytes.

Source: PostgreSQL documentation, "Frontend/Backend Protocol".
"""

import json
import select
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import pg8000.native
from pg8000.converters import make_param
from pg8000.native import to_statement

from chalicelib.metadata.target import Target

_LEAVING = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""The server stops, crashed, starts up, or has ended an idle session or an idle transaction."""
_FULL = "53300"
_POOLER_FULL = "no more connections allowed"  # PgBouncer

_POOLER = ": is this a pooler in transaction mode? Then set OPENREGISTRY_DATABASE_PREPARE=false"

_CONNECT_SECONDS = 5.0
_MOST_STATEMENTS = 256
_BYTEA = 17
_BINARY = (bytes, bytearray, memoryview)


class DatabaseError(Exception):
    """Postgres refused a statement: nothing of it has happened. ``sqlstate`` is the five-letter
    code (PostgreSQL documentation, Appendix A)."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "unknown error"))
        self.sqlstate = fields.get("C", "")
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
    """No connection could be made. ``passing``: it may be possible in a moment. ``full``: the
    server has given all that it has to others."""

    def __init__(self, reason: str, *, passing: bool, full: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing
        self.full = full


class _Names(dict[str, str]):
    """Given to pg8000 in place of parameters, tells the names that it asks for, in order."""

    def __missing__(self, name: str) -> str:
        return name


@lru_cache(maxsize=4 * _MOST_STATEMENTS)
def _translate(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with ``:name`` parameters as one with ``$1``, and the names in that order."""
    text, values = to_statement(sql)
    return text.encode() + b"\0", values(_Names())


_Decoder = Callable[[bytes], Any]

_DATA_ROW, _ROW_DESCRIPTION, _READY_FOR_QUERY = b"DTZ"
_BIND_COMPLETE, _ERROR, _NOTICE = b"2EN"

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
        if isinstance(value, _BINARY):
            kinds.append(b"\0\1")
            data = bytes(value)
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


_BEGIN = _plain("BEGIN")
_COMMIT = _plain("COMMIT") + _SYNC
_ROLLBACK = _plain("ROLLBACK") + _SYNC


def _timestamp(data: bytes) -> Any:
    text = data.decode()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


_DECODERS: dict[int, _Decoder] = {
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
    decoders: list[_Decoder]


class Connection:
    """An open connection, for one thread at a time. With ``prepare``, statements are prepared when
    first used; without, nothing is left behind on the server between transactions, so that a
    pooler may give each to another server. ``timeout`` in seconds bounds each wait for the server;
    the server itself gives a statement up a little earlier. It ends the connection where nothing
    is asked for ``idle`` seconds, if it is not 0 and there is no pooler."""

    def __init__(self, target: Target, *, prepare: bool, timeout: float, idle: float = 0) -> None:
        limit = int(timeout * 800)
        parameters = {"client_encoding": "UTF8", "DateStyle": "ISO", "TimeZone": "UTC"}
        self._begin = _BEGIN
        if prepare:
            parameters["statement_timeout"] = str(limit)
            parameters["idle_in_transaction_session_timeout"] = str(4 * limit)
            if idle:
                parameters["idle_session_timeout"] = str(int(idle * 1000))
        else:
            # A pooler refuses these as parameters of the connection.
            self._begin += _plain(f"SET LOCAL statement_timeout = {limit}")
        self._pg = _connect(target, min(timeout, _CONNECT_SECONDS), parameters)
        self._socket: socket.socket = self._pg._usock
        self._read: Callable[[int], bytes] = self._pg._sock.read
        self._socket.settimeout(timeout)
        if not target.socket:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._idle = select.poll()
        self._idle.register(self._socket, select.POLLIN)
        self._prepare = prepare
        self._statements: dict[str, _Statement] = {}
        self._status = b"I"
        self.used = 0.0
        """When it was last given back to the pool (``time.monotonic``)."""
        self.scarce = False
        """Whether the server had few left when it was made."""

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
        self,
        sql: str,
        parameters: Mapping[str, object],
        *,
        begin: bool = False,
        trace: str = "",
    ) -> list[list[Any]]:
        """Run one statement, after BEGIN if so wished, in one round trip (two where it is being
        prepared). ``trace`` is what jobs of the transaction that begins are caused by, and must
        be safe in SQL. Raises ``DatabaseError`` or ``ConnectionLost``."""
        first = self._begin if begin else b""
        if trace:
            first += _plain(f"SET LOCAL openregistry.trace = '{trace}'")
        statement = self._statements.get(sql)
        if statement is None and self._prepare and len(self._statements) < _MOST_STATEMENTS:
            statement = self._prepare_statement(sql)
        if statement is not None:
            values = [parameters[name] for name in statement.names]
            bind = _bind(statement.name, values, self._pg.py_types, statement.formats)
            return self._exchange(first + bind + _EXECUTE + _SYNC, statement.decoders).rows
        text, names = _translate(sql)
        values = [parameters[name] for name in names]
        bind = _bind(b"", values, self._pg.py_types, _short.pack(0))
        message = first + _parse(b"", text) + bind + _DESCRIBE_PORTAL + _EXECUTE + _SYNC
        return self._exchange(message, []).rows

    def script(self, sql: str) -> None:
        """Run several statements, without parameters, and forget their rows."""
        self._exchange(_message(b"Q", sql.encode() + b"\0"), [])

    def commit(self) -> None:
        """End the transaction. A ``ConnectionLost`` that is not ``harmless`` leaves open whether it
        was committed."""
        self._exchange(_COMMIT, [])

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
        try:
            columns = self._exchange(_parse(name, text) + describe + _SYNC, []).columns
        except ConnectionLost as error:
            error.harmless = True
            raise
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

    def _decoder(self, oid: int, kind: int) -> _Decoder:
        if kind:
            return bytes
        decoder = _DECODERS.get(oid)
        if decoder is None:
            convert = self._pg.pg_types[oid]

            def decoder(data: bytes) -> Any:
                return convert(data.decode())

        return decoder

    def _exchange(self, message: bytes, decoders: list[_Decoder]) -> "_Reply":
        """Send a message that ends in Sync or is a Query; read up to ReadyForQuery."""
        self._status = b""
        try:
            self._socket.sendall(message)
        except OSError as error:
            # The end is missing, and without it the server makes nothing permanent.
            silent = isinstance(error, TimeoutError)
            raise ConnectionLost(_reason(error), harmless=True, silent=silent) from error
        reply = _Reply()
        try:
            while True:
                code, data = self._receive()
                if code == _DATA_ROW:
                    reply.rows.append(_row(data, decoders))
                elif code == _ROW_DESCRIPTION:
                    reply.columns = _columns(data)
                    decoders = [self._decoder(oid, kind) for oid, kind in reply.columns]
                elif code != _READY_FOR_QUERY:
                    reply.note(code, data)
                else:
                    break
        except OSError as error:
            raise reply.lost(error) from error
        if reply.error is not None:
            if why := _stale(reply.error):
                raise ConnectionLost(f"{reply.error}{why}", harmless=True) from reply.error
            self._status = data
            raise reply.error
        self._status = data
        return reply

    def _receive(self) -> tuple[int, bytes]:
        """The next message: its code and its content."""
        head = self._read(5)
        if len(head) == 5:
            length = _int.unpack_from(head, 1)[0] - 4
            data = self._read(length) if length else b""
            if len(data) == length:
                return head[0], data
        raise ConnectionResetError("the server has hung up")


class _Reply:
    """What the server has said to one message."""

    __slots__ = ("begun", "columns", "error", "rows")

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.columns: list[tuple[int, int]] = []
        """Type and format (1: binary) of each."""
        self.error: DatabaseError | None = None
        self.begun = False

    def note(self, code: int, data: bytes) -> None:
        """Take in a message that is no row."""
        if code == _BIND_COMPLETE:
            self.begun = True
        elif code in (_ERROR, _NOTICE):
            error = _error(data)
            # A server that stops at once says farewell in a notice.
            if self.error is None and (code == _ERROR or error.sqlstate in _LEAVING):
                self.error = error

    def lost(self, error: Exception) -> ConnectionLost:
        """What it means that the server says no more."""
        if self.error is None:
            silent = isinstance(error, TimeoutError)
            return ConnectionLost(_reason(error), harmless=False, silent=silent)
        # Messages come in order: what was not bound was not carried out either. Other states are
        # not to be relied upon, since a pooler speaks for a server that it has lost.
        harmless = not self.begun and self.error.sqlstate in _LEAVING
        return ConnectionLost(str(self.error), harmless=harmless)


def _connect(
    target: Target, timeout: float, parameters: dict[str, str]
) -> pg8000.native.Connection:
    try:
        connection = pg8000.native.Connection(
            user=target.user,
            password=target.password,
            host=None if target.socket else target.host,
            port=target.port,
            unix_sock=target.socket,
            database=target.database,
            ssl_context=target.tls(),
            timeout=timeout,
            application_name=target.application_name,
            startup_params=parameters,
        )
    except Exception as error:
        raise _connect_error(error, target) from error
    if target.channel_binding == "require":
        login = getattr(connection, "auth", None)
        if login is None or not login.mechanism_name.endswith("-PLUS"):
            connection.close()
            raise ConnectError("the server offers no channel binding", passing=False)
    return connection


def _connect_error(error: Exception, target: Target) -> ConnectError:
    """Why no connection was made. pg8000 takes leave of a server that has refused it, and where
    that fails the refusal is only in the error's context."""
    chain: list[BaseException] = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    for link in chain:
        if isinstance(link, pg8000.native.DatabaseError):
            refusal = DatabaseError(link.args[0])
            full = refusal.sqlstate == _FULL or refusal.args[0].startswith(_POOLER_FULL)
            passing = full or refusal.sqlstate in _LEAVING
            # What PgBouncer says to our parameters.
            unknown = refusal.sqlstate == "08P01" and not full
            said = f"{refusal}{_POOLER if unknown else ''}"
            return ConnectError(said, passing=passing, full=full)
    reason = ": ".join(map(_reason, chain))
    if isinstance(error, AttributeError) and target.password is None:
        return ConnectError("the server asks for a password", passing=False)
    lasting = (ssl.SSLCertVerificationError, FileNotFoundError if not target.socket else ())
    broken = str(error) == "network error" or isinstance(chain[-1], OSError)
    passing = broken and not any(isinstance(link, lasting) for link in chain)
    return ConnectError(reason, passing=passing)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _row(data: bytes, decoders: list[_Decoder]) -> list[Any]:
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
    return row


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


def _stale(error: DatabaseError) -> str:
    """Why another connection would not meet this error, "" where it would."""
    if error.sqlstate in ("26000", "42P05"):
        return _POOLER
    if error.sqlstate == "0A000" and error.fields.get("R") == "RevalidateCachedQuery":
        return ": a table has changed since the statement was prepared"
    return ": the server has become a standby" if error.sqlstate == "25006" else ""
