"""Lists of tags (OCI Distribution 1.1, "Listing Tags")."""

import json

from chalicelib.context import Context
from chalicelib.http import JSON, NameUnknown, Request, Response
from chalicelib.metadata import repositories, tags
from chalicelib.registry import pages

_MOST = 10_000


def list_tags(context: Context, request: Request) -> Response:
    """The repository's tags in lexical order, a page at a time where asked (end-8)."""
    repository = request.params["repository"]
    count, last = pages.asked(request.query, _MOST, _MOST)
    names = tags.page(context.database, repository, last, count + 1)
    if not names and not repositories.exists(context.database, repository):
        raise NameUnknown(
            "There is no such repository; it comes to be with the first push.",
            {"repository": repository},
        )
    headers = [("Content-Type", JSON)]
    if len(names) > count > 0:
        names = names[:count]
        path = f"/v2/{repository}/tags/list"
        headers.append(pages.next_page(path, n=count, last=names[-1]))
    body = json.dumps({"name": repository, "tags": names[:count]}).encode()
    return Response(200, headers, body)
