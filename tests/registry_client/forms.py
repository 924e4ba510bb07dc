"""One image in all the forms that a source may have, made by hand; so that what real programs write
can be told from what they might."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.client import sha256
from tests.images import Content, Image, make_index, write_layout

PLAIN = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes) -> Member:
    """A file of an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    """A link of an archive, to whatever it wants."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def write_tar(path: Path, members: Iterable[Member] | Mapping[str, bytes]) -> Path:
    """Write an archive."""
    if isinstance(members, Mapping):
        members = [file(name, data) for name, data in members.items()]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def tar_of(folder: Path, path: Path) -> Path:
    """Pack a folder, as `tar -cf PATH -C FOLDER .` does."""
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def plain_layers(image: Image) -> list[bytes]:
    """The layers before they were compressed."""
    return [gzip.decompress(layer.data) for layer in image.layers]


def saved(images: Mapping[str, Image]) -> list[Member]:
    """What `docker save` gave before version 25, of images by their tags."""
    members, entries = {}, []
    for tag, image in images.items():
        layers = []
        for layer in plain_layers(image):
            name = f"{sha256(layer)[7:]}/layer.tar"
            members[name] = layer
            layers.append(name)
        config = f"{image.config.digest[7:]}.json"
        members[config] = image.config.data
        entries.append({"Config": config, "RepoTags": [tag], "Layers": layers})
    members["manifest.json"] = json.dumps(entries).encode()
    return [file(name, data) for name, data in members.items()]


def plain(image: Image) -> Image:
    """The image as Docker keeps it: none of its layers is compressed."""
    layers = tuple(Content(PLAIN, layer) for layer in plain_layers(image))
    manifest = json.loads(image.manifest.data)
    manifest["layers"] = [layer.descriptor for layer in layers]
    content = Content(image.manifest.media_type, json.dumps(manifest).encode())
    return Image(content, image.config, layers, image.files)


def write_saved_25(folder: Path, images: Mapping[str, Image]) -> Path:
    """What `docker save` gives since version 25, unpacked: an OCI layout of plain layers, whose
    index names images by annotations, and the list of before."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    index, entries = [], []
    for tag, compressed in images.items():
        image = plain(compressed)
        for content in (*image.blobs, image.manifest):
            (blobs / content.digest[7:]).write_bytes(content.data)
        annotations = {
            "io.containerd.image.name": tag if "." in tag else f"docker.io/{tag}",
            "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
        }
        index.append({**image.manifest.descriptor, "annotations": annotations})
        entries.append(
            {
                "Config": f"blobs/sha256/{image.config.digest[7:]}",
                "RepoTags": [tag],
                "Layers": [f"blobs/sha256/{layer.digest[7:]}" for layer in image.layers],
            }
        )
    write_json(folder / "index.json", {"schemaVersion": 2, "manifests": index})
    write_json(folder / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    write_json(folder / "manifest.json", entries)
    return folder


def write_dir(folder: Path, images: Sequence[Image], index: Content | None = None) -> Path:
    """What `skopeo copy … dir:` writes, of one image, or all of an index."""
    folder.mkdir()
    (folder / "version").write_text("Directory Transport Version: 1.1\n")
    (folder / "manifest.json").write_bytes((index or images[0].manifest).data)
    for image in images:
        if index is not None:
            (folder / f"{image.manifest.digest[7:]}.manifest.json").write_bytes(image.manifest.data)
        for blob in image.blobs:
            (folder / blob.digest[7:]).write_bytes(blob.data)
    return folder


def with_attestation(image: Image) -> tuple[Content, list[Content]]:
    """An index as BuildKit makes it, where another manifest tells of the image's; and what the
    layout must have beside the image."""
    statement = Content("application/vnd.in-toto+json", b'{"predicateType": "provenance"}')
    config = Content("application/vnd.oci.image.config.v1+json", b'{"rootfs": {"diff_ids": []}}')
    about = Content(
        image.manifest.media_type,
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": image.manifest.media_type,
                "config": config.descriptor,
                "layers": [statement.descriptor],
            }
        ).encode(),
    )
    index = json.loads(make_index([image]).data)
    annotations = {
        "vnd.docker.reference.digest": image.manifest.digest,
        "vnd.docker.reference.type": "attestation-manifest",
    }
    platform = {"architecture": "unknown", "os": "unknown"}
    index["manifests"].append(
        {**about.descriptor, "annotations": annotations, "platform": platform}
    )
    content = Content(index["mediaType"], json.dumps(index).encode())
    return content, [statement, config, about]


def write_blobs(layout: Path, contents: Iterable[Content]) -> None:
    """Add blobs to a layout."""
    for content in contents:
        (layout / "blobs" / "sha256" / content.digest[7:]).write_bytes(content.data)


def write_plain_layout(folder: Path, image: Image, tag: str = "latest") -> Path:
    """A layout of an image whose layers are plain tars."""
    return write_layout(folder, [plain(image)], tag=tag)


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON."""
    path.write_text(json.dumps(value))
