"""Images in CAR files, as `openregistry car export` and `ipfs dag export` of all its roots write
them. What the root says of where things are need not be believed: all bytes are held against
digests, from the manifest's down."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from chalicelib import digests
from chalicelib.client.sources import MANIFEST_LIMIT, Descriptor, SourceError, packed
from chalicelib.registry.documents import MANIFESTS
from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.blocks import fetch, read
from chalicelib.resolvers.car import Archive

ANNOTATION = "org.openregistry.manifest"
"""Where a derived manifest's original is (``chalicelib.resolvers.images``, which needs all of the
registry)."""
_IPFS = "ipfs://"
_DEPTH = 8


class Car:
    """A CAR file. Making it reads and checks all of it. Raises ``SourceError``; ``OSError``."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self.place = place
        try:
            self._archive = Archive(file)
        except ValueError as error:
            raise SourceError(f"{place} is no CAR file, or a broken one: {error}") from error
        self._payloads: dict[str, bytes] = {}
        self._read: dict[tuple[str, str], str] = {}
        self._files: dict[str, tuple[str, int]] = {}

    def choose(self, reference: str | None) -> Descriptor:
        if not self._archive.roots:
            raise SourceError(f"{self.place} names no root.")
        root = (reference or self._archive.roots[0]).removeprefix(_IPFS)
        if root not in self._archive.roots:
            raise SourceError(f"{self.place} has no root {root}.")
        said = self._object(root)
        try:
            derived = _address(said["urls"][0])
            annotations = said.get("annotations") or {}
            itself = _address(annotations[ANNOTATION]) if ANNOTATION in annotations else derived
            media_type = str(said.get("mediaType") or "")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SourceError(
                f"{root} in {self.place} is no image's root; `openregistry car export` writes it"
                " first."
            ) from None
        digest = self._manifest(itself, derived, 0)
        return Descriptor(digest, media_type, len(self._payloads[digest]))

    def size(self, digest: str) -> int | None:
        if digest in self._payloads:
            return len(self._payloads[digest])
        return self._files[digest][1] if digest in self._files else None

    def open(self, digest: str) -> Iterator[bytes]:
        if digest in self._payloads:
            yield self._payloads[digest]
            return
        cid, size = self._files[digest]
        try:
            yield from read([self._archive], cid, 0, size)
        except (ResolverError, ValueError) as error:
            raise SourceError(f"{self.place} lacks bytes of {digest}: {error}") from error
        except OSError as error:
            raise SourceError(f"{self.place} cannot be read: {error.strerror}.") from error

    def _manifest(self, cid: str, derived_cid: str, depth: int) -> str:
        """Learn where is what a manifest names, from what is derived of it; gives its digest."""
        if depth > _DEPTH:
            raise SourceError(f"The indexes in {self.place} name each other too deep.")
        if (cid, derived_cid) in self._read:
            return self._read[cid, derived_cid]
        payload, derived = self._fetch(cid), self._object(derived_cid)
        digest = digests.unpack(digests.of(payload))
        self._payloads[digest] = payload
        self._read[cid, derived_cid] = digest
        original = _read(payload)
        for name in ("layers", "blobs", "manifests", "config"):
            for each, other in zip(_listed(original, name), _listed(derived, name), strict=False):
                try:
                    self._learn(each, other, depth)
                except (ValueError, LookupError, TypeError, AttributeError):
                    continue  # it has no address: what it names may not be there
        return digest

    def _learn(self, each: Any, other: Any, depth: int) -> None:
        address = _address(other["urls"][0])
        if each.get("mediaType") in MANIFESTS:
            annotations = other.get("annotations") or {}
            itself = _address(annotations[ANNOTATION]) if ANNOTATION in annotations else address
            self._manifest(itself, address, depth + 1)
        else:
            packed(each["digest"])
            self._files[each["digest"]] = address, int(each["size"])

    def _object(self, cid: str) -> dict[str, Any]:
        return _read(self._fetch(cid))

    def _fetch(self, cid: str) -> bytes:
        try:
            return fetch([self._archive], cid, MANIFEST_LIMIT)
        except (ResolverError, ValueError) as error:
            raise SourceError(f"{self.place} lacks {_IPFS}{cid}: {error}") from error


def _read(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SourceError("What should be a manifest in the CAR file is none.")
    return value


def _listed(document: dict[str, Any], name: str) -> list[Any]:
    """What stands in a field, be it one thing or several."""
    found = document.get(name)
    return found if isinstance(found, list) else [found] if isinstance(found, dict) else []


def _address(url: Any) -> str:
    """The CID of an ``ipfs://`` URL. Raises ``ValueError``."""
    if not isinstance(url, str) or not url.startswith(_IPFS):
        raise ValueError("that is no ipfs:// URL")
    return url.removeprefix(_IPFS)
