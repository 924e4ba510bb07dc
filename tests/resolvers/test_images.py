"""What is derived of a manifest, so that its image can be pulled from a network alone."""

import json

from chalicelib.resolvers import images
from chalicelib.resolvers.images import Address
from tests.images import make_image


def test_each_layer_says_where_it_is() -> None:
    image = make_image([10, 20], seed="derived")
    addresses = {blob.digest: Address(f"cid{n}") for n, blob in enumerate(image.blobs)}
    document = json.loads(images.derived_of(image.manifest.data, addresses))
    named = [*document["layers"], document["config"]]
    assert {each["digest"]: each["urls"] for each in named} == {
        blob.digest: [f"ipfs://cid{n}"] for n, blob in enumerate(image.blobs)
    }


def test_numbers_too_large_for_anybody() -> None:
    """They may stand where nobody looks, and are no reason to do nothing."""
    image = make_image([10], seed="large")
    whole, fraction = b"9" * 5000, b"1e999"
    data = b'{"whole": %s, "fraction": %s, "small": -7, ' % (whole, fraction)
    data += image.manifest.data.lstrip()[1:]
    layer = image.layers[0].digest
    document = json.loads(images.derived_of(data, {layer: Address("cid")}))
    assert document["layers"][0]["urls"] == ["ipfs://cid"]
    assert (document["whole"], document["fraction"]) == (whole.decode(), fraction.decode())
    assert document["small"] == -7
