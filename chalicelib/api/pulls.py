"""How often what is in a repository was pulled, and when last."""

from datetime import datetime

import msgspec

from chalicelib import digests
from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, PagingByDigest, page
from chalicelib.metadata import pulls as rows


class TagPulls(msgspec.Struct):
    """Pulls of a tag, and of the manifest that it points to. A time is null where there were
    none."""

    tag: str
    digest: str
    pulls: int
    pulled_at: datetime | None
    manifest_pulls: int
    manifest_pulled_at: datetime | None


class ManifestPulls(msgspec.Struct):
    """Pulls of a manifest, by its digest or by a tag. The time is null where there were none."""

    digest: str
    pulls: int
    pulled_at: datetime | None


def list_tag_pulls(call: Call) -> Page[TagPulls]:
    """How often tags of a repository were pulled, by name."""
    query = call.query
    found = rows.of_tags(
        call.context.database, call.params["repository"], query.after, query.limit + 1
    )
    items = [
        TagPulls(
            tag=each.tag,
            digest=digests.unpack(each.digest),
            pulls=each.pulls,
            pulled_at=each.pulled_at,
            manifest_pulls=each.manifest_pulls,
            manifest_pulled_at=each.manifest_pulled_at,
        )
        for each in found
    ]
    return page(items, query.limit, lambda each: each.tag)


def list_manifest_pulls(call: Call) -> Page[ManifestPulls]:
    """How often manifests of a repository were pulled, by digest."""
    query = call.query
    last = digests.pack(query.after) if query.after else b""
    found = rows.of_manifests(
        call.context.database, call.params["repository"], last, query.limit + 1
    )
    items = [
        ManifestPulls(digests.unpack(each.digest), each.pulls, each.pulled_at) for each in found
    ]
    return page(items, query.limit, lambda each: each.digest)


OPERATIONS = (
    Operation("GET", "/repositories/{repository}/-/tag-pulls", list_tag_pulls,
              Needs.REPOSITORY_READ, "How often tags were pulled",
              query=Paging, answer=Page[TagPulls]),
    Operation("GET", "/repositories/{repository}/-/manifest-pulls", list_manifest_pulls,
              Needs.REPOSITORY_READ, "How often manifests were pulled",
              query=PagingByDigest, answer=Page[ManifestPulls]),
)  # fmt: skip
