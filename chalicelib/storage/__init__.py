"""Object storage: one Protocol, and what the contract of each store is.

A key is made by the registry (random, without a slash at its start), is used for one request's
bytes and never again. Nothing is copied or renamed once it is an object; a store need have no
CopyObject, no UploadPartCopy and no conditional writes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from chalicelib.http import FileRegion, Piece, Stream


class StorageError(Exception):
    """Storage did not do what was asked, after its own retries: it is full, down or slow."""


class NoSuchObject(StorageError):
    """There is no object at that key."""


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


class Writer(Protocol):
    """Takes the bytes of one request. Calls never overlap; each may block and may raise
    ``StorageError``, after which only ``abort`` follows."""

    def write(self, pieces: Sequence[Piece]) -> None:
        """Take these bytes. They may be overwritten by the caller once this returns."""

    def close(self, *, final: bool) -> Staged:
        """Make every byte durable and say what is staged now, earlier requests included.
        ``final`` promises that ``complete`` follows, so that nothing is kept for a later
        chunk."""

    def abort(self) -> None:
        """Let go of what this writer holds in memory and in flight; bytes that it has staged are
        left for ``discard``."""


class ObjectStore(Protocol):
    """Where blobs are kept."""

    name: str
    """The store's name in ``blob_copies``."""

    def writer(self, staged: Staged | None, key: str, reserve: Callable[[int], int]) -> Writer:
        """A writer that goes on from ``staged``. ``key`` is this request's own. ``reserve(n)``
        gives the first of n part numbers (from 1) that no other request of this upload has."""

    def complete(self, staged: Staged) -> None:
        """Make ``staged.key`` an object. Repeating it is harmless: an object of the right size
        at the key means that it was done."""

    def discard(self, key: str) -> None:
        """Remove all that a request staged under this key, whether or not it is an object yet.
        Removing nothing is no error."""

    def discard_leftovers(self, key: str) -> None:
        """Remove what was staged beside a completed object, but not the object."""

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None where there is none."""

    def read(self, key: str, offset: int, length: int) -> FileRegion | Stream:
        """Those bytes of an object. Raises ``NoSuchObject``."""

    def presign(self, method: str, key: str, seconds: int) -> str | None:
        """A URL at which the client itself can GET or HEAD the object, None where the store has
        none."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one is no error."""

    def list(self, after: str = "") -> Iterator[tuple[str, int, float]]:
        """(key, size, last change in seconds since the epoch) of every object, in key order, from
        the one after ``after`` on."""

    def check(self) -> None:
        """Raise ``StorageError`` when the store cannot be used now (for /ready)."""
