"""Images written to files, and made of files that may be anybody's."""

import io
import json
import sys
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Denied, ManifestUnknown
from chalicelib.metadata import blobs, blocks, repositories
from chalicelib.resolvers import NotThere, ResolverError, car, images, signing
from chalicelib.resolvers.archives import Exported, export, import_image
from chalicelib.resolvers.blocks import fetch
from chalicelib.resolvers.index_command import telling
from chalicelib.resolvers.peers import Pulled, Refused
from chalicelib.resolvers.placing import Corrupt
from chalicelib.resolvers.signing import NotTrusted
from chalicelib.resolvers.unixfs import Tree
from tests.client import CoreClient, push_image, push_manifest
from tests.images import Content, Image, make_image, make_index
from tests.resolvers.test_peers import Named, assert_there, here, network, put, root_of, there

__all__ = ["here", "network", "there"]

IMAGE = make_image(sizes=(1000, 2_500_000))
ARM = make_image(seed=1, architecture="arm64")


def push(context: Context, image: Image = IMAGE) -> None:
    push_image(CoreClient(context), "some/image", image, "latest")


def exported(context: Context, reference: str = "latest") -> tuple[Exported, bytes]:
    file = io.BytesIO()
    said = export(context, "some/image", reference, file, lambda *_: None)
    assert said.size == len(file.getvalue())
    return said, file.getvalue()


def imported(context: Context, data: bytes, trusted: list[str] | None = None) -> Pulled:
    return import_image(context, io.BytesIO(data), "from/afar", "latest", trusted)


def archive(root: bytes, *files: bytes) -> bytes:
    """An archive of these files, whose root is the first."""
    trees = [(Tree([data]), data) for data in (root, *files)]
    blocks = (block for tree, data in trees for block in tree.blocks([data]))
    return b"".join(car.write([trees[0][0].cid], blocks))


def cid(data: bytes) -> str:
    return Tree([data]).cid


@pytest.fixture
def alone(there: Context) -> Context:
    """The other registry, with no network."""
    there.resolvers.own.clear()
    return there


def test_an_index_goes_from_registry_to_registry(here: Context, alone: Context) -> None:
    index = make_index([IMAGE, ARM])
    for image in (IMAGE, ARM):
        push_image(CoreClient(here), "some/image", image)
    push_manifest(CoreClient(here), "some/image", index, "latest")
    said, data = exported(here)
    assert said == Exported(said.root, index.digest, 3, 5, len(data), [])
    key = signing.public_keys(here.keys)[0]
    for trusted in (None, [key]):
        pulled = imported(alone, data, trusted)
        assert (pulled.digest, pulled.key, pulled.manifests) == (index.digest, key, 3)
    assert (pulled.blobs, pulled.blobs_there) == (0, 5)
    for image in (IMAGE, ARM):
        assert_there(alone, image.manifest.digest, image)
    answer = CoreClient(alone).request("GET", "/v2/from/afar/manifests/latest")
    assert answer.body == index.data
    # It is always the same file.
    assert exported(here, index.digest) == (said, data)


def test_root_is_that_of_networks(here: Context, network: Named) -> None:
    """And every file is a root of the archive, which a node keeps."""
    push(here)
    put(here)
    said, data = exported(here)
    assert said.root == root_of(here, IMAGE.manifest.digest)
    reader = car.Archive(io.BytesIO(data))
    assert reader.roots[0] == said.root
    assert sorted(reader.roots) == sorted(network.kept)


def test_what_an_archive_lacks_comes_from_networks(
    here: Context, there: Context, network: Named
) -> None:
    push(here)
    put(here)
    alone = archive(network.kept[root_of(here, IMAGE.manifest.digest)])
    assert imported(there, alone).blobs == 3
    assert_there(there, "latest", IMAGE)
    there.resolvers.own.clear()
    with pytest.raises(NotThere):
        imported(there, alone)


@pytest.mark.parametrize("at", [0, 10, 30, 2000, -1000, -1])
def test_changed_archive(here: Context, alone: Context, at: int) -> None:
    push(here)
    _, data = exported(here)
    changed = bytearray(data)
    changed[at] ^= 1
    with pytest.raises((Refused, ResolverError)):
        imported(alone, bytes(changed))
    assert repositories.find(alone.database, "from/afar") is None


@pytest.mark.parametrize("length", [0, 1, 30, 1000, -1])
def test_archive_that_is_cut_off(here: Context, alone: Context, length: int) -> None:
    push(here)
    _, data = exported(here)
    with pytest.raises(Refused):
        imported(alone, data[:length])


def test_archive_without_roots(alone: Context) -> None:
    with pytest.raises(Refused, match="names no root"):
        imported(alone, b"".join(car.write([], [])))


def descriptor(content: Content, **fields: object) -> dict[str, object]:
    return {**content.descriptor, "urls": [f"ipfs://{cid(content.data)}"], **fields}


def by_nerdctl(image: Image) -> Content:
    """The manifest that `nerdctl push ipfs://` makes of an image."""
    manifest = json.loads(image.manifest.data)
    manifest["config"] = descriptor(image.config)
    manifest["layers"] = [descriptor(layer) for layer in image.layers]
    return Content(image.manifest.media_type, json.dumps(manifest).encode())


def test_image_that_nerdctl_has_put_there(alone: Context) -> None:
    """Signed by nobody, and with no other manifest than the derived one."""
    derived = [by_nerdctl(image) for image in (IMAGE, ARM)]
    index = make_index([])
    children = [descriptor(each) for each in derived]
    top = {**json.loads(index.data), "manifests": children}
    index = Content(index.media_type, json.dumps(top).encode())
    contents = [each.data for image in (IMAGE, ARM) for each in image.blobs]
    contents += [each.data for each in (*derived, index)]
    data = archive(json.dumps(descriptor(index)).encode(), *contents)
    with pytest.raises(NotTrusted, match="no signature"):
        imported(alone, data, signing.public_keys(alone.keys))
    assert repositories.find(alone.database, "from/afar") is None
    pulled = imported(alone, data)
    assert (pulled.digest, pulled.key, pulled.manifests, pulled.blobs) == (index.digest, "", 3, 5)
    answer = CoreClient(alone).request("GET", f"/v2/from/afar/manifests/{derived[1].digest}")
    assert answer.body == derived[1].data


def test_unsigned_root_that_names_the_manifest(alone: Context) -> None:
    derived = by_nerdctl(IMAGE)
    named = {images.MANIFEST: f"ipfs://{cid(IMAGE.manifest.data)}"}
    root = json.dumps(descriptor(derived, annotations=named)).encode()
    contents = [each.data for each in (*IMAGE.blobs, IMAGE.manifest, derived)]
    assert imported(alone, archive(root, *contents)).digest == IMAGE.manifest.digest
    assert_there(alone, "latest", IMAGE)


@pytest.mark.parametrize(
    "root",
    [
        b"{}",
        b"[]",
        b"no JSON",
        b"[" * 100_000,
        json.dumps({**descriptor(IMAGE.manifest), "urls": ["https://example.com"]}).encode(),
        json.dumps({**descriptor(IMAGE.manifest), "urls": ["ipfs://../.."]}).encode(),
        json.dumps({**descriptor(IMAGE.manifest), "size": -1}).encode(),
        json.dumps({**descriptor(IMAGE.manifest), "size": 1 << 60}).encode(),
        json.dumps({**descriptor(IMAGE.manifest), "size": float("inf")}).encode(),
        json.dumps({**descriptor(IMAGE.manifest), "digest": "sha256:" + "0" * 64}).encode(),
        json.dumps(descriptor(IMAGE.manifest, annotations={images.MANIFEST: 1})).encode(),
    ],
)
def test_root_that_is_none(alone: Context, root: bytes) -> None:
    with pytest.raises((Refused, ResolverError, Corrupt)):
        imported(alone, archive(root, IMAGE.manifest.data))
    assert repositories.find(alone.database, "from/afar") is None


def test_derived_manifests_that_are_none(alone: Context) -> None:
    """Lists that are none lead to a refusal."""
    named = {images.MANIFEST: f"ipfs://{cid(IMAGE.manifest.data)}"}
    for derived in (b'{"layers": 5}', b'{"manifests": 5}', b'{"blobs": {"digest": 5}}'):
        urls = [f"ipfs://{cid(derived)}"]
        root = json.dumps({**IMAGE.manifest.descriptor, "urls": urls, "annotations": named})
        with pytest.raises((Refused, ResolverError, Corrupt)):
            imported(alone, archive(root.encode(), IMAGE.manifest.data, derived))
    assert repositories.find(alone.database, "from/afar") is None


def test_what_is_named_again_and_again_is_kept_once(alone: Context) -> None:
    """Each index names the one below twenty times: 160,000 paths lead to one image."""
    derived = original = by_nerdctl(IMAGE)
    contents = [each.data for each in (*IMAGE.blobs, original)]
    for level in range(4):
        fields = {"annotations": {"level": str(level)}}
        named = {images.MANIFEST: f"ipfs://{cid(original.data)}"}
        top = {**json.loads(make_index([]).data), **fields}
        child, other = original.descriptor, descriptor(derived, annotations=named)
        media_type = make_index([]).media_type
        original = Content(media_type, json.dumps({**top, "manifests": [child] * 20}).encode())
        derived = Content(media_type, json.dumps({**top, "manifests": [other] * 20}).encode())
        contents += [original.data, derived.data]
    named = {images.MANIFEST: f"ipfs://{cid(original.data)}"}
    root = json.dumps(descriptor(derived, annotations=named)).encode()
    pulled = imported(alone, archive(root, *contents))
    assert (pulled.manifests, pulled.blobs, pulled.blobs_there) == (5, 3, 0)


def test_forged_signature_is_refused_though_nobody_need_sign(here: Context, alone: Context) -> None:
    push(here)
    said, data = exported(here)
    found = car.Archive(io.BytesIO(data))
    root = json.loads(fetch([found], said.root, 1 << 20))
    head, payload, signature = root["annotations"][images.SIGNATURE].split(".")
    root["annotations"][images.SIGNATURE] = f"{head}.{payload[:-4]}AAAA.{signature}"
    with pytest.raises(NotTrusted, match="somebody has changed it"):
        imported(alone, archive(json.dumps(root).encode()))


def test_blobs_with_other_bytes(alone: Context) -> None:
    """What an address names need not have the digest beside it."""
    manifest = json.loads(by_nerdctl(IMAGE).data)
    manifest["layers"][0]["urls"] = [f"ipfs://{cid(b'x' * IMAGE.layers[0].descriptor['size'])}"]
    derived = Content(IMAGE.manifest.media_type, json.dumps(manifest).encode())
    root = json.dumps(descriptor(derived)).encode()
    contents = [each.data for each in (*IMAGE.blobs, derived)]
    evil = b"x" * IMAGE.layers[0].descriptor["size"]
    with pytest.raises(Corrupt):
        imported(alone, archive(root, evil, *contents))
    answer = CoreClient(alone).request("GET", "/v2/from/afar/manifests/latest")
    assert answer.status == 404


def test_progress_is_told_and_leaves_nothing_behind(
    here: Context,
    alone: Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    push(here)
    _, data = exported(here)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with telling(quiet=False) as tell:
        import_image(alone, io.BytesIO(data), "from/afar", "latest", None, tell)
    said = capsys.readouterr().err
    assert said.startswith("\r\x1b[Kblobs fetched: 1 of 3")
    assert said.endswith("\r\x1b[K")
    with telling(quiet=True) as tell:
        tell("blobs fetched", 1, 3)
    assert capsys.readouterr().err == ""


def test_what_is_not_here_is_told(here: Context) -> None:
    foreign = {
        **make_image(seed=2).layers[0].descriptor,
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": ["https://example.com/layer"],
    }
    manifest = json.loads(IMAGE.manifest.data)
    manifest["layers"].append(foreign)
    content = Content(IMAGE.manifest.media_type, json.dumps(manifest).encode())
    push(here)
    push_manifest(CoreClient(here), "some/image", content, "foreign")
    said, _ = exported(here, "foreign")
    assert said.left_out == [foreign["digest"]]


def test_what_cannot_be_exported(here: Context) -> None:
    with pytest.raises(ManifestUnknown, match="no image some/image:latest"):
        exported(here)
    push(here)
    digest = digests.pack(IMAGE.layers[0].digest)
    found = blobs.find(here.database, "some/image", digest, here.store.name)
    assert found is not None
    [file] = Path(here.settings.storage_url.removeprefix("file://")).rglob(found.key)
    kept = file.read_bytes()
    file.write_bytes(b"x" * len(kept))
    with pytest.raises(Corrupt):
        exported(here)
    file.write_bytes(kept)
    here.database.transaction(
        lambda transaction: blocks.add(transaction, digest, "malware", public=True, by="test")
    )
    with pytest.raises(Denied):
        exported(here)
