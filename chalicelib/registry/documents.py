"""What a manifest says: image manifests and indexes (OCI Image 1.1), Docker's schema 2 manifests
and lists, artifact manifests, and documents of other media types that are shaped like them.

Only what the registry needs is read. Unknown fields and media types pass, and the bytes are kept
as they came.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from chalicelib import digests
from chalicelib.http import ManifestInvalid

OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = frozenset({OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_LIST})
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_READ = frozenset(
    "schemaVersion mediaType artifactType annotations subject config layers blobs manifests".split()  # noqa: SIM905
)
_READ_LOWER = frozenset(name.lower() for name in _READ)
_DIGITS = 18  # of an integer that Postgres keeps
# RFC 6838, section 4.2: what comes back as Content-Type.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)
# What is only shown; some tools write a word.
_KIND = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
# As ocicrypt names them (github.com/containers/ocicrypt).
_ENCRYPTED = "+encrypted"
_FOREIGN = ("application/vnd.docker.image.rootfs.foreign", "nondistributable")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A digest as a manifest names it, and the size in bytes it claims."""

    digest: str
    size: int


@dataclass(slots=True)
class Document:
    """A manifest, read. ``blobs`` must be in the repository, ``children`` too; ``absent`` are
    layers that need not be distributed. ``encrypted``: there are layers, and the media type of each
    says that it is encrypted."""

    media_type: str
    artifact_type: str = ""
    subject: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    blobs: list[Descriptor] = field(default_factory=list)
    absent: list[Descriptor] = field(default_factory=list)
    children: list[Descriptor] = field(default_factory=list)
    encrypted: bool = False


def read(payload: bytes, content_type: str) -> Document:
    """The manifest in these bytes. Raises ``ManifestInvalid`` with the place of what is wrong."""
    try:
        top = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ManifestInvalid("The manifest is nested too deeply.") from None
    except ValueError as error:
        raise ManifestInvalid(f"The manifest is not JSON in UTF-8: {error}.") from None
    if not isinstance(top, dict):
        raise ManifestInvalid("The manifest must be a JSON object.")
    for name in top:
        # Clients written in Go take a field in any case, so there would be two manifests in one.
        if name not in _READ and name.lower() in _READ_LOWER:
            raise ManifestInvalid(f"The field {name} is one that is read, in another case.")
    document = Document(_media_type(top, content_type))
    _check_shape(top, document.media_type)
    _read_references(top, document)
    config = top.get("config")
    document.artifact_type = _type(top, "artifactType")
    if not document.artifact_type and isinstance(config, dict):
        document.artifact_type = _type(config, "mediaType")
    document.annotations = _annotations(top)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ManifestInvalid("The manifest has a field twice, which clients read differently.")
    return fields


def _integer(text: str) -> int | str:
    """A number, or its text where no field that is read can be so large."""
    return int(text) if len(text) <= _DIGITS else text


def _constant(word: str) -> None:
    """Python's own words for numbers that JSON does not have."""
    raise ValueError(f"it has no {word}")


def _check_shape(top: dict[str, Any], media_type: str) -> None:
    if "manifests" in top and ("layers" in top or "config" in top):
        # Two clients could read such a document in two ways (CVE-2021-41190).
        raise ManifestInvalid("A manifest is an image (config, layers) or an index (manifests).")
    if media_type in (OCI_INDEX, DOCKER_LIST) and "manifests" not in top:
        raise ManifestInvalid("An index must have the field manifests.")
    if media_type in (OCI_IMAGE, DOCKER_IMAGE) and not {"config", "layers"} <= top.keys():
        raise ManifestInvalid("An image manifest must have the fields config and layers.")


def _read_references(top: dict[str, Any], document: Document) -> None:
    for place, item in _list(top, "manifests"):
        document.children.append(_descriptor(item, place))
    kinds: list[str] = []
    for name in ("layers", "blobs"):
        for place, item in _list(top, name):
            layer = _descriptor(item, place)
            kinds.append(str(item.get("mediaType", "")))
            foreign = any(word in kinds[-1] for word in _FOREIGN)
            (document.absent if foreign else document.blobs).append(layer)
    document.encrypted = bool(kinds) and all(kind.endswith(_ENCRYPTED) for kind in kinds)
    if top.get("config") is not None:
        document.blobs.append(_descriptor(top["config"], "config"))
    if top.get("subject") is not None:
        document.subject = _descriptor(top["subject"], "subject").digest


def _annotations(top: dict[str, Any]) -> dict[str, str]:
    annotations = top.get("annotations")
    if annotations is None:
        return {}
    if not isinstance(annotations, dict) or not all(
        isinstance(value, str) for value in annotations.values()
    ):
        raise ManifestInvalid("The field annotations must map strings to strings.")
    return annotations


def _media_type(top: dict[str, Any], content_type: str) -> str:
    """The media type by the header and the document, which must not differ."""
    header = content_type.partition(";")[0].strip()
    own = _type(top, "mediaType", _MEDIA_TYPE)
    if header and _MEDIA_TYPE.fullmatch(header) is None:
        raise ManifestInvalid(
            "The Content-Type is no media type.", {"Content-Type": content_type[:256]}
        )
    if header.lower().startswith(_SCHEMA_1) or top.get("schemaVersion") == 1:
        raise ManifestInvalid(
            "Docker's schema 1 manifests are not kept; push with a client that writes schema 2 or"
            " OCI manifests."
        )
    if header.lower() in ("application/json", "application/octet-stream", "text/plain"):
        header = ""  # what clients send that were not told
    if own and header and own.lower() != header.lower():
        raise ManifestInvalid(
            "The Content-Type and the field mediaType differ.",
            {"Content-Type": header, "mediaType": own},
        )
    media_type = own or header
    if not media_type:
        media_type = OCI_INDEX if "manifests" in top else OCI_IMAGE
    known = media_type in (OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_LIST)
    if known and top.get("schemaVersion") != 2:
        raise ManifestInvalid("The field schemaVersion must be 2.")
    return media_type


def _list(top: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    items = top.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise ManifestInvalid(f"The field {name} must be an array of descriptors.")
    return [(f"{name}[{place}]", item) for place, item in enumerate(items)]


def _descriptor(item: Any, place: str) -> Descriptor:
    if not isinstance(item, dict):
        raise ManifestInvalid(f"{place} must be a descriptor.")
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(digest, str) or not digests.is_digest(digest):
        raise ManifestInvalid(f"{place} needs a digest, like sha256: and 64 digits.")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestInvalid(f"{place} needs a size in bytes.")
    return Descriptor(digest, size)


def _type(item: dict[str, Any], name: str, pattern: re.Pattern[str] = _KIND) -> str:
    value = item.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ManifestInvalid(f"The field {name} must be a media type.")
    return value
