"""Files as trees of blocks, and sources that have them in memory."""

import threading
import time
from collections.abc import Mapping
from hashlib import sha256

from chalicelib.resolvers import NotThere, ResolverError
from chalicelib.resolvers.unixfs import Cid, Profile, text


def tree(data: bytes, profile: Profile) -> tuple[str, dict[str, bytes]]:
    """The CID of a file, and all its blocks."""
    blocks: dict[str, bytes] = {}
    chunks = [data[at : at + profile.chunk] for at in range(0, len(data), profile.chunk)] or [b""]
    level = [_leaf(chunk, profile, blocks) for chunk in chunks]
    while len(level) > 1:
        groups = [level[at : at + profile.width] for at in range(0, len(level), profile.width)]
        level = [node(b"", group, profile, blocks) for group in groups]
    computing = Cid(profile)
    computing.update(data)
    assert text(level[0][0]) == computing.finish()
    return text(level[0][0]), blocks


class Memory:
    """A source that has blocks in memory, and may have faults."""

    def __init__(self, name: str, blocks: Mapping[str, bytes]) -> None:
        self.name = name
        self.gateways: tuple[str, ...] = ()
        self.blocks = dict(blocks)
        self.asked: list[str] = []
        self.fault = ""
        self.healthy = 0
        """How many blocks it gives before the fault begins."""
        self.released = threading.Event()

    def block(self, cid: str) -> bytes:
        self.asked.append(cid)
        if len(self.asked) > self.healthy:
            if self.fault == "down":
                raise ResolverError(f"{self.name} is down.")
            if self.fault == "hangs":
                self.released.wait(60)
                raise ResolverError(f"{self.name} hung.")
            if self.fault == "lies":
                return b"x" + self.blocks[cid][1:]
            if self.fault == "truncates":
                return self.blocks[cid][:-1]
            if self.fault == "fails":
                raise ZeroDivisionError
        if self.fault == "late":
            time.sleep(0.05)
        if cid not in self.blocks:
            raise NotThere(f"{self.name} has no {cid}.")
        return self.blocks[cid]


Link = tuple[bytes, int, int]
"""A block's CID, and how many bytes are under it: of the file, and of all blocks."""


def _leaf(chunk: bytes, profile: Profile, blocks: dict[str, bytes]) -> Link:
    if not profile.raw:
        return node(chunk, [], profile, blocks)
    return _kept(chunk, b"\x01\x55", blocks), len(chunk), len(chunk)


def node(own: bytes, links: list[Link], profile: Profile, blocks: dict[str, bytes]) -> Link:
    """A node of a file, kept among the blocks."""
    size = len(own) + sum(link[1] for link in links)
    file = b"\x08\x02" + (b"\x12" + counted(own) if own else b"") + b"\x18" + varint(size)
    file += b"".join(b"\x20" + varint(link[1]) for link in links)
    block = b""
    for cid, _, total in links:
        block += b"\x12" + counted(b"\x0a" + counted(cid) + b"\x12\x00\x18" + varint(total))
    block += b"\x0a" + counted(file)
    cid = _kept(block, b"\x01\x70" if profile.version else b"", blocks)
    return cid, size, len(block) + sum(link[2] for link in links)


def _kept(block: bytes, prefix: bytes, blocks: dict[str, bytes]) -> bytes:
    cid = prefix + b"\x12\x20" + sha256(block).digest()
    blocks[text(cid)] = block
    return cid


def counted(data: bytes) -> bytes:
    """Bytes with their length before them."""
    return varint(len(data)) + data


def varint(number: int) -> bytes:
    """A number as Protocol Buffers write it."""
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])
