"""The content identifier (CID) that IPFS gives a file, computed while its bytes go by.

A file becomes a tree: its bytes are cut into chunks, whose blocks are the leaves, and each node
above links to as many as the profile says; every leaf is as deep as every other. The root's hash is
the file's CID. Which one it is depends on these choices, so a CID can be compared under a named
profile alone (IPIP-0499). Blocks are encoded as https://specs.ipfs.tech/unixfs says.

No block is kept, only the links of the nodes that are not full yet: a few hundred kilobytes,
whatever the file's size.
"""

import hashlib
import re
from base64 import b32decode, b32encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

from chalicelib.http import Piece
from chalicelib.pieces import cut
from chalicelib.resolvers.varints import read_varint, varint

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
    """The CID of a file whose bytes are given by ``update``, in pieces of any size. ``note`` is
    told of each block once it is known: its CID in bytes, how long it is, and, of a node that has
    links, the block."""

    def __init__(
        self,
        profile: Profile = UNIXFS_V1_2025,
        note: Callable[[bytes, int, bytes], None] | None = None,
    ) -> None:
        self._profile = profile
        self._note = note
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
            link, _ = _encode(self._profile, [], bytes(self._chunk))
            self._chunk.clear()
        self._length = 0
        if self._note is not None:
            self._note(link.cid, link.total, b"")
        self._add(0, link)

    def _add(self, level: int, link: _Link) -> None:
        if level == len(self._levels):
            self._levels.append([])
        elif len(self._levels[level]) == self._profile.width:
            self._end_node(level)
        self._levels[level].append(link)

    def _end_node(self, level: int) -> None:
        links, self._levels[level] = self._levels[level], []
        link, block = _encode(self._profile, links, b"")
        if self._note is not None:
            self._note(link.cid, len(block), block)
        self._add(level + 1, link)


def _encode(profile: Profile, links: list[_Link], data: bytes) -> tuple[_Link, bytes]:
    """A block of DAG-PB whose data is a node of UnixFS, of the type File, and a link to it."""
    size = sum(link.size for link in links) + len(data)
    file = _number(1, 2) + (_bytes(2, data) if data else b"") + _number(3, size)
    file += b"".join(_number(4, link.size) for link in links)
    block = b"".join(
        _bytes(2, _bytes(1, link.cid) + _bytes(2, b"") + _number(3, link.total)) for link in links
    ) + _bytes(1, file)
    total = len(block) + sum(link.total for link in links)
    cid = _cid(profile.version, _DAG_PB, hashlib.sha256(block).digest())
    return _Link(cid, size, total), block


class Block(NamedTuple):
    """A block, and the CID that names it."""

    cid: str
    data: bytes


class Tree:
    """A file's blocks. A first pass over its bytes, ``pieces``, finds its nodes and CID, and a
    second one gives the blocks. Kept are the nodes, and each block's length: about 200 bytes for
    each chunk of the file."""

    def __init__(self, pieces: Iterable[Piece], profile: Profile = UNIXFS_V1_2025) -> None:
        self._profile = profile
        self._nodes: dict[bytes, bytes] = {}
        self._lengths: dict[bytes, int] = {}
        computing = Cid(profile, self._keep)
        for piece in pieces:
            computing.update(piece)
        self.cid = computing.finish()

    @property
    def lengths(self) -> Mapping[bytes, int]:
        """How many bytes each block has, by its CID in bytes."""
        return self._lengths

    def blocks(self, pieces: Iterable[Piece]) -> Iterator[Block]:
        """The blocks, the root first and then what it links to, in order and in depth. One to which
        several links lead comes as often. Raises ``ValueError`` where the pieces are of another
        file than that of the first pass."""
        # Where the file has come to its end too early, what follows is empty.
        chunks = chain(cut(pieces, self._profile.chunk), repeat(b""))
        waiting = [packed(self.cid)]
        while waiting:
            cid = waiting.pop()
            if block := self._nodes.get(cid):
                waiting += (packed(child.cid) for child in reversed(node(block).children))
            else:
                block = self._leaf(cid, next(chunks))
            yield Block(text(cid), block)
        if next(chunks):
            raise ValueError("The file has grown since it was read first.")

    def _keep(self, cid: bytes, length: int, block: bytes) -> None:
        self._lengths[cid] = length
        if block:
            self._nodes[cid] = block

    def _leaf(self, wanted: bytes, chunk: bytes) -> bytes:
        if self._profile.raw:
            block, cid = chunk, _cid(1, _RAW, hashlib.sha256(chunk).digest())
        else:
            link, block = _encode(self._profile, [], chunk)
            cid = link.cid
        if cid != wanted:
            raise ValueError("The file has changed since it was read first.")
        return block


def of_one_block(digest: bytes, size: int) -> str | None:
    """The CID under ``unixfs-v1-2025`` of a file of so many bytes by its packed digest alone: None
    where it takes several blocks, or the digest is no SHA-256."""
    if size > UNIXFS_V1_2025.chunk or digest[:1] != _SHA2_256[:1]:
        return None
    return text(_cid(1, _RAW, digest[1:]))


def text(cid: bytes) -> str:
    """A CID as people write it."""
    if cid.startswith(_SHA2_256):
        number, digits = int.from_bytes(cid), ""
        while number:
            number, digit = divmod(number, 58)
            digits = _BASE58[digit] + digits
        return digits
    return "b" + b32encode(cid).decode().rstrip("=").lower()


class Identifier(NamedTuple):
    """A CID taken apart: its version, whether its block is bare bytes (``raw``) or a node of
    DAG-PB, and the block's SHA-256."""

    version: int
    raw: bool
    digest: bytes


class Child(NamedTuple):
    """A link of a node: a CID, and how many bytes of the file lie under it."""

    cid: str
    size: int


class Node(NamedTuple):
    """A node of a file: bytes of its own, and its children, whose bytes follow in their order."""

    data: bytes
    children: tuple[Child, ...]

    @property
    def size(self) -> int:
        """How many bytes of the file lie in it and under it."""
        return len(self.data) + sum(child.size for child in self.children)


def parse(cid: str) -> Identifier:
    """A CID that somebody has written: of version 1 in base 32, or of version 0; of bare bytes or
    of DAG-PB; by SHA-256. Raises ``ValueError`` with a sentence for any other text: each of these
    has one way to be written."""
    return _identifier(packed(cid))


def packed(cid: str) -> bytes:
    """In bytes, a CID that ``parse`` takes. Raises ``ValueError``."""
    if re.fullmatch(rf"Qm[{_BASE58}]{{44}}", cid):
        number = 0
        for digit in cid:
            number = number * 58 + _BASE58.index(digit)
        encoded = number.to_bytes(35).removeprefix(b"\0")
    elif re.fullmatch("b[a-z2-7]{58}", cid):
        encoded = b32decode(cid[1:].upper() + "======")
    else:
        encoded = b""
    if not encoded or text(encoded) != cid:
        raise ValueError("That is no CID of version 0, nor one of version 1 in base 32.")
    _identifier(encoded)
    return encoded


def same(cid: str, other: str) -> bool:
    """Whether two CIDs, of whichever version, name one block. What is no CID names none."""
    if cid == other:
        return True
    try:
        return parse(cid)[1:] == parse(other)[1:]
    except ValueError:
        return False


def node(block: bytes) -> Node:
    """What a block of DAG-PB holds, which must be a file of UnixFS or a part of one. Raises
    ``ValueError`` with a sentence for anything else, however it is made: blocks come from
    strangers, and a hash proves whose they are, not that they are sound."""
    _, fields = _fields(block, numbers=(), strings=(1, 2))
    if len(fields[1]) != 1:
        raise ValueError("A node has no data, or several: it is of no file.")
    links = [_linked(link) for link in fields[2]]
    numbers, strings = _fields(fields[1][0], numbers=(1, 3, 4, 5, 6, 7), strings=(2, 4, 8))
    if numbers[1] not in ([_TYPE_RAW], [_TYPE_FILE]) or len(strings[2]) > 1:
        raise ValueError("A node is of something else than a file: a folder, perhaps.")
    # One field for each, or all of them in one.
    sizes = [*numbers[4], *(size for packed in strings[4] for size in _varints(packed))]
    if len(sizes) != len(links):
        raise ValueError("A node does not say for each link how many bytes are under it.")
    found = Node(b"".join(strings[2]), tuple(map(Child, links, sizes)))
    if numbers[3] != [found.size] and (numbers[3] or sizes):
        raise ValueError("The sizes of a node's parts do not add up to its own.")
    return found


def _identifier(packed: bytes) -> Identifier:
    if packed[:2] == _SHA2_256 and len(packed) == 34:
        return Identifier(0, raw=False, digest=packed[2:])
    codec = packed[1] if len(packed) == 36 else None
    if packed[:1] + packed[2:4] == b"\x01" + _SHA2_256 and codec in (_RAW, _DAG_PB):
        return Identifier(1, raw=codec == _RAW, digest=packed[4:])
    raise ValueError("That is no CID of bare bytes or of DAG-PB by SHA-256.")


def _linked(link: bytes) -> str:
    """The CID, as text, of a link of DAG-PB."""
    _, fields = _fields(link, numbers=(3,), strings=(1, 2))
    if len(fields[1]) != 1:
        raise ValueError("A link names nothing, or several things.")
    _identifier(fields[1][0])
    return text(fields[1][0])


def _cid(version: int, codec: int, digest: bytes) -> bytes:
    hashed = _SHA2_256 + digest
    return hashed if version == 0 else bytes([version, codec]) + hashed


# Protocol Buffers, as far as two messages need them.


def _number(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def _bytes(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


_TYPE_RAW, _TYPE_FILE = 0, 2


def _fields(
    message: bytes, numbers: Sequence[int], strings: Sequence[int]
) -> tuple[dict[int, list[int]], dict[int, list[bytes]]]:
    """The values of each field of a message, which may have no others."""
    counted: dict[int, list[int]] = {field: [] for field in numbers}
    spelled: dict[int, list[bytes]] = {field: [] for field in strings}
    position = 0
    while position < len(message):
        key, position = read_varint(message, position)
        number, position = read_varint(message, position)
        field, wire = key >> 3, key & 7
        if wire == 0 and field in counted:
            counted[field].append(number)
        elif wire == 2 and field in spelled:
            if number > len(message) - position:
                raise ValueError("A field of a block is longer than the block.")
            spelled[field].append(message[position : position + number])
            position += number
        else:
            raise ValueError("A block has a field that no file's has.")
    return counted, spelled


def _varints(packed: bytes) -> Iterator[int]:
    position = 0
    while position < len(packed):
        number, position = read_varint(packed, position)
        yield number
