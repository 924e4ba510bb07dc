"""An image with a layer of 1 GB between small ones, written without being held in memory."""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.images import CONFIG, LAYER, MANIFEST, Content, make_bytes

MIB = 1 << 20
BIG = 1 << 30
"""Bytes of the file in the largest layer."""


@dataclass(frozen=True)
class BigImage:
    """An image on the disk, which does not compress."""

    layout: Path
    """An OCI layout whose tag is `latest`. Its layers are in gzip without being compressed, so that
    clients that send a layer as it is have nothing to do."""
    archive: Path
    """The same in a tar file, for `docker load` and for containerd."""
    manifest: str
    config: str
    layers: tuple[str, ...]
    """Digests."""
    size: int
    """Bytes of all blobs."""

    @property
    def contents(self) -> set[str]:
        """The digests of everything in it."""
        return {self.manifest, self.config, *self.layers}


def write_big_image(directory: Path) -> BigImage:
    """Write one with layers of 1 kB, 3 MiB and 1 GiB."""
    layout = directory / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [
        _write_layer(blobs, f"layer-{number}", pieces, size)
        for number, (pieces, size) in enumerate(
            [(iter([b"small" * 200]), 1000), (_pieces(3 * MIB), 3 * MIB), (_pieces(BIG), BIG)]
        )
    ]
    config = _write(
        blobs,
        CONFIG,
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [contained for _, contained in layers]},
        },
    )
    descriptors = [descriptor for descriptor, _ in layers]
    manifest = _write(
        blobs,
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor,
            "layers": descriptors,
        },
    )
    entry = {
        **manifest.descriptor,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    digests = [str(each["digest"]) for each in descriptors]
    for_docker = {
        "Config": _path(config.digest),
        "RepoTags": ["big:latest"],
        "Layers": [_path(digest) for digest in digests],
    }
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "manifest.json").write_text(json.dumps([for_docker]))
    archive = directory / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for file in sorted(layout.iterdir()):
            tar.add(file, file.name)
    sizes = sum(int(str(each["size"])) for each in descriptors)
    return BigImage(
        layout, archive, manifest.digest, config.digest, tuple(digests), sizes + len(config.data)
    )


def digests_in(folder: Path) -> set[str]:
    """The digests of a folder's files, by their bytes; each must be its file's name."""
    found = set()
    for file in folder.iterdir():
        with file.open("rb") as data:
            assert hashlib.file_digest(data, "sha256").hexdigest() == file.name
        found.add(f"sha256:{file.name}")
    return found


def _pieces(size: int) -> Iterator[bytes]:
    """Bytes that do not compress, and no piece is like another. Made of less than there are: no
    client looks back over 64 MiB."""
    source = [make_bytes(MIB - 8, number) for number in range(min(size // MIB, 64))]
    for number in range(size // MIB):
        yield number.to_bytes(8) + source[number % len(source)]


def _write_layer(
    blobs: Path, name: str, pieces: Iterator[bytes], size: int
) -> tuple[dict[str, object], str]:
    """Write a layer with one file; its descriptor, and the digest of what is in the gzip."""
    stored = zlib.compressobj(0, wbits=31)
    outer, inner, length = hashlib.sha256(), hashlib.sha256(), 0
    unnamed = blobs / "unnamed"
    with unnamed.open("wb") as file:
        for piece in _tar(name, pieces, size):
            inner.update(piece)
            data = stored.compress(piece)
            outer.update(data)
            length += file.write(data)
        data = stored.flush()
        outer.update(data)
        length += file.write(data)
    unnamed.rename(blobs / outer.hexdigest())
    digest = f"sha256:{outer.hexdigest()}"
    descriptor: dict[str, object] = {"mediaType": LAYER, "digest": digest, "size": length}
    return descriptor, f"sha256:{inner.hexdigest()}"


def _tar(name: str, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)
    member.size = size
    yield member.tobuf()
    yield from pieces
    yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _write(blobs: Path, media_type: str, value: object) -> Content:
    content = Content(media_type, json.dumps(value).encode())
    (blobs / content.digest.removeprefix("sha256:")).write_bytes(content.data)
    return content


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
