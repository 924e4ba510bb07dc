"""Content put on a network, and proved to be there: its digest and its CID are computed while its
bytes go by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chalicelib import digests
from chalicelib.http import Piece
from chalicelib.resolvers import Content, Resolver, WrongCid
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Cid, Profile, same
from chalicelib.storage import ObjectStore, StorageError

if TYPE_CHECKING:
    from chalicelib.digests import Hash


class Corrupt(Exception):
    """Object storage has other bytes than the digest says. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """``Content`` that is in memory: a manifest, say."""

    name: str
    data: bytes
    key: str = ""

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)

    def open(self) -> Iterator[Piece]:
        """Its bytes."""
        return iter([self.data])


@dataclass(frozen=True, slots=True)
class Stored:
    """``Content`` that is an object of object storage."""

    name: str
    size: int
    key: str
    store: ObjectStore

    def open(self) -> Iterator[Piece]:
        """Its bytes. Raises ``StorageError``."""
        stream = self.store.read(self.key, 0, self.size)
        try:
            yield from stream
        except OSError as error:
            raise StorageError(str(error)) from error
        finally:
            stream.close()


_OURS = (UNIXFS_V1_2025,)
_KNOWN = (
    UNIXFS_V1_2025,
    UNIXFS_V0_2015,
    Profile("Kubo's for CIDs of version 1", version=1, chunk=256 << 10, width=174, raw=True),
)
"""How networks cut what they are not told how to cut."""


class _Hashed:
    """Content whose digest was proved, and whose CIDs under some profiles are known, once it was
    read."""

    def __init__(
        self, content: Content, digest: bytes, profiles: Sequence[Profile] = _OURS
    ) -> None:
        self._content = content
        self._digest = digest
        self._profiles = profiles
        self.name, self.size, self.key = content.name, content.size, content.key
        self.cids: list[str] = []

    def open(self) -> Iterator[Piece]:
        """Its bytes. Raises ``Corrupt`` before the last of them where they are other ones: a
        network that was given less than it was promised keeps nothing."""
        hashing: Hash = digests.Hash(digests.algorithm(self._digest))
        computing = [Cid(profile) for profile in self._profiles]
        held: Piece = b""
        for piece in self._content.open():
            if held:
                yield held
            held = bytes(piece)
            hashing.update(held)
            for each in computing:
                each.update(held)
        if hashing.digest() != self._digest:
            raise Corrupt(
                f"The bytes of {self.name} in object storage are not those of its digest."
            )
        self.cids = [each.finish() for each in computing]
        yield held


def place(resolver: Resolver, content: Content, digest: bytes) -> str:
    """Put content on a network, and give its CID. Raises ``ResolverError``; ``WrongCid`` where the
    network says another one than the content has; ``Corrupt``; ``StorageError``."""
    hashed = _Hashed(content, digest)
    cid = resolver.put(hashed)
    if cid not in hashed.cids:
        # A bucket that is itself on the network read nothing, and cut it as it likes.
        hashed = _Hashed(content, digest, _KNOWN)
        for _ in hashed.open():
            pass
    if not any(same(cid, each) for each in hashed.cids):
        raise WrongCid(
            f"The resolver {resolver.name} says that {content.name} has the CID {cid};"
            f" it has {hashed.cids[0]}."
        )
    return cid


def mend(resolver: Resolver, content: Content, digest: bytes, cid: str) -> None:
    """Put content, which has that CID, where a network lacks it. Raises what ``place`` does."""
    resolver.mend(_Hashed(content, digest), cid)
