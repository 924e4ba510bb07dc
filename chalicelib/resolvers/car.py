"""Blocks in one stream: content-addressable archives (CAR).

``write`` makes version 1 (https://ipld.io/specs/transport/car/carv1/): a header that names the
roots, then block after block, each with its length and CID before it. Of a ``Tree``'s blocks it is
byte for byte what `ipfs dag export` gives, and ``length`` says how long it will be. ``Reader``
reads version 1, and that within version 2, from strangers: it keeps one block at a time, and gives
none that is not what its CID says.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from chalicelib.http import Piece
from chalicelib.resolvers import NotThere
from chalicelib.resolvers.unixfs import Block, packed, parse, text
from chalicelib.resolvers.varints import read_varint, varint

BLOCK_LIMIT = 2 << 20
"""Bytes of the largest block that networks carry."""
_CID_LIMIT = 100
_HEADER_LIMIT = 1 << 20
_MOST_BLOCKS = 4 << 20
"""How many blocks ``Archive`` keeps the places of: some 600 MiB of memory."""
_PIECE = 256 << 10

_PRAGMA = bytes.fromhex("0aa16776657273696f6e02")
"""The first bytes of version 2."""
_RAW_SHA2_256 = 0x12
_HASHES: dict[int, Callable[[bytes], bytes]] = {
    0x00: bytes,
    _RAW_SHA2_256: lambda data: hashlib.sha256(data).digest(),
    0x13: lambda data: hashlib.sha512(data).digest(),
    0xB220: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}
"""By multicodec's number, what makes a block into the hash in its CID: the block itself, SHA-256,
SHA-512 and BLAKE2b-256."""


def write(roots: Sequence[str], blocks: Iterable[Block]) -> Iterator[bytes]:
    """An archive of blocks, of which the roots' should be some. A block that comes again is left
    out. Raises ``ValueError`` for roots that are no CIDs."""
    yield _header(roots)
    written = set()
    for cid, data in blocks:
        if cid not in written:
            written.add(cid)
            encoded = packed(cid)
            yield varint(len(encoded) + len(data)) + encoded
            yield data


def length(roots: Sequence[str], blocks: Mapping[bytes, int]) -> int:
    """How many bytes ``write`` makes of these roots and blocks: their lengths by their CIDs in
    bytes, as ``Tree.lengths`` has them."""
    sections = (len(cid) + size for cid, size in blocks.items())
    return len(_header(roots)) + sum(len(varint(section)) + section for section in sections)


class Reader:
    """An archive that comes in pieces. Iterating it gives its blocks, once. Both may raise
    ``ValueError`` with a sentence: the archive is broken, cut off, or lies."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._stream = _Stream(pieces)
        self.roots = self._read_header()

    @property
    def position(self) -> int:
        """How many bytes have been read: up to the end of the block that was given last."""
        return self._stream.position

    def __iter__(self) -> Iterator[Block]:
        while (size := self._stream.varint("a block", BLOCK_LIMIT + _CID_LIMIT)) is not None:
            if not size:
                raise ValueError("The archive has a block with no CID.")
            section = self._stream.read(size)
            ends = _cid_end(section)
            _check(section[:ends], section[ends:])
            if size - ends > BLOCK_LIMIT:
                raise ValueError(f"The archive has a block of more than {BLOCK_LIMIT} bytes.")
            yield Block(text(section[:ends]), section[ends:])

    def _read_header(self) -> tuple[str, ...]:
        size = self._stream.varint("the header", _HEADER_LIMIT)
        if not size:
            raise ValueError("That is no archive: it has no header.")
        header = self._stream.read(size)
        if varint(size) + header != _PRAGMA:
            return _roots(header)
        # Characteristics (16 bytes), then where version 1 begins and how long it is.
        fixed = self._stream.read(40)
        begins, within = (int.from_bytes(fixed[at : at + 8], "little") for at in (16, 24))
        self._stream.skip(begins - self._stream.position)
        self._stream.end = begins + within
        size = self._stream.varint("the header", _HEADER_LIMIT)
        return _roots(self._stream.read(size or 0))


class Archive:
    """An archive in a file, whose blocks can be had by their CIDs: a ``blocks.Source``. Making it
    reads and checks all of it. Raises ``ValueError`` where it is broken; ``OSError``. May be used
    from many threads at once, while the file is open and stays as it is."""

    name = "archive"

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        reader = Reader(iter(lambda: file.read(_PIECE), b""))
        self.roots = reader.roots
        self._places: dict[bytes, tuple[int, int]] = {}
        for cid, data in reader:
            try:
                digest = parse(cid).digest
            except ValueError:
                continue  # of no file
            self._places[digest] = reader.position - len(data), len(data)
            if len(self._places) > _MOST_BLOCKS:
                raise ValueError(f"The archive has more than {_MOST_BLOCKS} blocks.")

    def block(self, cid: str) -> bytes:
        """One block, as the file has it now. Raises ``NotThere``; ``OSError``."""
        place = self._places.get(parse(cid).digest)
        if place is None:
            raise NotThere(f"The archive has no block {cid}.")
        begins, size = place
        with self._lock:
            self._file.seek(begins)
            return self._file.read(size)


class _Stream:
    """Pieces read by number of bytes, up to ``end`` where that is known."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.position = 0
        self.end: int | None = None

    def read(self, size: int) -> bytes:
        """So many bytes. Raises ``ValueError`` where there are fewer."""
        found = bytearray()
        while len(found) < size:
            taken = self._take(size - len(found))
            if not taken:
                raise ValueError("The archive is cut off.")
            found += taken
        return bytes(found)

    def skip(self, size: int) -> None:
        """Leave out so many bytes, as long as there are some."""
        if size < 0:
            raise ValueError("The archive says that it begins before its own beginning.")
        while size and (taken := self._take(size)):
            size -= len(taken)

    def varint(self, of: str, limit: int) -> int | None:
        """The length of something; None where the archive has ended before it."""
        number = 0
        for index in range(9):
            byte = self._take(1)
            if not byte:
                if index or self.end not in (None, self.position):
                    raise ValueError("The archive is cut off.")
                return None
            number |= (byte[0] & 0x7F) << 7 * index
            if byte[0] < 0x80:
                if index and not byte[0]:
                    raise ValueError(f"The archive writes the length of {of} too long.")
                if number > limit:
                    raise ValueError(f"The archive has {of} of {number} bytes, more than {limit}.")
                return number
        raise ValueError(f"The archive says no length of {of}.")

    def _take(self, size: int) -> memoryview:
        """At most so many bytes; none at the end."""
        if self.end is not None:
            size = min(size, self.end - self.position)
        while size and not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:size], self._rest[size:]
        self.position += len(taken)
        return taken


def _check(cid: bytes, data: bytes) -> None:
    """Raise ``ValueError`` where a block is not what its CID says."""
    start = 0 if cid[0] == _RAW_SHA2_256 else read_varint(cid, read_varint(cid, 0)[1])[1]
    kind, start = read_varint(cid, start)
    size, start = read_varint(cid, start)
    if kind not in _HASHES:
        raise ValueError(f"The archive has a block by a hash that is not known here, {kind:#x}.")
    if len(cid) - start != size or _HASHES[kind](data) != cid[start:]:
        raise ValueError(f"The archive has other bytes for {text(cid)} than that names.")


def _cid_end(section: bytes) -> int:
    """Where the CID ends with which a section begins. Raises ``ValueError``."""
    if section[:2] == b"\x12\x20":
        end = 34
    else:
        version, at = read_varint(section, 0)
        if version != 1:
            raise ValueError("The archive has a block with no CID of version 0 or 1.")
        _, at = read_varint(section, at)
        _, at = read_varint(section, at)
        size, at = read_varint(section, at)
        end = at + size
    if end > min(len(section), _CID_LIMIT):
        raise ValueError("The archive has a CID that is cut off, or far too long.")
    return end


# DAG-CBOR, as far as one header needs it: {"roots": [CID, …], "version": 1}, in its one form.

_ROOTS = b"\xa2\x65roots"
_VERSION = b"\x67version\x01"
_LINK = b"\xd8\x2a"  # tag 42
_ARRAY, _STRING = 4, 2


def _header(roots: Sequence[str]) -> bytes:
    links = (b"\0" + packed(root) for root in roots)
    header = _ROOTS + _cbor(_ARRAY, len(roots))
    header += b"".join(_LINK + _cbor(_STRING, len(link)) + link for link in links) + _VERSION
    return varint(len(header)) + header


def _roots(header: bytes) -> tuple[str, ...]:
    """The roots that a header names. Raises ``ValueError`` for any other header."""
    if not header.startswith(_ROOTS) or not header.endswith(_VERSION):
        raise ValueError("That is no archive of version 1 or 2: it has another header.")
    body, roots = header[len(_ROOTS) : -len(_VERSION)], []
    count, at = _read_cbor(body, 0, _ARRAY)
    for _ in range(count):
        if body[at : at + len(_LINK)] != _LINK:
            raise ValueError("The archive's header names a root that is no CID.")
        size, at = _read_cbor(body, at + len(_LINK), _STRING)
        link, at = body[at : at + size], at + size
        if at > len(body) or link[:1] != b"\0" or _cid_end(link[1:]) != size - 1:
            raise ValueError("The archive's header names a root that is no CID.")
        roots.append(text(link[1:]))
    if at != len(body):
        raise ValueError("The archive's header has more in it than roots.")
    return tuple(roots)


def _cbor(kind: int, number: int) -> bytes:
    """The first bytes of an item (RFC 8949, section 3)."""
    if number < 24:
        return bytes([kind << 5 | number])
    width = next(width for width in range(4) if number < 1 << (8 << width))
    return bytes([kind << 5 | 24 + width]) + number.to_bytes(1 << width)


def _read_cbor(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """The number in an item's first bytes, and the position behind them."""
    first = data[at] if at < len(data) else 0
    width = 1 << (first & 31) - 24 if first & 31 in (24, 25, 26, 27) else 0
    number = int.from_bytes(data[at + 1 : at + 1 + width]) if width else first & 31
    if data[at : at + 1 + width] != _cbor(kind, number):
        raise ValueError("The archive's header is not as DAG-CBOR writes it.")
    return number, at + 1 + width
