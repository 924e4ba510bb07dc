"""Bytes to push: incompressible, different each time, and free to make.

All blobs of a size share their beginning, a random block repeated, whose hash is computed once;
the last frame is new for each. So a digest costs one frame of hashing, and sending costs no copy.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

FRAME = 32 << 10
"""Go's ``io.Copy`` reads 32 KiB at a time, so this is a chunk of a real docker push."""
BLOCK = 16 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob to push, its digest known before the clock starts."""

    size: int
    digest: str
    last: bytes

    def plain(self) -> Sequence[memoryview | bytes]:
        """The bytes as they are, for a body with Content-Length."""
        return *_repeat(_block(), self.size - len(self.last)), self.last

    def chunked(self) -> Sequence[memoryview | bytes]:
        """The bytes as a chunked body in frames of 32 KiB (RFC 9112, section 7.1)."""
        frames = (self.size - len(self.last)) // FRAME
        return *_repeat(_chunked_block(), frames * _CHUNK), _chunk(self.last), b"0\r\n\r\n"


def new(size: int) -> Blob:
    """A blob that was never there before: a multiple of 32 KiB, or smaller than that."""
    if size > FRAME and size % FRAME:
        raise ValueError(f"{size} is not a multiple of {FRAME}")
    length = min(size, FRAME)
    last = os.urandom(32) + bytes(_block()[: length - 32])
    state = _beginning(size - length).copy()
    state.update(last)
    return Blob(size, "sha256:" + state.hexdigest(), last)


@cache
def _block() -> memoryview:
    return memoryview(os.urandom(BLOCK))


def _chunk(data: bytes | memoryview) -> bytes:
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n"))


_CHUNK = len(_chunk(bytes(FRAME)))


@cache
def _chunked_block() -> memoryview:
    block = _block()
    return memoryview(b"".join(_chunk(block[at : at + FRAME]) for at in range(0, BLOCK, FRAME)))


@cache
def _beginning(length: int) -> "hashlib._Hash":
    state = hashlib.sha256()
    for piece in _repeat(_block(), length):
        state.update(piece)
    return state


def _repeat(block: memoryview, length: int) -> list[memoryview]:
    whole, rest = divmod(length, len(block))
    return [block] * whole + ([block[:rest]] if rest else [])
