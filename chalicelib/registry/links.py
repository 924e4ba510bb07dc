"""Where else a manifest and what it names are to be had, as a ``Link`` field (RFC 8288) of its
answer: ``duplicate`` (RFC 6249) at networks and gateways, the image that can be pulled from a
network alone, and the API's list of all this."""

from urllib.parse import quote

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.identity.open import Open
from chalicelib.metadata.manifests import Stored

LONGEST = 4096
"""Characters of the field. What does not fit is in the API's list."""
IMAGE = "urn:openregistry:image"
"""Relation of a manifest to the CID by which its image is pulled from a network, by nerdctl say."""


def fields(context: Context, repository: str, stored: Stored) -> list[tuple[str, str]]:
    """The header fields, none where no network has the manifest or any of what it names."""
    if not stored.networks:
        return []
    own: list[str] = []
    others: list[str] = []
    if not isinstance(context.access, Open):
        # Without accounts there is no API.
        path = quote(f"/api/v1/repositories/{repository}/-/manifests/")
        own.append(_link(f"{path}{digests.unpack(stored.digest)}/networks", "describedby"))
    for text, is_manifest, name, cid, root in stored.networks:
        digest = bytes.fromhex(text)
        resolver = context.resolvers.get(name)
        places = [f"ipfs://{cid}"]
        places += [f"{url}/ipfs/{cid}" for url in (resolver.gateways if resolver else ())]
        if digest == stored.digest:
            own += [_link(place, "duplicate") for place in places]
            if root is not None:
                own.append(_link(f"ipfs://{root}", IMAGE))
            continue
        noun = "manifests" if is_manifest else "blobs"
        anchor = f"/v2/{repository}/{noun}/{digests.unpack(digest)}"
        others += [f'{_link(place, "duplicate")}; anchor="{anchor}"' for place in places]
    # All or none of the others: half a list could be taken for a whole one.
    whole = ", ".join([*own, *others])
    field = whole if len(whole) <= LONGEST else ", ".join(own)
    return [("Link", field)] if field else []


def _link(target: str, relation: str) -> str:
    return f'<{target}>; rel="{relation}"'
