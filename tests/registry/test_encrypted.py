"""An image is encrypted where the media types of all its layers say so, and an index where all that
it names is."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chalicelib import digests
from chalicelib.context import Context
from tests.client import CoreClient, push_blob, push_manifest
from tests.conftest import need
from tests.images import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Content,
    layout_contents,
    make_image,
    write_layout,
)
from tests.jobs.conftest import database, jobs_context
from tests.servers import run

__all__ = ["database", "jobs_context"]

ENCRYPTED = f"{LAYER}+encrypted"


def encrypted(context: Context, digest: str) -> bool:
    """Whether the registry takes a manifest to be encrypted."""
    rows = context.database.run(
        "SELECT encrypted FROM manifests WHERE digest = :digest", digest=digests.pack(digest)
    )
    return bool(rows[0][0])


def manifest(media_type: str, **fields: object) -> Content:
    text = json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields})
    return Content(media_type, text.encode())


def image(client: CoreClient, *kinds: str) -> Content:
    """An image with a layer of each media type, pushed."""
    config = Content(CONFIG, b"{}")
    layers = [Content(kind, f"layer {place}".encode()) for place, kind in enumerate(kinds)]
    for blob in (config, *layers):
        push_blob(client, "a/b", blob.data)
    made = manifest(
        MANIFEST, config=config.descriptor, layers=[layer.descriptor for layer in layers]
    )
    assert push_manifest(client, "a/b", made).status == 201
    return made


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], False),
        ([LAYER], False),
        ([ENCRYPTED], True),
        ([ENCRYPTED, ENCRYPTED], True),
        ([ENCRYPTED, LAYER], False),
        ([f"{LAYER}+encryptedly"], False),
        (["application/vnd.oci.image.layer.nondistributable.v1.tar", ENCRYPTED], False),
    ],
)
def test_all_layers_are(jobs_context: Context, kinds: list[str], expected: bool) -> None:
    client = CoreClient(jobs_context)
    assert encrypted(jobs_context, image(client, *kinds).digest) is expected


def test_all_that_an_index_names_is(jobs_context: Context) -> None:
    client = CoreClient(jobs_context)
    secret, plain = image(client, ENCRYPTED), image(client, LAYER)
    layer = Content(ENCRYPTED, b"cache")
    push_blob(client, "a/b", layer.data)
    for named, expected in (
        ([], False),
        ([secret], True),
        ([secret, plain], False),
        ([plain], False),
        # A layer in a manifest's place, as BuildKit keeps its cache.
        ([layer], False),
        ([secret, layer], False),
    ):
        index = manifest(INDEX, manifests=[each.descriptor for each in named])
        assert push_manifest(client, "a/b", index).status == 201
        assert encrypted(jobs_context, index.digest) is expected, named
        outer = manifest(INDEX, manifests=[index.descriptor])
        assert push_manifest(client, "a/b", outer).status == 201
        assert encrypted(jobs_context, outer.digest) is expected, named


def test_what_skopeo_encrypts_is(jobs_context: Context, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    plain = write_layout(tmp_path / "plain", [make_image((1000, 20), "skopeo")])
    copied = tmp_path / "encrypted"
    run(
        *("skopeo", "copy", f"--encryption-key=jwe:{public}"),
        *(f"oci:{plain}:latest", f"oci:{copied}:latest"),
    )
    client = CoreClient(jobs_context)
    contents = layout_contents(copied)
    index = json.loads((copied / "index.json").read_text())
    top = index["manifests"][0]["digest"]
    for digest, data in contents.items():
        if digest != top:
            push_blob(client, "a/b", data)
    assert push_manifest(client, "a/b", Content(MANIFEST, contents[top])).status == 201
    kinds = [layer["mediaType"] for layer in json.loads(contents[top])["layers"]]
    assert kinds == [ENCRYPTED] * 2
    assert encrypted(jobs_context, top)
