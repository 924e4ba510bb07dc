"""Where content also lives: networks that find it by its hash.

A *resolver* puts a blob on a network and gives back its *CID*. What the contract of each is stands
in ``Resolver``; ``tests/contract/test_resolver.py`` asks it of every one. A network to come (as
Skynet was one) is a class with these methods, and a line in ``opening``.

A CID is the hash of the content under a profile (``unixfs``), so that no network need be trusted:
``placing`` computes it too and compares, and whoever fetches content checks every block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from chalicelib.http import Piece


class ResolverError(Exception):
    """A network did not do what was asked: it is down, slow, full or overloaded. Trying again may
    help. The text is a sentence that people may see."""


class NotThere(ResolverError):
    """The network does not have what a CID names, or does not find it in time."""


class WrongCid(ResolverError):
    """The network says another CID than the content has: trying again is in vain, and a person
    must know."""


class Content(Protocol):
    """What is put on a network. ``name`` is what the network may call it: a digest, with a suffix
    perhaps; two contents never share one. ``size`` is in bytes. ``key`` is where object storage
    has it, "" where it is not there."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def key(self) -> str: ...

    def open(self) -> Iterator[Piece]:
        """Its bytes, from the first on; may be called again. Raises ``StorageError``."""


@dataclass(frozen=True, slots=True)
class Status:
    """``there``: kept until it is unpinned. ``coming``: the network was given it and has not said
    its CID yet. ``missing``: it is not kept. ``replicas``: how many nodes keep it, None where the
    network does not tell. ``lacking``: how many more should, and would after ``mend``."""

    state: Literal["there", "coming", "missing"]
    replicas: int | None = None
    lacking: int = 0


class Resolver(Protocol):
    """A network. May be used from many threads at once, and opens nothing before its first use.
    Every method may raise ``ResolverError``, in bounded time: a network that hangs is one that
    is down."""

    name: str
    """In ``resolver_copies``, and as people write it."""
    gateways: tuple[str, ...]
    """HTTP gateways at which everybody finds what is there: URLs before ``/ipfs/CID``."""

    def put(self, content: Content) -> str:
        """Put it there, to be kept, and give the CID that the network says. In bounded memory,
        whatever the size. Repeating it is harmless."""

    def status(self, name: str, cid: str) -> Status:
        """Whether the network keeps it."""

    def mend(self, content: Content, cid: str) -> None:
        """Put content, which had that CID there, where it lacks, and only there. Raises
        ``ResolverError`` where it still lacks somewhere; ``WrongCid``."""

    def block(self, cid: str) -> bytes:
        """One block, at most 2 MiB, as the network gives it: whoever asks checks it. Raises
        ``NotThere``."""

    def unpin(self, name: str, cid: str) -> None:
        """Keep it no longer; what is not there is no error."""

    def check(self) -> None:
        """Raise ``ResolverError`` where the network cannot be used now."""
