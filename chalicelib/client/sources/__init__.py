"""Images that are on this machine, in whatever form: found out by looking, not told.

A *source* is one place with images in it. Whatever the form, it gives contents by their digests, as
a registry would: an archive of `docker save`, which has no manifest, is given one. Nothing that a
source says of itself is believed (names, links, sizes, media types): names lead to no file outside
of it, and every byte is held against its digest while it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from chalicelib import digests
from chalicelib.http import DigestInvalid, Piece

PIECE = 1 << 20
"""Bytes that are read at once."""
MANIFEST_LIMIT = 32 << 20
"""Bytes of a document that is read into memory: a manifest, a config, an index."""
_LISTED = 50


class SourceError(Exception):
    """There is no such image, or it is broken. The text is a sentence, in which nothing that a file
    says can move a terminal's cursor."""

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(each if each.isprintable() else "?" for each in sentence))


class Missing(SourceError):
    """A source lacks something that it names itself."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is looked for: ``size`` is in bytes, None where nobody said."""

    digest: str
    media_type: str = ""
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One image of a source. ``key`` is the same for the same image, ``names`` are all by which it
    can be chosen, and ``shown`` is the one by which people know it."""

    key: str
    shown: str
    names: tuple[str, ...] = ()


class Source(Protocol):
    """Where images are. Threads may share it."""

    def choose(self, reference: str | None) -> Descriptor:
        """The image of that name, or the only one. Raises ``SourceError`` with what there is."""

    def size(self, digest: str) -> int | None:
        """How many bytes it has of that digest; None where it has none."""

    def open(self, digest: str) -> Iterator[Piece]:
        """Bytes that claim to be of that digest, from the first on; from several threads, and any
        number of times. Iterating raises ``SourceError``."""


def pick(choices: Sequence[Choice], reference: str | None, place: str) -> Choice:
    """The one that is meant. Raises ``SourceError`` which lists them."""
    meant = [each for each in choices if reference is None or reference in each.names]
    if len({each.key for each in meant}) == 1:
        return meant[0]
    if not choices:
        raise SourceError(f"There is no image in {place}.")
    shown = list(dict.fromkeys(each.shown for each in choices))
    listed = ", ".join(shown[:_LISTED])
    if len(shown) > _LISTED:
        listed += f" and {len(shown) - _LISTED} more"
    if reference is None:
        raise SourceError(
            f"There are several images in {place}: {listed}. Choose one: {place}#{shown[0]}"
        )
    if meant:
        raise SourceError(f"Several images in {place} are called {reference}: {listed}.")
    raise SourceError(f"There is no image {reference} in {place}, but {listed}.")


def names_of(image: str) -> tuple[str, ...]:
    """All by which people may call an image that docker names so: without the host and account that
    docker adds, without ``latest``, or by its tag alone."""
    short = image.removeprefix("docker.io/").removeprefix("library/")
    found = [image, image.removeprefix("docker.io/"), short]
    _, colon, tag = short.rpartition(":")
    if colon and "/" not in tag:
        found.append(tag)
        if tag == "latest":
            found += [each.removesuffix(":latest") for each in (image, short)]
    return tuple(dict.fromkeys(found))


def packed(digest: str) -> bytes:
    """A digest in bytes. Raises ``SourceError`` where it is none that can be checked here."""
    try:
        return digests.pack(digest)
    except DigestInvalid:
        raise SourceError(f"A digest is neither SHA-256 nor SHA-512: {digest[:100]!r}.") from None


def verified(source: Source, digest: str, size: int | None) -> Iterator[Piece]:
    """The bytes of a digest. Raises ``SourceError`` before the last of them where they are others,
    or of another number."""
    wanted = packed(digest)
    hashing = digests.Hash(digests.algorithm(wanted))
    held: Piece = b""
    for piece in source.open(digest):
        if held:
            yield held
        hashing.update(piece)
        held = piece
        if size is not None and hashing.length > size:
            break
    if hashing.digest() != wanted or size not in (None, hashing.length):
        raise SourceError(f"The bytes of {digest} are not those of its digest: it is damaged.")
    if held:
        yield held


def document(source: Source, wanted: Descriptor) -> bytes:
    """The bytes of a manifest or config, verified. Raises ``Missing``, ``SourceError``."""
    size = source.size(wanted.digest)
    if size is None:
        raise Missing(f"It lacks {wanted.digest}, which it names.")
    if size > MANIFEST_LIMIT:
        raise SourceError(f"{wanted.digest} is no manifest or config: it has {size} bytes.")
    return b"".join(verified(source, wanted.digest, wanted.size))
