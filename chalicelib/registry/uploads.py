"""Blob uploads (OCI Distribution 1.1, "Pushing blobs"): begin, send, commit, cancel, expire.

Nothing of an upload is in this process between two requests, and no lock is held while bytes flow.
A request that brings bytes raises the upload's epoch and stages under a key and part numbers of
its own; what it staged counts once it has saved it under that epoch. ``commit`` makes a blob of it.
"""

import logging
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import (
    DigestInvalid,
    NameInvalid,
    Piece,
    Receiver,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    UploadInvalid,
    UploadUnknown,
)
from chalicelib.identity import Permission, Subject
from chalicelib.identity.capabilities import PARAMETER
from chalicelib.metadata import blobs, quotas, repositories, uploads
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.uploads import Upload
from chalicelib.registry import blocks
from chalicelib.registry.blobs import is_there
from chalicelib.registry.commit import clear, commit, ended_if_denied, verify
from chalicelib.registry.names import checked_name
from chalicelib.registry.quotas import told
from chalicelib.storage import StorageError, Writer, new_key

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]+|\*))?")
_CHUNK_MIN_LENGTH = 4 << 20  # fits one Lambda event, and is half a part by default
_MOUNT_CANDIDATES = 20
_CLEAR_AGAIN = 900  # seconds

_log = logging.getLogger(__name__)


def start(context: Context, request: Request) -> Receiver | Response:
    """Begin an upload (end-4a), take a whole blob (end-4b), or mount one from another repository
    (end-11)."""
    repository = request.params["repository"]
    algorithm = digests.checked_algorithm(request.query.get("digest-algorithm", "sha256"))
    if "mount" in request.query:
        # A mount that cannot be is an upload that begins.
        with suppress(DigestInvalid, NameInvalid):
            digest = digests.pack(request.query["mount"])
            algorithm = digests.algorithm(digest)
            if _mount(context, request, repository, digest):
                return created(context, repository, digest)
    elif "digest" in request.query:
        digest = digests.pack(request.query["digest"])
        upload_id = create(context, request, repository, digests.algorithm(digest))
        return _receive(context, request, upload_id, digest)
    upload_id = create(context, request, repository, algorithm)
    headers = _progress(context, repository, upload_id, request.subject, 0)
    headers.append(("OCI-Chunk-Min-Length", str(_CHUNK_MIN_LENGTH)))
    return Response(202, headers)


def status(context: Context, request: Request) -> Response:
    """How far an upload has come (end-13)."""
    repository, upload_id = request.params["repository"], request.params["upload"]
    upload = uploads.find(context.database, upload_id, repository)
    if upload is None or upload.state != "open":
        raise _unknown()
    uploads.renew(context.database, upload_id, context.capabilities.seconds)
    return Response(
        204, _progress(context, repository, upload_id, request.subject, upload.received)
    )


def patch(context: Context, request: Request) -> Receiver:
    """Take the next chunk, or all of it as a stream (end-5)."""
    return _receive(context, request, request.params["upload"], None)


def put(context: Context, request: Request) -> Receiver:
    """Take the last chunk, if any, and commit (end-6)."""
    if "digest" not in request.query:
        raise DigestInvalid("The PUT that ends an upload names the blob: add digest=.")
    return _receive(
        context, request, request.params["upload"], digests.pack(request.query["digest"])
    )


def cancel(context: Context, request: Request) -> Response:
    """Give an upload up (end-14)."""
    repository, upload_id = request.params["repository"], request.params["upload"]
    if not uploads.cancel(context.database, upload_id, repository):
        raise _unknown()
    clear(context, upload_id)
    return Response(204)


def expire(context: Context) -> int:
    """Clear away uploads that no capability reaches any more: their staged bytes, then their rows.
    Gives how many there were. For a schedule; any number may run at once."""
    count = 0
    while late := uploads.expired(context.database, 100):
        for upload_id in late:
            try:
                clear(context, upload_id)
            except StorageError:
                # One that cannot be cleared keeps no other waiting.
                _log.warning("upload %s could not be cleared away", upload_id, exc_info=True)
                uploads.put_off(context.database, upload_id, _CLEAR_AGAIN)
            else:
                uploads.forget(context.database, upload_id)
                count += 1
    return count


class _Receiving:
    """Receives the bytes of one request of one upload, and ends it."""

    def __init__(
        self,
        context: Context,
        request: Request,
        upload: Upload,
        key: str,
        digest: bytes | None,
        most: int | None,
    ) -> None:
        self._context = context
        self._request = request
        self._upload = upload
        self._digest = digest
        self._most = most
        self._expected = _length(request)
        self._length = 0
        self._hash = _resume(upload, digest)
        self._renewed = time.monotonic()
        self._key = key
        self._lost = False
        self._writer: Writer = context.store.writer(upload.staged, key, self._reserve)

    def feed(self, pieces: Sequence[Piece]) -> None:
        # One piece: each of many would let go of the interpreter's lock and wait for it again.
        pieces = [b"".join(pieces)] if len(pieces) > 1 else pieces
        self._length += sum(map(len, pieces))
        if self._expected is not None and self._length > self._expected:
            raise _wrong_length(self._expected, self._length)
        if self._most is not None and self._upload.received + self._length > self._most:
            self._check_quota()
        if self._hash is not None:
            for piece in pieces:
                self._hash.update(piece)
        with self._unless_overtaken():
            self._writer.write(pieces)
        if time.monotonic() - self._renewed > self._context.settings.upload_expiry / 4:
            self._reserve(0)

    def finish(self) -> Response:
        if self._expected is not None and self._length != self._expected:
            raise _wrong_length(self._expected, self._length)
        upload, context = self._upload, self._context
        if self._digest is not None:
            # Now, so that bytes of another digest leave the upload as it was.
            verify(self._hash, self._digest)
            with self._unless_overtaken():
                staged = self._writer.close(final=True)
            if not commit(context, self._request, upload, self._digest, staged, self._hash):
                raise self._overtaken()
            return created(context, upload.repository, self._digest)
        with self._unless_overtaken():
            staged = self._writer.close(final=False)
        state = None if self._hash is None else self._hash.suspend()
        if not uploads.save(
            context.database, upload, staged.size, state, staged, context.capabilities.seconds
        ):
            raise self._overtaken()
        headers = _progress(
            context, upload.repository, upload.id, self._request.subject, staged.size
        )
        return Response(202, headers)

    def abort(self) -> None:
        self._writer.abort()
        store = self._context.store
        if self._lost and not blobs.is_copy(self._context.database, store.name, self._key):
            # Whoever took the upload over may have cleared it away already, but not these bytes.
            store.discard(self._key)

    def _check_quota(self) -> None:
        """Refuse bytes that have become more than any blob can have here."""
        upload, size = self._upload, self._upload.received + self._length
        self._lost = True
        with ended_if_denied(self._context, self._request, upload):
            self._most = quotas.check(self._context.database, upload.repository, None, size)
        self._lost = False

    @contextmanager
    def _unless_overtaken(self) -> Iterator[None]:
        """Where storage fails because the upload was ended meanwhile and its bytes were cleared
        away, say that."""
        try:
            yield
        except StorageError as error:
            if self._reserved(0) is None:
                raise self._overtaken() from error
            raise

    def _overtaken(self) -> RegistryError:
        self._lost = True
        return _overtaken(self._context, self._request, self._upload)

    def _reserve(self, count: int) -> int:
        first = self._reserved(count)
        if first is None:
            raise self._overtaken()
        return first

    def _reserved(self, count: int) -> int | None:
        self._renewed = time.monotonic()
        return uploads.reserve(
            self._context.database, self._upload, count, self._context.capabilities.seconds
        )


class _Ending:
    """Ends an upload whose bytes are all there: the empty PUT, the repeated one, and the one after
    a crash. Bytes that come with a repetition are not looked at."""

    def __init__(self, context: Context, request: Request, upload: Upload, digest: bytes) -> None:
        self._context = context
        self._request = request
        self._upload = upload
        self._digest = digest

    def feed(self, pieces: Sequence[Piece]) -> None:
        """The bytes are known already."""

    def finish(self) -> Response:
        context, upload, digest = self._context, self._upload, self._digest
        if upload.state != "committed":
            if upload.staged is None:
                raise _unknown()
            hashing = _resume(upload, digest) if upload.state == "open" else None
            if not commit(context, self._request, upload, digest, upload.staged, hashing):
                raise _overtaken(context, self._request, upload)
        elif not is_there(context, self._request, digest):
            # It was committed, and deleted, collected or lost since.
            raise _unknown()
        return created(context, upload.repository, digest)

    def abort(self) -> None:
        """Nothing is held."""


def _receive(context: Context, request: Request, upload_id: str, digest: bytes | None) -> Receiver:
    """Who takes the body of a request that brings bytes, or commits, or both."""
    repository = request.params["repository"]
    chunk = _chunk(request)
    offset = None if chunk is None else chunk[0]
    empty = request.headers.get("Content-Length", "0") == "0" and (
        "Transfer-Encoding" not in request.headers
    )
    if empty and digest is not None:
        # The commonest end of a push: nothing is to be staged, so no epoch is raised.
        upload = uploads.find(context.database, upload_id, repository)
        if upload is not None and (upload.state != "open" or upload.staged is not None):
            if upload.state == "open" and offset not in (None, upload.received):
                raise _out_of_order(context, request, upload)
            return _without_bytes(context, request, upload, digest)
    key = new_key()
    begun = uploads.begin(
        context.database, upload_id, repository, offset, key, context.capabilities.seconds, digest
    )
    if begun is not None:
        return _Receiving(
            context, request, begun, key, digest, _check(context, request, begun, digest)
        )
    upload = uploads.find(context.database, upload_id, repository)
    if upload is None:
        raise _unknown()
    if upload.state == "open":
        raise _out_of_order(context, request, upload)
    return _without_bytes(context, request, upload, digest)


def _check(context: Context, request: Request, upload: Upload, digest: bytes | None) -> int | None:
    """Refuse what is about to come where it is certain that it may not be kept; gives how many
    bytes the blob can have at all, None for any. Raises ``Denied``."""
    with ended_if_denied(context, request, upload):
        if digest is not None:
            blocks.check(upload.refusal, digest)
        if not upload.limited:
            return None
        size = upload.received + (_length(request) or 0)
        return quotas.check(context.database, upload.repository, digest, size)


def _without_bytes(
    context: Context, request: Request, upload: Upload, digest: bytes | None
) -> Receiver:
    """Who ends a request that has no bytes to stage, or whose bytes are not wanted."""
    if upload.state == "cancelled" or digest is None or upload.digest not in (None, digest):
        raise _unknown()
    return _Ending(context, request, upload, digest)


def _mount(context: Context, request: Request, repository: str, digest: bytes) -> bool:
    """Link a blob from a repository that the caller may pull from; ``from`` names it, or any
    does."""
    if request.query.get("from"):
        candidates = [checked_name(request.query["from"])]
    else:
        candidates = blobs.repositories(context.database, digest, _MOUNT_CANDIDATES)
    for source in candidates:
        if not context.access.permits(request.subject, Permission.PULL, source):
            continue

        def work(transaction: Transaction, source: str = source) -> bool:
            if not blobs.lock(transaction, source, digest, context.store.name):
                return False
            new = context.new_repository(request.subject)
            blobs.link(transaction, repositories.ensure(transaction, repository, new), digest)
            return True

        with told(context, repository, request.subject):
            if context.database.transaction(work):
                return True
    if context.challenges:
        context.access.widen(request, repository, candidates)
    return False


def create(
    context: Context,
    request: Request,
    repository: str,
    algorithm: str,
    digest: bytes | None = None,
    size: int = 0,
) -> str:
    """Begin an upload, of a blob of this digest and size in bytes where they are known; gives its
    id. Raises ``Denied`` where a quota forbids it for certain."""
    upload_id = str(uuid.uuid4())
    seconds = context.capabilities.seconds
    if uploads.create(context.database, upload_id, repository, algorithm, seconds):
        with told(context, repository, request.subject):
            quotas.check(context.database, repository, digest, size)
    return upload_id


def _resume(upload: Upload, digest: bytes | None) -> Hash | None:
    """The hash of what has been received, to go on with; None where it is of another algorithm
    than the digest wanted, or cannot be resumed."""
    algorithm = upload.algorithm if digest is None else digests.algorithm(digest)
    if upload.received == 0:
        return Hash(algorithm)
    if upload.hash_state is None or algorithm != upload.algorithm:
        return None
    return Hash.resume(upload.hash_state)


def _chunk(request: Request) -> tuple[int, int] | None:
    """First and last byte of the chunk, where ``Content-Range`` names them."""
    header = request.headers.get("Content-Range")
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise UploadInvalid(
            "Content-Range is the first and the last byte of the chunk, like 0-1023.",
            {"Content-Range": header[:100]},
        )
    return int(match[1]), int(match[2])


def _length(request: Request) -> int | None:
    """How many bytes the body must have, by ``Content-Range`` or ``Content-Length``."""
    chunk = _chunk(request)
    promised = request.headers.get("Content-Length", "")
    said = int(promised) if promised.isdigit() else None
    if chunk is None:
        return said
    length = chunk[1] - chunk[0] + 1
    if said not in (None, length):
        raise _wrong_length(length, said)
    return length


def _progress(
    context: Context, repository: str, upload_id: str, subject: Subject, received: int
) -> list[tuple[str, str]]:
    """The header fields that say where an upload goes on, and how far it is."""
    settings = context.settings
    token = context.capabilities.issue(repository, upload_id, subject.id)
    path = f"/v2/{repository}/blobs/uploads/{upload_id}?{PARAMETER}={token}"
    return [
        ("Location", f"{settings.upload_url or settings.public_url}{path}"),
        ("Range", f"0-{max(received - 1, 0)}"),
        ("Docker-Upload-UUID", upload_id),
        ("Content-Length", "0"),
    ]


def created(context: Context, repository: str, digest: bytes) -> Response:
    """The answer for a blob that is there now."""
    text = digests.unpack(digest)
    headers = [
        context.location(f"/v2/{repository}/blobs/{text}"),
        ("Docker-Content-Digest", text),
        ("Content-Length", "0"),
    ]
    return Response(201, headers)


def _unknown() -> UploadUnknown:
    return UploadUnknown(
        "There is no such upload: it was committed, cancelled, or has expired. Begin one with POST."
    )


def _out_of_order(context: Context, request: Request, upload: Upload) -> UploadInvalid:
    headers = _progress(context, upload.repository, upload.id, request.subject, upload.received)[:3]
    return UploadInvalid(
        f"The upload has {upload.received} bytes; the next chunk begins there.",
        {"received": upload.received},
        status=416,
        headers=headers,
    )


def _overtaken(context: Context, request: Request, upload: Upload) -> UploadInvalid | UploadUnknown:
    """The error for a request whose upload another has taken over, or ended."""
    now = uploads.find(context.database, upload.id, upload.repository)
    if now is None or now.state != "open":
        return _unknown()
    error = _out_of_order(context, request, now)
    error.message = "Another request has taken this upload over; ask for its state with GET."
    return error


def _wrong_length(expected: int, found: int | None) -> SizeInvalid:
    return SizeInvalid(
        "The body's length is not what its header says.", {"expected": expected, "found": found}
    )
