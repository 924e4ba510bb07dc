"""Manifests: their bytes against their digests, and their rows against what they name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.fsck import Finding, Kind, Tell
from chalicelib.http import DigestInvalid, ManifestInvalid, RegistryError
from chalicelib.metadata import blobs, fsck, manifests, resolver_copies
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.fsck import Manifest
from chalicelib.registry import documents
from chalicelib.resolvers import ResolverError, healing
from chalicelib.resolvers.blocks import read
from chalicelib.storage import StorageError


@dataclass(frozen=True, slots=True)
class _Named:
    """What a manifest names by its bytes: digests, and whether each is a manifest's. ``must`` are
    those that must be in its repository."""

    subject: bytes | None
    rows: frozenset[tuple[bytes, bool]]
    must: frozenset[bytes]


def check(context: Context, *, repair: bool, tell: Tell) -> Iterator[Finding]:
    """What is wrong with manifests."""
    total = fsck.count_manifests(context.database)
    for done, seen in enumerate(fsck.manifests(context.database), 1):
        if any(_judge(context, seen)):
            yield from _again(context, seen, repair=repair)
        tell("manifests checked", done, max(done, total))


def _again(context: Context, seen: Manifest, *, repair: bool) -> list[Finding]:
    """What is wrong with a manifest still, now that it cannot change."""

    def work(transaction: Transaction) -> list[Finding]:
        fsck.lock_manifest(transaction, seen.repository_id, seen.digest)
        now = fsck.manifest(transaction, seen.repository_id, seen.digest)
        if now is None:
            return []
        findings = list(_judge(context, now))
        if repair and any(each.kind == "reference" for each in findings):
            named = _named(now)
            rows = _with_layers(context, transaction, now, named.rows)
            fsck.mend_references(transaction, now, named.subject, rows)
            findings = [_mended(each, "its rows were written anew") for each in findings]
        return findings

    findings = context.database.transaction(work)
    if repair and any(each.kind == "manifest" for each in findings):
        mended = _mend(context, seen)
        if mended:
            findings = [_mended(each, mended, "manifest") for each in findings]
    return findings


def _judge(context: Context, found: Manifest) -> Iterator[Finding]:
    text = digests.unpack(found.digest)

    def finding(kind: Kind, sentence: str) -> Finding:
        return Finding(kind, sentence, text, repository=found.repository, size=len(found.payload))

    image = f"{found.repository}@{text}"
    if digests.of(found.payload, digests.algorithm(found.digest)) != found.digest:
        yield finding(
            "manifest",
            f"The manifest {image} has other bytes than its digest names: where it is not repaired,"
            " delete it and push it again.",
        )
        return
    try:
        named = _named(found)
    except (ManifestInvalid, DigestInvalid) as error:
        yield finding("manifest", f"The manifest {image} cannot be read. {error.message}")
        return
    rows = {(each.digest, each.is_manifest): each for each in found.references}
    if rows.keys() != named.rows or found.subject != named.subject:
        yield finding("reference", f"The rows of {image} do not say what it names.")
    elif any(each.there and not each.held for each in rows.values()):
        yield finding("reference", f"What {image} names could be deleted from under it.")
    if context.settings.sparse_manifests:
        return
    there = {each.digest for each in found.references if each.there}
    for digest in sorted(named.must - there):
        if any(digest == each for each, _ in rows):
            yield finding(
                "incomplete",
                f"The manifest {image} names {digests.unpack(digest)}, which is not in the"
                " repository: push it again.",
            )


def _named(found: Manifest) -> _Named:
    """Raises ``ManifestInvalid`` and ``DigestInvalid``."""
    document = documents.read(found.payload, found.media_type)
    present = {digests.pack(each.digest) for each in document.blobs}
    absent = {digests.pack(each.digest) for each in document.absent}
    children = {digests.pack(each.digest) for each in document.children}
    # BuildKit keeps a cache as an index whose "manifests" are layers: then their rows say so.
    layers = children & {each.digest for each in found.references if not each.is_manifest}
    rows = {(each, False) for each in present | absent | layers}
    rows |= {(each, True) for each in children - layers}
    subject = None if document.subject is None else digests.pack(document.subject)
    return _Named(subject, frozenset(rows), frozenset(present | children))


def _with_layers(
    context: Context, transaction: Transaction, found: Manifest, rows: frozenset[tuple[bytes, bool]]
) -> set[tuple[bytes, bool]]:
    """The rows of a manifest, where those that an index names and that are no manifests of the
    repository, but its blobs, are layers (as in ``registry.manifests.put``)."""
    children = sorted(digest for digest, is_manifest in rows if is_manifest)
    blobs_there = blobs.linked(transaction, found.repository_id, children, context.store.name)
    layers = blobs_there.keys() - manifests.existing(transaction, found.repository_id, children)
    return {(digest, is_manifest and digest not in layers) for digest, is_manifest in rows}


def _mend(context: Context, found: Manifest) -> str:
    """Have a manifest's own bytes again, from another repository or a network; gives from where,
    empty where nobody has them."""
    for payload in fsck.payloads(context.database, found.digest):
        if _right(found.digest, payload):
            fsck.mend_payload(context.database, found.digest, found.payload, payload)
            return "its bytes were taken from another repository"
    for copy in resolver_copies.there(context.database, [found.digest]):
        for cid, sources in healing.by_cid(context, {copy.resolver: copy.cid or ""}):
            try:
                payload = b"".join(read(sources, cid, 0, copy.size))
            except (ResolverError, RegistryError, StorageError):
                continue
            if _right(found.digest, payload):
                fsck.mend_payload(context.database, found.digest, found.payload, payload)
                return "its bytes were taken from a network"
    return ""


def _right(digest: bytes, payload: bytes) -> bool:
    return digests.of(payload, digests.algorithm(digest)) == digest


def _mended(finding: Finding, repair: str, kind: Kind = "reference") -> Finding:
    if finding.kind != kind:
        return finding
    return replace(finding, repair=repair)
