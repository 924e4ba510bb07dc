"""Small images for the tests: deterministic, incompressible, and made in memory."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Content:
    """Bytes with their media type: a layer, a config, a manifest or an index."""

    media_type: str
    data: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """The sha256 digest."""
        return "sha256:" + hashlib.sha256(self.data).hexdigest()

    @property
    def descriptor(self) -> dict[str, Any]:
        """The descriptor that names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


@dataclass(frozen=True)
class Image:
    """A manifest, with the blobs that it names and the files that are in it."""

    manifest: Content
    config: Content
    layers: tuple[Content, ...]
    files: dict[str, str]
    """The sha256 of each file in the layers, by name: short enough for a failed test's message."""

    @property
    def blobs(self) -> tuple[Content, ...]:
        """What to push before the manifest."""
        return (self.config, *self.layers)


def make_bytes(size: int, seed: int | str = 0) -> bytes:
    """Bytes that do not compress; the same ones for the same size and seed."""
    return random.Random(seed).randbytes(size)


def make_layer(size: int, seed: int | str = 0, name: str | None = None) -> Content:
    """A layer with one file of `size` bytes in it, a little larger itself."""
    return _layer({name or f"data-{seed}": make_bytes(size, seed)})


def make_image(
    sizes: Sequence[int] = (1000,), seed: int | str = 0, architecture: str = "amd64"
) -> Image:
    """An OCI image with a layer, holding one file `layer-N`, for each size in bytes."""
    files = {
        f"layer-{number}": make_bytes(size, f"{seed}/{number}") for number, size in enumerate(sizes)
    }
    layers = [_layer({name: data}) for name, data in files.items()]
    return image_of(layers, hashes(files), seed, architecture)


def image_of(
    layers: Sequence[Content],
    files: Mapping[str, str] | None = None,
    seed: int | str = 0,
    architecture: str = "amd64",
) -> Image:
    """An OCI image of layers that are there."""
    config = _json(
        CONFIG,
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": {"seed": str(seed)}},
            "rootfs": {
                "type": "layers",
                "diff_ids": [_sha256(gzip.decompress(layer.data)) for layer in layers],
            },
        },
    )
    manifest = _json(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor,
            "layers": [layer.descriptor for layer in layers],
        },
    )
    return Image(manifest, config, tuple(layers), dict(files or {}))


def make_index(images: Sequence[Image]) -> Content:
    """An index of images, each with the platform that its config gives."""
    manifests = []
    for image in images:
        config = json.loads(image.config.data)
        platform = {"architecture": config["architecture"], "os": config["os"]}
        manifests.append({**image.manifest.descriptor, "platform": platform})
    return _json(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def write_layout(
    directory: Path, images: Sequence[Image], index: Content | None = None, tag: str = "latest"
) -> Path:
    """Write an OCI image layout whose tag names the index, or else the only image."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    contents = [content for image in images for content in (*image.blobs, image.manifest)]
    if index is None:
        [image] = images
        top = image.manifest
    else:
        contents.append(index)
        top = index
    for content in contents:
        (blobs / content.digest.removeprefix("sha256:")).write_bytes(content.data)
    entry = {**top.descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return directory


def write_docker_archive(file: Path, image: Image, tag: str) -> Path:
    """Write an image as `docker load` takes it."""
    members = {
        f"{number}.tar": gzip.decompress(layer.data) for number, layer in enumerate(image.layers)
    }
    entry = {"Config": "config.json", "RepoTags": [tag], "Layers": list(members)}
    members["config.json"] = image.config.data
    members["manifest.json"] = json.dumps([entry]).encode()
    file.write_bytes(_tar(members))
    return file


def layout_contents(directory: Path) -> dict[str, bytes]:
    """All blobs of a layout by digest, each checked against its name."""
    contents = {}
    for file in (directory / "blobs" / "sha256").iterdir():
        data = file.read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.name
        contents[f"sha256:{file.name}"] = data
    return contents


def layout_files(directory: Path) -> dict[str, str]:
    """The files in all layers of the only image of a layout, as in ``Image.files``."""
    contents = layout_contents(directory)
    [entry] = json.loads((directory / "index.json").read_bytes())["manifests"]
    files = {}
    for layer in json.loads(contents[entry["digest"]])["layers"]:
        files.update(hashes(tar_files(contents[layer["digest"]])))
    return files


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of each file."""
    return {name: _sha256(data) for name, data in files.items()}


def tar_files(data: bytes) -> dict[str, bytes]:
    """The regular files of an archive, compressed or not."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


def _layer(files: dict[str, bytes]) -> Content:
    return Content(LAYER, gzip.compress(_tar(files), compresslevel=1, mtime=0))


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def _json(media_type: str, value: dict[str, Any]) -> Content:
    return Content(media_type, json.dumps(value, indent=3).encode())


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
