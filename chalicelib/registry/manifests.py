"""Manifests (OCI Distribution 1.1, "Pulling manifests", "Pushing Manifests", "Deleting")."""

from collections.abc import Iterable
from dataclasses import replace

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import (
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    Request,
    Response,
    SizeInvalid,
)
from chalicelib.jobs import events
from chalicelib.metadata import blobs, manifests, repositories, tags
from chalicelib.metadata.database import ForeignKeyViolation, Transaction
from chalicelib.registry import blocks, documents
from chalicelib.registry.blobs import in_use, is_stale, matches
from chalicelib.registry.names import checked_tag, is_tag
from chalicelib.registry.quotas import told

_MOST_TAGS = 1000


def get(context: Context, request: Request) -> Response:
    """A manifest's very bytes, by digest or tag (end-3)."""
    repository, reference = request.params["repository"], request.params["reference"]
    if ":" in reference:
        stored = manifests.by_digest(context.database, repository, digests.pack(reference))
        caching = "private, max-age=31536000, immutable"
    else:
        tagged = is_tag(reference)
        stored = manifests.by_tag(context.database, repository, reference) if tagged else None
        caching = "private, no-cache"
    if stored is None:
        raise _unknown(request)
    blocks.check(stored.refusal, stored.digest)
    # Who is told by HEAD that it is here does not push it before the index that names it.
    stale = request.method == "HEAD" and is_stale(context, stored.unreferenced)
    if stale and not manifests.renew(context.database, repository, stored.digest):
        raise _unknown(request)
    digest = digests.unpack(stored.digest)
    etag = f'"{digest}"'
    headers = [
        ("Docker-Content-Digest", digest),
        ("ETag", etag),
        ("Cache-Control", caching),
    ]
    if stored.networks:
        from chalicelib.registry import links

        headers += links.fields(context, repository, stored)
    if matches(request.headers.get("If-None-Match"), etag):
        return Response(304, headers)
    headers += [
        ("Content-Type", stored.media_type),
        ("Content-Length", str(len(stored.payload))),
    ]
    if request.method == "HEAD" and not context.head_by_redirect:
        return Response(200, headers)
    if request.method == "GET":
        tag = "" if ":" in reference else reference
        context.pulls.count(repository, tag, stored.digest, request.subject.id)
    return Response(200, headers, stored.payload)


def put(context: Context, request: Request) -> Response:
    """Keep a manifest once all that it names is there (end-7), under its digest, and a tag or
    several (``tag=``)."""
    repository, reference = request.params["repository"], request.params["reference"]
    if len(request.body) > context.settings.manifest_limit:
        limit = context.settings.manifest_limit
        raise SizeInvalid(
            f"A manifest has at most {limit} bytes here; large content belongs into blobs.",
            {"limit": limit},
            status=413,
        )
    by_digest = ":" in reference
    digest = digests.pack(reference) if by_digest else digests.of(request.body)
    names = request.query.all("tag") if by_digest else [reference, *request.query.all("tag")]
    names = list(dict.fromkeys(map(checked_tag, names)))
    if len(names) > _MOST_TAGS:
        raise ManifestInvalid(f"One push sets at most {_MOST_TAGS} tags.", {"tags": len(names)})
    if digests.of(request.body, digests.algorithm(digest)) != digest:
        raise DigestInvalid("The manifest's bytes have another digest.", {"digest": reference})
    document = documents.read(request.body, request.headers.get("Content-Type", ""))
    record = manifests.Record(
        digest=digest,
        media_type=document.media_type,
        artifact_type=document.artifact_type,
        subject=None if document.subject is None else digests.pack(document.subject),
        payload=request.body,
        annotations=document.annotations,
        blobs=_digests([*document.blobs, *document.absent]),
        children=_digests(document.children),
        encrypted=document.encrypted,
    )

    def work(transaction: Transaction) -> list[str]:
        repository_id = repositories.ensure(
            transaction, repository, context.new_repository(request.subject)
        )
        there = blobs.linked(
            transaction, repository_id, sorted(record.blobs | record.children), context.store.name
        )
        children = manifests.existing(transaction, repository_id, sorted(record.children))
        # BuildKit keeps a cache as an index whose "manifests" are layers.
        layers = record.children & there.keys() - children
        if not context.settings.sparse_manifests:
            _refuse_missing(_digests(document.blobs) - there.keys(), "blob")
            _refuse_missing(record.children - children - layers, "manifest")
        kept = replace(record, blobs=record.blobs | layers, children=record.children - layers)
        resolved = manifests.add(
            transaction, repository_id, kept, frozenset(there), frozenset(children)
        )
        subject = request.subject.id
        moves = [
            tags.move(transaction, repository_id, name, digest, subject) for name in sorted(names)
        ]
        pushed = {
            "digest": digests.unpack(digest),
            "media_type": document.media_type,
            "artifact_type": document.artifact_type,
            "size": len(request.body),
            "tags": sorted(names),
        }
        told = [_tag_event(move.name, digest, move.previous) for move in moves if move]
        recorded = events.record_all(transaction, repository, subject, [("push", pushed), *told])
        if recorded or resolved:
            context.wake()
        return [
            item.digest
            for item in document.blobs
            if there.get(digests.pack(item.digest), item.size) != item.size
        ]

    with told(context, repository, request.subject):
        misstated = context.database.transaction(work)
    text = digests.unpack(digest)
    headers = [
        context.location(f"/v2/{repository}/manifests/{text}"),
        ("Docker-Content-Digest", text),
        *(("OCI-Tag", name) for name in names),
        *(("Warning", f'299 - "The manifest misstates the size of {item}."') for item in misstated),
    ]
    if document.subject is not None:
        headers.append(("OCI-Subject", document.subject))
    return Response(201, headers)


def delete(context: Context, request: Request) -> Response:
    """Delete a tag, or a manifest with all its tags (end-9)."""
    repository, reference = request.params["repository"], request.params["reference"]
    if ":" not in reference:
        gone = is_tag(reference) and context.database.transaction(
            lambda transaction: _delete_tag(context, transaction, request, reference)
        )
    else:
        digest = digests.pack(reference)
        try:
            gone = context.database.transaction(
                lambda transaction: _delete_manifest(context, transaction, request, digest)
            )
        except ForeignKeyViolation:
            raise in_use(context, repository, digest, "manifest") from None
    if not gone:
        raise _unknown(request)
    return Response(202)


def _delete_tag(context: Context, transaction: Transaction, request: Request, name: str) -> bool:
    repository = request.params["repository"]
    digest = tags.remove(transaction, repository, name, request.subject.id)
    if digest is None:
        return False
    deleted = {"digest": digests.unpack(digest), "tag": name}
    told: list[events.Event] = [("delete", deleted), _tag_event(name, None, digest)]
    if events.record_all(transaction, repository, request.subject.id, told):
        context.wake()
    return True


def _delete_manifest(
    context: Context, transaction: Transaction, request: Request, digest: bytes
) -> bool:
    repository = request.params["repository"]
    untagged = manifests.remove(transaction, repository, digest, request.subject.id)
    if untagged is None:
        return False
    told: list[events.Event] = [("delete", {"digest": digests.unpack(digest)})]
    told += [_tag_event(name, None, digest) for name in untagged]
    if events.record_all(transaction, repository, request.subject.id, told):
        context.wake()
    return True


def _tag_event(name: str, digest: bytes | None, previous: bytes | None) -> events.Event:
    """That a tag points to another manifest than it did: None for none."""
    return "tag", {
        "tag": name,
        "digest": digest and digests.unpack(digest),
        "previous": previous and digests.unpack(previous),
    }


def _digests(descriptors: Iterable[documents.Descriptor]) -> frozenset[bytes]:
    return frozenset(digests.pack(descriptor.digest) for descriptor in descriptors)


def _refuse_missing(missing: Iterable[bytes], noun: str) -> None:
    absent = [digests.unpack(digest) for digest in sorted(missing)]
    if absent:
        raise ManifestBlobUnknown(
            f"The manifest names a {noun} that this repository lacks; push or mount it first.",
            {"missing": absent[:100]},
        )


def _unknown(request: Request) -> ManifestUnknown:
    return ManifestUnknown(
        "This repository has no such manifest.",
        {
            "repository": request.params["repository"],
            "reference": request.params["reference"],
        },
    )
