"""The storage of the distribution project's registry as the origin of images: a folder or a bucket,
whether or not a registry runs on it.

Its layout (``registry/storage/paths.go`` there), below ``docker/registry/v2``:

- ``blobs/sha256/ab/abcd…/data``: the bytes of a digest, manifests too;
- ``repositories/NAME/_manifests/tags/TAG/current/link``: the digest of a tag's manifest;
- ``repositories/NAME/_manifests/revisions/sha256/abcd…/link``: a manifest of the repository;
- ``repositories/NAME/_layers/sha256/abcd…/link``: a blob of the repository.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chalicelib import digests
from chalicelib.client import manifests
from chalicelib.client.importing import OriginError
from chalicelib.client.manifests import Manifest, Unusable
from chalicelib.http import DigestInvalid, Piece
from chalicelib.registry.documents import Descriptor
from chalicelib.storage import NoSuchObject, StorageError

if TYPE_CHECKING:
    from chalicelib.storage.s3 import S3Store

_BELOW = "docker/registry/v2"
_PIECE = 1 << 20
_LINK_LIMIT = 1024
_MANIFEST_LIMIT = 32 << 20
_KNOWN = 8
"""Repositories whose referrers are remembered."""


class Files(Protocol):
    """Files by their paths. Raises ``OriginError`` where they cannot be read."""

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder, sorted; none where there is no such one."""

    def size(self, path: str) -> int | None:
        """A file's size in bytes; None where there is none."""

    def read(self, path: str, size: int) -> Iterator[Piece]:
        """A file's bytes, of which there are so many."""


class Folder:
    """``Files`` of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folders(self, path: str) -> list[str]:
        try:
            return sorted(each.name for each in (self._folder / path).iterdir() if each.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._problem(path, error) from None

    def size(self, path: str) -> int | None:
        try:
            return (self._folder / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._problem(path, error) from None

    def read(self, path: str, size: int) -> Iterator[Piece]:
        try:
            with (self._folder / path).open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
        except OSError as error:
            raise self._problem(path, error) from None

    def _problem(self, path: str, error: OSError) -> OriginError:
        return OriginError(f"{self._folder / path} cannot be read: {error.strerror}.")


class Bucket:
    """``Files`` of a bucket."""

    def __init__(self, store: "S3Store") -> None:
        self._store = store

    def folders(self, path: str) -> list[str]:
        found: list[str] = []
        where = self._store.address(f"{path}/" if path else "")
        prefix = where.pop("Key")
        where |= {"Prefix": prefix, "Delimiter": "/"}
        client = self._store.client
        try:
            while True:
                page = client.call(client.s3.list_objects_v2, **where)
                below = [each["Prefix"] for each in page.get("CommonPrefixes", ())]
                found += [each.removeprefix(prefix).rstrip("/") for each in below]
                if not page["IsTruncated"]:
                    return sorted(found)
                where["ContinuationToken"] = page["NextContinuationToken"]
        except StorageError as error:
            raise OriginError(str(error)) from error

    def size(self, path: str) -> int | None:
        try:
            return self._store.size(path)
        except StorageError as error:
            raise OriginError(str(error)) from error

    def read(self, path: str, size: int) -> Iterator[Piece]:
        if not size:
            return
        try:
            with closing(self._store.client.download(self._store.address(path), 0, size)) as body:
                yield from body
        except StorageError as error:
            raise OriginError(str(error)) from error


class StorageOrigin:
    """``Origin`` in a registry's storage. ``place`` is what people call it."""

    def __init__(self, files: Files, place: str) -> None:
        self._files = files
        self._place = place
        self._root = self._find_root()
        self._lock = threading.Lock()
        self._referrers: OrderedDict[str, dict[str, list[str]]] = OrderedDict()
        self._closed = threading.Event()

    def repositories(self) -> Iterator[str]:
        yield from self._below("")

    def tags(self, repository: str) -> Iterator[str]:
        for tag in self._files.folders(self._of(repository, "_manifests/tags")):
            if self._link(self._of(repository, f"_manifests/tags/{tag}/current/link")):
                yield tag

    def untagged(self, repository: str) -> Iterator[str]:
        revisions = self._of(repository, "_manifests/revisions")
        for algorithm in self._files.folders(revisions):
            for value in self._files.folders(f"{revisions}/{algorithm}"):
                # A manifest that was deleted leaves its folder.
                digest = self._link(f"{revisions}/{algorithm}/{value}/link")
                if digest == f"{algorithm}:{value}":
                    yield digest

    def manifest(
        self, repository: str, reference: str, claimed: Descriptor | None = None
    ) -> Manifest:
        digest = reference
        if not digests.is_digest(reference):
            link = self._of(repository, f"_manifests/tags/{reference}/current/link")
            digest = self._link(link)
        path = self._of(repository, f"_manifests/revisions/{digest.replace(':', '/')}/link")
        if not digest or self._link(path) != digest:
            raise OriginError(f"The repository {repository} has no manifest {digest or reference}.")
        data = self._read(self._data(digest), _MANIFEST_LIMIT)
        if data is None:
            raise OriginError(f"The bytes of the manifest {digest} are not there.")
        if digests.unpack(digests.of(data, digest.partition(":")[0])) != digest or (
            claimed is not None and claimed.size != len(data)
        ):
            raise OriginError(f"The bytes of the manifest {digest} are other ones: it is damaged.")
        try:
            return manifests.parse(data, "", digest, reference)
        except Unusable as error:
            raise OriginError(str(error)) from None

    def referrers(self, repository: str, digest: str) -> Iterable[str]:
        with self._lock:
            known = self._referrers.get(repository)
            if known is None:
                known = self._referrers[repository] = self._all_referrers(repository)
                if len(self._referrers) > _KNOWN:
                    self._referrers.popitem(last=False)
        return known.get(digest, ())

    def has(self, repository: str, digest: str) -> bool:
        return self._files.size(self._data(digest)) is not None

    def blob(self, repository: str, digest: str, size: int) -> Iterator[Piece]:
        found = self._files.size(self._data(digest))
        if found is None:
            raise OriginError(f"The bytes of {digest}, which a manifest names, are not there.")
        if found != size:
            raise OriginError(f"{digest} has {found} bytes, and {size} by its manifest.")
        for piece in self._files.read(self._data(digest), size):
            if self._closed.is_set():
                raise OriginError("Given up.")
            yield piece

    def close(self) -> None:
        self._closed.set()

    def _find_root(self) -> str:
        for root in (_BELOW, "registry/v2", "v2", ""):
            if "repositories" in self._files.folders(root):
                return f"{root}/" if root else ""
        raise OriginError(
            f"{self._place} has no {_BELOW}/repositories: it is not the storage of a registry that"
            " has images."
        )

    def _below(self, above: str) -> Iterator[str]:
        """The repositories whose names begin so; an empty name for all."""
        for name in self._files.folders(f"{self._root}repositories/{above}".rstrip("/")):
            if name == "_manifests":
                yield above.rstrip("/")
            elif not name.startswith("_"):
                yield from self._below(f"{above}{name}/")

    def _of(self, repository: str, path: str) -> str:
        return f"{self._root}repositories/{repository}/{path}"

    def _data(self, digest: str) -> str:
        """Where the bytes of a digest are. Raises ``OriginError`` where it is none."""
        try:
            digests.pack(digest)
        except DigestInvalid:
            raise OriginError(f"{digest[:100]} is no digest that can be verified here.") from None
        algorithm, _, value = digest.partition(":")
        return f"{self._root}blobs/{algorithm}/{value[:2]}/{value}/data"

    def _link(self, path: str) -> str:
        """The digest that a file of links holds; empty where there is none."""
        text = (self._read(path, _LINK_LIMIT) or b"").decode(errors="replace").strip()
        return text if digests.is_digest(text) else ""

    def _read(self, path: str, most: int) -> bytes | None:
        size = self._files.size(path)
        if size is None:
            return None
        if size > most:
            raise OriginError(f"{path} has {size} bytes, and so is not what its name says.")
        try:
            return b"".join(self._files.read(path, size))
        except NoSuchObject:
            return None

    def _all_referrers(self, repository: str) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for digest in self.untagged(repository):
            try:
                subject = self.manifest(repository, digest).document.subject
            except OriginError:
                continue  # nothing that could be imported
            if subject is not None:
                found[subject].append(digest)
        return dict(found)


def opened(source: str) -> StorageOrigin:
    """The storage that was named: a folder, ``file:///folder``, or ``s3://bucket/prefix`` with the
    parameters of OPENREGISTRY_STORAGE_URL. Raises ``OriginError``."""
    from urllib.parse import unquote, urlsplit

    from chalicelib.settings import Settings, SettingsError
    from chalicelib.storage import open_store
    from chalicelib.storage.s3 import S3Store

    if source.startswith("s3://"):
        try:
            store = open_store(Settings(storage_url=source))
        except SettingsError as error:
            raise OriginError(f"{source.partition('?')[0]} {error.sentence}.") from None
        if not isinstance(store, S3Store):
            raise AssertionError
        return StorageOrigin(Bucket(store), source.partition("?")[0])
    folder = unquote(urlsplit(source).path) if source.startswith("file://") else source
    if not Path(folder).is_dir():
        raise OriginError(
            f"There is no folder {folder}. A registry is named by its URL, like https://HOST."
        )
    return StorageOrigin(Folder(Path(folder)), folder)
