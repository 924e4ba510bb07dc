"""Images, from a registry into a layout: manifests by digest, blobs verified while they come."""

import json
import random
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from chalicelib.client import manifests
from chalicelib.client.layout import Layout, Mismatch, Partial
from chalicelib.client.manifests import Manifest
from chalicelib.client.names import Reference
from chalicelib.client.platforms import Platform, choose
from chalicelib.client.progress import Bar, Progress
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.registry.documents import DOCKER_LIST, OCI_INDEX, Descriptor

AT_ONCE = 4
"""Blobs that are fetched at a time."""

_INDEXES = (OCI_INDEX, DOCKER_LIST)
_BREAKS = 6
"""How often in a row a blob may break off with nothing new before it is given up."""
_DEPTH = 4
"""How deep indexes may lie in one another."""


class PullError(Exception):
    """An image is not what it must be, or not for this platform. The text is a sentence."""


@dataclass(slots=True)
class Pulled:
    """What a pull did: ``descriptor`` names the image, ``name`` is its name in the layout;
    ``size`` is that of all its blobs in bytes, and of ``fetched`` bytes that came now. ``absent``
    are layers that registries need not have, and that were not fetched."""

    descriptor: dict[str, Any]
    name: str = ""
    blobs: int = 0
    size: int = 0
    fetched_blobs: int = 0
    fetched: int = 0
    absent: list[str] = field(default_factory=list)


class Pull:
    """One image on its way."""

    def __init__(
        self, remote: Remote, image: Reference, layout: Layout, progress: Progress
    ) -> None:
        self._remote = remote
        self._image = image
        self._layout = layout
        self._progress = progress
        self._scope = f"repository:{image.repository}:pull"
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def run(self, platform: Platform | None, *, everything: bool) -> Pulled:
        """Have it in the layout: of an index the image for the platform, this machine's where none
        is asked for, or ``everything``. An image that is for another platform than asked for is
        refused. Raises ``PullError``, ``RemoteError`` and ``LayoutError``."""
        top = self._manifest(self._image.reference)
        if not everything:
            top = self._chosen(top, platform or Platform.here())
        below = list({each.digest: each for each in self._below(top, 0)}.values())
        pulled = Pulled(top.descriptor)
        images = [each.document for each in below]
        blobs = {blob.digest: blob for image in images for blob in image.blobs}
        pulled.absent = sorted({blob.digest for image in images for blob in image.absent})
        pulled.blobs, pulled.size = len(blobs), sum(blob.size for blob in blobs.values())

        self._layout.open()
        if platform is not None and not everything:
            self._check_platform(top, platform, pulled)
        self._fetch_all(blobs.values(), pulled)
        for manifest in below:
            self._layout.put(manifest.digest, manifest.data)
        tag = self._image.tag or (None if self._image.digest else "latest")
        host, repository = self._image.registry.host, self._image.repository
        pulled.name = self._layout.name(top.descriptor, tag, f"{host}/{repository}:{tag}")
        self._layout.close()
        return pulled

    def stop(self) -> None:
        """Have it end soon, on whatever thread it runs."""
        self._stopped.set()
        self._remote.close()

    def _manifest(self, reference: str, claimed: Descriptor | None = None) -> Manifest:
        """A manifest by its tag or digest; ``claimed`` is how an index names it."""
        try:
            return manifests.fetch(self._remote, self._image.repository, reference, claimed)
        except manifests.Unusable as error:
            raise PullError(str(error)) from None

    def _chosen(self, top: Manifest, wanted: Platform) -> Manifest:
        """The manifest of an image, which indexes offer for the platform."""
        for _ in range(_DEPTH):
            if not top.document.children and top.document.media_type not in _INDEXES:
                return top
            offered = _platforms(top)
            place = choose(offered, wanted)
            if place is None and len(offered) == 1 and offered[0] is None:
                place = 0  # an index around an index, or around the only image
            if place is None:
                has = ", ".join(dict.fromkeys(str(each) for each in offered if each is not None))
                raise PullError(
                    f"{self._image} is not there for {wanted}"
                    + (f", but for {has}." if has else ".")
                )
            child = top.document.children[place]
            top = self._manifest(child.digest, child)
        raise _too_deep()

    def _below(self, top: Manifest, depth: int) -> Iterable[Manifest]:
        """What an index names, and after it the index itself; an image is alone."""
        if depth > _DEPTH:
            raise _too_deep()
        for child in top.document.children:
            yield from self._below(self._manifest(child.digest, child), depth + 1)
        yield top

    def _check_platform(self, image: Manifest, wanted: Platform, pulled: Pulled) -> None:
        """Refuse an image whose config says that it is for another platform."""
        config = _json(image.data).get("config")
        if not isinstance(config, dict) or "image" not in str(config.get("mediaType")):
            return
        [blob] = [each for each in image.document.blobs if each.digest == config.get("digest")][:1]
        self._fetch(blob, pulled)
        path = self._layout.path(blob.digest)
        found = Platform.of(_json(path.read_bytes()))
        if found is not None and found.serves(wanted) is None:
            raise PullError(f"{self._image} is not there for {wanted}, but for {found}.")

    def _fetch_all(self, blobs: Iterable[Descriptor], pulled: Pulled) -> None:
        with ThreadPoolExecutor(AT_ONCE, "pull") as pool:
            tasks = [pool.submit(self._fetch, blob, pulled) for blob in blobs]
            try:
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            except BaseException:
                self.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, blob: Descriptor, pulled: Pulled) -> None:
        """Have a blob in the layout, whatever breaks in between."""
        with self._layout.receive(blob.digest, blob.size) as partial:
            if partial is None:
                return
            began = partial.length
            with self._progress.bar(_short(blob.digest), blob.size) as bar:
                bar.add(partial.length)
                self._complete(partial, blob, bar)
            with self._lock:
                pulled.fetched_blobs += 1
                pulled.fetched += blob.size - began

    def _complete(self, partial: Partial, blob: Descriptor, bar: Bar) -> None:
        while True:
            # What an earlier process left may have been damaged since: then once more from nothing.
            resumed = partial.resumed
            try:
                self._receive_all(partial, blob, bar)
                partial.finish()
            except Mismatch:
                if not resumed:
                    host = self._image.registry.host
                    raise PullError(f"{host} sent other bytes than {blob.digest} names.") from None
                bar.add(-bar.done)
            else:
                return

    def _receive_all(self, partial: Partial, blob: Descriptor, bar: Bar) -> None:
        breaks, most = 0, partial.length
        while partial.length < blob.size:
            try:
                self._receive(partial, blob, bar)
                if partial.length < blob.size:
                    raise RemoteError(f"{self._image.registry.host} ended {blob.digest} too early.")
            except RemoteError as error:
                # Bytes that were there before are no progress: a server may send them for ever.
                breaks = 1 if partial.length > most else breaks + 1
                most = max(most, partial.length)
                if error.status or breaks == _BREAKS or self._stopped.is_set():
                    raise
                self._stopped.wait(random.uniform(0.5, 1) * min(0.1 * 2**breaks, 5))  # noqa: S311

    def _receive(self, partial: Partial, blob: Descriptor, bar: Bar) -> None:
        """What comes of a blob until the connection breaks, or all of it."""
        wanted = {"Range": f"bytes={partial.length}-"} if partial.length else {}
        with self._remote.send(
            "GET",
            f"/v2/{self._image.repository}/blobs/{blob.digest}",
            headers=wanted,
            scope=self._scope,
            stream=True,
        ) as reply:
            if wanted and not _goes_on(reply, partial.length):
                if reply.status not in (200, 206, 416):
                    raise reply.error()
                _restart(partial, bar)
                if reply.status != 200:
                    return
            elif reply.status not in (200, 206):
                raise reply.error()
            for piece in reply.pieces():
                if self._stopped.is_set():
                    raise RemoteError("Given up.")
                partial.write(piece)
                bar.add(len(piece))


def _goes_on(reply: Reply, length: int) -> bool:
    """Whether an answer begins where what is there ends (RFC 9110, section 14.4)."""
    return reply.status == 206 and reply.headers.get("Content-Range", "").startswith(
        f"bytes {length}-"
    )


def _restart(partial: Partial, bar: Bar) -> None:
    bar.add(-partial.length)
    partial.restart()


def _platforms(index: Manifest) -> list[Platform | None]:
    """The platform of each child, in the index's order."""
    children = _json(index.data)["manifests"]
    return [Platform.of(child.get("platform")) for child in children]


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest.partition(":")[2][:12]


def _too_deep() -> PullError:
    return PullError("Its indexes lie too deep in one another.")
