"""How often what is in a repository was pulled, and when last."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from chalicelib import digests
from chalicelib.api import problems
from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.http import DigestInvalid
from chalicelib.metadata import pulls as rows


class Search(Paging):
    """A list's page: of tags, by name, or of manifests, by digest."""

    of: Literal["tags", "manifests"] = "tags"
    after: Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[\w.:+-]*$")] = ""


class Pulls(msgspec.Struct):
    """Pulls of a tag and of the manifest that it points to; of a manifest alone where ``tag`` is
    null. A time is null where there were none."""

    tag: str | None
    digest: str
    pulls: int
    pulled_at: datetime | None
    manifest_pulls: int
    manifest_pulled_at: datetime | None


def list_pulls(call: Call) -> Page[Pulls]:
    """How often tags or manifests of a repository were pulled."""
    database, name = call.context.database, call.params["repository"]
    after, count = call.query.after, call.query.limit + 1
    if call.query.of == "tags":
        found = rows.of_tags(database, name, after, count)
    else:
        found = rows.of_manifests(database, name, _packed(after), count)
    items = [
        Pulls(
            tag=each.tag or None,
            digest=digests.unpack(each.digest),
            pulls=each.pulls,
            pulled_at=each.pulled_at,
            manifest_pulls=each.manifest_pulls,
            manifest_pulled_at=each.manifest_pulled_at,
        )
        for each in found
    ]
    return page(items, call.query.limit, lambda each: each.tag or each.digest)


def _packed(after: str) -> bytes:
    try:
        return digests.pack(after) if after else b""
    except DigestInvalid as error:
        raise problems.invalid(error.message, "after") from None


OPERATIONS = (
    Operation("GET", "/repositories/{repository}/-/pulls", list_pulls, Needs.REPOSITORY_READ,
              "How often tags or manifests were pulled", query=Search, answer=Page[Pulls]),
)  # fmt: skip
