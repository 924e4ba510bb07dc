"""Blobs in a folder: each an atomic, fsynced file, read without copying.

``<folder>/<first two letters of the key>/`` holds ``<key>`` (an object), ``<key>.part`` (being
written), ``<key>.piece`` (one request's bytes of an upload that has several) and ``<key>.join``
(such pieces, being put together). Only a rename makes an object, after its bytes are on the disk.
"""

import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import cast

from chalicelib import tracing
from chalicelib.folders import sync_folder
from chalicelib.http import FileRegion, Piece
from chalicelib.metrics import catalogue
from chalicelib.storage import ClientParts, NoSuchObject, Staged, StorageError

_KEY = re.compile(r"[A-Za-z0-9_-]{2,200}")
_SUFFIXES = (".part", ".piece", ".join")
_WRITE_BACK = 8 << 20
"""How many bytes gather before the disk is told to begin: few enough that ``fsync`` finds little
left to do, enough that the disk writes long runs."""
_COPY = 4 << 20
_VECTOR = 1024  # IOV_MAX of Linux and macOS


class FileStore:
    """``ObjectStore`` in a folder, which must be on one file system. Other processes may use the
    folder at the same time."""

    name = "filesystem"
    client_parts: ClientParts | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._durable: set[Path] = set()

    def writer(
        self, staged: Staged | None, key: str, reserve: Callable[[int], int]
    ) -> "FileWriter":
        return FileWriter(self, staged, key)

    def complete(self, staged: Staged) -> None:
        if staged.whole or self.size(staged.key) == staged.size:
            return
        path = self.path(staged.key, ".join")
        with _timed("join"), _explained(), _opened(path) as joined:
            # Where two requests complete one upload at once, the second finds it done.
            fcntl.flock(joined, fcntl.LOCK_EX)
            if self.size(staged.key) == staged.size:
                path.unlink(missing_ok=True)
                return
            joined.truncate(0)
            try:
                self._join(staged, joined.fileno())
            except BaseException:
                # Where the disk is full, that would keep it so for everybody.
                joined.truncate(0)
                raise
            self.settle(staged.key, ".join", "")

    def discard(self, key: str) -> None:
        self._remove(key, "", *_SUFFIXES)

    def discard_leftovers(self, key: str) -> None:
        self._remove(key, *_SUFFIXES)

    def size(self, key: str) -> int | None:
        with _explained():
            try:
                return self.path(key).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, key: str, offset: int, length: int) -> FileRegion:
        with _explained():
            try:
                file = self.path(key).open("rb", buffering=0)
            except FileNotFoundError:
                raise NoSuchObject(f"There is no object {key}.") from None
            if os.fstat(file.fileno()).st_size < offset + length:
                file.close()
                raise StorageError(f"The object {key} is shorter than it should be.")
            return FileRegion(file, offset, length)

    def presign(self, method: str, key: str, seconds: int) -> None:
        return None

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._remove(key, "")

    def list(self, after: str = "") -> Iterator[tuple[str, int, float]]:
        for shard in _names(self.folder):
            if shard < after[:2]:
                continue
            for key in _names(self.folder / shard):
                if key > after and _KEY.fullmatch(key):
                    with suppress(FileNotFoundError):
                        found = self.path(key).stat()
                        yield key, found.st_size, found.st_mtime

    def list_staged(self, after: str = "") -> Iterator[str]:
        for shard in _names(self.folder):
            if shard < after[:2]:
                continue
            files = map(Path, _names(self.folder / shard))
            for key in sorted({file.stem for file in files if file.suffix in _SUFFIXES}):
                if key > after and _KEY.fullmatch(key):
                    yield key

    def preload(self) -> None:
        """There is nothing to load."""

    def check(self) -> None:
        with _explained():
            self._make(self.folder)
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                file.write(b"ready")

    def path(self, key: str, suffix: str = "") -> Path:
        """Where the file of a key is."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        return self.folder / key[:2] / (key + suffix)

    def create(self, key: str) -> int:
        """A new file for a request's bytes, as a file descriptor to write to."""
        path = self.path(key, ".part")
        self._make(path.parent)
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)

    def settle(self, key: str, suffix: str, settled: str) -> None:
        """Give a file whose bytes are on the disk its lasting name, durably."""
        path = self.path(key, settled)
        self.path(key, suffix).rename(path)
        sync_folder(path.parent)

    def _make(self, folder: Path) -> None:
        """Make a folder so that it survives a power cut, whichever process made it first."""
        if folder in self._durable and folder.is_dir():
            return
        if folder == self.folder:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._make(self.folder)
            folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        self._durable.add(folder)

    def _join(self, staged: Staged, target: int) -> None:
        """Copy all that is staged to an empty file, durably."""
        start = 0
        for key, suffix, size in _pieces(staged):
            try:
                with self.path(key, suffix).open("rb", buffering=0) as piece:
                    _copy(piece.fileno(), target, start, size)
            except FileNotFoundError:
                raise StorageError(f"Staged bytes of {key} are missing.") from None
            start += size
        os.fsync(target)

    def _remove(self, key: str, *suffixes: str) -> None:
        with _timed("remove"), _explained():
            for suffix in suffixes:
                self.path(key, suffix).unlink(missing_ok=True)


class FileWriter:
    """``Writer`` of ``FileStore``: one file for each request, joined when the upload is complete,
    so that requests which race never touch each other's bytes."""

    def __init__(self, store: FileStore, staged: Staged | None, key: str) -> None:
        self._store = store
        self._staged = staged
        self._key = key
        self._file: int | None = None
        self._size = 0
        self._begun = 0  # the disk was told to write so many bytes

    def write(self, pieces: Sequence[Piece]) -> None:
        views = [memoryview(piece) for piece in pieces if len(piece)]
        if not views:
            return
        with _explained():
            if self._file is None:
                self._file = self._store.create(self._key)
            self._size += _write(self._file, views)
            if self._size - self._begun >= _WRITE_BACK:
                _begin_write_back(self._file, self._begun, self._size - self._begun)
                self._begun = self._size

    def close(self, *, final: bool) -> Staged:
        if not self._size and self._staged is not None:
            return self._staged
        pieces = _pieces(self._staged) if self._staged is not None else []
        suffix = ".piece" if pieces else ""
        with _timed("sync"), _explained():
            file = self._store.create(self._key) if self._file is None else self._file
            self._file = file
            os.fsync(file)
            self._file = None
            os.close(file)
            self._store.settle(self._key, ".part", suffix)
        pieces.append((self._key, suffix, self._size))
        size = sum(size for _, _, size in pieces)
        if not suffix:
            return Staged(self._key, size, whole=True, state={})
        return Staged(self._key, size, whole=False, state={"pieces": [[*each] for each in pieces]})

    def abort(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with _explained():
                os.close(file)
                self._store.path(self._key, ".part").unlink(missing_ok=True)


def _pieces(staged: Staged) -> list[tuple[str, str, int]]:
    """The files that hold what is staged, in order: key, suffix, size."""
    if staged.whole:
        return [(staged.key, "", staged.size)] if staged.size else []
    pieces = cast("list[tuple[str, str, int]]", staged.state["pieces"])
    return [(key, suffix, size) for key, suffix, size in pieces]


def _write(file: int, views: list[memoryview]) -> int:
    """Write all of these; the system may take less than it is given. Returns their size."""
    total = 0
    while views:
        taken = os.writev(file, views[:_VECTOR])
        total += taken
        whole = 0
        while whole < len(views) and taken >= views[whole].nbytes:
            taken -= views[whole].nbytes
            whole += 1
        del views[:whole]
        if taken:
            views[0] = views[0][taken:]
    return total


def _opened(path: Path) -> FileIO:
    """A file to write to, made where there is none, and left as it is where there is one."""
    return FileIO(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644), "wb")


def _copy(source: int, target: int, start: int, size: int) -> None:
    """Copy the first ``size`` bytes of a file to another, which has ``start`` bytes: within the
    kernel, and on file systems that can share blocks (XFS, Btrfs) not at all."""
    done = 0
    while done < size:
        count = min(size - done, _COPY)
        try:
            copied = os.copy_file_range(source, target, count, done, start + done)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            # Not on this system, or not between these files.
            copied = os.pwrite(target, os.pread(source, count, done), start + done)
        if not copied:
            raise StorageError("Staged bytes are missing: a file is shorter than it was.")
        _begin_write_back(target, start + done, copied)
        done += copied


def _begin_write_back(file: int, offset: int, size: int) -> None:
    """Let the disk begin without waiting for it. On Linux the advice starts write-back of dirty
    pages, and drops only clean ones, of which a range that was just written has none."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)


def _names(folder: Path) -> list[str]:
    with _explained():
        try:
            return sorted(file.name for file in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


@contextmanager
def _timed(operation: str) -> Iterator[None]:
    """Measure what waits for the disk."""
    began = time.monotonic()
    outcome = "failed"
    try:
        with tracing.span(f"storage {operation}"):
            yield
        outcome = "ok"
    finally:
        catalogue.STORAGE_SECONDS.observe(time.monotonic() - began, operation, outcome)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the operating system's errors into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = "The disk that blobs are kept on is full, or at this user's limit."
        else:
            message = f"The folder of blobs cannot be used: {error.strerror}."
        raise StorageError(message) from error
