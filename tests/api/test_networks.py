"""On which networks an image is, by the API: who may know, and what is told."""

import pytest

from chalicelib import digests
from tests.api.acme import As
from tests.api.conftest import World
from tests.client import push_image
from tests.images import Image, make_image
from tests.resolvers.trees import Memory

APP = "/repositories/alice/app/-/manifests"


@pytest.fixture
def image(world: World) -> Image:
    """An image in a private repository, a part of which a network has."""
    world.context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{memory}', 'test')"
    )
    network = Memory("memory", {})
    network.gateways = ("https://gateway.example",)
    world.context.resolvers.own["memory"] = network  # type: ignore[assignment]
    image = make_image((10,), "networks")
    push_image(As(world.client, "alice"), "alice/app", image, "latest")
    for digest, state, cid in (
        (image.manifest.digest, "there", "bafymanifest"),
        (image.config.digest, "waiting", None),
    ):
        world.context.database.run(
            "INSERT INTO resolver_copies (digest, resolver, size, state, cid, root_cid)"
            " VALUES (:digest, 'memory', 1, :state, :cid, 'bafyroot')",
            digest=digests.pack(digest),
            state=state,
            cid=cid,
        )
    return image


def test_every_content_and_where_it_is(world: World, image: Image) -> None:
    answer = world.call("GET", f"{APP}/latest/networks", by="alice")
    assert answer.status == 200
    manifest, *others = answer.json["contents"]
    [copy] = manifest.pop("copies")
    assert manifest == {"digest": image.manifest.digest, "kind": "manifest"}
    assert copy.pop("changed_at")
    assert copy == {
        "resolver": "memory",
        "state": "there",
        "cid": "bafymanifest",
        "gateways": ["https://gateway.example/ipfs/bafymanifest"],
        "derived_cid": None,
        "root_cid": "bafyroot",
    }
    found = {each["digest"]: each["copies"] for each in others}
    assert found.keys() == {image.config.digest, image.layers[0].digest}
    assert found[image.layers[0].digest] == []
    [waiting] = found[image.config.digest]
    assert (waiting["state"], waiting["cid"], waiting["gateways"]) == ("waiting", None, [])
    same = world.call("GET", f"{APP}/{image.manifest.digest}/networks", by="alice")
    assert same.body == answer.body


def test_who_may_not_pull_is_told_nothing(world: World, image: Image) -> None:
    assert world.call("GET", f"{APP}/latest/networks", by="bob").status == 404
    assert world.call("GET", f"{APP}/latest/networks").status in (401, 404)
    for reference, status in (("other", 404), ("-", 404), ("sha256:ab", 422)):
        assert world.call("GET", f"{APP}/{reference}/networks", by="alice").status == status
    body = {"reason": "leaked"}
    path = f"/admin/blocked-digests/{image.manifest.digest}"
    assert world.call("PUT", path, body, by="root").status == 200
    assert world.call("GET", f"{APP}/latest/networks", by="alice").status == 403


def test_the_manifest_names_this_list(world: World, image: Image) -> None:
    path = f"/v2/alice/app/manifests/{image.manifest.digest}"
    answer = As(world.client, "alice").request("GET", path)
    listed = f"/api/v1{APP}/{image.manifest.digest}/networks"
    assert answer.headers["Link"].split(", ")[0] == f'<{listed}>; rel="describedby"'
    assert world.client.request("GET", listed).status == 401
