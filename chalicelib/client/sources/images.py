"""An image read from a source: its manifests, children first, and the blobs that they name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chalicelib import digests
from chalicelib.client.sources import Descriptor, Missing, Source, SourceError, document, packed
from chalicelib.client.sources.archives import diff_ids_of
from chalicelib.http import RegistryError
from chalicelib.registry import documents

_TAR = {
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": (
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    ),
}
"""What a layer's media type becomes when it is compressed."""
_LAYERS = {*_TAR, *_TAR.values()}
_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_REFERENCE = "vnd.docker.reference.digest"
_REFERENCE_TYPE = "vnd.docker.reference.type"
"""BuildKit's annotations: of which image in an index another manifest tells, and what."""
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of ``size`` bytes; ``plain`` where it is a layer that is to be compressed."""

    digest: str
    size: int
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest; ``plain`` are the digests of its layers that are to be compressed."""

    digest: str
    media_type: str
    payload: bytes = field(repr=False)
    plain: frozenset[str] = frozenset()

    def rewritten(
        self, layers: Mapping[str, Descriptor], manifests: Mapping[str, "Manifest"]
    ) -> "Manifest":
        """The same for layers that were compressed and children that were rewritten, by their
        digests before; byte for byte itself where that is none of it."""
        top = json.loads(self.payload)
        changed = False
        for each in top.get("layers") or ():
            if each["digest"] in self.plain:
                layer = layers[each["digest"]]
                each["digest"], each["size"] = layer.digest, layer.size
                each["mediaType"] = _TAR.get(each["mediaType"], each["mediaType"])
                changed = True
        for each in top.get("manifests") or ():
            child = manifests.get(each["digest"])
            if child is not None and child.digest != each["digest"]:
                each["digest"], each["size"] = child.digest, len(child.payload)
                changed = True
            annotations = _annotations(each)
            about = manifests.get(str(annotations.get(_REFERENCE)))
            if about is not None and about.digest != annotations[_REFERENCE]:
                annotations[_REFERENCE] = about.digest
                changed = True
        if not changed:
            return self
        payload = json.dumps(top, indent=2).encode()
        return Manifest(digests.unpack(digests.of(payload)), self.media_type, payload)


@dataclass(slots=True)
class Image:
    """What is pushed: ``manifests`` with the children first and the top last, ``blobs`` in the
    order in which they are named. ``notes`` are sentences for the person."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[Blob, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(source: Source, top: Descriptor) -> Image:
    """The image of a descriptor. Raises ``SourceError``; ``Missing`` where the source lacks some of
    it."""
    reading = _Reading(source)
    try:
        reading.manifest(top, 0)
    except Missing as missing:
        alone = _only_one(source, top)
        if alone is None:
            raise
        reading = _Reading(source)
        reading.manifest(alone, 0)
        reading.image.notes.append(
            f"The index {top.digest} names more than is here ({missing}): only the image for"
            f" {_platform(source, top, alone)} is pushed, without the index."
        )
    return reading.image


class _Reading:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.image = Image()

    def manifest(self, wanted: Descriptor, depth: int) -> None:
        """Read a manifest after all that it names."""
        if wanted.digest in self.image.manifests:
            return
        if depth > _DEPTH:
            raise SourceError("Its indexes name each other too deep.")
        payload = document(self._source, wanted)
        try:
            held = documents.read(payload, wanted.media_type)
        except RegistryError as error:
            raise SourceError(f"{wanted.digest} is no manifest: {error.message}") from error
        top = json.loads(payload)
        for each in top.get("manifests") or ():
            child = _descriptor(each)
            if child.media_type in documents.MANIFESTS:
                self.manifest(child, depth + 1)
            else:
                self._blob(child, plain=False)  # BuildKit keeps a cache as an index of layers
        plain = self._plain(top)
        absent = {each.digest for each in held.absent}
        for name in ("layers", "blobs", "config"):
            found = top.get(name) or ()
            for each in [found] if isinstance(found, dict) else found:
                blob = _descriptor(each)
                if blob.digest in absent and self._source.size(blob.digest) is None:
                    continue  # a layer that need not be distributed
                self._blob(blob, plain=name == "layers" and blob.digest in plain)
        self.image.manifests[wanted.digest] = Manifest(
            wanted.digest, held.media_type, payload, plain
        )

    def _blob(self, blob: Descriptor, *, plain: bool) -> None:
        size = self._source.size(blob.digest)
        if size is None:
            raise Missing(f"It lacks {blob.digest}, which a manifest in it names.")
        if size != blob.size:
            raise SourceError(
                f"{blob.digest} has {size} bytes, and {blob.size} by its manifest: it is damaged."
            )
        self.image.blobs[Blob(blob.digest, size, plain)] = None

    def _plain(self, top: dict[str, Any]) -> frozenset[str]:
        """The layers that are plain tars. That is so where a layer's digest is what the config has
        for it uncompressed: its media type need not be right (`podman save` writes wrong ones)."""
        config, layers = top.get("config"), top.get("layers")
        if not layers or not config or str(config.get("mediaType")) not in _CONFIGS:
            return frozenset()
        diff_ids = diff_ids_of(document(self._source, _descriptor(config)))
        if diff_ids is None or len(diff_ids) != len(layers):
            return frozenset()
        found = set()
        for each, diff_id in zip(layers, diff_ids, strict=True):
            media_type = str(each.get("mediaType"))
            if media_type in _LAYERS and each["digest"] == diff_id:
                found.add(diff_id)
            elif media_type in _TAR:
                raise SourceError(
                    f"The layer {each['digest']} is not the one that the image's config names,"
                    f" {diff_id}: an image of these could not be run."
                )
        return frozenset(found)


def _only_one(source: Source, top: Descriptor) -> Descriptor | None:
    """Of an index that is there in part, as of an engine that has pulled one platform: the only
    image that is whole, if there is just one."""
    index = json.loads(document(source, top))
    children = index.get("manifests") if isinstance(index, dict) else None
    whole = []
    for each in children or ():
        if _REFERENCE_TYPE in _annotations(each):
            continue
        child = _descriptor(each)
        try:
            _Reading(source).manifest(child, 1)
        except Missing:
            continue
        whole.append(child)
    return whole[0] if len(whole) == 1 else None


def _platform(source: Source, top: Descriptor, child: Descriptor) -> str:
    for each in json.loads(document(source, top))["manifests"]:
        if each["digest"] == child.digest:
            platform = each.get("platform")
            if isinstance(platform, dict):
                words = [platform.get(name) for name in ("os", "architecture", "variant")]
                return "/".join(str(word) for word in words if word) or "one platform"
    return "one platform"


def _annotations(each: dict[str, Any]) -> dict[str, Any]:
    """Those of a descriptor, which nobody has checked."""
    found = each.get("annotations")
    return found if isinstance(found, dict) else {}


def _descriptor(each: dict[str, Any]) -> Descriptor:
    """A descriptor whose shape was checked (``documents.read``)."""
    packed(each["digest"])
    return Descriptor(each["digest"], str(each.get("mediaType") or ""), each["size"])
