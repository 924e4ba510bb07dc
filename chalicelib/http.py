"""What passes between a host and a function: requests, responses, bodies, errors.

A host (``chalicelib.hosts``) turns its own events into these; a function knows nothing else of
the host that runs it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol
from urllib.parse import parse_qs

from chalicelib.identity import NOBODY, Subject

Piece = bytes | bytearray | memoryview
JSON = "application/json"


class Headers(Mapping[str, str]):
    """Header fields by name, in any case. A field that came twice is joined by a comma
    (RFC 9110, section 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields.items() if isinstance(fields, Mapping) else fields:
            key = name.lower()
            before = self._fields.get(key)
            self._fields[key] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class Query(Mapping[str, str]):
    """Query parameters; the first value of each, and with ``all`` every one. ``raw`` is how they
    were sent."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: str = "") -> None:
        self.raw = raw
        # A plus is a plus: media types have them, and no value here has a space.
        encoded = raw.replace("+", "%2B")
        self._values = parse_qs(encoded, keep_blank_values=True) if raw else {}

    def __getitem__(self, name: str) -> str:
        return self._values[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def all(self, name: str) -> list[str]:
        """Every value of a parameter that may be repeated, in the order given."""
        return self._values.get(name, [])


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as a function sees it.

    ``path`` is percent-decoded and without the query. ``body`` is the whole body where the
    endpoint takes a buffered one, and empty where the body is streamed to a ``Receiver``.
    ``client`` is the client's address: the peer's, or what a trusted proxy says. ``secure`` tells
    whether the client speaks TLS, to this host or to a trusted proxy. ``params`` are the parts of
    the path that the endpoint's pattern names (``repository``, ``reference``, ``digest``,
    ``upload``), and ``subject`` is who asks; both are filled in by ``chalicelib.endpoints``.
    """

    method: str
    path: str
    query: Query = field(default_factory=Query)
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    client: str = ""
    secure: bool = False
    params: Mapping[str, str] = field(default_factory=dict)
    subject: Subject = NOBODY


@dataclass(frozen=True, slots=True)
class FileRegion:
    """Bytes ``offset`` to ``offset + length`` of an open file, for a host to send without
    copying them through Python. Whoever sends it closes the file. The open file keeps the bytes
    readable when the name is deleted meanwhile."""

    file: BinaryIO
    offset: int
    length: int

    def __iter__(self) -> Iterator[bytes]:
        """The bytes in pieces of at most 1 MiB; closes the file at the end."""
        with self.file as file:
            file.seek(self.offset)
            left = self.length
            while left:
                piece = file.read(min(left, 1 << 20))
                if not piece:
                    raise OSError("the object is shorter than its size")
                left -= len(piece)
                yield piece

    def close(self) -> None:
        """Close without sending."""
        self.file.close()


class Stream(Protocol):
    """A body that arrives in pieces, from object storage say. ``close`` gives back its
    connection, and may be called at any point."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. ``headers`` are pairs, since a field may be repeated (``OCI-Tag``, ``Warning``).

    A ``FileRegion`` or ``Stream`` body comes with a ``Content-Length`` among the headers (in the
    harness a ``Stream`` may come without); for ``bytes`` the host adds it where it is missing. An
    answer to HEAD has the ``Content-Length`` of the answer to GET and an empty body. ``subject`` is
    who asked, and ``route`` the path of the endpoint's row, empty where there is none: for the
    host's log and metrics.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: "bytes | FileRegion | Stream" = b""
    subject: str = ""
    route: str = ""


class Receiver(Protocol):
    """Takes a streamed body. The host calls ``feed`` with what has arrived, in order, then
    ``finish`` once for the answer, or ``abort`` once when the client went away or fell silent.

    Each call may block (hashing, storage) and may raise ``RegistryError``; after a raise only
    ``abort`` follows. Calls for one receiver never overlap.
    """

    def feed(self, pieces: Sequence[Piece]) -> None: ...

    def finish(self) -> Response: ...

    def abort(self) -> None: ...


class RegistryError(Exception):
    """An error of the specification (OCI Distribution, "Error Codes"): what the client sees.

    ``message`` is a sentence that says what is wrong, ``detail`` what would help to mend it.
    """

    status = 400
    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        detail: Any = None,
        *,
        code: str | None = None,
        status: int | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.code = code or self.code
        self.status = status or self.status
        self.headers = tuple(headers)

    def response(self) -> Response:
        """The error as the specification's JSON body."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        body = json.dumps({"errors": [error]}).encode()
        return Response(self.status, (("Content-Type", JSON), *self.headers), body)


class BlobUnknown(RegistryError):
    """The repository has no such blob."""

    status, code = 404, "BLOB_UNKNOWN"


class UploadInvalid(RegistryError):
    """A request of an upload that cannot be carried out."""

    status, code = 400, "BLOB_UPLOAD_INVALID"


class UploadUnknown(RegistryError):
    """There is no such upload, or no right to it."""

    status, code = 404, "BLOB_UPLOAD_UNKNOWN"


class DigestInvalid(RegistryError):
    """A digest that is none, or not that of the bytes received."""

    status, code = 400, "DIGEST_INVALID"


class ManifestBlobUnknown(RegistryError):
    """A manifest names what its repository lacks."""

    status, code = 404, "MANIFEST_BLOB_UNKNOWN"


class ManifestInvalid(RegistryError):
    """A manifest, or a tag for one, that cannot be kept."""

    status, code = 400, "MANIFEST_INVALID"


class ManifestUnknown(RegistryError):
    """The repository has no such manifest or tag."""

    status, code = 404, "MANIFEST_UNKNOWN"


class NameInvalid(RegistryError):
    """A name that no repository can have."""

    status, code = 400, "NAME_INVALID"


class NameUnknown(RegistryError):
    """There is no such repository, or none that this caller may know of."""

    status, code = 404, "NAME_UNKNOWN"


class Moved(RegistryError):
    """The repository has another name now; ``Location`` is the same thing there."""

    status, code = 307, "NAME_UNKNOWN"


class SizeInvalid(RegistryError):
    """A length that is not what was said, or too much."""

    status, code = 400, "SIZE_INVALID"


class Unauthorized(RegistryError):
    """Credentials are missing or wrong."""

    status, code = 401, "UNAUTHORIZED"


class Denied(RegistryError):
    """This caller may not do this."""

    status, code = 403, "DENIED"


class Unsupported(RegistryError):
    """What the registry does not do."""

    status, code = 405, "UNSUPPORTED"


class Unavailable(RegistryError):
    """Postgres or storage does not answer: the client may try again."""

    status, code = 503, "UNAVAILABLE"

    def __init__(self, message: str, detail: Any = None) -> None:
        super().__init__(message, detail, headers=(("Retry-After", "2"),))
