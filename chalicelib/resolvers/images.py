"""Images that can be pulled from a network alone, by nerdctl's convention: each descriptor of what
a manifest names has ``urls: ["ipfs://CID"]``. That makes it another manifest, with another digest,
which is put on the network too; and so is its descriptor, whose CID is the image's root.

For other registries annotations say where the manifest itself is found; and in the root stands the
registry's signature of its digest, so that they may believe it whoever gave it to them."""

import json
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.metadata import resolver_copies
from chalicelib.resolvers import Resolver, signing
from chalicelib.resolvers.placing import Bytes, place

DERIVED, ROOT = ".derived", ".root"
"""What follows the manifest's digest in the names of what is derived of it."""
MANIFEST, SIGNATURE = "org.openregistry.manifest", "org.openregistry.signature"
"""Annotations: where the very bytes of a manifest are (``ipfs://CID``), and a JWS of its digest,
media type and size (``signing``)."""


class Derived(NamedTuple):
    """The CIDs of a derived manifest, and of its descriptor."""

    derived_cid: str
    root_cid: str


def derive(context: Context, resolver: Resolver, digest: bytes) -> Derived:
    """Put what is derived of a manifest on a network that has all that it names. What the network
    does not have gets no address. Raises as ``place`` does."""
    name = digests.unpack(digest)
    document, media_type = _derived(context, resolver.name, digest)
    data = json.dumps(document).encode()
    derived_cid = place(resolver, Bytes(name + DERIVED, data), digests.of(data))
    descriptor: dict[str, Any] = {
        "mediaType": media_type,
        "digest": digests.unpack(digests.of(data)),
        "size": len(data),
        "urls": [f"ipfs://{derived_cid}"],
    }
    itself = {copy.resolver: copy for copy in resolver_copies.there(context.database, [digest])}
    if copy := itself.get(resolver.name):
        statement = {"digest": name, "mediaType": media_type, "size": copy.size}
        token = signing.sign(context.keys, signing.MANIFEST, json.dumps(statement).encode())
        descriptor["annotations"] = {MANIFEST: f"ipfs://{copy.cid}", SIGNATURE: token}
    root = json.dumps(descriptor).encode()
    return Derived(derived_cid, place(resolver, Bytes(name + ROOT, root), digests.of(root)))


def _derived(context: Context, resolver: str, digest: bytes) -> tuple[dict[str, Any], str]:
    payload, media_type = resolver_copies.manifest(context.database, digest)
    document: dict[str, Any] = json.loads(payload)
    descriptors = [*document.get("layers", []), *document.get("blobs", [])]
    if "config" in document:
        descriptors.append(document["config"])
    children = document.get("manifests", [])
    named = [digests.pack(each["digest"]) for each in (*descriptors, *children)]
    there = {
        digests.unpack(copy.digest): copy
        for copy in resolver_copies.there(context.database, named)
        if copy.resolver == resolver
    }
    for each in (*descriptors, *children):
        copy = there.get(each["digest"])
        if copy is None:
            continue
        if copy.derived_cid:
            child = json.dumps(_derived(context, resolver, copy.digest)[0]).encode()
            each["digest"], each["size"] = digests.unpack(digests.of(child)), len(child)
            kept = each.get("annotations")
            kept = kept if isinstance(kept, dict) else {}
            each["annotations"] = {**kept, MANIFEST: f"ipfs://{copy.cid}"}
        each["urls"] = [f"ipfs://{copy.derived_cid or copy.cid}"]
    return document, media_type
