"""What is on other networks: copies of blobs and manifests, by their CIDs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Copy(NamedTuple):
    """A blob or a manifest on the network of one resolver, or on its way there; ``size`` in
    bytes. ``state`` is ``waiting``, ``there`` or ``leaving``. Of a manifest whose content is all
    there, ``derived_cid`` is that of the image that can be pulled from the network alone, and
    ``root_cid`` that of its descriptor. ``error`` tells why it is not there yet."""

    digest: bytes
    resolver: str
    size: int
    state: str
    cid: str | None
    derived_cid: str | None
    root_cid: str | None
    error: str
    changed_at: Any


_COLUMNS = "digest, resolver, size, state, cid, derived_cid, root_cid, error, changed_at"

WANTED = (
    "(NOT EXISTS (SELECT FROM blocked_digests k WHERE k.digest = c.digest) AND EXISTS ("
    "SELECT FROM manifests m JOIN repositories r ON r.id = m.repository_id"
    " WHERE c.resolver = ANY(r.resolvers) AND (r.public OR r.insisted OR m.encrypted)"
    " AND (m.digest = c.digest OR EXISTS (SELECT FROM manifest_references f"
    " WHERE f.repository_id = m.repository_id AND f.manifest = m.digest"
    " AND f.blob = c.digest))))"
)
"""An expression: whether somebody wants the copy ``c`` where it is, or is to be. The one place that
says what may be on a network."""


def there(runner: Runner, digests: Sequence[bytes]) -> list[Copy]:
    """Every copy of these that a network has."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM resolver_copies"
        " WHERE digest = ANY(CAST(:digests AS bytea[])) AND state = 'there'"
        " ORDER BY digest, resolver",
        digests=list(digests),
    )
    return [Copy(*row) for row in rows]
