"""What comes by another way than a push becomes what a push makes of it, or nothing."""

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import ManifestBlobUnknown
from chalicelib.identity import NOBODY
from chalicelib.registry import ingest
from chalicelib.resolvers.placing import Corrupt
from tests.client import CoreClient
from tests.images import Content, make_image


def add(context: Context, repository: str, blob: Content, *pieces: bytes) -> None:
    data = pieces or (blob.data,)
    ingest.add_blob(
        context, repository, digests.pack(blob.digest), len(blob.data), iter(data), NOBODY
    )


def test_image(context: Context, core: CoreClient, repository: str) -> None:
    image = make_image(sizes=(100_000,))
    for blob in image.blobs:
        add(context, repository, blob, blob.data[:10], blob.data[10:])
        add(context, repository, blob)  # twice is no error
    ingest.add_manifest(
        context,
        repository,
        digests.pack(image.manifest.digest),
        image.manifest.media_type,
        image.manifest.data,
        ["latest"],
        NOBODY,
    )
    answer = core.request("GET", f"/v2/{repository}/manifests/latest")
    assert (answer.body, answer.headers["Content-Type"]) == (
        image.manifest.data,
        image.manifest.media_type,
    )
    for blob in image.blobs:
        answer = core.request("HEAD", f"/v2/{repository}/blobs/{blob.digest}")
        assert answer.status in (200, 307)


@pytest.mark.parametrize(
    "wrong", [lambda data: data[:-1], lambda data: data + b"x", bytes.swapcase]
)
def test_other_bytes(context: Context, core: CoreClient, repository: str, wrong: object) -> None:
    """Nothing is kept of them."""
    assert callable(wrong)
    [layer] = make_image(seed=repository).layers
    before = list(context.store.list())
    with pytest.raises(Corrupt, match="other ones"):
        add(context, repository, layer, wrong(layer.data))
    assert list(context.store.list()) == before
    assert core.request("HEAD", f"/v2/{repository}/blobs/{layer.digest}").status == 404


def test_manifest_before_its_blobs(context: Context, repository: str) -> None:
    image = make_image(seed=repository)
    with pytest.raises(ManifestBlobUnknown):
        ingest.add_manifest(
            context,
            repository,
            digests.pack(image.manifest.digest),
            image.manifest.media_type,
            image.manifest.data,
            [],
            NOBODY,
        )
