"""Referrers: manifests that name another as their subject (OCI Distribution 1.1, "Listing
Referrers")."""

import json
from typing import Any

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Request, Response
from chalicelib.metadata import manifests
from chalicelib.registry import pages
from chalicelib.registry.documents import OCI_INDEX

_PAGE = 1000


def list_referrers(context: Context, request: Request) -> Response:
    """An index of the manifests whose subject this digest is (end-12), empty where there are none;
    of one artifact type where the query names it."""
    repository, subject = request.params["repository"], request.params["digest"]
    artifact_type = request.query.get("artifactType", "").replace("\0", "")
    count, after = pages.asked(request.query, _PAGE, _PAGE)
    found = manifests.referrers(
        context.database,
        repository,
        digests.pack(subject),
        artifact_type,
        digests.pack(after) if after else b"",
        count + 1,
    )
    headers = [("Content-Type", OCI_INDEX)]
    if artifact_type:
        headers.append(("OCI-Filters-Applied", "artifactType"))
    if len(found) > count > 0:
        found = found[:count]
        last = digests.unpack(found[-1].digest)
        path = f"/v2/{repository}/referrers/{subject}"
        headers.append(pages.next_page(path, artifactType=artifact_type, n=count, last=last))
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [_descriptor(referrer) for referrer in found[:count]],
    }
    return Response(200, headers, json.dumps(index).encode())


def _descriptor(referrer: manifests.Referrer) -> dict[str, Any]:
    descriptor: dict[str, Any] = {
        "mediaType": referrer.media_type,
        "digest": digests.unpack(referrer.digest),
        "size": referrer.size,
    }
    if referrer.artifact_type:
        descriptor["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        descriptor["annotations"] = referrer.annotations
    return descriptor
