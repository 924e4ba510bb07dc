"""skopeo copies images as they are: what comes back must be the same to the byte."""

import json
from pathlib import Path

import pytest

from tests.accounts import command
from tests.conftest import need
from tests.images import (
    Content,
    Image,
    layout_contents,
    make_image,
    make_index,
    write_layout,
)
from tests.servers import Registry, run
from tests.witness import Witness

SIZES = (1000, 20, 300_000)


@pytest.fixture(autouse=True)
def installed() -> None:
    need("skopeo", "skopeo")


def push(layout: Path, registry: Registry | Witness, name: str, *options: str) -> str:
    """Copy a layout's tag `latest` to the registry; give skopeo's words."""
    destination = f"docker://{registry.host}/{name}"
    return run(
        "skopeo", "copy", "--dest-tls-verify=false", *options, f"oci:{layout}:latest", destination
    ).stdout


def pull(registry: Registry, name: str, layout: Path, *options: str) -> set[str]:
    """Copy from the registry to a new layout; give the digests of what has come."""
    source = f"docker://{registry.host}/{name}"
    run("skopeo", "copy", "--src-tls-verify=false", *options, source, f"oci:{layout}:latest")
    return set(layout_contents(layout))


def contents(*images: Image, index: Content | None = None) -> set[str]:
    """The digests of what a layout of these must hold."""
    everything = [content for image in images for content in (*image.blobs, image.manifest)]
    if index is not None:
        everything.append(index)
    return {content.digest for content in everything}


def test_push_and_pull(registry: Registry, tmp_path: Path) -> None:
    image = make_image(SIZES, "skopeo")
    push(write_layout(tmp_path / "pushed", [image]), registry, "skopeo/push-and-pull:1")
    assert pull(registry, "skopeo/push-and-pull:1", tmp_path / "by-tag") == contents(image)
    by_digest = f"skopeo/push-and-pull@{image.manifest.digest}"
    assert pull(registry, by_digest, tmp_path / "by-digest") == contents(image)


def test_index(registry: Registry, tmp_path: Path) -> None:
    images = [make_image(SIZES, name, name) for name in ("amd64", "arm64", "s390x")]
    index = make_index(images)
    layout = write_layout(tmp_path / "pushed", images, index)
    push(layout, registry, "skopeo/index:all", "--all")
    pulled = pull(registry, "skopeo/index:all", tmp_path / "all", "--all")
    assert pulled == contents(*images, index=index)

    platform = ("--override-arch", "s390x")
    run(
        *("skopeo", *platform, "copy", "--src-tls-verify=false"),
        *(f"docker://{registry.host}/skopeo/index:all", f"oci:{tmp_path / 'one'}:latest"),
    )
    assert set(layout_contents(tmp_path / "one")) == contents(images[2])


def test_docker_schema_2(registry: Registry, tmp_path: Path) -> None:
    image = make_image(SIZES, "schema 2")
    layout = write_layout(tmp_path / "pushed", [image])
    push(layout, registry, "skopeo/schema2:1", "--format=v2s2")
    raw = run(
        "skopeo",
        "inspect",
        "--raw",
        "--tls-verify=false",
        f"docker://{registry.host}/skopeo/schema2:1",
    ).stdout
    manifest = json.loads(raw)
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    digests = [descriptor["digest"] for descriptor in (manifest["config"], *manifest["layers"])]
    assert digests == [blob.digest for blob in image.blobs]


def test_push_again_skips_layers(witness: Witness, tmp_path: Path) -> None:
    image = make_image(SIZES, "again")
    layout = write_layout(tmp_path / "pushed", [image])
    push(layout, witness, "skopeo/again:1")
    assert len(witness.asked("PATCH")) == len(image.blobs)

    witness.requests.clear()
    push(layout, witness, "skopeo/again:2")
    assert len(witness.asked("HEAD", "/blobs/")) == len(image.blobs)
    assert witness.asked("POST") == []


def test_copy_to_second_repository(registry: Registry, tmp_path: Path) -> None:
    image = make_image(SIZES, "second")
    push(write_layout(tmp_path / "pushed", [image]), registry, "skopeo/first:1")
    run(
        *("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"),
        f"docker://{registry.host}/skopeo/first:1",
        f"docker://{registry.host}/skopeo/a/much/deeper/second:1",
    )
    pulled = pull(registry, "skopeo/a/much/deeper/second:1", tmp_path / "pulled")
    assert pulled == contents(image)


def test_list_tags_and_delete(registry: Registry, tmp_path: Path) -> None:
    images = {tag: make_image(SIZES, tag) for tag in ("b", "a")}
    for tag, image in images.items():
        push(write_layout(tmp_path / tag, [image]), registry, f"skopeo/delete:{tag}")
    repository = f"docker://{registry.host}/skopeo/delete"
    listed = json.loads(run("skopeo", "list-tags", "--tls-verify=false", repository).stdout)
    assert listed["Tags"] == ["a", "b"]

    run("skopeo", "delete", "--tls-verify=false", f"{repository}:a")
    gone = run("skopeo", "inspect", "--tls-verify=false", f"{repository}:a", check=False)
    assert gone.returncode != 0
    assert "manifest unknown" in gone.stdout
    assert pull(registry, "skopeo/delete:b", tmp_path / "kept") == contents(images["b"])


def test_immutable_tags(registry: Registry, tmp_path: Path) -> None:
    first, second = (make_image(SIZES, f"immutable {number}") for number in range(2))
    layouts = [
        write_layout(tmp_path / name, [image]) for name, image in (("1", first), ("2", second))
    ]
    name = "skopeo/immutable"
    push(layouts[0], registry, f"{name}:v1")
    where = ("--repository", name)
    rule = command(registry.settings, "immutable-tags", "add", *where, "v*")["id"]
    push(layouts[0], registry, f"{name}:v1")
    destination = f"docker://{registry.host}/{name}:v1"
    for words in (
        ("copy", "--dest-tls-verify=false", f"oci:{layouts[1]}:latest", destination),
        ("delete", "--tls-verify=false", destination),
    ):
        refused = run("skopeo", *words, check=False)
        assert refused.returncode != 0
        for part in (f"The tag v1 is immutable in {name}", f"rule {rule}", "Push another tag"):
            assert part in refused.stdout
    assert pull(registry, f"{name}:v1", tmp_path / "kept") == contents(first)
    command(registry.settings, "immutable-tags", "remove", *where, str(rule))
    push(layouts[1], registry, f"{name}:v1")


@pytest.mark.long
def test_large_layer(registry: Registry, tmp_path: Path) -> None:
    image = make_image((200_000_000,), "large")
    push(write_layout(tmp_path / "pushed", [image]), registry, "skopeo/large:1")
    assert pull(registry, "skopeo/large:1", tmp_path / "pulled") == contents(image)


@pytest.mark.long
def test_many_layers(registry: Registry, tmp_path: Path) -> None:
    image = make_image(range(1_000_000, 1_000_100), "many")
    push(write_layout(tmp_path / "pushed", [image]), registry, "skopeo/many:1")
    assert pull(registry, "skopeo/many:1", tmp_path / "pulled") == contents(image)
