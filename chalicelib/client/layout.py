"""An OCI image layout in a folder (OCI Image 1.1, image-layout.md), into which images are pulled.

A blob is in it once it is verified, whole and on the disk, and not before: until then its bytes are
in ``.partial/``, beside ``blobs/``, where they wait for another attempt after a break. Several
processes may write to one layout: whoever is at a blob holds a lock on its file.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chalicelib import digests
from chalicelib.folders import sync_folder
from chalicelib.http import DigestInvalid, Piece

TAG = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
"""The annotation by which `docker load` and `ctr image import` name an image."""

_MARK = {"imageLayoutVersion": "1.0.0"}
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_PIECE = 1 << 20


class LayoutError(Exception):
    """A folder cannot be used or written, or holds something else. The text is a sentence."""


class Mismatch(Exception):
    """Bytes are not those that the digest names."""


class Layout:
    """A folder that is a layout, or is made one by ``open``. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partial = folder / ".partial"

    def open(self) -> None:
        """Make the folder a layout where it is empty or missing. Raises ``LayoutError``."""
        mark = self.folder / "oci-layout"
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not mark.exists():
                if any(each.name != self._partial.name for each in self.folder.iterdir()):
                    raise LayoutError(
                        f"{self.folder} holds something else than an image layout: name an empty"
                        " folder, or a new one."
                    )
                self._partial.mkdir(exist_ok=True)
                self._replace(mark, _MARK)
            version = _read(mark).get("imageLayoutVersion")
            if version != _MARK["imageLayoutVersion"]:
                raise LayoutError(f"{self.folder} is a layout of another version: {version}.")
            (self.folder / "blobs").mkdir(exist_ok=True)
            if not (self.folder / "index.json").exists():
                self._partial.mkdir(exist_ok=True)
                self._replace(self.folder / "index.json", _empty())

    def close(self) -> None:
        """Remove the folder for what is on its way, where nothing waits in it."""
        try:
            self._partial.rmdir()
        except OSError:
            return

    def path(self, digest: str) -> Path:
        """Where a blob is, or will be."""
        algorithm, _, value = digest.partition(":")
        return self.folder / "blobs" / algorithm / value

    def holds(self, digest: str, size: int) -> bool:
        """Whether a blob is there, of that size. It is not read again."""
        path = self.path(digest)
        return path.is_file() and path.stat().st_size == size

    @contextmanager
    def receive(self, digest: str, size: int) -> "Iterator[Partial | None]":
        """A blob to be written, at the end of what came of it before; None where it is there. One
        process at a time: others wait. Raises ``LayoutError``."""
        packed = _packed(digest)
        if self.holds(digest, size):
            yield None
            return
        with _told(self.folder):
            self._partial.mkdir(exist_ok=True)
            path = self._partial / digest.replace(":", "-")
            file = _locked(path)
        try:
            if self.holds(digest, size):
                path.unlink(missing_ok=True)
                yield None
                return
            with _told(self.folder):
                partial = Partial(self.folder, file, path, self.path(digest), packed, size)
            yield partial
        finally:
            if not os.fstat(file).st_size and not self.holds(digest, size):
                path.unlink(missing_ok=True)
            os.close(file)

    def put(self, digest: str, data: bytes) -> None:
        """Add a small blob. Raises ``LayoutError`` and ``Mismatch``."""
        with self.receive(digest, len(data)) as partial:
            if partial is not None:
                partial.restart()
                partial.write(data)
                partial.finish()

    def name(self, descriptor: dict[str, Any], tag: str | None, full_name: str) -> str:
        """Name what is in the layout now, in place of what had this name; other images stay. The
        name that it got: the tag, or the full name where an image of another repository has the
        tag, or none where there is no tag. Raises ``LayoutError``."""
        with _told(self.folder):
            lock = os.open(self.folder / "oci-layout", os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return self._name(descriptor, tag, full_name)
            finally:
                os.close(lock)

    def _name(self, descriptor: dict[str, Any], tag: str | None, full_name: str) -> str:
        path = self.folder / "index.json"
        index = _read(path) if path.exists() else _empty()
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise LayoutError(f"{path} is no image index.")
        name = tag or ""
        holders = [_of(each, FULL_NAME) for each in entries if name and _of(each, TAG) == name]
        if any(holder not in ("", full_name) for holder in holders):
            name = full_name
        annotations = {TAG: name, FULL_NAME: full_name} if name else {}

        def goes(entry: dict[str, Any]) -> bool:
            if not name:
                return entry.get("digest") == descriptor["digest"] and not _of(entry, TAG)
            return _of(entry, TAG) == name or _of(entry, FULL_NAME) == full_name

        entry = {**descriptor, **({"annotations": annotations} if annotations else {})}
        index["manifests"] = [*(each for each in entries if not goes(each)), entry]
        self._partial.mkdir(exist_ok=True)
        self._replace(path, index)
        return name

    def _replace(self, path: Path, value: dict[str, Any]) -> None:
        temporary = self._partial / f"{path.name}-{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


class Partial:
    """A blob on its way: ``length`` bytes of ``size`` are there, of which those that an earlier
    process wrote were read and hashed again."""

    def __init__(
        self, folder: Path, file: int, path: Path, goal: Path, packed: bytes, size: int
    ) -> None:
        self.size = size
        self._folder = folder
        self._file = file
        self._path = path
        self._goal = goal
        self._packed = packed
        self._hash = digests.Hash(digests.algorithm(packed))
        if os.fstat(file).st_size > size:
            os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        while piece := os.read(file, _PIECE):
            self._hash.update(piece)
        self.resumed = self.length > 0

    @property
    def length(self) -> int:
        """How many bytes are there."""
        return self._hash.length

    def write(self, piece: Piece) -> None:
        """Take the next bytes. Raises ``Mismatch`` where they are too many, as ``finish`` does, and
        ``LayoutError``."""
        if self.length + len(piece) > self.size:
            self.restart()
            raise Mismatch
        with _told(self._folder):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._file, view) :]
        self._hash.update(piece)

    def restart(self) -> None:
        """Forget all that is there. Raises ``LayoutError``."""
        with _told(self._folder):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = digests.Hash(self._hash.algorithm)
        self.resumed = False

    def finish(self) -> None:
        """Have the blob in the layout. Raises ``Mismatch`` where it is not what its digest names:
        nothing of it is kept then; and ``LayoutError``."""
        if self.length != self.size or self._hash.digest() != self._packed:
            self.restart()
            raise Mismatch
        with _told(self._folder):
            os.fsync(self._file)
            made = not self._goal.parent.exists()
            self._goal.parent.mkdir(exist_ok=True)
            self._path.replace(self._goal)
            sync_folder(self._goal.parent)
            if made:
                sync_folder(self._goal.parent.parent)


def _locked(path: Path) -> int:
    """The open file at a path, which no other process is at. Whoever was may have moved it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
        os.close(file)


def _packed(digest: str) -> bytes:
    try:
        return digests.pack(digest)
    except DigestInvalid:
        raise LayoutError(f"{digest[:100]} is no digest that can be verified here.") from None


def _empty() -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": []}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise LayoutError(f"{path} is damaged.")
    return value


def _of(entry: dict[str, Any], annotation: str) -> str:
    annotations = entry.get("annotations")
    return str(annotations.get(annotation, "")) if isinstance(annotations, dict) else ""


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say what the system says, as a sentence: the disk is full, the folder is not writable."""
    try:
        yield
    except OSError as error:
        raise LayoutError(f"{folder} cannot be written: {error.strerror}.") from error
