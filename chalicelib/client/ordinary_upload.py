"""An upload as the specification has it, sent in chunks (OCI Distribution 1.1, "Pushing a blob in
chunks"): for what is small, and for registries that take no direct uploads."""

import itertools
import re
from collections.abc import Callable, Iterator
from threading import Event
from urllib.parse import urlencode

from chalicelib.client.remote import RemoteError, Reply
from chalicelib.http import Piece
from chalicelib.storage.parts import Part

CHUNK = 4 << 20
"""Bytes of a chunk, unless the registry wants more: what functions and GitHub's registry take."""
PIECE = 64 << 10
"""Bytes that are given to a connection at once: few, since they are to be away in few seconds."""

ATTEMPTS = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0  # seconds
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]+)")
_PASSING = {408, 416, 429, 500, 502, 503, 504}

Ask = Callable[..., Reply]
"""``Remote.send`` with what one repository's requests have in common."""


def pause(attempt: int) -> float:
    """Seconds between an attempt that failed, the first being 1, and the next."""
    return float(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))


def with_query(location: str, **parameters: str) -> str:
    """A Location with parameters added."""
    return f"{location}{'&' if '?' in location else '?'}{urlencode(parameters)}"


def pieces(part: Part, start: int, abandoned: Event) -> Iterator[Piece]:
    """The bytes of a part from one on, until they are given up. Raises ``RemoteError`` then."""
    for block in part:
        if start >= len(block):
            start -= len(block)
            continue
        view = memoryview(block)
        for at in range(start, len(view), PIECE):
            if abandoned.is_set():
                raise RemoteError("Given up.")
            yield view[at : at + PIECE]
        start = 0


class OrdinaryUpload:
    """One such upload. Its chunks go one after another; only ``cancel`` may come between."""

    def __init__(self, ask: Ask, repository: str, abandoned: Event) -> None:
        self._ask = ask
        self._repository = repository
        self._abandoned = abandoned
        begun = ask("POST", f"/v2/{repository}/blobs/uploads/").check(202)
        self._location = begun.location
        least = begun.headers.get("OCI-Chunk-Min-Length", "")
        self.chunk = max(CHUNK, int(least) if least.isdigit() else 0)
        """Bytes of each chunk but the last."""
        self._sent = 0

    def send(self, part: Part) -> None:
        """Send the next chunk. Raises ``RemoteError``."""
        self._send("PATCH", part, "")

    def finish(self, part: Part, digest: str) -> None:
        """Send the last chunk, which may be empty, and commit. Raises ``RemoteError``."""
        self._send("PUT", part, digest)

    def cancel(self) -> None:
        """End it."""
        self._ask("DELETE", self._location)

    def _send(self, method: str, part: Part, digest: str) -> None:
        first, end = self._sent, self._sent + part.size
        for attempt in itertools.count(1):
            problem = self._attempt(method, part, first, digest)
            if problem is None:
                self._sent = end
                return
            if attempt == ATTEMPTS or self._abandoned.wait(pause(attempt)):
                raise problem
            if digest and self._is_there(digest):
                return
            self._sent = self._received(problem)
            if self._sent == end and not digest:
                return
            if not first <= self._sent <= end:
                raise problem

    def _attempt(self, method: str, part: Part, first: int, digest: str) -> RemoteError | None:
        """Send what the registry does not have of a part that begins at ``first``. Gives what
        went wrong and may go better."""
        start, end = self._sent, first + part.size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
        if start < end and (method == "PATCH" or start):
            headers["Content-Range"] = f"{start}-{end - 1}"
        target = with_query(self._location, digest=digest) if digest else self._location
        try:
            reply = self._ask(
                method,
                target,
                headers=headers,
                body=lambda: pieces(part, start - first, self._abandoned),
                attempts=1,
            )
        except RemoteError as error:
            return error
        if reply.status in (201, 202, 204):
            if not digest:
                self._location = reply.location
            return None
        problem = reply.error()
        if reply.status not in _PASSING:
            raise problem
        return problem

    def _received(self, problem: RemoteError) -> int:
        """How many bytes the registry has, by its own word. (`0-0` stands for none: no registry
        keeps one byte of a chunk.)"""
        reply = self._ask("GET", self._location)
        match = _RANGE.fullmatch(reply.headers.get("Range", "0-0"))
        if reply.status != 204 or match is None:
            raise problem
        self._location = reply.location
        last = int(match[1])
        return last + 1 if last else 0

    def _is_there(self, digest: str) -> bool:
        """Whether the commit was done, and its answer lost."""
        return self._ask("HEAD", f"/v2/{self._repository}/blobs/{digest}").status == 200
