"""Uploads of the proxy's clients. What is small is held until its digest is told, and goes on as
one ordinary request; what is larger is handed to a ``Sender`` while it comes in."""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from chalicelib import digests
from chalicelib.client.ordinary_upload import with_query
from chalicelib.client.progress import Bar, Progress
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.client.sending import Sender, Sending
from chalicelib.hosts.proxy import fields
from chalicelib.http import (
    Piece,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    Unavailable,
    UploadInvalid,
    UploadUnknown,
)
from chalicelib.storage import StorageError
from chalicelib.storage.parts import Part

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

SMALL = 4 << 20
"""Bytes that go on as one request: what a function takes (6 MB, in base64)."""

IDLE = 120.0
"""Seconds after which an upload that nobody asks for is dropped. Clients that cut what they send
go from one request to the next at once."""

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/\S+)?")


class Uploads:
    """Those that are under way. Threads share it."""

    def __init__(
        self, remote: Remote, progress: Progress, pass_on: Callable[[Reply, Request], Response]
    ) -> None:
        """``pass_on`` makes of a registry's answer that of a client."""
        self.remote = remote
        self.progress = progress
        self.pass_on = pass_on
        self.sending = Sending(remote)
        self._held: dict[str, Upload] = {}
        self._lock = threading.Lock()
        self._count = 0

    def begin(self, repository: str, reply: Reply, authorization: str) -> "Upload":
        """One that the registry has begun."""
        with self._lock:
            self._count += 1
            upload = Upload(self, self._count, repository, reply.location, authorization)
            self._held[upload.id] = upload
        return upload

    def find(self, identity: str) -> "Upload | None":
        with self._lock:
            return self._held.get(identity)

    def forget(self, upload: "Upload") -> None:
        with self._lock:
            self._held.pop(upload.id, None)

    def drop_idle(self) -> None:
        """Leave those that their clients have left."""
        with self._lock:
            held = list(self._held.values())
        for upload in held:
            upload.drop_if_idle()

    def leave(self) -> None:
        """Leave all of them, however far they are, since the process ends: whoever sends the same
        bytes again goes on with them."""
        with self._lock:
            held = list(self._held.values())
        leaving = [threading.Thread(target=upload.leave, daemon=True) for upload in held]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()


class Upload:
    """One blob on its way from a client to the registry."""

    def __init__(
        self, uploads: Uploads, number: int, repository: str, location: str, authorization: str
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.repository = repository
        self.authorization = authorization
        """What the client sent last: a token may be renewed meanwhile."""
        self._uploads = uploads
        self._number = number
        self._location = location
        self._part = Part(uploads.sending.memory, SMALL)
        self._sender: Sender | None = None
        self._bar: Bar | None = None
        self._received = 0
        self._digest = ""
        self._size: int | None = None
        self._committed = ""
        self._over = False
        self._busy = threading.Lock()
        self._touched = time.monotonic()

    # The client's requests

    def begun(self) -> Response:
        """The answer to the POST."""
        return Response(202, self._progress())

    def status(self) -> Response:
        """How far it is."""
        return Response(204, self._progress())

    def patch(self, request: Request) -> "Arriving":
        """A chunk, whatever its size. Raises ``RegistryError``."""
        self._take_turn(wait=False)
        with _released_on_error(self._busy):
            self._check_start(request)
        return Arriving(self, lambda: Response(202, self._progress()))

    def put(self, request: Request) -> "Arriving":
        """The last chunk, with the digest. Raises ``RegistryError``."""
        digest = request.query.get("digest", "")
        digests.pack(digest)
        # Who repeats it, since he waited too long for the answer, waits for the first one.
        self._take_turn(wait=True, committed=digest)
        with _released_on_error(self._busy):
            if not self._committed:
                self._check_start(request)
                if not self._received:
                    self._digest = digest
                    length = request.headers.get("content-length", "")
                    self._size = int(length) if length.isdigit() and int(length) else None
        start = self._received
        return Arriving(self, lambda: self._finish(digest, start, request))

    def cancel(self) -> Response:
        """End it, here and at the registry. Raises ``RegistryError``."""
        self._take_turn(wait=False)
        with _released_on_error(self._busy):
            self._end()
            if self._sender is not None:
                _asked(self._sender.cancel)
            else:
                _asked(self._cancel_ordinary)
        self._busy.release()
        return Response(204, [fields.VERSION])

    # What is done in turn: one request at a time

    def _take_turn(self, *, wait: bool, committed: str = "") -> None:
        if not self._busy.acquire(blocking=wait):
            raise UploadInvalid("Another request of this upload is under way.", status=409)
        self._touched = time.monotonic()
        if self._over and not (committed and committed == self._committed):
            self._busy.release()
            raise UploadUnknown("The upload has ended, or was given up; begin again.")

    def _check_start(self, request: Request) -> None:
        header = request.headers.get("content-range")
        if header is None:
            return
        match = _CONTENT_RANGE.fullmatch(header.strip())
        if match is None:
            raise UploadInvalid("Content-Range is the first and the last byte, like 0-1023.")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) != int(match[2]) - int(match[1]) + 1:
            raise SizeInvalid("Content-Range and Content-Length do not go together.")
        if int(match[1]) != self._received:
            raise UploadInvalid(
                f"The upload has {self._received} bytes; the next chunk begins there.",
                {"received": self._received},
                status=416,
                headers=self._progress()[:3],
            )

    def take(self, pieces: Sequence[Piece]) -> None:
        """The next bytes. Raises ``RegistryError``."""
        if not self._committed:
            _asked(lambda: self._take(pieces))

    def _take(self, pieces: Sequence[Piece]) -> None:
        self._touched = time.monotonic()
        for piece in pieces:
            self._received += len(piece)
            if self._sender is not None:
                self._sender.authorization = self.authorization
                self._sender.write([piece])
                continue
            view = memoryview(piece)
            taken = self._part.fill(view, spill=True)
            if taken < len(view):
                self._begin_sending().write([view[taken:]])

    def _begin_sending(self) -> Sender:
        """Hand over to a ``Sender``, which chooses the road; it begins an upload of its own."""
        uploads = self._uploads
        short = self._digest.partition(":")[2][:12] or f"layer {self._number}"
        self._bar = uploads.progress.bar(f"{self.repository} {short}", self._size)
        self._sender = Sender(
            uploads.sending,
            self.repository,
            digest=self._digest or None,
            size=self._size,
            bar=self._bar,
            authorization=self.authorization,
        )
        uploads.sending.threads.submit(self._cancel_ordinary)
        self._sender.write(self._part)
        self._part.release()
        return self._sender

    def _finish(self, digest: str, start: int, request: Request) -> Response:
        if self._committed:
            return self._created(digest)
        if self._sender is None:
            return self._finish_small(digest, start, request)
        try:
            self._sender.authorization = self.authorization
            _asked(partial(self._sender.finish, digest))
            self._committed = digest
        finally:
            self._end()
            if not self._committed:
                self._sender.abort()
        return self._created(digest)

    def _finish_small(self, digest: str, start: int, request: Request) -> Response:
        """``start``: how much there was before the request's own bytes."""
        part = self._part
        reply = _asked(
            lambda: self._uploads.remote.send(
                "PUT",
                with_query(self._location, digest=digest),
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(part.size),
                },
                body=lambda: part,
                authorization=self.authorization,
            )
        )
        if reply.status == 401:
            # The client asks again, with a new token, and sends the body again.
            if not start:
                part.release()
                self._part, self._received = Part(self._uploads.sending.memory, SMALL), 0
            return self._uploads.pass_on(reply, request)
        if reply.status == 201:
            self._committed = digest
        self._end()
        return self._created(digest) if self._committed else self._uploads.pass_on(reply, request)

    def _created(self, digest: str) -> Response:
        return Response(
            201,
            [
                ("Location", f"/v2/{self.repository}/blobs/{digest}"),
                ("Docker-Content-Digest", digest),
                fields.VERSION,
            ],
        )

    def _progress(self) -> list[tuple[str, str]]:
        return [
            ("Location", f"/v2/{self.repository}/blobs/uploads/{self.id}"),
            ("Range", f"0-{max(self._received - 1, 0)}"),
            ("Docker-Upload-UUID", self.id),
            fields.VERSION,
        ]

    def _cancel_ordinary(self) -> Reply:
        """End the upload that the registry began for the client's POST."""
        return self._uploads.remote.send(
            "DELETE", self._location, authorization=self.authorization, attempts=2
        )

    def _end(self) -> None:
        """Give what is held back. A commit that is repeated is answered for a while."""
        self._over = True
        self._part.release()
        if self._bar is not None:
            ended = None if self._committed else RemoteError
            self._bar.__exit__(ended, None, None)
            self._bar = None
        if not self._committed:
            self._uploads.forget(self)

    # When it is left

    def pause(self) -> None:
        """A request has ended."""
        self._touched = time.monotonic()
        self._busy.release()

    def break_off(self) -> None:
        """The client went away in the middle of a body, or what was done failed. Whoever sends the
        same bytes again finds the parts that are there at once."""
        if self._sender is not None and not self._over:
            self._end()
            self._sender.abort()
        self.pause()

    def drop_if_idle(self) -> None:
        """Drop it if its client has left it."""
        if time.monotonic() - self._touched < IDLE or not self._busy.acquire(blocking=False):
            return
        try:
            if not self._over:
                self._end()
                if self._sender is not None:
                    self._sender.abort()
            self._uploads.forget(self)
        finally:
            self._busy.release()

    def leave(self) -> None:
        """Let go of it, whatever is being done with it."""
        if self._sender is not None and not self._over:
            with suppress(Exception):  # another thread may be at it, and the process ends
                self._sender.abort()


class Arriving:
    """A ``Receiver`` of an upload's bytes, whose turn it is until it ends."""

    def __init__(self, upload: Upload, answer: Callable[[], Response]) -> None:
        self._upload = upload
        self._answer = answer

    def feed(self, pieces: Sequence[Piece]) -> None:
        try:
            self._upload.take(pieces)
        except RegistryError:
            raise
        except Exception as error:
            _log.exception("an upload failed")
            raise RegistryError("The proxy failed; its log says why.", status=500) from error

    def finish(self) -> Response:
        try:
            return self._answer()
        except RegistryError as error:
            return error.response()
        finally:
            self._upload.pause()

    def abort(self) -> None:
        self._upload.break_off()


@contextmanager
def _released_on_error(lock: threading.Lock) -> Iterator[None]:
    """Release a lock where what is within fails."""
    try:
        yield
    except BaseException:
        lock.release()
        raise


def to_error(error: RemoteError) -> RegistryError:
    """What the registry said, or that it said nothing, for a client."""
    if not error.status or error.status >= 500:
        _log.warning("%s", error.sentence)
    if not error.status:
        return Unavailable(error.sentence)
    status = error.status if 400 <= error.status < 600 else 502
    return RegistryError(error.sentence, error.detail, code=error.code or None, status=status)


def _asked(act: Callable[[], _T]) -> _T:
    try:
        return act()
    except RemoteError as error:
        raise to_error(error) from error
    except StorageError as error:
        _log.warning("%s", error)
        raise Unavailable(str(error)) from error
