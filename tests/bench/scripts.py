"""What a client says to a registry, as scripts for the load generator."""

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tests.bench import blobs
from tests.bench.blobs import Blob
from tests.bench.load import Failed, Reply, Request

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

COMMIT = "commit"
"""The label of the request that ends an upload and makes the blob exist."""

REDIRECTS = (302, 303, 307)

Steps = Generator[Request, Reply, None]
Push = Callable[[str, Blob], Steps]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes and the digest that they have."""

    payload: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one layer."""

    manifest: Manifest
    config: Blob
    layer: Blob


def head(method: str, target: str, *headers: str) -> bytes:
    """The head of a request, ready to be sent."""
    lines = (f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "User-Agent: bench", *headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def manifest(config: Blob, layer: Blob, note: str) -> Manifest:
    """An image of one layer; the note makes it different from others."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size}],
        "annotations": {"org.opencontainers.image.description": note},
    }
    payload = json.dumps(document, indent=2).encode()
    return Manifest(payload, "sha256:" + hashlib.sha256(payload).hexdigest())


def push_patch(repository: str, blob: Blob) -> Steps:
    """As docker and podman push: POST, one chunked PATCH, an empty PUT."""
    target = yield from _post(repository)
    reply = yield Request(
        head(
            "PATCH", target, "Transfer-Encoding: chunked", "Content-Type: application/octet-stream"
        ),
        blob.chunked(),
        "patch",
    )
    target = _target(reply.expect(202), blob)
    reply = yield Request(head("PUT", target, "Content-Length: 0"), label=COMMIT)
    reply.expect(201)


def push_put(repository: str, blob: Blob) -> Steps:
    """As containerd and BuildKit push: POST, one PUT with its length."""
    target = with_digest((yield from _post(repository)), blob)
    reply = yield Request(
        head(
            "PUT",
            target,
            f"Content-Length: {blob.size}",
            "Content-Type: application/octet-stream",
        ),
        blob.plain(),
        COMMIT,
    )
    reply.expect(201)


def put_manifest(repository: str, reference: str, document: Manifest) -> Steps:
    """Push a manifest by tag or digest."""
    reply = yield Request(
        head(
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            f"Content-Type: {MANIFEST}",
            f"Content-Length: {len(document.payload)}",
        ),
        (document.payload,),
        "manifest",
    )
    reply.expect(201)


def read(request: Request) -> Steps:
    """One request, sent again to where the registry redirects if it does."""
    reply = yield request
    if reply.status in REDIRECTS:
        reply = yield _elsewhere(request, reply)
    reply.expect(200)


def get_manifest(repository: str, reference: str) -> Request:
    """The request for a manifest by tag or digest."""
    target = f"/v2/{repository}/manifests/{reference}"
    return Request(head("GET", target, f"Accept: {MANIFEST}"))


def head_manifest(repository: str, reference: str) -> Request:
    """The request that asks whether a manifest is there."""
    target = f"/v2/{repository}/manifests/{reference}"
    return Request(head("HEAD", target, f"Accept: {MANIFEST}"))


def head_blob(repository: str, digest: str) -> Request:
    """The request that asks whether a blob is there."""
    return Request(head("HEAD", f"/v2/{repository}/blobs/{digest}"))


def pull(repository: str, blob: Blob, *, verify: bool = False) -> Steps:
    """Download a blob, from where the registry redirects if it does; check its hash if asked."""
    request = Request(head("GET", f"/v2/{repository}/blobs/{blob.digest}"), keep=verify)
    reply = yield request
    if reply.status in REDIRECTS:
        reply = yield _elsewhere(request, reply)
    reply.expect(200)
    if reply.header("content-length") != str(blob.size):
        raise Failed(f"a blob of {blob.size} bytes came as {reply.head!r}")
    if verify and hashlib.sha256(reply.body).hexdigest() != blob.digest.removeprefix("sha256:"):
        raise Failed(f"{blob.digest} came back with another digest")


def mount(repository: str, blob: Blob, origin: str) -> Steps:
    """Make a blob of another repository this one's too."""
    target = f"/v2/{repository}/blobs/uploads/?mount={blob.digest}&from={origin}"
    reply = yield Request(head("POST", target, "Content-Length: 0"))
    reply.expect(201)


def new_image(layer: Blob) -> Image:
    """An image with this layer and a new configuration."""
    config = blobs.new(1024)
    return Image(manifest(config, layer, ""), config, layer)


def push_image(push: Push, repository: str, image: Image) -> Steps:
    """What zot's zb does to push: the layer, the configuration, and the manifest by tag."""
    yield from push(repository, image.layer)
    yield from push(repository, image.config)
    yield from put_manifest(repository, "latest", image.manifest)


def pull_image(repository: str, image: Image) -> Steps:
    """What zot's zb does to pull: HEAD and GET of manifest, configuration and layer."""
    yield from read(head_manifest(repository, "latest"))
    yield from read(get_manifest(repository, "latest"))
    for blob in (image.config, image.layer):
        yield from read(head_blob(repository, blob.digest))
        yield from pull(repository, blob)


def with_digest(target: str, blob: Blob) -> str:
    """An upload's target with the digest that closes it."""
    return f"{target}{'&' if '?' in target else '?'}digest={blob.digest}"


def _post(repository: str) -> Generator[Request, Reply, str]:
    target = f"/v2/{repository}/blobs/uploads/"
    reply = yield Request(head("POST", target, "Content-Length: 0"), label="post")
    return _path(reply.expect(202).header("location"))


def _target(reply: Reply, blob: Blob) -> str:
    return with_digest(_path(reply.header("location")), blob)


def _path(location: str) -> str:
    parts = urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _elsewhere(request: Request, reply: Reply) -> Request:
    location = reply.header("location")
    parts = urlsplit(location)
    if parts.hostname is None:
        return replace(request, head=head(request.method, _path(location)))
    lines = f"{request.method} {_path(location)} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
    return replace(request, head=lines.encode(), address=(parts.hostname, parts.port or 80))
