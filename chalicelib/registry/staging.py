"""Bytes staged that no request brings: they are restored, imported, or come from a network.

They are written down as an upload's, so that what a process leaves that dies is cleared away.
"""

import time
import uuid
from collections.abc import Iterable

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import Piece
from chalicelib.metadata import uploads
from chalicelib.metadata.uploads import Upload
from chalicelib.resolvers.placing import Corrupt
from chalicelib.storage import Staged, StorageError, new_key


def begin(context: Context, repository: str, digest: bytes) -> tuple[Upload, str]:
    """An upload of a blob, and the key for its bytes."""
    upload_id, key, seconds = str(uuid.uuid4()), new_key(), context.capabilities.seconds
    algorithm = digests.algorithm(digest)
    uploads.create(context.database, upload_id, repository, algorithm, seconds)
    upload = uploads.begin(context.database, upload_id, repository, 0, key, seconds, digest)
    if upload is None:
        raise ended()
    return upload, key


def stage(
    context: Context, upload: Upload, key: str, digest: bytes, size: int, pieces: Iterable[Piece]
) -> tuple[Staged, Hash]:
    """Stage a blob's bytes, and give their hash. Raises ``Corrupt`` where they are other ones;
    ``StorageError``; and what the iterator raises."""

    def reserve(count: int) -> int:
        seconds = context.capabilities.seconds
        first = uploads.reserve(context.database, upload, count, seconds)
        if first is None:
            raise ended()
        return first

    writer = context.store.writer(None, key, reserve)
    hashing, renewed = Hash(digests.algorithm(digest)), time.monotonic()
    try:
        for piece in pieces:
            hashing.update(piece)
            if hashing.length > size:
                break
            writer.write([piece])
            if time.monotonic() - renewed > context.settings.upload_expiry / 4:
                renewed = time.monotonic()
                reserve(0)
        if hashing.length != size or hashing.digest() != digest:
            raise Corrupt(f"The bytes that came for {digests.unpack(digest)} are other ones.")
        return writer.close(final=True), hashing
    except BaseException:
        writer.abort()
        raise


def ended() -> StorageError:
    """The error for an upload that has expired meanwhile."""
    return StorageError("The blob could not be kept: its upload has ended.")
