"""Find out what a source is."""

import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from gzip import BadGzipFile
from importlib import import_module
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from chalicelib.client.progress import Progress
from chalicelib.client.sources import PIECE, Source, SourceError, engines
from chalicelib.client.sources.archives import LIST, Archive
from chalicelib.client.sources.layouts import INDEX, MANIFEST, Directory, Layout
from chalicelib.client.sources.members import Folder, Members, Tar, json_of

_CAR_1, _CAR_2 = b"\xa2\x65roots", b"\x0a\xa1\x67version\x02"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
"""By its first bytes, the module that reads a file which was compressed as a whole."""
_ZSTD = b"\x28\xb5\x2f\xfd"


class Opened(NamedTuple):
    """A source, and which of its images is meant, if that was said."""

    source: Source
    reference: str | None


@contextmanager
def opened(text: str, progress: Progress) -> Iterator[Opened]:
    """What a person has named: ``PATH[#IMAGE]`` of a file or folder, or an image of an engine's.
    Raises ``SourceError``."""
    with ExitStack() as stack:
        try:
            found = _opened(text, progress, stack)
        except OSError as error:
            raise SourceError(f"{text} cannot be read: {error.strerror or error}.") from error
        yield found


def _opened(text: str, progress: Progress, stack: ExitStack) -> Opened:
    path, reference = Path(text), None
    if not path.exists() and "#" in text:
        before, _, after = text.rpartition("#")
        if Path(before).exists():
            path, reference = Path(before), after
    if path.is_dir():
        return Opened(_folder(path), reference)
    if path.is_file():
        return Opened(
            _file(stack.enter_context(path.open("rb")), str(path), progress, stack), reference
        )
    if path.exists():
        raise SourceError(f"{path} is neither a file nor a folder.")
    image = text.removeprefix(engines.PREFIX)
    if image == text and (text.startswith(("/", ".", "~")) or not engines.is_image(text)):
        raise SourceError(f"There is no file or folder {text}.")
    try:
        with progress.bar(f"{image} saving") as bar:
            file = stack.enter_context(engines.save(image, bar.add))
    except SourceError as error:
        if image != text:
            raise
        raise SourceError(f"There is no file or folder {text}, and: {error}") from error
    return Opened(_file(file, image, progress, stack), None)


def _folder(path: Path) -> Source:
    folder = Folder(path)
    if folder.size(INDEX) is not None:
        return Layout(folder)
    if folder.size(MANIFEST) is None:
        raise SourceError(
            f"There is no image in {path}: it has no {INDEX} (OCI's layout) and no {MANIFEST}"
            " (skopeo's dir:)."
        )
    if isinstance(json_of(folder, MANIFEST), list):
        raise SourceError(f"{path} is an archive that was unpacked: name the archive itself.")
    return Directory(folder)


def _file(file: BinaryIO, place: str, progress: Progress, stack: ExitStack) -> Source:
    file.seek(0)
    begins = file.read(32)
    if begins.startswith(_CAR_2) or _CAR_1 in begins[:12]:
        from chalicelib.client.sources.cars import Car

        file.seek(0)
        return Car(file, place)
    if begins.startswith(_ZSTD):
        raise SourceError(f"{place} is compressed by zstd: unpack it first (zstd -d).")
    for magic, module in _COMPRESSED.items():
        if begins.startswith(magic):
            file.seek(0)
            reading = stack.enter_context(import_module(module).open(file))
            with progress.bar(f"{place} unpacking") as bar:
                file = stack.enter_context(_unpacked(reading, place, bar.add))
            break
    members: Members = Tar(file, place)
    if members.size(INDEX) is not None:
        return Layout(members)
    if members.size(LIST) is not None:
        archive = json_of(members, LIST)
        return Archive(members) if isinstance(archive, list) else Directory(members)
    raise SourceError(
        f"There is no image in {place}: it is a tar archive without {LIST} (docker save) and"
        f" without {INDEX} (OCI's layout)."
    )


def _unpacked(reading: IO[bytes], place: str, tell: Callable[[int], None]) -> BinaryIO:
    """An archive that was compressed as a whole, in a temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        while piece := reading.read(PIECE):
            file.write(piece)
            tell(len(piece))
        file.flush()
    except (EOFError, zlib.error, lzma.LZMAError, BadGzipFile) as error:
        file.close()
        raise SourceError(f"{place} cannot be unpacked: {error}.") from error
    except BaseException:
        file.close()
        raise
    return file
