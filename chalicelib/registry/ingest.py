"""Content that comes by another way than a push: restored, imported, or pulled from a network.

It becomes what a push makes of it, by the same rules: a blob once its digest is verified and one
transaction has linked it; a manifest once all that it names is there. Whether the subject may push
to the repository is for the caller to ask.
"""

from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Headers, Piece, Query, Request, Unavailable
from chalicelib.identity import Subject
from chalicelib.metadata import uploads
from chalicelib.registry import commit, manifests, staging
from chalicelib.storage import StorageError


def add_blob(
    context: Context,
    repository: str,
    digest: bytes,
    size: int,
    pieces: Iterable[Piece],
    subject: Subject,
) -> None:
    """Make a blob of a repository of ``size`` bytes. Raises ``Corrupt`` where these are other
    bytes; ``Denied`` where a quota or a blocked digest forbids it; ``StorageError``; and what the
    iterator raises."""
    upload, key = staging.begin(context, repository, digest)
    request = Request("PUT", "", subject=subject)
    done = False
    try:
        staged, hashing = staging.stage(context, upload, key, digest, size, pieces)
        done = commit.commit(context, request, upload, digest, staged, hashing)
    finally:
        if not done:
            _drop(context, upload.id, repository)
    if not done:
        raise staging.ended()


def add_manifest(
    context: Context,
    repository: str,
    digest: bytes,
    media_type: str,
    payload: bytes,
    tags: Sequence[str],
    subject: Subject,
) -> None:
    """Keep a manifest's very bytes under its digest, and tags. Raises what a push is refused
    with."""
    text = digests.unpack(digest)
    request = Request(
        "PUT",
        f"/v2/{repository}/manifests/{text}",
        query=Query(urlencode([("tag", tag) for tag in tags])),
        headers=Headers([("Content-Type", media_type)]),
        body=payload,
        params={"repository": repository, "reference": text},
        subject=subject,
    )
    manifests.put(context, request)


def _drop(context: Context, upload_id: str, repository: str) -> None:
    """Remove what was staged in vain. What cannot be removed now goes when the upload expires."""
    try:
        if uploads.cancel(context.database, upload_id, repository):
            commit.clear(context, upload_id)
    except (StorageError, Unavailable):
        pass
