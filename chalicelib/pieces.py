"""Bytes that come in pieces of any size."""

from collections.abc import Iterable, Iterator

from chalicelib.http import Piece


def cut(pieces: Iterable[Piece], size: int) -> Iterator[bytes]:
    """The same bytes in chunks of ``size``, of which the last may be shorter."""
    chunk = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = view[: size - len(chunk)]
            chunk += taken
            view = view[len(taken) :]
            if len(chunk) == size:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)
