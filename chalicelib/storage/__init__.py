"""Object storage: one Protocol, and what the contract of each store is.

A key is made by the registry: letters, digits, ``-`` and ``_``, random from its first letter on. It
is used for one request's bytes and never again. (A marker of ``jobs/orphans.py`` alone begins with
a word.) Nothing is copied or renamed once it is an object; a store need have no CopyObject, no
UploadPartCopy and no conditional writes.

``tests/contract`` holds what is asked of every store. It runs against ``filesystem`` on ext4 and
against ``s3`` on SeaweedFS, also with faults between the two. AWS, MinIO, R2 and Filebase could
not be reached when this was written: the code keeps to what their documents promise (equal parts
but the last, of 5 MiB or more, numbered up to 10,000) and has not been run against them.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from chalicelib.http import FileRegion, Piece, Stream

if TYPE_CHECKING:
    from chalicelib.settings import Settings


_MADE = re.compile(r"[0-9a-f]{32}")


def new_key() -> str:
    """A key for one request's bytes."""
    return secrets.token_hex(16)


def made_here(key: str) -> bool:
    """Whether a key looks as ``new_key`` makes them. What has another one in the same folder or
    bucket is not a blob's, and not ours to delete."""
    return _MADE.fullmatch(key) is not None


class StorageError(Exception):
    """Storage did not do what was asked, after its own retries: it is full, down or slow. The
    text is a sentence that clients may see; what only those who run the registry may know is
    logged."""


class NoSuchObject(StorageError):
    """There is no object at that key."""


class Refused(StorageError):
    """The storage service answered with an error that trying again does not mend. ``code`` is the
    service's name for it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ObjectTooLarge(StorageError):
    """The store cannot hold an object of that size under its settings: trying again is in vain."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What an upload has in storage between two requests. Kept in Postgres as JSON.

    ``key`` is where the object is (``whole``) or will be once ``complete`` has run; ``size`` is
    how many bytes are staged. ``state`` belongs to the store: multipart id, parts, tail; it
    holds JSON values only.
    """

    key: str
    size: int
    whole: bool
    state: dict[str, object]


@dataclass(frozen=True, slots=True)
class Sent:
    """A part that a client has sent: its number (from 1), its size in bytes, and storage's tag."""

    number: int
    size: int
    tag: str


class ClientParts(Protocol):
    """How clients send an object's parts to the store themselves. Parts are equal but for the last,
    and no object comes of them before ``ObjectStore.complete``; ``discard`` removes them."""

    most: int
    """How many parts an object has at most."""

    def size(self, blob: int | None, wanted: int | None) -> int | None:
        """How many bytes the parts of a blob are to have, whose own size may be known; a multiple
        of 128. ``wanted`` is a wish. None where the blob is larger than any can be."""

    def begin(self, key: str) -> str:
        """Begin to take parts at a key; gives the name of that."""

    def presign(self, key: str, upload: str, number: int, size: int, seconds: int) -> str:
        """A URL at which whoever has it may PUT one part, of exactly that size."""

    def list(self, key: str, upload: str) -> Sequence[Sent]:
        """The parts that are there, by number. Raises ``Refused`` where they were completed or
        discarded."""

    def staged(self, key: str, upload: str, part_size: int, sent: Sequence[Sent]) -> Staged:
        """What ``ObjectStore.complete`` makes an object of: these parts and no others."""


class Writer(Protocol):
    """Takes the bytes of one request. Calls never overlap; each may block and may raise
    ``StorageError``, after which only ``abort`` follows."""

    def write(self, pieces: Sequence[Piece]) -> None:
        """Take these bytes. They may be overwritten by the caller once this returns."""

    def close(self, *, final: bool) -> Staged:
        """Make every byte durable and say what is staged now, earlier requests included.
        ``final`` promises that ``complete`` follows, so that nothing is kept for a later
        chunk. A writer that was given no bytes answers with what it went on from, or with an
        empty object at its key."""

    def abort(self) -> None:
        """Let go of what this writer holds in memory and in flight; bytes that it has staged are
        left for ``discard``. Harmless after ``close``, and when repeated."""


class ObjectStore(Protocol):
    """Where blobs are kept. May be used from many threads at once, and opens nothing before its
    first use."""

    name: str
    """The store's name in ``blob_copies``."""

    client_parts: ClientParts | None
    """None where clients cannot send parts to the store themselves."""

    def writer(self, staged: Staged | None, key: str, reserve: Callable[[int], int]) -> Writer:
        """A writer that goes on from ``staged``. ``key`` is this request's own. ``reserve(n)``
        gives the first of n part numbers (from 1) that no other request of this upload has, each
        time higher ones; what it raises, because another request took the upload over, passes
        through."""

    def complete(self, staged: Staged) -> None:
        """Make ``staged.key`` an object. Repeating it is harmless: an object of the right size
        at the key means that it was done."""

    def discard(self, key: str) -> None:
        """Remove all that a request staged under this key, whether or not it is an object yet.
        Removing nothing is no error. No writer may be at work under the key."""

    def discard_leftovers(self, key: str) -> None:
        """Remove what was staged beside a completed object, but not the object."""

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None where there is none."""

    def read(self, key: str, offset: int, length: int) -> FileRegion | Stream:
        """Those bytes of an object. Raises ``NoSuchObject``; iterating raises ``StorageError``
        where the object turns out to be shorter, or cannot be read to its end."""

    def presign(self, method: str, key: str, seconds: int) -> str | None:
        """A URL at which the client itself can GET or HEAD the object, None where the store has
        none."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one is no error."""

    def list(self, after: str = "") -> Iterator[tuple[str, int, float]]:
        """(key, size, last change in seconds since the epoch) of every object, in key order, from
        the one after ``after`` on. What is staged and no object yet is left out."""

    def list_staged(self, after: str = "") -> Iterator[str]:
        """Keys, in order and from the one after ``after`` on, under which something is staged that
        ``discard`` would remove and ``list`` does not give; each once."""

    def preload(self) -> None:
        """Load what it takes to use the store, opening nothing: processes that are forked
        afterwards share it."""

    def check(self) -> None:
        """Raise ``StorageError`` when the store cannot be used now (for /ready)."""


def open_store(settings: "Settings") -> ObjectStore:
    """The store that STORAGE_URL names: ``file:///path``, or ``s3://bucket/prefix`` with any of
    ``endpoint``, ``public_endpoint``, ``region``, ``path_style`` and ``filebase`` as parameters;
    without one, DATA_DIR/blobs. Opens nothing. Raises ``SettingsError``."""
    from chalicelib.settings import SettingsError

    keys = ("storage_access_key", "storage_secret_key")
    for name, other in (keys, keys[::-1]):
        if getattr(settings, name) and not getattr(settings, other):
            raise SettingsError(
                f"OPENREGISTRY_{other.upper()}", f"is needed with OPENREGISTRY_{name.upper()}"
            )
    try:
        return _open(settings.storage_url or (settings.data_dir / "blobs").as_uri(), settings)
    except ValueError as error:
        raise SettingsError("OPENREGISTRY_STORAGE_URL", str(error)) from None


def _open(text: str, settings: "Settings") -> ObjectStore:
    url = urlsplit(text)
    if "@" in url.netloc:
        raise ValueError("holds credentials; the environment gives them (AWS_ACCESS_KEY_ID, …)")
    if url.fragment:
        raise ValueError("has a # in it, which must be written %23")
    if url.scheme == "file":
        from chalicelib.storage.filesystem import FileStore

        if url.netloc not in ("", "localhost") or not url.path.rstrip("/").startswith("/"):
            raise ValueError("must name a folder by its whole path, like file:///var/lib/blobs")
        if url.query:
            raise ValueError("has parameters, which only s3:// takes")
        return FileStore(Path(unquote(url.path)))
    if url.scheme == "s3":
        from chalicelib.storage.s3 import Bucket, S3Store

        bucket = replace(
            Bucket.parse(url.netloc, unquote(url.path), _parameters(url.query)),
            access_key=settings.storage_access_key,
            secret_key=settings.storage_secret_key,
        )
        return S3Store(bucket, settings.part_size, settings.part_memory)
    raise ValueError("must begin with file:// or s3://")


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if len(values) > 1:
            raise ValueError(f"gives {name} more than once")
        parameters[name] = values[0].strip()
    return parameters
