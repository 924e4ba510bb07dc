"""Whole images as files that every IPFS node takes (CAR).

An archive has what networks have of an image: its root, which is the archive's first, what is
derived of its manifests, these themselves, and all blobs. Each of them is a root of the archive, so
that a node that imports it keeps them all: they name each other by addresses, which nodes do not
follow. Making one needs no network; reading one does where it has less than the whole image, as
what `ipfs dag export` makes of a root alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import ManifestUnknown, Piece
from chalicelib.metadata import blobs, manifests
from chalicelib.registry import blocks, documents
from chalicelib.resolvers import car, finding, images, peers
from chalicelib.resolvers.peers import Tell
from chalicelib.resolvers.placing import Bytes, Corrupt, Stored
from chalicelib.resolvers.unixfs import Block, Tree
from chalicelib.storage import StorageError

_DEPTH = 8


@dataclass(slots=True)
class Exported:
    """What an archive has: the image's root, its manifest's digest, how many manifests and blobs;
    ``size`` in bytes. ``left_out``: digests that manifests name and the registry does not have."""

    root: str
    digest: str
    manifests: int
    blobs: int
    size: int
    left_out: list[str]


def export(
    context: Context, repository: str, reference: str, file: BinaryIO, tell: Tell
) -> Exported:
    """Write an image to a file, every blob read twice and verified. Raises ``ManifestUnknown``,
    ``Denied``, ``StorageError``, ``Corrupt``; ``OSError`` where the file cannot be written."""
    return _Exporting(context, repository, tell).run(reference, file)


class _Exporting:
    """One image on its way into a file."""

    def __init__(self, context: Context, repository: str, tell: Tell) -> None:
        self._context = context
        self._repository = repository
        self._tell = tell
        self._contents: dict[str, tuple[Tree, Bytes | Stored]] = {}
        self._addresses: dict[str, images.Address] = {}
        self._left_out: set[str] = set()
        self._counts = {"manifests": 0, "blobs": 0}

    def run(self, reference: str, file: BinaryIO) -> Exported:
        database, repository = self._context.database, self._repository
        if ":" in reference:
            top = manifests.by_digest(database, repository, digests.pack(reference))
        else:
            top = manifests.by_tag(database, repository, reference)
        if top is None:
            raise ManifestUnknown(f"There is no image {repository}:{reference}.")
        address = self._manifest(top, 0)
        size = len(top.payload)
        signed = images.signature(self._context.keys, top.digest, top.media_type, size)
        root = self._add_bytes("root", images.root_of(address, top.media_type, signed))
        written = 0
        for piece in car.write(self._roots(root), self._blocks(root)):
            file.write(piece)
            written += len(piece)
        digest, left_out = digests.unpack(top.digest), sorted(self._left_out)
        return Exported(root, digest, **self._counts, size=written, left_out=left_out)

    def _manifest(self, stored: manifests.Stored, depth: int) -> images.Address:
        """Add a manifest and all that it names."""
        blocks.check(stored.refusal, stored.digest)
        if depth > _DEPTH:
            raise StorageError("Its indexes name each other too deep.")
        document = documents.read(stored.payload, stored.media_type)
        for each in document.children:
            digest = digests.pack(each.digest)
            if each.digest in self._addresses:
                continue
            child = manifests.by_digest(self._context.database, self._repository, digest)
            if child is not None:
                self._manifest(child, depth + 1)
            else:
                # BuildKit keeps a cache as an index whose "manifests" are layers.
                self._blob(each.digest)
        for each in (*document.blobs, *document.absent):
            self._blob(each.digest)
        name = digests.unpack(stored.digest)
        derived = images.derived_of(stored.payload, self._addresses)
        address = images.Address(
            self._add_bytes(name, stored.payload),
            derived,
            self._add_bytes(name + images.DERIVED, derived),
        )
        self._addresses[name] = address
        self._counts["manifests"] += 1
        return address

    def _blob(self, name: str) -> None:
        if name in self._addresses:
            return
        digest, store = digests.pack(name), self._context.store
        found = blobs.find(self._context.database, self._repository, digest, store.name)
        if found is None:
            self._left_out.add(name)
            return
        blocks.check(found.refusal, digest)
        content = Stored(name, found.size, found.key, store)
        tree = Tree(_verified(content, digest))
        self._contents[tree.cid] = tree, content
        self._addresses[name] = images.Address(tree.cid)
        self._counts["blobs"] += 1
        self._tell("blobs read", self._counts["blobs"], self._counts["blobs"])

    def _add_bytes(self, name: str, data: bytes) -> str:
        tree = Tree([data])
        self._contents[tree.cid] = tree, Bytes(name, data)
        return tree.cid

    def _roots(self, root: str) -> list[str]:
        return [root, *(cid for cid in self._contents if cid != root)]

    def _blocks(self, root: str) -> Iterator[Block]:
        roots = self._roots(root)
        for number, cid in enumerate(roots, 1):
            tree, content = self._contents[cid]
            try:
                yield from tree.blocks(content.open())
            except ValueError as error:
                raise Corrupt(f"{content.name}: {error}") from error
            self._tell("files written", number, len(roots))


def _verified(content: Stored, digest: bytes) -> Iterator[Piece]:
    """The bytes of a blob. Raises ``Corrupt`` at their end where they are other ones."""
    hashing = Hash(digests.algorithm(digest))
    for piece in content.open():
        hashing.update(piece)
        yield piece
    if hashing.digest() != digest:
        raise Corrupt(f"The bytes of {content.name} in object storage are not those of its digest.")


def import_image(
    context: Context,
    file: BinaryIO,
    repository: str,
    tag: str,
    trusted: Sequence[str] | None,
    tell: Tell = peers.silent,
) -> peers.Pulled:
    """Make an image of an archive's first root; what the archive does not have comes from
    networks. Raises as ``peers.pull_root`` does; ``Refused`` where that is no archive."""
    try:
        archive = car.Archive(file)
    except ValueError as error:
        raise peers.Refused(str(error)) from error
    if not archive.roots:
        raise peers.Refused("The archive names no root.")
    sources = [archive, *finding.sources(context)]
    root = archive.roots[0]
    return peers.pull_root(context, sources, root, repository, tag, trusted, tell=tell)
