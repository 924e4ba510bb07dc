"""Layers compressed with gzip, by all processors, and the same bytes each time: an upload that was
cut goes on only where what comes is what came before.

As pigz does: blocks are deflated apart, each with the end of the one before as its dictionary, and
end at a byte, so that together they are one stream.
"""

import struct
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from chalicelib import digests
from chalicelib.client.sources import Descriptor
from chalicelib.http import Piece
from chalicelib.pieces import cut

_BLOCK = 1 << 20
_WINDOW = 32 << 10
_LEVEL = 6
_AHEAD = 4
"""Blocks of one layer that wait or are deflated at a time."""
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name and no time (RFC 1952)."""


def compress(pieces: Iterable[Piece], file: IO[bytes], threads: ThreadPoolExecutor) -> Descriptor:
    """Write a layer to a file, compressed. Gives its digest and size; raises what the pieces do,
    and ``OSError``."""
    hashing = digests.Hash()

    def write(data: bytes) -> None:
        hashing.update(data)
        file.write(data)

    write(_HEADER)
    checksum = length = 0
    window = b""
    waiting: deque[Future[bytes]] = deque()
    try:
        for block in cut(pieces, _BLOCK):
            checksum = zlib.crc32(block, checksum)
            length += len(block)
            waiting.append(threads.submit(_deflated, block, window))
            window = block[-_WINDOW:]
            if len(waiting) == _AHEAD:
                write(waiting.popleft().result())
        while waiting:
            write(waiting.popleft().result())
    finally:
        for future in waiting:
            future.cancel()
    # An empty last block, then the checksum and the length.
    write(b"\x03\0" + struct.pack("<II", checksum, length & 0xFFFFFFFF))
    file.flush()
    return Descriptor(digests.unpack(hashing.digest()), size=hashing.length)


def _deflated(block: bytes, window: bytes) -> bytes:
    deflating = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15, zdict=window)
    return deflating.compress(block) + deflating.flush(zlib.Z_SYNC_FLUSH)
