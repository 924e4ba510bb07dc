"""Images, from this machine to a registry: blobs several at a time, then manifests, children first,
and the tag last, so that nobody ever sees a part of an image.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Literal

from chalicelib.client.compression import compress
from chalicelib.client.ledger import Ledger
from chalicelib.client.names import Reference
from chalicelib.client.progress import Progress
from chalicelib.client.remote import Remote, RemoteError
from chalicelib.client.repository import Repository
from chalicelib.client.sending import Sender, Sending
from chalicelib.client.sources import PIECE, Descriptor, Source, SourceError, verified
from chalicelib.client.sources.images import Blob, Image, Manifest
from chalicelib.http import Piece

AT_ONCE = 4
"""Blobs that are on their way at a time."""
DISK = 8 << 30
"""Bytes of temporary files for layers that are compressed, at a time."""

_LEAVING = 3.0  # seconds

State = Literal["sent", "skipped", "mounted"]


@dataclass(frozen=True, slots=True)
class Done:
    """A blob that the repository has now: ``skipped`` where it had it before."""

    digest: str
    size: int
    state: State


@dataclass(slots=True)
class Pushed:
    """What a push did: ``digest`` is the image's, ``size`` that of all of it in bytes.
    ``rewritten``: it has another digest than the source had for it."""

    digest: str
    size: int
    manifests: int
    rewritten: bool
    blobs: list[Done] = field(default_factory=list)

    def of(self, state: State) -> list[Done]:
        """The blobs to which that happened."""
        return [blob for blob in self.blobs if blob.state == state]


class Push:
    """One image on its way."""

    def __init__(
        self,
        remote: Remote,
        target: Reference,
        source: Source,
        progress: Progress,
        ledger: Ledger,
        disk: int = DISK,
    ) -> None:
        self._remote = remote
        self._target = target
        self._source = source
        self._progress = progress
        self._ledger = ledger
        self._disk = _Disk(disk)
        self._repository = Repository(remote, target.repository)
        self._stopped = threading.Event()

    def run(self, image: Image) -> Pushed:
        """Have the registry have it, under the target's tag. What was interrupted goes on where it
        was. Raises ``SourceError``, ``RemoteError``; ``OSError`` where temporary files cannot be
        written."""
        with (
            Sending(self._remote) as self._sending,
            ThreadPoolExecutor(os.cpu_count(), "compressing") as self._compressing,
            ThreadPoolExecutor(AT_ONCE, "pushing") as pool,
        ):
            # The largest first: at the end none is waited for alone.
            blobs = sorted(image.blobs, key=lambda blob: blob.size, reverse=True)
            running = {blob: pool.submit(self._blob, blob) for blob in blobs}
            try:
                wait(running.values(), return_when=FIRST_EXCEPTION)
                failed = [each for each in running.values() if each.done() and each.exception()]
                for each in failed:
                    each.result()
                done = {blob: running[blob].result() for blob in image.blobs}
            except BaseException:
                self._leave(running.values())
                raise
        manifests = self._manifests(image, done)
        top = manifests[-1]
        return Pushed(
            top.digest,
            sum(len(each.payload) for each in manifests) + sum(each.size for each in done.values()),
            len(manifests),
            top.digest != list(image.manifests)[-1],
            list(done.values()),
        )

    def _leave(self, running: Collection[Future[Done]]) -> None:
        """Have all that is on its way end: uploads are let go of, for another attempt to go on
        with, if that takes no time."""
        self._stopped.set()
        self._disk.close()
        for each in running:
            each.cancel()
        wait(running, timeout=_LEAVING)
        self._remote.close()

    # Blobs

    def _blob(self, blob: Blob) -> Done:
        if self._stopped.is_set():
            raise RemoteError("Given up.")
        if blob.plain:
            return self._plain(blob)
        state = self._repository.find(blob.digest)
        if state is None:
            self._send(blob.digest, blob.size, lambda: self._source.open(blob.digest))
        return Done(blob.digest, blob.size, state or "sent")

    def _plain(self, blob: Blob) -> Done:
        """Push a layer that is to be compressed."""
        known = self._ledger.find(blob.digest)
        state = self._repository.find(known.digest) if known is not None else None
        if known is not None and state is not None:
            return Done(known.digest, known.size or 0, state)
        with self._disk.lent(blob.size), tempfile.TemporaryFile() as file:
            layer = self._compress(blob, file)
            size = layer.size or 0
            if known is None or known.digest != layer.digest:
                state = self._repository.find(layer.digest)
            if state is None:
                self._send(layer.digest, size, lambda: _read(file, size))
        self._ledger.add(blob.digest, layer)
        return Done(layer.digest, size, state or "sent")

    def _compress(self, blob: Blob, file: IO[bytes]) -> Descriptor:
        with self._progress.bar(f"{_short(blob.digest)} compressing", blob.size) as bar:
            pieces = verified(self._source, blob.digest, blob.size)
            return compress(self._until_stopped(pieces, bar.add), file, self._compressing)

    def _send(self, digest: str, size: int, read: Callable[[], Iterable[Piece]]) -> None:
        with self._progress.bar(_short(digest), size) as bar:
            sender = Sender(
                self._sending, self._target.repository, digest=digest, size=size, bar=bar
            )
            try:
                sender.write(self._until_stopped(read()))
                sender.finish(digest)
            except RemoteError as error:
                sender.abort()
                if error.code in ("DIGEST_INVALID", "SIZE_INVALID"):
                    self._blame(digest, size)
                raise
            except BaseException:
                sender.abort()
                raise

    def _blame(self, digest: str, size: int) -> None:
        """Raise ``SourceError`` where bytes were refused and the source has the wrong ones."""
        if self._source.size(digest) is not None:
            for _ in verified(self._source, digest, size):
                pass

    def _until_stopped(
        self, pieces: Iterable[Piece], count: Callable[[int], None] = lambda size: None
    ) -> Iterator[Piece]:
        for piece in pieces:
            if self._stopped.is_set():
                raise RemoteError("Given up.")
            count(len(piece))
            yield piece

    # Manifests

    def _manifests(self, image: Image, done: dict[Blob, Done]) -> list[Manifest]:
        """Push the manifests as they have become; gives them, the top last."""
        layers = {
            blob.digest: Descriptor(each.digest, size=each.size)
            for blob, each in done.items()
            if blob.plain
        }
        become: dict[str, Manifest] = {}
        for digest, manifest in image.manifests.items():
            become[digest] = manifest.rewritten(layers, become)
        *children, top = become.values()
        for child in children:
            self._repository.put(child.digest, child.media_type, child.payload)
        self._repository.put(self._target.tag or "latest", top.media_type, top.payload)
        return [*children, top]


class _Disk:
    """How many bytes temporary files may have together. A layer is counted as it is before it is
    compressed. One that is larger than all there may be is written alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lent = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def lent(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many bytes. Raises ``RemoteError`` where it is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._lent or self._lent + size <= self._most
            )
            if self._closed:
                raise RemoteError("Given up.")
            self._lent += size
        try:
            yield
        finally:
            with self._changed:
                self._lent -= size
                self._changed.notify_all()

    def close(self) -> None:
        """Have nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _read(file: IO[bytes], size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        piece = os.pread(file.fileno(), min(PIECE, size - offset), offset)
        if not piece:
            raise SourceError("A temporary file lost its bytes.")
        offset += len(piece)
        yield piece


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]
