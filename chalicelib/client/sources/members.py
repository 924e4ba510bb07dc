"""Files by name, in a folder or in a tar archive, which is read where it lies: nothing is ever
unpacked under a name that an archive gives."""

import json
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from chalicelib.client.sources import MANIFEST_LIMIT, PIECE, Missing, SourceError

_HEADER_LIMIT = 1 << 20
"""Bytes that are read of an archive at once to find its files: their headers, with long names."""
_MOST_MEMBERS = 200_000
_HOPS = 8


class Members(Protocol):
    """Files by name. Threads may share them."""

    place: str
    """What people call all of it."""

    def size(self, name: str) -> int | None:
        """Of how many bytes a file is; None where there is none of that name."""

    def open(self, name: str) -> Iterator[bytes]:
        """The bytes of one. Iterating raises ``SourceError``, ``Missing``."""


def json_of(members: Members, name: str) -> Any:
    """What a file says. Raises ``Missing``; ``SourceError`` where that is no JSON."""
    try:
        return json.loads(small(members, name))
    except (ValueError, RecursionError):
        raise SourceError(f"{name} in {members.place} is not JSON.") from None


def small(members: Members, name: str) -> bytes:
    """All of a file that is read into memory. Raises ``Missing``, ``SourceError``."""
    size = members.size(name)
    if size is None:
        raise Missing(f"{members.place} has no {name}.")
    if size > MANIFEST_LIMIT:
        raise SourceError(f"{name} in {members.place} is far too large: {size} bytes.")
    return b"".join(members.open(name))


class Folder:
    """Files of a folder. Its names are made here, of digests, and are none that a file gives."""

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path

    def size(self, name: str) -> int | None:
        try:
            found = (self._path / name).stat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, name: str) -> Iterator[bytes]:
        if self.size(name) is None:  # a pipe would be waited for
            raise Missing(f"{self.place} has no {name}.")
        try:
            with (self._path / name).open("rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    yield piece
        except OSError as error:
            raise SourceError(f"{self.place}/{name} cannot be read: {error.strerror}.") from error


class _Place(NamedTuple):
    offset: int
    size: int


class Tar:
    """The files of a tar archive. Its headers are all read at the beginning. Raises ``SourceError``
    where that is none, or is cut off; ``OSError``."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self.place = place
        self._file = file
        self._places: dict[str, _Place | str] = {}
        end = os.fstat(file.fileno()).st_size
        try:
            file.seek(0)
            with closing(tarfile.open(fileobj=_Headers(file), mode="r:")) as tar:  # type: ignore[call-overload]
                for member in tar:
                    self._add(member, end)
                    tar.members = []  # else it keeps them all
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise SourceError(f"{place} is no tar archive, or a broken one: {error}.") from error

    def size(self, name: str) -> int | None:
        place = self._find(name)
        return place.size if place else None

    def open(self, name: str) -> Iterator[bytes]:
        place = self._find(name)
        if place is None:
            raise Missing(f"{self.place} has no {name}.")
        offset, left = place
        while left:
            try:
                piece = os.pread(self._file.fileno(), min(left, PIECE), offset)
            except OSError as error:
                raise SourceError(f"{self.place} cannot be read: {error.strerror}.") from error
            if not piece:
                raise SourceError(f"{self.place} is cut off.")
            offset += len(piece)
            left -= len(piece)
            yield piece

    def _add(self, member: tarfile.TarInfo, end: int) -> None:
        name = _normal(member.name)
        if member.isreg():
            if member.issparse():
                raise SourceError(f"{self.place} has a sparse file, {name}, which no image has.")
            if member.offset_data + member.size > end:
                raise SourceError(f"{self.place} is cut off.")
            self._places[name] = _Place(member.offset_data, member.size)
        elif member.issym():
            self._places[name] = _normal(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._places[name] = _normal(member.linkname)
        if len(self._places) > _MOST_MEMBERS:
            raise SourceError(f"{self.place} has more than {_MOST_MEMBERS} files.")

    def _find(self, name: str) -> _Place | None:
        """Where a file is, links followed within the archive: there is nowhere else to go."""
        found: _Place | str | None = _normal(name)
        for _ in range(_HOPS):
            if not isinstance(found, str):
                return found
            found = self._places.get(found)
        return None


def _normal(name: str) -> str:
    return posixpath.normpath(name)


class _Headers:
    """An archive, of which only headers are to be read: one that claims to be huge is none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """Some bytes."""
        if size > _HEADER_LIMIT:
            raise ValueError("a header is too long")
        return self._file.read(size)

    def close(self) -> None:
        """Leave it open."""
