"""Content put on a network, and proved to be there: its digest and its CID are computed while its
bytes go by."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chalicelib import digests
from chalicelib.http import Piece
from chalicelib.resolvers import Content, Resolver, WrongCid
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Cid, Profile
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


class _Hashed:
    """Content whose digest was proved, and whose CID under a profile is known, once it was read."""

    def __init__(self, content: Content, digest: bytes, profile: Profile = UNIXFS_V1_2025) -> None:
        self._content = content
        self._digest = digest
        self._profile = profile
        self.name, self.size, self.key = content.name, content.size, content.key
        self.cid = ""

    def open(self) -> Iterator[Piece]:
        """Its bytes. Raises ``Corrupt`` before the last of them where they are other ones: a
        network that was given less than it was promised keeps nothing."""
        hashing: Hash = digests.Hash(digests.algorithm(self._digest))
        computing = Cid(self._profile)
        held: Piece = b""
        for piece in self._content.open():
            if held:
                yield held
            held = bytes(piece)
            hashing.update(held)
            computing.update(held)
        if hashing.digest() != self._digest:
            raise Corrupt(
                f"The bytes of {self.name} in object storage are not those of its digest."
            )
        self.cid = computing.finish()
        yield held


def place(resolver: Resolver, content: Content, digest: bytes) -> str:
    """Put content on a network, and give its CID. Raises ``ResolverError``; ``WrongCid`` where the
    network says another one than the content has; ``Corrupt``; ``StorageError``."""
    hashed = _Hashed(content, digest)
    cid = resolver.put(hashed)
    profile = UNIXFS_V0_2015 if cid.startswith("Qm") else UNIXFS_V1_2025
    # Where a bucket is itself on the network nothing was read; and some say CIDs of version 0.
    if not hashed.cid or profile is not UNIXFS_V1_2025:
        hashed = _Hashed(content, digest, profile)
        for _ in hashed.open():
            pass
    if cid != hashed.cid:
        raise WrongCid(
            f"The resolver {resolver.name} says that {content.name} has the CID {cid};"
            f" it has {hashed.cid}."
        )
    return cid


def mend(resolver: Resolver, content: Content, digest: bytes, cid: str) -> None:
    """Put content, which has that CID, where a network lacks it. Raises what ``place`` does."""
    resolver.mend(_Hashed(content, digest), cid)
