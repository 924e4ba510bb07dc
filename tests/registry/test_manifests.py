"""Manifests: kept to the byte, complete or not at all."""

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from chalicelib.context import Context
from tests.client import (
    Client,
    CoreClient,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    sha512,
)
from tests.images import CONFIG, INDEX, LAYER, MANIFEST, Content, make_bytes, make_image, make_index

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def document(media_type: str = MANIFEST, **fields: Any) -> Content:
    """A manifest of these fields, spelled as no machine would, to see that it comes back so."""
    text = json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}, indent=7)
    return Content(media_type, text.encode() + b"\n \t")


def image_of(client: Client, repository: str, **fields: Any) -> Content:
    """An image manifest whose config and layer are pushed."""
    config, layer = Content(CONFIG, b"{}"), Content(LAYER, b"layer")
    for blob in (config, layer):
        push_blob(client, repository, blob.data)
    return document(**{"config": config.descriptor, "layers": [layer.descriptor], **fields})


def test_bytes_come_back_as_they_came(client: Client, repository: str) -> None:
    manifest = image_of(client, repository, unknown={"ü": [1.0, 2]})
    answer = push_manifest(client, repository, manifest, "latest")
    assert answer.status == 201
    assert answer.headers["Docker-Content-Digest"] == manifest.digest
    assert urlsplit(answer.location).path == f"/v2/{repository}/manifests/{manifest.digest}"
    for reference in ("latest", manifest.digest):
        got = client.request("GET", f"/v2/{repository}/manifests/{reference}")
        assert (got.status, got.body) == (200, manifest.data)
        assert got.headers["Content-Type"] == MANIFEST
        assert got.headers["Docker-Content-Digest"] == manifest.digest
        head = client.request("HEAD", f"/v2/{repository}/manifests/{reference}")
        assert (head.status, head.body) == (200, b"")
        for name in ("Content-Length", "Content-Type", "Docker-Content-Digest", "ETag"):
            assert head.headers[name] == got.headers[name]
        assert head.headers["Content-Length"] == str(len(manifest.data))


def test_unchanged_is_not_sent_again(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    push_manifest(client, repository, manifest, "latest")
    path = f"/v2/{repository}/manifests/latest"
    etag = client.request("GET", path).headers["ETag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = client.request("GET", path, headers={"If-None-Match": condition})
        assert (answer.status, answer.body) == (304, b"")
    other = image_of(client, repository, annotations={"a": "b"})
    push_manifest(client, repository, other, "latest")
    assert client.request("GET", path, headers={"If-None-Match": etag}).body == other.data


def test_a_tag_moves(client: Client, repository: str) -> None:
    first = image_of(client, repository)
    second = image_of(client, repository, annotations={"which": "second"})
    for manifest in (first, second, first):
        push_manifest(client, repository, manifest, "latest")
        got = client.request("GET", f"/v2/{repository}/manifests/latest")
        assert got.body == manifest.data


def test_the_history_of_a_tag(file_context: Context, repository: str) -> None:
    client = CoreClient(file_context)
    first, second = image_of(client, repository), image_of(client, repository, annotations={})
    for manifest in (first, first, second):
        push_manifest(client, repository, manifest, "latest")
    client.request("DELETE", f"/v2/{repository}/manifests/latest")
    push_manifest(client, repository, first, "latest")
    client.request("DELETE", f"/v2/{repository}/manifests/{first.digest}")
    rows = file_context.database.run(
        "SELECT h.digest FROM tag_history h JOIN repositories r ON r.id = repository_id"
        " WHERE r.name = :name ORDER BY h.id",
        name=repository,
    )
    moves = [None if digest is None else f"sha256:{digest[1:].hex()}" for (digest,) in rows]
    assert moves == [first.digest, second.digest, None, first.digest, None]


def test_several_tags_at_once(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    answer = push_manifest(client, repository, manifest, parameters="?tag=one&tag=two&tag=one")
    assert answer.status == 201
    assert [value for name, value in answer.fields if name.lower() == "oci-tag"] == ["one", "two"]
    for tag in ("one", "two"):
        assert client.request("GET", f"/v2/{repository}/manifests/{tag}").body == manifest.data
    bad = push_manifest(client, repository, manifest, parameters="?tag=ok&tag=-bad")
    assert (bad.status, bad.code) == (400, "MANIFEST_INVALID")
    assert client.request("GET", f"/v2/{repository}/manifests/ok").status == 404


def test_sha512(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    digest = sha512(manifest.data)
    answer = push_manifest(client, repository, manifest, digest, "?tag=long")
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest)
    for reference in (digest, "long"):
        got = client.request("GET", f"/v2/{repository}/manifests/{reference}")
        assert (got.body, got.headers["Docker-Content-Digest"]) == (manifest.data, digest)


@pytest.mark.parametrize(
    "reference", [sha256(b"other"), sha512(b"other"), "sha256:bad", "-tag", "x" * 129]
)
def test_a_wrong_reference(client: Client, repository: str, reference: str) -> None:
    manifest = image_of(client, repository)
    answer = push_manifest(client, repository, manifest, reference)
    assert (answer.status, answer.code[-8:]) == (400, "_INVALID")
    assert client.request("GET", f"/v2/{repository}/manifests/{reference}").status in (400, 404)


def test_indexes(client: Client, repository: str) -> None:
    images = [
        make_image((100,), f"{repository}{n}", arch) for n, arch in enumerate(("amd64", "arm64"))
    ]
    for image in images:
        push_image(client, repository, image)
    index = make_index(images)
    assert push_manifest(client, repository, index, "multi").status == 201
    nested = document(INDEX, manifests=[index.descriptor])
    assert push_manifest(client, repository, nested, "nested").status == 201
    got = client.request("GET", f"/v2/{repository}/manifests/nested")
    assert (got.body, got.headers["Content-Type"]) == (nested.data, INDEX)


def test_docker_types(client: Client, repository: str) -> None:
    config = Content("application/vnd.docker.container.image.v1+json", b"{}")
    layer = Content("application/vnd.docker.image.rootfs.diff.tar.gzip", b"layer")
    for blob in (config, layer):
        push_blob(client, repository, blob.data)
    image = document(DOCKER, config=config.descriptor, layers=[layer.descriptor])
    assert push_manifest(client, repository, image, "image").status == 201
    many = document(DOCKER_LIST, manifests=[image.descriptor])
    assert push_manifest(client, repository, many, "list").status == 201
    got = client.request("GET", f"/v2/{repository}/manifests/list")
    assert (got.body, got.headers["Content-Type"]) == (many.data, DOCKER_LIST)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/wasm",
        "application/vnd.nobody.knows+json",
    ],
)
def test_layers_of_any_type(client: Client, repository: str, media_type: str) -> None:
    layer = Content(media_type, b"layer")
    manifest = image_of(client, repository, layers=[layer.descriptor], artifactType="a/b")
    assert push_manifest(client, repository, manifest, "any").status == 201


def test_a_type_that_nobody_knows(client: Client, repository: str) -> None:
    push_blob(client, repository, b"blob")
    blob = Content("text/plain", b"blob")
    manifest = document("application/vnd.example.thing.v1+json", blobs=[blob.descriptor])
    assert push_manifest(client, repository, manifest, "thing").status == 201
    got = client.request("GET", f"/v2/{repository}/manifests/thing")
    assert got.headers["Content-Type"] == manifest.media_type


def test_numbers_too_large_for_anybody(client: Client, repository: str) -> None:
    data = b'{"schemaVersion": 2, "manifests": [], "unknown": %s}' % (b"9" * 5000)
    assert push_manifest(client, repository, Content(INDEX, data), "large").status == 201
    size = b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:%s", "size": %s}]}'
    data = size % (b"0" * 64, b"9" * 30)
    answer = push_manifest(client, repository, Content(INDEX, data), "larger")
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_words_that_are_no_json(client: Client, repository: str, word: bytes) -> None:
    data = b'{"schemaVersion": 2, "manifests": [], "unknown": %s}' % word
    answer = push_manifest(client, repository, Content(INDEX, data), "word")
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


def test_more_tags_than_one_push_sets(client: Client, repository: str) -> None:
    tags = "&".join(f"tag=t{number}" for number in range(1001))
    manifest = image_of(client, repository)
    answer = push_manifest(client, repository, manifest, parameters=f"?{tags}")
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


# Complete or not at all


def test_what_it_names_must_be_there(client: Client, repository: str) -> None:
    config, layer = Content(CONFIG, b"{}"), Content(LAYER, make_bytes(10, repository))
    manifest = document(config=config.descriptor, layers=[layer.descriptor])
    push_blob(client, repository, config.data)
    push_blob(client, f"{repository}/elsewhere", layer.data)
    answer = push_manifest(client, repository, manifest, "latest")
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert answer.json["errors"][0]["detail"] == {"missing": [layer.digest]}
    assert client.request("GET", f"/v2/{repository}/manifests/latest").status == 404
    index = document(INDEX, manifests=[manifest.descriptor])
    answer = push_manifest(client, repository, index, "index")
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_what_may_be_missing(client: Client, repository: str) -> None:
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": sha256(b"never pushed"),
        "size": 12,
        "urls": ["https://example.org/layer"],
    }
    subject = {"mediaType": MANIFEST, "digest": sha256(b"no manifest"), "size": 11}
    manifest = image_of(client, repository, layers=[foreign], subject=subject)
    answer = push_manifest(client, repository, manifest, "latest")
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, subject["digest"])


def test_sparse_manifests(file_context: Context, repository: str) -> None:
    settings = replace(file_context.settings, sparse_manifests=True)
    client = CoreClient(replace(file_context, settings=settings))
    layer = Content(LAYER, make_bytes(10, repository))
    image = image_of(client, repository, layers=[layer.descriptor])
    index = document(INDEX, manifests=[image.descriptor])
    assert push_manifest(client, repository, index, "index").status == 201
    assert push_manifest(client, repository, image, "image").status == 201
    # What arrives later is held from then on.
    push_blob(client, repository, layer.data)
    answer = client.request("DELETE", f"/v2/{repository}/blobs/{layer.digest}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    answer = client.request("DELETE", f"/v2/{repository}/manifests/{image.digest}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")


def test_a_size_that_is_wrong(client: Client, repository: str) -> None:
    layer = Content(LAYER, b"layer").descriptor | {"size": 7}
    answer = push_manifest(client, repository, image_of(client, repository, layers=[layer]), "x")
    assert answer.status == 201
    warning = f'299 - "The manifest misstates the size of {layer["digest"]}."'
    assert answer.headers["Warning"] == warning


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", MANIFEST),
        (b"{", MANIFEST),
        (b"\xff\xfe", MANIFEST),
        (b"[]", MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (b"{}", MANIFEST),
        (b'{"schemaVersion": 2}', MANIFEST),
        (b'{"schemaVersion": 2}', INDEX),
        (b'{"schemaVersion": 3, "manifests": []}', INDEX),
        (b'{"schemaVersion": 2, "manifests": {}}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [1]}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [{"digest": "x", "size": 1}]}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:a", "size": -1}]}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:a", "size": true}]}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "annotations": {"a": 1}}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "mediaType": 5}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "artifactType": "a\\r\\nb: c"}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "artifactType": "a\\u0000"}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "subject": "x"}', INDEX),
        (json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}).encode(), INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "manifests": []}', INDEX),
        (b'{"schemaVersion": 2, "manifests": [], "Layers": []}', INDEX),
        (b'{"schemaVersion": 2, "manifests": []}', f"{INDEX}, {MANIFEST}"),
        (b'{"schemaVersion": 2, "manifests": []}', "application/" + "a" * 200),
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)  # fmt: skip
def test_what_is_no_manifest(
    client: Client, repository: str, data: bytes, content_type: str
) -> None:
    answer = push_manifest(client, repository, Content(content_type, data), "bad")
    assert (answer.status, answer.code) in ((400, "MANIFEST_INVALID"), (400, "DIGEST_INVALID"))
    assert client.request("GET", f"/v2/{repository}/manifests/bad").status == 404


def test_a_large_manifest(client: Client, repository: str) -> None:
    fits = image_of(client, repository, annotations={"a": "x" * 4_000_000})
    assert push_manifest(client, repository, fits, "fits").status == 201
    got = client.request("GET", f"/v2/{repository}/manifests/fits")
    assert got.body == fits.data


def test_a_manifest_that_is_too_large(client: Client, repository: str) -> None:
    for size in (4 << 20, 20 << 20):
        manifest = document(INDEX, manifests=[], annotations={"a": "x" * size})
        answer = push_manifest(client, repository, manifest, "large")
        assert answer.status == 413
        if size == 4 << 20:
            assert answer.code == "SIZE_INVALID"
            assert "4194304" in answer.json["errors"][0]["message"]


# Deleting


def test_deleting_a_tag_keeps_the_manifest(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    for tag in ("one", "two"):
        push_manifest(client, repository, manifest, tag)
    assert client.request("DELETE", f"/v2/{repository}/manifests/one").status == 202
    assert client.request("DELETE", f"/v2/{repository}/manifests/one").status == 404
    for reference, status in (("one", 404), ("two", 200), (manifest.digest, 200)):
        assert client.request("HEAD", f"/v2/{repository}/manifests/{reference}").status == status


def test_deleting_a_manifest_deletes_its_tags_here_only(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    other = f"{repository}/other"
    image_of(client, other)
    for name in (repository, other):
        push_manifest(client, name, manifest, "latest")
    path = f"/v2/{repository}/manifests/{manifest.digest}"
    assert client.request("DELETE", path).status == 202
    assert client.request("DELETE", path).status == 404
    assert client.request("GET", f"/v2/{repository}/manifests/latest").status == 404
    assert client.request("GET", f"/v2/{other}/manifests/latest").status == 200
    # Its blobs stay in the repository: they can be named again.
    assert push_manifest(client, repository, manifest, "latest").status == 201


def test_a_child_is_not_deleted_from_under_an_index(client: Client, repository: str) -> None:
    image = image_of(client, repository)
    push_manifest(client, repository, image)
    index = document(INDEX, manifests=[image.descriptor])
    push_manifest(client, repository, index, "index")
    answer = client.request("DELETE", f"/v2/{repository}/manifests/{image.digest}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert answer.json["errors"][0]["detail"] == {"manifests": [index.digest]}
    for digest in (index.digest, image.digest):
        assert client.request("DELETE", f"/v2/{repository}/manifests/{digest}").status == 202


def test_an_index_may_name_blobs(client: Client, repository: str) -> None:
    """BuildKit keeps its cache so; they are held as an image's layers are."""
    layer = Content(LAYER, b"layer")
    push_blob(client, repository, layer.data)
    index = document(INDEX, manifests=[layer.descriptor])
    assert push_manifest(client, repository, index, "cache").status == 201
    blob = f"/v2/{repository}/blobs/{layer.digest}"
    answer = client.request("DELETE", blob)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    client.request("DELETE", f"/v2/{repository}/manifests/{index.digest}")
    assert client.request("DELETE", blob).status == 202


def test_a_blob_is_not_deleted_from_under_a_manifest(client: Client, repository: str) -> None:
    manifest = image_of(client, repository)
    push_manifest(client, repository, manifest, "latest")
    blob = f"/v2/{repository}/blobs/{sha256(b'layer')}"
    answer = client.request("DELETE", blob)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert answer.json["errors"][0]["detail"] == {"manifests": [manifest.digest]}
    client.request("DELETE", f"/v2/{repository}/manifests/{manifest.digest}")
    assert client.request("DELETE", blob).status == 202


# Referrers


def refer(client: Client, repository: str, subject: Content, kind: str, **fields: Any) -> Content:
    """Push an artifact that refers to a subject."""
    artifact = image_of(client, repository, subject=subject.descriptor, artifactType=kind, **fields)
    answer = push_manifest(client, repository, artifact)
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, subject.digest)
    return artifact


def test_referrers(client: Client, repository: str) -> None:
    subject = image_of(client, repository)
    path = f"/v2/{repository}/referrers/{subject.digest}"
    empty = client.request("GET", path)
    assert (empty.status, empty.headers["Content-Type"]) == (200, INDEX)
    assert empty.json == {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}

    signature = refer(client, repository, subject, "test/signature", annotations={"by": "me"})
    sbom = refer(client, repository, subject, "test/sbom")
    plain = image_of(client, repository, subject=subject.descriptor)
    push_manifest(client, repository, plain)
    refer(client, f"{repository}/other", subject, "test/elsewhere")
    found = {item["digest"]: item for item in client.request("GET", path).json["manifests"]}
    assert found == {
        signature.digest: signature.descriptor
        | {"artifactType": "test/signature", "annotations": {"by": "me"}},
        sbom.digest: sbom.descriptor | {"artifactType": "test/sbom"},
        plain.digest: plain.descriptor | {"artifactType": CONFIG},
    }
    raw = client.request("GET", f"{path}?artifactType=application/vnd.none+json")
    assert raw.json["manifests"] == []
    filtered = client.request("GET", f"{path}?artifactType=test%2Fsbom")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [item["digest"] for item in filtered.json["manifests"]] == [sbom.digest]
    client.request("DELETE", f"/v2/{repository}/manifests/{sbom.digest}")
    assert len(client.request("GET", path).json["manifests"]) == 2


def test_pages_of_referrers(client: Client, repository: str) -> None:
    subject = image_of(client, repository)
    artifacts = {
        refer(client, repository, subject, f"test/{n % 2}", annotations={"n": str(n)}).digest
        for n in range(7)
    }
    found: list[str] = []
    target = f"/v2/{repository}/referrers/{subject.digest}?n=3"
    while target:
        answer = client.request("GET", target)
        found += [item["digest"] for item in answer.json["manifests"]]
        target = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert (len(found), set(found)) == (7, artifacts)
    answer = client.request(
        "GET", f"/v2/{repository}/referrers/{subject.digest}?n=2&artifactType=test/0"
    )
    assert "artifactType=test%2F0" in answer.headers["Link"]


def test_the_fallback_tag(client: Client, repository: str) -> None:
    """Clients that know no referrers keep an index under a tag made of the subject's digest."""
    subject = image_of(client, repository)
    push_manifest(client, repository, subject)
    artifact = refer(client, repository, subject, "test/signature")
    index = document(INDEX, manifests=[artifact.descriptor])
    tag = subject.digest.replace(":", "-")
    assert push_manifest(client, repository, index, tag).status == 201
    assert client.request("GET", f"/v2/{repository}/manifests/{tag}").body == index.data
