"""The commit of an upload: its staged bytes become a blob of its repository.

Whoever staged the bytes, and whether or not they were hashed on their way: they are a blob once
their digest has been verified and one transaction has linked them, and not before. Commit makes
them an object where they are.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import Denied, DigestInvalid, Request
from chalicelib.identity import Permission
from chalicelib.metadata import uploads
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.uploads import Upload
from chalicelib.registry import quotas
from chalicelib.storage import Staged, StorageError

_log = logging.getLogger(__name__)


def commit(
    context: Context,
    request: Request,
    upload: Upload,
    digest: bytes,
    staged: Staged,
    hashing: Hash | None,
) -> bool:
    """Make a blob of what is staged; False where the upload was ended, or taken over by another
    request. ``hashing`` has seen all of the bytes; without it they are read once more, unless that
    was done. Raises ``DigestInvalid``, ``Denied`` and ``StorageError``."""
    verified = upload.verified or hashing is not None
    verify(hashing, digest)
    if staged.whole and not verified:
        verify(reread(context, digest, staged), digest)
    if not staged.whole:
        if upload.state == "open":
            seconds = context.capabilities.seconds
            if not uploads.settle(context.database, upload, digest, staged, verified, seconds):
                return _by_another(context, request, upload, digest)
        context.store.complete(staged)
        if not verified and (found := reread(context, digest, staged)).digest() != digest:
            # Its parts are an object now, and take no further chunk.
            uploads.cancel(context.database, upload.id, upload.repository)
            clear(context, upload.id)
            verify(found, digest, "; this upload has ended, begin another")

    # Asked last: all this may have taken a while.
    if not context.access.permits(request.subject, Permission.PUSH, upload.repository):
        raise Denied("You may no longer push to this repository.")
    with ended_if_denied(context, request, upload):
        kept = _link(context, request, upload, digest, staged)
    if kept is None:
        return _by_another(context, request, upload, digest)
    if kept != staged.key or upload.epoch > 1:
        clear_now(context, upload.id)
    return True


@contextmanager
def ended_if_denied(context: Context, request: Request, upload: Upload) -> Iterator[None]:
    """End an upload that a quota or a blocked digest keeps from becoming a blob, and keep nothing
    of what it staged."""
    try:
        with quotas.told(context, upload.repository, request.subject):
            yield
    except Denied:
        uploads.cancel(context.database, upload.id, upload.repository)
        clear_now(context, upload.id)
        raise


def verify(hashing: Hash | None, digest: bytes, consequence: str = "") -> None:
    """Raise ``DigestInvalid`` where the bytes that were hashed have another digest."""
    if hashing is not None and (found := hashing.digest()) != digest:
        raise DigestInvalid(
            f"The bytes received have another digest{consequence}.",
            {"wanted": digests.unpack(digest), "received": digests.unpack(found)},
        )


def clear(context: Context, upload_id: str) -> None:
    """Remove all that an upload staged, but for what has become a blob's copy. The upload must have
    been ended before: then nothing that it staged can become one meanwhile."""
    for key, kept in uploads.keys(context.database, upload_id, context.store.name):
        if kept:
            context.store.discard_leftovers(key)
        else:
            context.store.discard(key)


def _by_another(context: Context, request: Request, upload: Upload, digest: bytes) -> bool:
    """What came of an upload that another request has ended or taken over. What that one is about
    to commit may be committed by this one too."""
    now = uploads.find(context.database, upload.id, upload.repository)
    if now is not None and now.digest == digest:
        if now.state == "committed":
            return True
        if now.state == "committing" and now.staged is not None:
            return commit(context, request, now, digest, now.staged, None)
    return False


def reread(context: Context, digest: bytes, staged: Staged) -> Hash:
    """The hash of an object, by reading it: its digest's algorithm was named only at the end, or
    the hash could not be resumed here."""
    hashing = Hash(digests.algorithm(digest))
    with closing(context.store.read(staged.key, 0, staged.size)) as pieces:
        for piece in pieces:
            hashing.update(piece)
    return hashing


def clear_now(context: Context, upload_id: str) -> None:
    """Remove what an upload leaves that has ended: an object that lost a race, pieces that were
    joined. What cannot be removed now goes when the upload expires."""
    try:
        clear(context, upload_id)
    except StorageError:
        _log.info("the leavings of upload %s stay until it expires", upload_id, exc_info=True)


class _EarlierError(Exception):
    """Undoes a transaction: the blob has an object already."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _link(
    context: Context, request: Request, upload: Upload, digest: bytes, staged: Staged
) -> str | None:
    """Link the blob, in one transaction; gives its key, or None where the upload is not ours to
    commit. Where somebody pushed the blob earlier, their object stays, unless storage has lost
    it."""
    store = context.store
    new = context.new_repository(request.subject)
    seen = missing = ""

    def work(transaction: Transaction) -> str | None:
        key = uploads.commit(transaction, upload, digest, staged, store.name, missing, new)
        if key not in (None, staged.key, seen):
            raise _EarlierError(key)
        return key

    while True:
        try:
            return context.database.transaction(work)
        except _EarlierError as earlier:
            # Looked for outside the transaction, which would hold the blob's row meanwhile.
            seen = earlier.key
            missing = seen if store.size(seen) != staged.size else ""
