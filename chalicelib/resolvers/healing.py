"""Blobs that object storage has lost, put back from a network.

Only bytes of the blob's digest are put back, wherever they came from. They go to a key of their
own, which is written down before the first byte; the blob's row is changed in one transaction, if
nobody else has healed it, pushed it again or deleted it meanwhile. So any number may heal one blob
at once.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Piece, Unavailable
from chalicelib.metadata import blobs, jobs, uploads
from chalicelib.metadata.resolver_copies import Copy
from chalicelib.registry import staging
from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.blocks import Source, read
from chalicelib.resolvers.gateways import gateway
from chalicelib.resolvers.placing import Corrupt
from chalicelib.storage import StorageError

_log = logging.getLogger(__name__)

KIND = "heal"
"""Of the job that heals a blob."""
_NO_REPOSITORY = ""
"""Of an upload that nobody has asked for: no capability reaches it."""


def ask(context: Context, digest: bytes, delay: float = 0.0) -> None:
    """Have a blob healed soon, in so many seconds at the earliest. Never raises: who asks has
    better to do."""
    text = digests.unpack(digest)
    try:
        if jobs.add_once(context.database, KIND, {"digest": text}, subject=text, delay=delay):
            context.wake()
    except Exception:
        _log.warning("%s is not healed yet", text, exc_info=True)


def heal(context: Context, digest: bytes, size: int, copies: Sequence[Copy]) -> bool:
    """Put a blob of ``size`` bytes back into object storage from the networks that have it; False
    where others have done it. Raises ``ResolverError``, ``Corrupt`` and ``StorageError``."""
    error: Exception = ResolverError("No network has it.")
    for cid, sources in by_cid(context, {copy.resolver: copy.cid or "" for copy in copies}):
        try:
            return put_back(context, digest, size, read(sources, cid, 0, size))
        except (ResolverError, Corrupt) as found:
            error = found
    raise error


def put_back(context: Context, digest: bytes, size: int, pieces: Iterable[Piece]) -> bool:
    """Put a blob's bytes back into object storage, where it is missing; False where it is not, or
    is no blob any more. Raises ``Corrupt`` where these are other bytes; ``StorageError``; and what
    the iterator raises."""
    found = blobs.copy(context.database, digest, context.store.name)
    if found is None or is_there(context, digest, found):
        return False
    upload, key = staging.begin(context, _NO_REPOSITORY, digest)
    done = False
    try:
        staged, _ = staging.stage(context, upload, key, digest, size, pieces)
        context.store.complete(staged)
        done = uploads.put_back(
            context.database, upload, digest, size, context.store.name, found.key, key
        )
    finally:
        if not done:
            _drop(context, upload.id, key)
    if done:
        _log.warning("put %s back into storage, at %s", digests.unpack(digest), key)
    return done


def by_cid(context: Context, cids: Mapping[str, str]) -> list[tuple[str, list[Source]]]:
    """Where each CID of a content is to be had, given by the names of resolvers: first from these,
    then at their gateways. A content has several where profiles differ."""
    found: dict[str, tuple[list[Source], list[Source]]] = {}
    for name, cid in cids.items():
        resolver = context.resolvers.get(name)
        if resolver is not None:
            networks, gateways = found.setdefault(cid, ([], []))
            networks.append(resolver)
            gateways += [gateway(url) for url in resolver.gateways]
    return [(cid, [*networks, *gateways]) for cid, (networks, gateways) in found.items()]


def is_there(context: Context, digest: bytes, found: blobs.Place) -> bool:
    """Whether its object is there after all; its row says then what is so."""
    there = context.store.size(found.key) == found.size
    if found.missing == there:
        blobs.mark(context.database, digest, context.store.name, found.key, missing=not there)
    return there


def _drop(context: Context, upload_id: str, key: str) -> None:
    """Remove what was staged in vain. What cannot be removed now goes when the upload expires."""
    try:
        uploads.cancel(context.database, upload_id, _NO_REPOSITORY)
        if not blobs.is_copy(context.database, context.store.name, key):
            context.store.discard(key)
    except (StorageError, Unavailable):
        _log.info("the leavings of upload %s stay until it expires", upload_id, exc_info=True)
