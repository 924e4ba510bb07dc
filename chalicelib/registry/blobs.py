"""Blobs (OCI Distribution 1.1, "Pulling blobs", "Deleting blobs")."""

import logging
import re
from dataclasses import replace

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import BlobUnknown, RegistryError, Request, Response, Unsupported
from chalicelib.metadata import blobs
from chalicelib.metadata.database import ForeignKeyViolation
from chalicelib.registry import blocks
from chalicelib.storage import NoSuchObject

_log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(?:([0-9]{1,99})-([0-9]{0,99})|-([0-9]{1,99}))", re.IGNORECASE)
SOURCES = ("storage", "gateway", "network")
REDIRECTING = ("redirect", "gateway")
"""Values of ``downloads`` with which clients are sent to storage where it can presign."""
# A blob's bytes never change; whether this caller may still have them does.
_IMMUTABLE = ("Cache-Control", "private, max-age=31536000, immutable")


def get(context: Context, request: Request) -> Response:
    """A blob's bytes (end-2): a redirect to storage, or the bytes or a range of them."""
    digest = digests.pack(request.params["digest"])
    wanted = _source(context, request)
    found = _find(context, request, digest)
    head = request.method == "HEAD"
    etag = f'"{request.params["digest"]}"'
    headers = [
        ("Docker-Content-Digest", request.params["digest"]),
        ("ETag", etag),
        ("Accept-Ranges", "bytes"),
    ]
    if matches(request.headers.get("If-None-Match"), etag):
        return Response(304, [*headers, _IMMUTABLE])

    if not head or context.head_by_redirect:
        url = _redirect(context, request, digest, found, wanted)
        if url is not None:
            ages = ("Cache-Control", "no-store")
            return Response(307, [("Location", url), *headers, ages])

    headers += [_IMMUTABLE, ("Content-Type", "application/octet-stream")]
    start, length = 0, found.size
    status = 200
    asked = None
    if request.headers.get("If-Range") in (None, etag):
        asked = region(request.headers.get("Range"), found.size)
    if asked is not None and not head:
        status, (start, length) = 206, asked
        last = start + length - 1
        headers.append(("Content-Range", f"bytes {start}-{last}/{found.size}"))
    headers.append(("Content-Length", str(length)))
    if head:
        return Response(status, headers)
    if found.networks:
        from chalicelib.registry import networks

        body = networks.open_blob(context, digest, found, start, length, wanted)
        return Response(status, headers, body)
    try:
        return Response(status, headers, context.store.read(found.key, start, length))
    except NoSuchObject:
        # From now on clients are told that it is not here, and push it again.
        _log.error("storage has lost %s at %s", request.params["digest"], found.key)
        blobs.mark(context.database, digest, context.store.name, found.key, missing=True)
        raise _unknown(request) from None


def is_there(context: Context, request: Request, digest: bytes) -> bool:
    """Whether who would push a blob into the request's repository need not, as HEAD would tell. Its
    grace is renewed. Raises ``Denied`` where it is blocked."""
    params = {**request.params, "digest": digests.unpack(digest)}
    try:
        _find(context, replace(request, method="HEAD", params=params), digest)
    except BlobUnknown:
        return False
    return True


def _source(context: Context, request: Request) -> str:
    """Where a blob is to come from, by the request (``source=``) or else by the setting: from
    ``storage``, from a ``gateway`` by redirect, or through us from a ``network``."""
    if "source" not in request.query:
        return {"redirect": "storage", "stream": "storage"}.get(
            context.settings.downloads, context.settings.downloads
        )
    asked = request.query["source"]
    if asked not in SOURCES:
        raise RegistryError(
            f"A blob comes from one of {', '.join(SOURCES)}.",
            {"source": asked[:100]},
            code="SOURCE_INVALID",
        )
    return asked


def _redirect(
    context: Context, request: Request, digest: bytes, found: blobs.Copy, wanted: str
) -> str | None:
    """Where to send a client for a blob, None where it is to be sent the bytes."""
    if found.networks:
        from chalicelib.registry import networks

        return networks.redirect(context, request.method, digest, found, wanted)
    if context.settings.downloads not in REDIRECTING:
        return None
    return context.store.presign(request.method, found.key, context.settings.presign_expiry)


def _find(context: Context, request: Request, digest: bytes) -> blobs.Copy:
    """A blob of the repository. Raises ``BlobUnknown``, and ``Denied`` where it is blocked."""
    database, repository = context.database, request.params["repository"]
    found = blobs.find(database, repository, digest, context.store.name)
    if found is None:
        raise _unknown(request)
    if found.missing:
        found = _look_again(context, digest, found)
        if found.missing and not found.networks:
            raise _unknown(request)
    blocks.check(found.refusal, digest)
    # Who is told by HEAD that it is here does not push it before the manifest that names it.
    stale = request.method == "HEAD" and is_stale(context, found.unreferenced)
    if stale and not blobs.renew(database, repository, digest):
        raise _unknown(request)
    return found


def _look_again(context: Context, digest: bytes, copy: blobs.Copy) -> blobs.Copy:
    """What is so of an object that was missing: it may be there after all, where storage was not
    what it should be. Else it is healed, where a network has it."""
    if copy.networks:
        from chalicelib.resolvers import healing

        # Its job looks again too. Nobody waits here for storage, which may be down.
        healing.ask(context, digest)
        return copy
    if context.store.size(copy.key) != copy.size:
        return copy
    blobs.mark(context.database, digest, context.store.name, copy.key, missing=False)
    return copy._replace(missing=False)


def delete(context: Context, request: Request) -> Response:
    """Take a blob out of a repository (end-10). Its bytes are collected later."""
    repository = request.params["repository"]
    digest = digests.pack(request.params["digest"])
    try:
        if not blobs.unlink(context.database, repository, digest):
            raise _unknown(request)
    except ForeignKeyViolation:
        raise in_use(context, repository, digest, "blob") from None
    return Response(202)


def is_stale(context: Context, unreferenced: float | None) -> bool:
    """Whether less than half of the grace is left of what nothing has named for so many seconds."""
    return unreferenced is not None and unreferenced > context.settings.grace / 2


def in_use(context: Context, repository: str, digest: bytes, noun: str) -> Unsupported:
    """The error for a deletion that would leave a manifest of the repository incomplete."""
    manifests = blobs.named_by(context.database, repository, digest)
    return Unsupported(
        f"A manifest of this repository names this {noun}; delete that manifest first.",
        {"manifests": [digests.unpack(manifest) for manifest in manifests]},
    )


def region(header: str | None, size: int) -> tuple[int, int] | None:
    """Offset and length of a ``Range`` of ``size`` bytes (RFC 9110, section 14.2), None for the
    whole. Several ranges, other units and what is no range are answered with the whole, as the RFC
    lets a server do. Raises a 416 where nothing of the range exists."""
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(size - int(suffix), 0), size - 1
        satisfiable = int(suffix) > 0 and size > 0
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        satisfiable = start < size and start <= end
    if not satisfiable:
        raise RegistryError(
            f"The blob has {size} bytes, none of them in this range.",
            {"range": header},
            status=416,
            code="RANGE_INVALID",
            headers=[("Content-Range", f"bytes */{size}")],
        )
    return start, end - start + 1


def matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names this entity (RFC 9110, section 13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


def _unknown(request: Request) -> BlobUnknown:
    return BlobUnknown(
        "This repository has no such blob.",
        {"repository": request.params["repository"], "digest": request.params["digest"]},
    )
