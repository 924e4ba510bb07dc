"""Where else an image is, as its manifest's answer and the API tell."""

from dataclasses import replace

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.registry.links import LONGEST
from tests.client import CoreClient, push_image, push_manifest
from tests.images import Image, make_image, make_index
from tests.jobs.conftest import database, jobs_context
from tests.resolvers.trees import Memory

__all__ = ["database", "jobs_context"]

GATEWAY = "https://gateway.example"


@pytest.fixture
def context(jobs_context: Context) -> Context:
    """A registry whose public images go to a network."""
    jobs_context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{memory}', 'test')"
    )
    network = Memory("memory", {})
    network.gateways = (GATEWAY,)
    jobs_context.resolvers.own["memory"] = network  # type: ignore[assignment]
    return replace(jobs_context, settings=replace(jobs_context.settings, new_repositories="public"))


def add(context: Context, digest: str, cid: str, root: str | None = None, **more: str) -> None:
    columns = {"resolver": "memory", "state": "there"} | more
    context.database.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid, root_cid)"
        " VALUES (:digest, :resolver, 1, :state, :cid, :root)",
        digest=digests.pack(digest),
        cid=cid,
        root=root,
        **columns,
    )


def link(context: Context, reference: str, method: str = "GET", **headers: str) -> str | None:
    answer = CoreClient(context).request(method, f"/v2/a/b/manifests/{reference}", headers=headers)
    assert answer.status in (200, 304)
    return answer.headers.get("Link")


def pushed(context: Context, *sizes: int) -> Image:
    image = make_image(sizes or (10,), seed="links")
    push_image(CoreClient(context), "a/b", image, "latest")
    return image


def test_a_manifest_names_where_it_and_its_content_are(context: Context) -> None:
    image = pushed(context)
    assert link(context, "latest") is None
    add(context, image.manifest.digest, "bafymanifest", "bafyroot")
    add(context, image.config.digest, "bafyconfig")
    add(context, image.layers[0].digest, "bafylayer", state="leaving")
    add(context, image.manifest.digest, "bafyother", resolver="other")
    anchor = f'anchor="/v2/a/b/blobs/{image.config.digest}"'
    expected = [
        '<ipfs://bafymanifest>; rel="duplicate"',
        f'<{GATEWAY}/ipfs/bafymanifest>; rel="duplicate"',
        '<ipfs://bafyroot>; rel="urn:openregistry:image"',
        f'<ipfs://bafyconfig>; rel="duplicate"; {anchor}',
        f'<{GATEWAY}/ipfs/bafyconfig>; rel="duplicate"; {anchor}',
    ]
    assert link(context, "latest") == ", ".join(expected)
    assert link(context, image.manifest.digest, "HEAD") == ", ".join(expected)
    assert link(context, "latest", **{"If-None-Match": "*"}) == ", ".join(expected)


def test_an_index_names_where_its_manifests_are(context: Context) -> None:
    image = pushed(context)
    index = make_index([image])
    assert push_manifest(CoreClient(context), "a/b", index, "index").status == 201
    add(context, image.manifest.digest, "bafymanifest")
    assert f'anchor="/v2/a/b/manifests/{image.manifest.digest}"' in (link(context, "index") or "")


def test_what_is_too_long_is_in_the_list_alone(context: Context) -> None:
    image = pushed(context, *[10] * 30)
    add(context, image.manifest.digest, "bafymanifest", "bafyroot")
    for number, blob in enumerate(image.blobs):
        add(context, blob.digest, f"bafy{number}")
    found = link(context, "latest") or ""
    assert len(found) < LONGEST
    assert "bafyroot" in found
    assert "anchor" not in found


def test_of_a_repository_without_resolvers_nothing_is_told(context: Context) -> None:
    image = pushed(context)
    add(context, image.manifest.digest, "bafymanifest", "bafyroot")
    context.database.run("UPDATE repositories SET resolvers = '{}'")
    assert link(context, "latest") is None
