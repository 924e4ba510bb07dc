"""Docker's engine and its client push and pull, as in the README's first example."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import Image, hashes, make_image, tar_files, write_docker_archive
from tests.servers import DockerEngine, Registry

SIZES = (1000, 20, 300_000)


@pytest.fixture(autouse=True)
def empty(docker: DockerEngine) -> Iterator[None]:
    """Leave the engine without images."""
    yield
    remove_images(docker)


def load(docker: DockerEngine, directory: Path, tag: str, image: Image) -> None:
    """Put an image into the engine."""
    docker.run("load", "--input", write_docker_archive(directory / "image.tar", image, tag))


def image_id(docker: DockerEngine, tag: str) -> str:
    """The digest of an image's config."""
    return docker.run("image", "inspect", "--format", "{{.Id}}", tag).stdout.strip()


def files_of(docker: DockerEngine, tag: str, directory: Path) -> dict[str, str]:
    """The files of all layers of an image in the engine."""
    saved = directory / "saved.tar"
    docker.run("save", "--output", saved, tag)
    archive = tar_files(saved.read_bytes())
    [image] = json.loads(archive["manifest.json"])
    files = {}
    for layer in image["Layers"]:
        files.update(hashes(tar_files(archive[layer])))
    return files


def remove_images(docker: DockerEngine) -> None:
    """Take every image out of the engine."""
    docker.run("image", "prune", "--all", "--force")
    assert docker.run("images", "--all", "--quiet").stdout == ""


def test_push_and_pull(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/push-and-pull:1"
    image = make_image(SIZES, tag)
    load(docker, tmp_path, tag, image)
    output = docker.run("push", tag).stdout
    assert output.count(": Pushed") == 3
    assert "1: digest: sha256:" in output

    remove_images(docker)
    docker.run("pull", tag)
    assert image_id(docker, tag) == image.config.digest
    assert files_of(docker, tag, tmp_path) == image.files


def test_pull_by_digest(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/by-digest:1"
    image = make_image(SIZES, tag)
    load(docker, tmp_path, tag, image)
    output = docker.run("push", tag).stdout
    digest = output.partition("digest: ")[2].split()[0]

    remove_images(docker)
    by_digest = f"{registry.host}/docker/by-digest@{digest}"
    docker.run("pull", by_digest)
    assert files_of(docker, by_digest, tmp_path) == image.files


def test_moved_tag(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/moved:latest"
    load(docker, tmp_path, tag, make_image(SIZES, tag))
    docker.run("push", tag)
    new = make_image((5, 6), "new")
    load(docker, tmp_path, tag, new)
    docker.run("push", tag)

    remove_images(docker)
    docker.run("pull", tag)
    assert files_of(docker, tag, tmp_path) == new.files


def test_push_again_skips_layers(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/again:1"
    load(docker, tmp_path, tag, make_image(SIZES, tag))
    docker.run("push", tag)
    output = docker.run("push", tag).stdout
    assert output.count(": Layer already exists") == 3
    assert ": Pushed" not in output


def test_second_repository_mounts_layers(
    docker: DockerEngine, registry: Registry, tmp_path: Path
) -> None:
    tag = f"{registry.host}/docker/first:1"
    image = make_image(SIZES, tag)
    load(docker, tmp_path, tag, image)
    docker.run("push", tag)
    second = f"{registry.host}/docker/deeper/second:1"
    docker.run("tag", tag, second)
    output = docker.run("push", second).stdout
    assert output.count(": Mounted from docker/first") == 3

    remove_images(docker)
    docker.run("pull", second)
    assert files_of(docker, second, tmp_path) == image.files


def test_manifest_list(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/docker/list"
    images = [make_image(SIZES, name, architecture) for architecture in ("amd64", "arm64")]
    tags = [f"{name}:{number}" for number in range(len(images))]
    for tag, image in zip(tags, images, strict=True):
        load(docker, tmp_path, tag, image)
        docker.run("push", tag)
    docker.run("manifest", "create", "--insecure", f"{name}:all", *tags)
    docker.run("manifest", "push", "--insecure", f"{name}:all")

    for image, platform in zip(images, ("linux/amd64", "linux/arm64"), strict=True):
        remove_images(docker)
        docker.run("pull", "--platform", platform, f"{name}:all")
        assert image_id(docker, f"{name}:all") == image.config.digest


def test_what_is_not_there(docker: DockerEngine, registry: Registry) -> None:
    pull = docker.run("pull", f"{registry.host}/docker/never-pushed:1", check=False)
    assert pull.returncode != 0
    assert "not found" in pull.stdout


@pytest.mark.long
def test_many_layers(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/many:1"
    image = make_image(range(20_000, 20_060), tag)
    load(docker, tmp_path, tag, image)
    assert docker.run("push", tag).stdout.count(": Pushed") == 60

    remove_images(docker)
    docker.run("pull", tag)
    assert files_of(docker, tag, tmp_path) == image.files


@pytest.mark.long
def test_large_layer(docker: DockerEngine, registry: Registry, tmp_path: Path) -> None:
    tag = f"{registry.host}/docker/large:1"
    image = make_image((200_000_000,), tag)
    load(docker, tmp_path, tag, image)
    docker.run("push", tag)

    remove_images(docker)
    docker.run("pull", tag)
    assert files_of(docker, tag, tmp_path) == image.files
