"""A registry as the origin of images: the distribution specification's API."""

import random
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from chalicelib.client import manifests
from chalicelib.client.importing import OriginError
from chalicelib.client.manifests import Manifest, Unusable
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.http import Piece
from chalicelib.registry.documents import Descriptor

_BREAKS = 6
"""How often in a row a blob may break off with nothing new before it is given up."""
_PAGE = 1000
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')


class RegistryOrigin:
    """``Origin`` at a registry."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._refers = True
        self._closed = threading.Event()

    def repositories(self) -> Iterator[str]:
        for answer in self._pages(f"/v2/_catalog?n={_PAGE}", "registry:catalog:*"):
            yield from _texts(answer.get("repositories"))

    def tags(self, repository: str) -> Iterator[str]:
        path = f"/v2/{repository}/tags/list?n={_PAGE}"
        try:
            for answer in self._pages(path, f"repository:{repository}:pull"):
                yield from _texts(answer.get("tags"))
        except RemoteError as error:
            if error.status != 404:  # a repository whose last image was deleted
                raise

    def untagged(self, repository: str) -> Iterator[str]:
        return iter(())

    def manifest(
        self, repository: str, reference: str, claimed: Descriptor | None = None
    ) -> Manifest:
        try:
            return manifests.fetch(self._remote, repository, reference, claimed)
        except Unusable as error:
            raise OriginError(str(error)) from None

    def referrers(self, repository: str, digest: str) -> Iterable[str]:
        if not self._refers:
            return []
        found: list[str] = []
        path = f"/v2/{repository}/referrers/{digest}"
        try:
            for answer in self._pages(path, f"repository:{repository}:pull"):
                listed = answer.get("manifests")
                found += [
                    each["digest"]
                    for each in (listed if isinstance(listed, list) else ())
                    if isinstance(each, dict) and isinstance(each.get("digest"), str)
                ]
        except RemoteError as error:
            if error.status not in (400, 404, 405):
                raise
            # It does not have that API: it keeps referrers under tags, which come as tags.
            self._refers = False
        return found

    def has(self, repository: str, digest: str) -> bool:
        path = f"/v2/{repository}/blobs/{digest}"
        reply = self._remote.send("HEAD", path, scope=f"repository:{repository}:pull")
        return reply.status == 200

    def blob(self, repository: str, digest: str, size: int) -> Iterator[Piece]:
        offset = breaks = most = 0
        while offset < size:
            try:
                for piece in self._receive(repository, digest, offset):
                    offset += len(piece)
                    yield piece
                    if offset > size:
                        break
                if offset < size:
                    raise RemoteError(f"{self._remote.registry.host} ended {digest} too early.")
            except RemoteError as error:
                breaks = 1 if offset > most else breaks + 1
                most = max(most, offset)
                if self._closed.is_set():
                    raise
                if error.status or breaks == _BREAKS:
                    raise OriginError(error.sentence) from error
                self._closed.wait(random.uniform(0.5, 1) * min(0.1 * 2**breaks, 5))  # noqa: S311

    def close(self) -> None:
        self._closed.set()
        self._remote.close()

    def _receive(self, repository: str, digest: str, offset: int) -> Iterator[bytes]:
        """What comes of a blob, from a byte on, until the connection breaks."""
        with self._remote.send(
            "GET",
            f"/v2/{repository}/blobs/{digest}",
            headers={"Range": f"bytes={offset}-"} if offset else {},
            scope=f"repository:{repository}:pull",
            stream=True,
        ) as reply:
            if reply.status not in (200, 206):
                raise reply.error()
            skipped = 0 if offset and _begins_at(reply, offset) else offset
            for piece in reply.pieces():
                rest = piece[skipped:]
                skipped -= len(piece) - len(rest)
                if rest:
                    yield rest

    def _pages(self, path: str, scope: str) -> Iterator[dict[str, Any]]:
        """The pages of a list (``Link``, RFC 8288)."""
        while path:
            reply = self._remote.send("GET", path, scope=scope).check(200)
            answer = reply.json()
            if not isinstance(answer, dict):
                raise RemoteError(f"{self._remote.registry.host} lists something else.")
            yield answer
            following = _NEXT.search(reply.headers.get("Link", ""))
            path = following.group(1) if following is not None else ""


def _begins_at(reply: Reply, offset: int) -> bool:
    """Whether an answer begins at a byte of the blob (RFC 9110, section 14.4)."""
    return reply.status == 206 and reply.headers.get("Content-Range", "").startswith(
        f"bytes {offset}-"
    )


def _texts(listed: object) -> Iterator[str]:
    """The texts of a list, which is null where it is empty in some registries."""
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, str):
            yield each
