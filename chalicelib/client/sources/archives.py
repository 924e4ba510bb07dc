"""Archives as `docker save` wrote them before version 25, and podman, skopeo and crane do: configs
and layers, and a list of which make an image; but no manifest, which is made here.

The layers are plain tars, whose digests the config knows ("diff_ids"). Some programs put in layers
that gzip has compressed.
"""

import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.client.sources import (
    Choice,
    Descriptor,
    Missing,
    SourceError,
    names_of,
    packed,
    pick,
)
from chalicelib.client.sources.members import Members, json_of, small
from chalicelib.registry.documents import DOCKER_IMAGE

LIST = "manifest.json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_GZIP = b"\x1f\x8b"
_OTHERS = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_NAMED_BY_HASH = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?")


class _Entry(NamedTuple):
    """An image of the list."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


class Archive:
    """An archive of whole images. Raises ``SourceError``."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._names: dict[str, str] = {}
        self._made: dict[str, bytes] = {}
        found = json_of(members, LIST)
        if not isinstance(found, list):
            raise SourceError(f"{LIST} in {members.place} is no list of images.")
        self._entries = [self._entry(each) for each in found]

    def choose(self, reference: str | None) -> Descriptor:
        choices = {
            Choice(
                entry.config + " ".join(entry.layers),
                ", ".join(entry.tags) or _digest_in(entry.config) or entry.config,
                (entry.config, _digest_in(entry.config), *_called(entry.tags)),
            ): entry
            for entry in self._entries
        }
        entry = choices[pick(list(choices), reference, self._members.place)]
        payload = self._manifest(entry)
        digest = digests.unpack(digests.of(payload))
        self._made[digest] = payload
        return Descriptor(digest, DOCKER_IMAGE, len(payload))

    def size(self, digest: str) -> int | None:
        if digest in self._made:
            return len(self._made[digest])
        return self._members.size(self._names[digest]) if digest in self._names else None

    def open(self, digest: str) -> Iterator[bytes]:
        if digest in self._made:
            return iter([self._made[digest]])
        return self._members.open(self._names[digest])

    def _entry(self, each: Any) -> _Entry:
        try:
            config, layers, tags = each["Config"], each["Layers"], each.get("RepoTags") or []
        except (KeyError, TypeError, AttributeError):
            config, layers, tags = "", None, []
        lists = (layers, tags)
        if not config or not all(
            isinstance(held, list) and all(isinstance(name, str) for name in held) for held in lists
        ):
            raise SourceError(f"{LIST} in {self._members.place} has what is no image.")
        return _Entry(str(config), tuple(layers), tuple(tags))

    def _manifest(self, entry: _Entry) -> bytes:
        """A manifest for an image. Its plain layers are by the digests that the config has for
        them, which are checked when they are read."""
        config = small(self._members, entry.config)
        digest = digests.unpack(digests.of(config))
        if _digest_in(entry.config) not in ("", digest):
            raise SourceError(
                f"{entry.config} in {self._members.place} is not what its name says: it is damaged."
            )
        diff_ids = diff_ids_of(config)
        if diff_ids is None or len(diff_ids) != len(entry.layers):
            raise SourceError(
                f"{entry.config} in {self._members.place} does not know of its"
                f" {len(entry.layers)} layers."
            )
        self._names[digest] = entry.config
        layers = [
            self._layer(name, diff_id) for name, diff_id in zip(entry.layers, diff_ids, strict=True)
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_IMAGE,
            "config": {"mediaType": _CONFIG, "size": len(config), "digest": digest},
            "layers": layers,
        }
        return json.dumps(manifest).encode()

    def _layer(self, name: str, diff_id: str) -> dict[str, Any]:
        size = self._members.size(name)
        if size is None:
            raise Missing(f"{self._members.place} lacks a layer of the image: {name}.")
        packed(diff_id)
        pieces = self._members.open(name)
        begins = next(pieces, b"")
        for magic, called in _OTHERS.items():
            if begins.startswith(magic):
                raise SourceError(
                    f"{name} in {self._members.place} is compressed by {called}, which no image of"
                    " docker's can be."
                )
        if not begins.startswith(_GZIP):
            self._names[diff_id] = name
            return {"mediaType": _LAYER, "size": size, "digest": diff_id}
        digest = self._compressed(name, diff_id)
        self._names[digest] = name
        return {"mediaType": f"{_LAYER}.gzip", "size": size, "digest": digest}

    def _compressed(self, name: str, diff_id: str) -> str:
        """The digest of a compressed layer, whose bytes are held against the config's digest."""
        hashing = digests.Hash()
        plain = digests.Hash(digests.algorithm(packed(diff_id)))
        try:
            for piece in unzipped(self._members.open(name), hashing):
                plain.update(piece)
        except zlib.error:
            raise SourceError(f"{name} in {self._members.place} is damaged.") from None
        if plain.digest() != packed(diff_id):
            raise SourceError(
                f"{name} in {self._members.place} is not the layer that the image's config names."
            )
        return digests.unpack(hashing.digest())


def unzipped(pieces: Iterator[bytes], hashing: digests.Hash) -> Iterator[bytes]:
    """What gzip has compressed, in one member or several, in pieces that are not much longer than
    those that come. Raises ``zlib.error``."""
    inflating = zlib.decompressobj(31)
    for piece in pieces:
        hashing.update(piece)
        rest = piece
        while rest:
            if inflating.eof:
                inflating = zlib.decompressobj(31)
            yield inflating.decompress(rest, 4 << 20)
            rest = inflating.unconsumed_tail or inflating.unused_data
    yield inflating.flush()
    if not inflating.eof:
        raise zlib.error("cut off")


def diff_ids_of(config: bytes) -> list[str] | None:
    """The digests that a config has for layers that are not compressed; None where it has none."""
    try:
        found = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        return None
    return found


def _called(tags: tuple[str, ...]) -> list[str]:
    return [name for tag in tags for name in names_of(tag)]


def _digest_in(name: str) -> str:
    """The digest by which a file is named; empty where it is not."""
    match = _NAMED_BY_HASH.fullmatch(name)
    return f"sha256:{match.group(1)}" if match else ""
