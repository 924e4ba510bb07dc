"""Layouts: OCI's, of a folder or a tar archive (OCI Image 1.1, "Image Layout"), which Docker's
archives are too since version 25; and the folders that `skopeo copy … dir:` writes."""

from collections.abc import Iterator
from typing import Any

from chalicelib import digests
from chalicelib.client.sources import Choice, Descriptor, SourceError, names_of, packed, pick
from chalicelib.client.sources.members import Members, json_of, small

INDEX = "index.json"
MANIFEST = "manifest.json"
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"
"""Annotations of an index.json's descriptors: a tag mostly, and an image's full name."""


class Layout:
    """A layout of OCI's. Raises ``SourceError``."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._descriptors: dict[str, Descriptor] = {}
        index = json_of(members, INDEX)
        found = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(found, list):
            raise SourceError(f"{INDEX} in {members.place} is no image index.")
        self._choices = [self._choice(each) for each in found]

    def choose(self, reference: str | None) -> Descriptor:
        return self._descriptors[pick(self._choices, reference, self._members.place).key]

    def size(self, digest: str) -> int | None:
        return self._members.size(_path(digest))

    def open(self, digest: str) -> Iterator[bytes]:
        return self._members.open(_path(digest))

    def _choice(self, each: Any) -> Choice:
        digest = each.get("digest") if isinstance(each, dict) else None
        if not isinstance(digest, str):
            raise SourceError(f"{INDEX} in {self._members.place} has what is no descriptor.")
        annotations = each.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        names = [
            value
            for name in (_REF_NAME, _IMAGE_NAME)
            if isinstance(value := annotations.get(name), str)
        ]
        size = each.get("size")
        self._descriptors[digest] = Descriptor(
            digest, str(each.get("mediaType") or ""), size if isinstance(size, int) else None
        )
        called = [other for name in names for other in names_of(name)]
        return Choice(digest, names[-1] if names else digest, (digest, *called))


def _path(digest: str) -> str:
    packed(digest)  # so that it is no path elsewhere
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


class Directory:
    """A folder of the form ``dir:`` of containers/image (github.com/containers/image,
    directory/directory_transport.go): the manifest, those that it names, and blobs by their hash.
    Raises ``SourceError``."""

    def __init__(self, members: Members) -> None:
        self._members = members
        payload = small(members, MANIFEST)
        self._digest = digests.unpack(digests.of(payload))
        self._size = len(payload)

    def choose(self, reference: str | None) -> Descriptor:
        choice = Choice(self._digest, self._digest, (self._digest,))
        pick([choice], reference, self._members.place)
        return Descriptor(self._digest, "", self._size)

    def size(self, digest: str) -> int | None:
        return self._members.size(self._path(digest))

    def open(self, digest: str) -> Iterator[bytes]:
        return self._members.open(self._path(digest))

    def _path(self, digest: str) -> str:
        packed(digest)
        if digest == self._digest:
            return MANIFEST
        value = digest.partition(":")[2]
        child = f"{value}.manifest.json"
        return value if self._members.size(child) is None else child
