"""Images that can be pulled from a network alone, by nerdctl's convention: each descriptor of what
a manifest names has ``urls: ["ipfs://CID"]``. That makes it another manifest, with another digest,
which is put on the network too; and so is its descriptor, whose CID is the image's root.

For other registries annotations say where the manifest itself is found; and in the root stands the
registry's signature of its digest, so that they may believe it whoever gave it to them."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.metadata import resolver_copies
from chalicelib.resolvers import Resolver, signing
from chalicelib.resolvers.placing import Bytes, place

if TYPE_CHECKING:
    from chalicelib.identity.keys import Keys

DERIVED, ROOT = ".derived", ".root"
"""What follows the manifest's digest in the names of what is derived of it."""
MANIFEST, SIGNATURE = "org.openregistry.manifest", "org.openregistry.signature"
"""Annotations: where the very bytes of a manifest are (``ipfs://CID``), and a JWS of its digest,
media type and size (``signing``)."""


class Derived(NamedTuple):
    """The CIDs of a derived manifest, and of its descriptor."""

    derived_cid: str
    root_cid: str


class Address(NamedTuple):
    """Where something is that a manifest names; if that is a manifest itself, the one that is
    derived of it, and where that is."""

    cid: str
    derived: bytes = b""
    derived_cid: str = ""


def derive(context: Context, resolver: Resolver, digest: bytes) -> Derived:
    """Put what is derived of a manifest on a network that has all that it names. What the network
    does not have gets no address. Raises as ``place`` does."""
    name = digests.unpack(digest)
    data, media_type = _derived(context, resolver.name, digest, {})
    derived_cid = place(resolver, Bytes(name + DERIVED, data), digests.of(data))
    itself = {copy.resolver: copy for copy in resolver_copies.there(context.database, [digest])}
    copy = itself.get(resolver.name)
    signed = "" if copy is None else signature(context.keys, digest, media_type, copy.size)
    address = Address((copy and copy.cid) or "", data, derived_cid)
    root = root_of(address, media_type, signed)
    return Derived(derived_cid, place(resolver, Bytes(name + ROOT, root), digests.of(root)))


def signature(keys: "Keys", digest: bytes, media_type: str, size: int) -> str:
    """A registry's word for a manifest: a JWS."""
    statement = {"digest": digests.unpack(digest), "mediaType": media_type, "size": size}
    return signing.sign(keys, signing.MANIFEST, json.dumps(statement).encode())


def root_of(address: Address, media_type: str, signed: str) -> bytes:
    """The descriptor of a derived manifest, whose CID is the image's root. With a signature it
    tells where the manifest itself is, too."""
    descriptor: dict[str, Any] = {
        "mediaType": media_type,
        "digest": digests.unpack(digests.of(address.derived)),
        "size": len(address.derived),
        "urls": [f"ipfs://{address.derived_cid}"],
    }
    if signed:
        descriptor["annotations"] = {MANIFEST: f"ipfs://{address.cid}", SIGNATURE: signed}
    return json.dumps(descriptor).encode()


def document_of(payload: bytes) -> dict[str, Any]:
    """A manifest that was kept. A number that is too large for Python is its text: no field that is
    read has such."""
    document: dict[str, Any] = json.loads(payload, parse_int=_whole, parse_float=_fraction)
    return document


def derived_of(payload: bytes, addresses: Mapping[str, Address]) -> bytes:
    """What is derived of a manifest when that is at these addresses, by digest, what it names."""
    document = document_of(payload)
    for each in _named(document):
        address = addresses.get(each["digest"])
        if address is None:
            continue
        if address.derived_cid:
            child = address.derived
            each["digest"], each["size"] = digests.unpack(digests.of(child)), len(child)
            kept = each.get("annotations")
            kept = kept if isinstance(kept, dict) else {}
            each["annotations"] = {**kept, MANIFEST: f"ipfs://{address.cid}"}
        each["urls"] = [f"ipfs://{address.derived_cid or address.cid}"]
    return json.dumps(document).encode()


def _derived(
    context: Context, resolver: str, digest: bytes, known: dict[bytes, bytes]
) -> tuple[bytes, str]:
    """What is derived of a manifest, and its media type. What several indexes name is derived once:
    that is ``known``."""
    payload, media_type = resolver_copies.manifest(context.database, digest)
    named = [digests.pack(each["digest"]) for each in _named(document_of(payload))]
    addresses = {}
    for copy in resolver_copies.there(context.database, named):
        if copy.resolver != resolver:
            continue
        cid = copy.cid or ""
        address = Address(cid)
        if copy.derived_cid:
            if copy.digest not in known:
                known[copy.digest], _ = _derived(context, resolver, copy.digest, known)
            address = Address(cid, known[copy.digest], copy.derived_cid)
        addresses[digests.unpack(copy.digest)] = address
    return derived_of(payload, addresses), media_type


def _whole(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _fraction(text: str) -> float | str:
    return number if isfinite(number := float(text)) else text


def _named(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The descriptors of what a manifest cannot be without."""
    lists = (document.get(name) or [] for name in ("layers", "blobs", "manifests"))
    config = document.get("config")
    return [*(each for found in lists for each in found), *([config] if config else [])]
