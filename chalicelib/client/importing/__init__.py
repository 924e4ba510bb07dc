"""Images of another registry, or of what one has left in its storage, brought to a registry.

It is done from outside, over HTTP, as a client does: so it works with functions that take a few
megabytes, and from wherever the old registry can be reached. Nothing is noted on this machine. What
the target has is asked of it, so that an import which was interrupted goes on where it was, and one
that is repeated brings what is new.

An *origin* is where images come from. Whatever it is, every byte is held against its digest.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from chalicelib.client.manifests import Manifest
from chalicelib.http import Piece
from chalicelib.registry.documents import Descriptor


class OriginError(Exception):
    """An image cannot be had. The text is a sentence, in which nothing that an origin says can move
    a terminal's cursor."""

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(each if each.isprintable() else "?" for each in sentence))


class Origin(Protocol):
    """Where images come from. Threads may share it. Raises ``OriginError``; and ``RemoteError``,
    with status 0 where it does not answer."""

    def repositories(self) -> Iterator[str]:
        """The names of all repositories."""

    def tags(self, repository: str) -> Iterator[str]:
        """The tags of a repository; none where there is no such one."""

    def untagged(self, repository: str) -> Iterator[str]:
        """Digests of manifests of a repository, tagged ones too; none where an origin cannot
        tell."""

    def manifest(
        self, repository: str, reference: str, claimed: Descriptor | None = None
    ) -> Manifest:
        """A manifest by its tag or digest; ``claimed`` is how an index names it."""

    def referrers(self, repository: str, digest: str) -> Iterable[str]:
        """Digests of the manifests that have this one as their subject, as far as that is known."""

    def has(self, repository: str, digest: str) -> bool:
        """Whether it has a blob."""

    def blob(self, repository: str, digest: str, size: int) -> Iterator[Piece]:
        """The bytes of a blob."""

    def close(self) -> None:
        """Whatever is asked ends soon, on whatever thread."""
