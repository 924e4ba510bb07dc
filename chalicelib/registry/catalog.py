"""The registry as a whole: version check, catalog, extensions."""

import json

from chalicelib.context import Context
from chalicelib.http import JSON, Request, Response
from chalicelib.registry import pages

_PAGE = 1000
_MOST = 10_000
_DIRECT = {
    "name": "_openregistry",
    "description": "Uploads whose bytes go straight to object storage.",
    "endpoints": ["_openregistry/uploads/direct"],
}


def check_version(_context: Context, _request: Request) -> Response:
    """That this is a registry, and the caller may use it (end-1)."""
    return Response(200, [("Content-Type", JSON)], b"{}")


def list_repositories(context: Context, request: Request) -> Response:
    """Names of the repositories that hold a manifest, a page at a time (Docker's catalog)."""
    count, last = pages.asked(request.query, _PAGE, _MOST)
    names = context.access.repositories(request.subject, last, count + 1)
    headers = [("Content-Type", JSON)]
    if len(names) > count > 0:
        names = names[:count]
        headers.append(pages.next_page("/v2/_catalog", n=count, last=names[-1]))
    return Response(200, headers, json.dumps({"repositories": names[:count]}).encode())


def discover(context: Context, _request: Request) -> Response:
    """The extensions that this registry has (OCI Distribution, extensions/_oci.md)."""
    from chalicelib.registry import direct

    extensions = [_DIRECT] if direct.offered(context) else []
    return Response(200, [("Content-Type", JSON)], json.dumps({"extensions": extensions}).encode())
