"""On which networks an image is, and by which CIDs it is found there."""

from datetime import datetime
from itertools import groupby
from typing import Literal

import msgspec

from chalicelib import digests
from chalicelib.api.operations import Call, Needs, Operation
from chalicelib.api.problems import Problem, invalid
from chalicelib.http import DigestInvalid
from chalicelib.metadata import manifests, resolver_progress
from chalicelib.metadata.resolver_progress import Named
from chalicelib.registry import blocks
from chalicelib.registry.names import is_tag


class NetworkCopy(msgspec.Struct):
    """A content on the network of a resolver; ``cid`` is null until it is there. ``gateways`` are
    URLs at which everybody finds it. Of a manifest whose content is all there, ``derived_cid`` is
    that of the image that can be pulled from the network alone, and ``root_cid`` the one by which
    it is pulled."""

    resolver: str
    state: Literal["waiting", "there", "leaving"]
    cid: str | None
    gateways: list[str]
    derived_cid: str | None
    root_cid: str | None
    changed_at: datetime


class NetworkContent(msgspec.Struct):
    """A manifest, or what it names, and where it is."""

    digest: str
    kind: Literal["manifest", "blob"]
    copies: list[NetworkCopy]


class ManifestOnNetworks(msgspec.Struct):
    """A manifest of a repository; ``contents`` begin with itself."""

    digest: str
    contents: list[NetworkContent]


def show_manifest_on_networks(call: Call) -> ManifestOnNetworks:
    """On which networks of its repository a manifest is, with all that it names."""
    database, repository = call.context.database, call.params["repository"]
    reference = call.params["reference"]
    if ":" in reference:
        try:
            stored = manifests.by_digest(database, repository, digests.pack(reference))
        except DigestInvalid as error:
            raise invalid(error.message, "reference") from None
    else:
        stored = manifests.by_tag(database, repository, reference) if is_tag(reference) else None
    if stored is None:
        raise Problem(404, "This repository has no such manifest.")
    blocks.check(stored.refusal, stored.digest)
    found = resolver_progress.named(database, repository, stored.digest)
    contents = [
        NetworkContent(
            digests.unpack(digest),
            "manifest" if is_manifest else "blob",
            [_copy(call, each) for each in copies if each.resolver is not None],
        )
        for (digest, is_manifest), copies in groupby(
            found, lambda each: (bytes(each.digest), each.is_manifest)
        )
    ]
    return ManifestOnNetworks(digests.unpack(stored.digest), contents)


def _copy(call: Call, copy: Named) -> NetworkCopy:
    resolver = call.context.resolvers.get(copy.resolver or "")
    there = copy.cid if copy.state == "there" else None
    urls = resolver.gateways if resolver is not None and there else ()
    return msgspec.convert(
        {
            **copy._asdict(),
            "cid": there,
            "gateways": [f"{url}/ipfs/{there}" for url in urls],
        },
        NetworkCopy,
    )


OPERATIONS = (
    Operation("GET", "/repositories/{repository}/-/manifests/{reference}/networks",
              show_manifest_on_networks, Needs.REPOSITORY_READ,
              "On which networks an image is, and by which CIDs",
              answer=ManifestOnNetworks, problems=(404,)),
)  # fmt: skip
