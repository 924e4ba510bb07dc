"""Images on their way from an origin to a registry: several images at a time, and blobs of all of
them; of each image what it names first, and the tag last.

A blob is sent once, though several images that are on their way have it: who comes second waits,
and finds it there, or has it mounted from the repository into which it was sent.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from chalicelib.client.importing import Origin, OriginError
from chalicelib.client.manifests import Manifest
from chalicelib.client.progress import Progress
from chalicelib.client.remote import Remote, RemoteError
from chalicelib.client.repository import Repository
from chalicelib.client.sending import Sender, Sending
from chalicelib.http import Piece
from chalicelib.registry.documents import MANIFESTS, Descriptor
from chalicelib.registry.names import is_name, is_tag

AT_ONCE = 4
"""Images that are on their way at a time; and blobs."""

_AHEAD = 4 * AT_ONCE
_DEPTH = 8
"""How deep indexes may lie in one another, and referrers of referrers."""
_KNOWN = 100_000
"""Of so many blobs and manifests it is remembered that the target has them: some 30 MB. Of as many
manifests, that what refers to them was followed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not imported, or a repository whose tags could not be had; and why."""

    image: str
    reason: str


@dataclass(slots=True)
class Report:
    """What an import did. ``images`` are tags, and manifests without one: those that are in the
    target now for the first time or point elsewhere than before, and those that were ``there``.
    ``manifests`` were pushed; ``sent`` and ``mounted`` are blobs, sizes in bytes."""

    repositories: int = 0
    images: int = 0
    there: int = 0
    manifests: int = 0
    sent: int = 0
    sent_size: int = 0
    mounted: int = 0
    mounted_size: int = 0
    failures: list[Failure] = field(default_factory=list)


class Import:
    """An import to a registry, where names of repositories begin with ``prefix``, which ends with a
    slash or is empty."""

    def __init__(self, origin: Origin, remote: Remote, prefix: str, progress: Progress) -> None:
        self._origin = origin
        self._remote = remote
        self._prefix = prefix
        self._progress = progress
        self._report = Report()
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], None] = {}
        self._followed: dict[tuple[str, str], None] = {}
        self._busy: dict[str, tuple[threading.Lock, int]] = {}
        self._stopped = threading.Event()

    def run(self, repositories: Iterable[str], *, untagged: bool, named: bool = False) -> Report:
        """Bring all tags of these repositories, and with ``untagged`` all manifests that the origin
        tells of. That a repository has none is a failure where a person has ``named`` it. Raises
        ``RemoteError`` where the origin or the target does not answer any more; then what was
        brought stays."""
        with (
            self._progress.bar("importing") as self._bar,
            Sending(self._remote) as self._sending,
            ThreadPoolExecutor(AT_ONCE, "blobs") as self._blobs,
            ThreadPoolExecutor(AT_ONCE, "images") as images,
        ):
            running: set[Future[None]] = set()
            try:
                for name, reference in self._references(
                    repositories, untagged=untagged, named=named
                ):
                    running.add(images.submit(self._image, name, reference))
                    if len(running) >= _AHEAD:
                        running = _settled(running)
                while running:
                    running = _settled(running)
            except BaseException:
                self._stopped.set()
                for each in running:
                    each.cancel()
                self._origin.close()
                self._remote.close()
                raise
        return self._report

    def _references(
        self, repositories: Iterable[str], *, untagged: bool, named: bool
    ) -> Iterator[tuple[str, str]]:
        """All that is to be brought: repository, and tag or digest."""
        for number, name in enumerate(repositories, 1):
            if not is_name(self._prefix + name):
                self._failed(name, "This is no name that a repository may have.")
                continue
            self._report.repositories += 1
            self._bar.stage(f"repository {number}, {name}")
            found = False
            try:
                for tag in self._origin.tags(name):
                    found = True
                    if is_tag(tag):
                        yield name, tag
                    else:
                        self._failed(f"{name}:{tag}", "This is no tag.")
                if untagged:
                    for digest in self._origin.untagged(name):
                        found = True
                        yield name, digest
                if named and not found:
                    self._failed(name, "The source has no image of that name.")
            except (OriginError, RemoteError) as error:
                self._failed(name, _reason(error))

    def _image(self, name: str, reference: str) -> None:
        """Bring an image, or tell why not."""
        tagged = ":" not in reference
        image = f"{name}:{reference}" if tagged else f"{name}@{reference}"
        try:
            if self._stopped.is_set():
                return
            target = Repository(self._remote, self._prefix + name)
            there = target.manifest(reference)
            top = self._origin.manifest(name, reference)
            new = there != top.digest
            self._bring(target, name, top, 0, tag=reference if tagged and new else "")
        except (OriginError, RemoteError) as error:
            self._failed(image, _reason(error))
            return
        with self._lock:
            if new:
                self._report.images += 1
            else:
                self._report.there += 1
        if new:
            self._progress.say(f"{self._prefix}{image}" + (f" {top.digest}" if tagged else ""))

    # Manifests

    def _bring(
        self, target: Repository, name: str, found: Manifest, depth: int, tag: str = ""
    ) -> None:
        """Have the target have a manifest, after all that it names and before what refers to it."""
        if depth > _DEPTH:
            raise OriginError("Indexes or referrers lie too deep in one another.")
        if (target.name, found.digest) in self._followed:
            if tag:
                self._put(target, tag, found)
            return
        children = _children(found)
        if self._has_manifest(target, found.digest):
            # So it has them too; what refers to them may be new.
            children = [each for each in children if self._origin.referrers(name, each.digest)]
            if tag:
                self._put(target, tag, found)
            self._bring_all(target, name, children, depth)
        else:
            self._bring_blobs(target, name, _blobs(found, self._origin, name))
            self._bring_all(target, name, children, depth)
            self._put(target, tag or found.digest, found)
        for digest in self._origin.referrers(name, found.digest):
            self._bring(target, name, self._origin.manifest(name, digest), depth + 1)
        self._keep(self._followed, target, found.digest)

    def _bring_all(
        self, target: Repository, name: str, children: list[Descriptor], depth: int
    ) -> None:
        for child in children:
            self._bring(target, name, self._origin.manifest(name, child.digest, child), depth + 1)

    def _has_manifest(self, target: Repository, digest: str) -> bool:
        if (target.name, digest) in self._known:
            return True
        there = target.manifest(digest) is not None
        if there:
            self._keep(self._known, target, digest)
        return there

    def _put(self, target: Repository, reference: str, found: Manifest) -> None:
        if self._stopped.is_set():
            raise OriginError("Given up.")
        target.put(reference, found.document.media_type, found.data)
        self._keep(self._known, target, found.digest)
        with self._lock:
            self._report.manifests += 1

    # Blobs

    def _bring_blobs(self, target: Repository, name: str, blobs: list[Descriptor]) -> None:
        running = [self._blobs.submit(self._bring_blob, target, name, blob) for blob in blobs]
        wait(running)
        for each in running:
            each.result()

    def _bring_blob(self, target: Repository, name: str, blob: Descriptor) -> None:
        with self._alone(blob.digest):
            if self._stopped.is_set():
                raise OriginError("Given up.")
            if (target.name, blob.digest) in self._known:
                return
            state = target.find(blob.digest)
            if state is None:
                self._send(target, name, blob)
            with self._lock:
                if state is None:
                    self._report.sent += 1
                    self._report.sent_size += blob.size
                elif state == "mounted":
                    self._report.mounted += 1
                    self._report.mounted_size += blob.size
            self._keep(self._known, target, blob.digest)

    def _send(self, target: Repository, name: str, blob: Descriptor) -> None:
        sender = Sender(
            self._sending, target.name, digest=blob.digest, size=blob.size, bar=self._bar
        )
        try:
            sender.write(self._until_stopped(self._origin.blob(name, blob.digest, blob.size)))
            sender.finish(blob.digest)
        except RemoteError as error:
            sender.abort()
            if error.code in ("DIGEST_INVALID", "SIZE_INVALID"):
                raise OriginError(
                    f"The bytes that came for {blob.digest} are other ones. {error.sentence}"
                ) from error
            raise
        except BaseException:
            sender.abort()
            raise

    def _until_stopped(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self._stopped.is_set():
                raise OriginError("Given up.")
            yield piece

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """Keep others from bringing the same blob meanwhile."""
        with self._lock:
            lock, users = self._busy.get(digest) or (threading.Lock(), 0)
            self._busy[digest] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._busy.pop(digest)
                if users > 1:
                    self._busy[digest] = lock, users - 1

    # What is known

    def _keep(self, known: dict[tuple[str, str], None], target: Repository, digest: str) -> None:
        """Remember something of what the target's repository has. (What has no tag may go a day
        after; a manifest that names it is refused then, and another import brings both.)"""
        with self._lock:
            if len(known) >= _KNOWN:
                known.clear()
            known[target.name, digest] = None

    def _failed(self, image: str, reason: str) -> None:
        # Names that an origin has made up move no terminal's cursor.
        image = "".join(each if each.isprintable() else "?" for each in image)
        with self._lock:
            self._report.failures.append(Failure(image, reason))
        self._progress.say(f"not imported: {image}: {reason}")


def _settled(running: set[Future[None]]) -> set[Future[None]]:
    """Wait until one is done; gives those that are not."""
    done, others = wait(running, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
    return others


def _reason(error: OriginError | RemoteError) -> str:
    """Why an image was not imported. Raises what ends the import: nobody answers any more."""
    if isinstance(error, RemoteError):
        if not error.status:
            raise error
        return error.sentence
    return str(error)


def _children(found: Manifest) -> list[Descriptor]:
    """The manifests that one names."""
    layers = {each["digest"] for each in _listed(found) if each.get("mediaType") not in MANIFESTS}
    return [each for each in found.document.children if each.digest not in layers]


def _blobs(found: Manifest, origin: Origin, name: str) -> list[Descriptor]:
    """The blobs that a manifest names, each once: layers too that BuildKit keeps in an index, as a
    cache, and those that need not be distributed, where the origin has them."""
    document = found.document
    children = {each.digest for each in _children(found)}
    layers = [each for each in document.children if each.digest not in children]
    absent = [each for each in document.absent if origin.has(name, each.digest)]
    return list({each.digest: each for each in (*document.blobs, *layers, *absent)}.values())


def _listed(found: Manifest) -> list[dict[str, Any]]:
    """The descriptors in an index, whose shape was checked."""
    listed: list[dict[str, Any]] = json.loads(found.data).get("manifests") or []
    return listed
