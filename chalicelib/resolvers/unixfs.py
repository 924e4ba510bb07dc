"""The content identifier (CID) that IPFS gives a file, computed while its bytes go by.

A file becomes a tree: its bytes are cut into chunks, whose blocks are the leaves, and each node
above links to as many as the profile says; every leaf is as deep as every other. The root's hash is
the file's CID. Which one it is depends on these choices, so a CID can be compared under a named
profile alone (IPIP-0499). Blocks are encoded as https://specs.ipfs.tech/unixfs says.

No block is kept, only the links of the nodes that are not full yet: a few hundred kilobytes,
whatever the file's size.
"""

import hashlib
from base64 import b32encode
from dataclasses import dataclass
from typing import NamedTuple

from chalicelib.http import Piece

_SHA2_256 = b"\x12\x20"
_RAW, _DAG_PB = 0x55, 0x70
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Profile:
    """How a file is made into a tree. Chunks have ``chunk`` bytes, nodes ``width`` links; leaves
    are bare bytes (``raw``) or nodes as well; CIDs are of ``version`` 0 or 1."""

    name: str
    version: int
    chunk: int
    width: int
    raw: bool


UNIXFS_V1_2025 = Profile("unixfs-v1-2025", version=1, chunk=1 << 20, width=1024, raw=True)
UNIXFS_V0_2015 = Profile("unixfs-v0-2015", version=0, chunk=256 << 10, width=174, raw=False)
PROFILES = {profile.name: profile for profile in (UNIXFS_V1_2025, UNIXFS_V0_2015)}


class _Link(NamedTuple):
    """A link to a block: its CID in bytes, how many bytes of the file lie under it, and how many
    bytes all blocks under it have with it."""

    cid: bytes
    size: int
    total: int


class Cid:
    """The CID of a file whose bytes are given by ``update``, in pieces of any size."""

    def __init__(self, profile: Profile = UNIXFS_V1_2025) -> None:
        self._profile = profile
        # Of each level, the leaves first: what no node links to yet.
        self._levels: list[list[_Link]] = [[]]
        self._length = 0
        self._hash = hashlib.sha256()
        self._chunk = bytearray()

    def update(self, piece: Piece) -> None:
        """The next bytes."""
        view = memoryview(piece)
        while view:
            if self._length == self._profile.chunk:
                self._end_chunk()
            taken = view[: self._profile.chunk - self._length]
            if self._profile.raw:
                self._hash.update(taken)
            else:
                # Its length goes before it.
                self._chunk += taken
            self._length += len(taken)
            view = view[len(taken) :]

    def finish(self) -> str:
        """The CID as text: of version 1 in base 32, of version 0 in base 58. Nothing may follow."""
        self._end_chunk()
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._end_node(level)
            level += 1
        return text(self._levels[level][0].cid)

    def _end_chunk(self) -> None:
        if self._profile.raw:
            link = _Link(_cid(1, _RAW, self._hash.digest()), self._length, self._length)
            self._hash = hashlib.sha256()
        else:
            link = self._node([], bytes(self._chunk))
            self._chunk.clear()
        self._length = 0
        self._add(0, link)

    def _add(self, level: int, link: _Link) -> None:
        if level == len(self._levels):
            self._levels.append([])
        elif len(self._levels[level]) == self._profile.width:
            self._end_node(level)
        self._levels[level].append(link)

    def _end_node(self, level: int) -> None:
        links, self._levels[level] = self._levels[level], []
        self._add(level + 1, self._node(links, b""))

    def _node(self, links: list[_Link], data: bytes) -> _Link:
        """A block of DAG-PB whose data is a node of UnixFS, of the type File."""
        size = sum(link.size for link in links) + len(data)
        file = _number(1, 2) + (_bytes(2, data) if data else b"") + _number(3, size)
        file += b"".join(_number(4, link.size) for link in links)
        block = b"".join(
            _bytes(2, _bytes(1, link.cid) + _bytes(2, b"") + _number(3, link.total))
            for link in links
        ) + _bytes(1, file)
        total = len(block) + sum(link.total for link in links)
        cid = _cid(self._profile.version, _DAG_PB, hashlib.sha256(block).digest())
        return _Link(cid, size, total)


def text(cid: bytes) -> str:
    """A CID as people write it."""
    if cid.startswith(_SHA2_256):
        number, digits = int.from_bytes(cid), ""
        while number:
            number, digit = divmod(number, 58)
            digits = _BASE58[digit] + digits
        return digits
    return "b" + b32encode(cid).decode().rstrip("=").lower()


def _cid(version: int, codec: int, digest: bytes) -> bytes:
    hashed = _SHA2_256 + digest
    return hashed if version == 0 else bytes([version, codec]) + hashed


# Protocol Buffers, as far as two messages need them.


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
