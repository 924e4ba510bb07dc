"""Manifests that come from a registry elsewhere, verified."""

from dataclasses import dataclass, field
from typing import Any

from chalicelib import digests
from chalicelib.client.remote import Remote
from chalicelib.http import DigestInvalid, ManifestInvalid
from chalicelib.registry.documents import (
    DOCKER_IMAGE,
    DOCKER_LIST,
    OCI_IMAGE,
    OCI_INDEX,
    Descriptor,
    Document,
    read,
)

ACCEPT = f"{OCI_IMAGE}, {OCI_INDEX}, {DOCKER_IMAGE}, {DOCKER_LIST}, */*;q=0.5"
"""What is asked for: without it some registries answer with schema 1."""


class Unusable(Exception):
    """A manifest is not what it must be. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that came, verified."""

    data: bytes = field(repr=False)
    document: Document
    digest: str

    @property
    def descriptor(self) -> dict[str, Any]:
        """What names it."""
        return {
            "mediaType": self.document.media_type,
            "digest": self.digest,
            "size": len(self.data),
        }


def fetch(
    remote: Remote, repository: str, reference: str, claimed: Descriptor | None = None
) -> Manifest:
    """A manifest by its tag or digest; ``claimed`` is how an index names it. Raises ``Unusable``,
    ``RemoteError``."""
    reply = remote.send(
        "GET",
        f"/v2/{repository}/manifests/{reference}",
        headers={"Accept": ACCEPT},
        scope=f"repository:{repository}:pull",
    ).check(200)
    # By a tag it has the digest that the registry says, and that must be its own.
    told = reply.headers.get("Docker-Content-Digest", "")
    expected = reference if digests.is_digest(reference) else told
    algorithm = expected.partition(":")[0] or "sha256"
    if algorithm not in digests.ALGORITHMS:
        raise Unusable(f"{expected[:100]} is no digest that can be verified here.")
    digest = digests.unpack(digests.of(reply.body, algorithm))
    if (expected and digest != expected) or (
        claimed is not None and claimed.size != len(reply.body)
    ):
        raise Unusable(f"{remote.registry.host} sent other bytes than {expected} names.")
    return parse(reply.body, reply.headers.get("Content-Type", ""), digest, reference)


def parse(data: bytes, content_type: str, digest: str, reference: str) -> Manifest:
    """The manifest in these bytes, which are its digest's. Raises ``Unusable``."""
    try:
        return Manifest(data, read(data, content_type), digest)
    except (ManifestInvalid, DigestInvalid) as error:
        raise Unusable(f"The manifest {reference} cannot be used. {error.message}") from None
