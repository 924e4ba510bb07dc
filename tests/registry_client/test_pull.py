"""`openregistry pull`, run as a person runs it, against real registries."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chalicelib.client.layout import TAG
from chalicelib.client.platforms import Platform
from tests.accounts import add_user
from tests.bench.servers import DockerRegistry
from tests.client import Client, HTTPClient, push_blob, push_image, push_manifest, sha512
from tests.clients.programs import client
from tests.conftest import need
from tests.hosts.lambda_registry import LoggedIn
from tests.images import Content, Image, layout_contents, make_bytes, make_image, make_index
from tests.registry_client.conftest import Start
from tests.registry_client.relay import Line
from tests.registry_client.script import Answer, Asked
from tests.servers import OPENREGISTRY, S3, Registry, free_port, run, stopping, wait_until
from tests.witness import Witness

SIZES = (1000, 20, 300_000)
LAYER = make_bytes(8_000_000, "pull")
"""One that comes in many pieces."""


@dataclass(frozen=True)
class Person:
    """Somebody with a home and an empty folder `layout`."""

    home: Path

    @property
    def layout(self) -> Path:
        return self.home / "layout"

    @property
    def waiting(self) -> list[Path]:
        """What has come in part."""
        return sorted((self.layout / ".partial").glob("*"))

    def has(self, content: Content) -> bool:
        """Whether the layout shows a blob of that name."""
        stored = self.layout / "blobs" / "sha256" / content.digest.removeprefix("sha256:")
        return stored.exists()

    def start(self, *words: str | Path, before: tuple[str | Path, ...] = ()) -> Any:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENREGISTRY", "XDG_", "DOCKER_", "REGISTRY_"))
        }
        return subprocess.Popen(
            [*before, OPENREGISTRY, "pull", *words],
            env={**environment, "HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, image: str, *options: str) -> Any:
        """Pull, and give what the command says as JSON."""
        command = self.start(image, self.layout, "--json", *options)
        output, errors = command.communicate(timeout=100)
        assert command.returncode == 0, errors
        return json.loads(output)

    def fail(self, image: str, *options: str, before: tuple[str | Path, ...] = ()) -> str:
        """Pull in vain, and give the sentence that says why."""
        command = self.start(image, self.layout, *options, before=before)
        output, errors = command.communicate(timeout=100)
        assert (command.returncode, output) == (1, ""), errors
        assert "Traceback" not in errors
        return str(errors.splitlines()[-1])

    def log_in(self, host: str, user: str, password: str) -> None:
        """As `docker login` does where a program keeps secrets."""
        program = self.home / "bin" / "docker-credential-test"
        program.parent.mkdir(exist_ok=True)
        secret = json.dumps({"ServerURL": host, "Username": user, "Secret": password})
        program.write_text(f"#!/bin/sh\nread -r host; [ $host = {host} ] && echo '{secret}'\n")
        program.chmod(0o755)
        config = self.home / ".docker" / "config.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps({"credsStore": "test", "auths": {host: {}}}))


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Person(tmp_path)


@pytest.fixture
def line(registry: Registry) -> Iterator[Line]:
    """The registry at the other end of a bad line."""
    with closing(Line(registry.host)) as line:
        yield line


def contents(*images: Image, index: Content | None = None) -> dict[str, bytes]:
    """What a layout of these must hold."""
    everything = [content for image in images for content in (*image.blobs, image.manifest)]
    if index is not None:
        everything.append(index)
    return {content.digest: content.data for content in everything}


def entries(layout: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return found


def push_platforms(
    client: Client, repository: str, *architectures: str
) -> tuple[list[Image], Content]:
    """Push an index with the tag `all`."""
    images = [make_image(seed=each, architecture=each) for each in architectures]
    for image in images:
        push_image(client, repository, image, image.manifest.digest)
    index = make_index(images)
    assert push_manifest(client, repository, index, "all").status == 201
    return images, index


def big(architecture: str = "amd64") -> Image:
    """An image with a layer of 8 MB."""
    image = make_image((10,), "big", architecture)
    layer = Content(image.layers[0].media_type, LAYER)
    manifest = {**json.loads(image.manifest.data), "layers": [layer.descriptor]}
    return Image(
        Content(image.manifest.media_type, json.dumps(manifest).encode()),
        image.config,
        (layer,),
        {},
    )


def push_big(registry: Registry, repository: str) -> Image:
    image = big()
    push_image(HTTPClient(registry.host), repository, image, "1")
    return image


def test_pull(registry: Registry, repository: str, person: Person) -> None:
    image = make_image(SIZES, "pull")
    push_image(HTTPClient(registry.host), repository, image, "1")
    name = f"{registry.host}/{repository}:1"
    answer = person.pull(name)
    assert layout_contents(person.layout) == contents(image)
    size = sum(len(blob.data) for blob in image.blobs)
    assert answer == {
        "image": name,
        "folder": str(person.layout),
        "name": "1",
        **image.manifest.descriptor,
        "blobs": {"count": 4, "bytes": size},
        "fetched": {"count": 4, "bytes": size},
        "absent": [],
    }
    annotations = {TAG: "1", "io.containerd.image.name": name}
    assert entries(person.layout) == [{**image.manifest.descriptor, "annotations": annotations}]
    assert {each.name for each in person.layout.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_what_a_person_reads(registry: Registry, repository: str, person: Person) -> None:
    image = make_image((300_000,), "read")
    push_image(HTTPClient(registry.host), repository, image, "latest")
    command = person.start(f"{registry.host}/{repository}", person.layout)
    output, errors = command.communicate(timeout=60)
    assert re.fullmatch(
        rf"{registry.host}/{repository} is in {person.layout} as latest: {image.manifest.digest}\. "
        r"Of 2 blobs 2 came now, 30\d\.\d kB\.\n",
        output,
    )
    assert f"{image.layers[0].digest[7:19]}: 30" in errors


def test_what_is_there_is_not_fetched(witness: Witness, repository: str, person: Person) -> None:
    first, second = make_image((1000, 2000), "there"), make_image((1000, 2000, 3000), "there")
    for image, tag in ((first, "1"), (second, "2")):
        push_image(HTTPClient(witness.target), repository, image, tag)
    name = f"{witness.host}/{repository}"
    person.pull(f"{name}:1")
    person.pull(f"{name}:2")
    assert layout_contents(person.layout) == contents(first, second)
    assert [each["annotations"][TAG] for each in entries(person.layout)] == ["1", "2"]
    fetched = witness.asked("GET", "/blobs/")
    assert len(fetched) == len(set(fetched)) == 3 + 2  # both configs, and each layer once
    assert person.pull(f"{name}:2")["fetched"] == {"count": 0, "bytes": 0}
    assert witness.asked("GET", "/blobs/") == fetched


def test_by_digest(registry: Registry, repository: str, person: Person) -> None:
    image = make_image((1000,), "digest")
    push_image(HTTPClient(registry.host), repository, image)
    name = f"{registry.host}/{repository}@{image.manifest.digest}"
    assert person.pull(name)["name"] == ""
    assert entries(person.layout) == [image.manifest.descriptor]


def test_one_platform_of_several(registry: Registry, repository: str, person: Person) -> None:
    here = Platform.here().architecture
    other = "s390x" if here != "s390x" else "riscv64"
    images, _ = push_platforms(HTTPClient(registry.host), repository, other, here)
    name = f"{registry.host}/{repository}:all"
    assert person.pull(name)["digest"] == images[1].manifest.digest
    assert layout_contents(person.layout) == contents(images[1])
    assert person.pull(name, "--platform", f"linux/{other}")["digest"] == images[0].manifest.digest
    assert [each["digest"] for each in entries(person.layout)] == [images[0].manifest.digest]
    assert person.fail(name, "--platform", "linux/mips64le").endswith(
        f"{name} is not there for linux/mips64le, but for linux/{other}, linux/{here}."
    )


def test_all_platforms(registry: Registry, repository: str, person: Person) -> None:
    images, index = push_platforms(HTTPClient(registry.host), repository, "amd64", "arm64")
    answer = person.pull(f"{registry.host}/{repository}:all", "--all")
    assert (answer["digest"], answer["blobs"]["count"]) == (index.digest, 4)
    assert layout_contents(person.layout) == contents(*images, index=index)


def test_an_index_in_an_index(registry: Registry, repository: str, person: Person) -> None:
    registry_client = HTTPClient(registry.host)
    images, index = push_platforms(registry_client, repository, "amd64", "arm64")
    around = {"schemaVersion": 2, "mediaType": index.media_type, "manifests": [index.descriptor]}
    outer = Content(index.media_type, json.dumps(around).encode())
    assert push_manifest(registry_client, repository, outer, "outer").status == 201
    name = f"{registry.host}/{repository}:outer"
    assert person.pull(name, "--platform", "linux/arm64")["digest"] == images[1].manifest.digest
    assert person.pull(name, "--all")["digest"] == outer.digest
    assert layout_contents(person.layout) == contents(*images, index=index) | {
        outer.digest: outer.data
    }


def test_an_image_for_another_platform(registry: Registry, repository: str, person: Person) -> None:
    """The only image there is is refused where another platform is asked for, and had otherwise."""
    push_image(HTTPClient(registry.host), repository, make_image(architecture="s390x"), "1")
    name = f"{registry.host}/{repository}:1"
    sentence = person.fail(name, "--platform", "linux/arm64")
    assert sentence.endswith("is not there for linux/arm64, but for linux/s390x.")
    assert entries(person.layout) == []
    person.pull(name)
    person.pull(name, "--platform", "linux/s390x")


def as_docker_pushes(image: Image) -> Image:
    """The same image as schema 2."""
    kinds = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.loads(image.manifest.data) | {"mediaType": kinds}
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    return Image(
        Content(kinds, json.dumps(manifest).encode()), image.config, image.layers, image.files
    )


@pytest.fixture(params=["ours", "docker's"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """This registry, and Debian's docker-registry."""
    if request.param == "ours":
        yield request.getfixturevalue("registry").host
        return
    need("docker-registry", "docker-registry")
    server = DockerRegistry(tmp_path / "docker-registry", None)
    with stopping(server):
        yield server.start().host


def test_schema_2(host: str, repository: str, person: Person) -> None:
    registry_client = HTTPClient(host)
    images = [
        as_docker_pushes(make_image(SIZES, each, architecture=each)) for each in ("amd64", "arm64")
    ]
    for image in images:
        push_image(registry_client, repository, image, image.manifest.digest)
    kind = "application/vnd.docker.distribution.manifest.list.v2+json"
    value = {**json.loads(make_index(images).data), "mediaType": kind}
    listed = Content(kind, json.dumps(value).encode())
    assert push_manifest(registry_client, repository, listed, "all").status == 201

    answer = person.pull(f"{host}/{repository}:all", "--platform", "linux/arm64")
    assert answer["mediaType"] == images[1].manifest.media_type
    assert layout_contents(person.layout) == contents(images[1])
    person.pull(f"{host}/{repository}:all", "--all")
    assert layout_contents(person.layout) == contents(*images, index=listed)
    assert entries(person.layout)[0]["mediaType"] == kind


def test_sha512(registry: Registry, repository: str, person: Person) -> None:
    image = make_image((1000,), "sha512")
    layer = image.layers[0]
    push_blob(HTTPClient(registry.host), repository, layer.data, sha512(layer.data))
    push_blob(HTTPClient(registry.host), repository, image.config.data)
    value = json.loads(image.manifest.data)
    value["layers"][0]["digest"] = sha512(layer.data)
    manifest = Content(image.manifest.media_type, json.dumps(value).encode())
    assert push_manifest(HTTPClient(registry.host), repository, manifest, "1").status == 201
    assert person.pull(f"{registry.host}/{repository}:1")["digest"] == manifest.digest
    stored = person.layout / "blobs" / "sha512" / sha512(layer.data).removeprefix("sha512:")
    assert stored.read_bytes() == layer.data


def test_accounts_and_storage_elsewhere(
    serve: Callable[..., Registry], s3_server: S3, person: Person
) -> None:
    """A private image, whose blobs a bucket sends by presigned URLs. It would refuse a request with
    an Authorization beside."""
    registry = serve(
        OPENREGISTRY_ACCESS="accounts",
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        OPENREGISTRY_DOWNLOADS="redirect",
        **s3_server.environment(),
    )
    for user in ("ada", "eve"):
        add_user(registry.settings, user, f"{user}, her own")
    image = make_image(SIZES, "private")
    owner = LoggedIn(registry.host, "ada", "ada, her own")
    push_image(owner, "ada/app", image, "1")
    blob = owner.request("GET", f"/v2/ada/app/blobs/{image.config.digest}")
    assert blob.location.startswith(s3_server.endpoint)
    name = f"{registry.host}/ada/app:1"

    hint = f"docker login {registry.host}"
    assert f"nobody is logged in there. Try: {hint}" in person.fail(name)
    person.log_in(registry.host, "ada", "wrong, her own")
    sentence = person.fail(name)
    assert "401" in sentence
    assert hint in sentence
    person.log_in(registry.host, "eve", "eve, her own")
    assert "this account may not pull it" in person.fail(name)
    assert not person.layout.exists()
    person.log_in(registry.host, "ada", "ada, her own")
    person.pull(name)
    assert layout_contents(person.layout) == contents(image)


def test_what_is_not_there(registry: Registry, repository: str, person: Person) -> None:
    push_image(HTTPClient(registry.host), repository, make_image(), "1")
    for name in (f"{registry.host}/{repository}:2", f"{registry.host}/{repository}/more:1"):
        sentence = person.fail(name)
        assert f"{registry.host} has no {name}, or does not show it" in sentence
        assert "_UNKNOWN: " in sentence
    assert not person.layout.exists()
    nowhere = f"127.0.0.1:{free_port()}"
    assert "cannot be reached: Connection refused" in person.fail(f"{nowhere}/app:1")
    assert "does not say which registry" in person.fail("app:1")


def test_a_line_that_breaks_off(line: Line, registry: Registry, person: Person) -> None:
    image = push_big(registry, "pull/breaks")
    line.breaks = [100_000, 2_000_000, 1_000_000, 3_000_000]
    person.pull(f"{line.host}/pull/breaks:1")
    assert layout_contents(person.layout) == contents(image)
    assert line.breaks == []
    # What had come was not sent again, but for what was on its way when the line broke.
    assert line.answered < 1.5 * len(LAYER)
    assert "Range: bytes=" in line.asked


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_was_ended(
    number: signal.Signals, line: Line, registry: Registry, person: Person
) -> None:
    """The next one goes on where it was; until then nothing of the blob is in the layout."""
    image = push_big(registry, "pull/ended")
    line.stalls_after = 5_000_000
    command = person.start(f"{line.host}/pull/ended:1", person.layout)
    assert line.stalled.wait(30)
    waiting = person.layout / ".partial" / image.layers[0].digest.replace(":", "-")
    wait_until(lambda: waiting.exists() and waiting.stat().st_size > 4_000_000, 10, lambda: "it")
    command.send_signal(number)
    began = time.monotonic()
    output, errors = command.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert command.returncode == (130 if number == signal.SIGINT else -9)
    assert output == ""
    assert "Traceback" not in errors
    assert not person.has(image.layers[0])
    assert entries(person.layout) == []

    line.stalls_after = None
    line.answered = 0
    person.pull(f"{line.host}/pull/ended:1")
    assert layout_contents(person.layout) == contents(image)
    assert line.answered < 4_500_000
    assert not (person.layout / ".partial").exists()


def test_a_byte_that_is_another(line: Line, registry: Registry, person: Person) -> None:
    image = push_big(registry, "pull/swapped")
    line.swaps_after = 4_000_000
    sentence = person.fail(f"{line.host}/pull/swapped:1")
    assert f"{line.host} sent other bytes than {image.layers[0].digest} names." in sentence
    assert not person.has(image.layers[0])
    assert (entries(person.layout), person.waiting) == ([], [])
    line.swaps_after = None
    person.pull(f"{line.host}/pull/swapped:1")
    assert layout_contents(person.layout) == contents(image)


def test_what_waited_is_damaged(registry: Registry, person: Person) -> None:
    """Bytes that a crash of the machine left wrong are found, and all is fetched again."""
    image = push_big(registry, "pull/damaged")
    person.pull(f"{registry.host}/pull/damaged:1")
    shutil.rmtree(person.layout / "blobs")
    waiting = person.layout / ".partial" / image.layers[0].digest.replace(":", "-")
    waiting.parent.mkdir()
    for damaged in (LAYER[:1000] + bytes(5000), bytes(len(LAYER)), LAYER + b"more"):
        waiting.parent.mkdir(exist_ok=True)
        waiting.write_bytes(damaged)
        person.pull(f"{registry.host}/pull/damaged:1")
        assert layout_contents(person.layout) == contents(image)
        shutil.rmtree(person.layout / "blobs")


def test_a_full_disk(registry: Registry, person: Person) -> None:
    image = push_big(registry, "pull/full")
    name = f"{registry.host}/pull/full:1"
    limited = ("sh", "-c", 'ulimit -f 4000; exec "$@"', "sh")
    sentence = person.fail(name, before=limited)
    assert f"{person.layout} cannot be written: File too large." in sentence
    assert not person.has(image.layers[0])
    person.pull(name)
    assert layout_contents(person.layout) == contents(image)


def test_two_at_once(registry: Registry, person: Person) -> None:
    image = push_big(registry, "pull/two")
    name = f"{registry.host}/pull/two:1"
    commands = [person.start(name, person.layout, "--json") for _ in range(3)]
    answers = [json.loads(command.communicate(timeout=60)[0]) for command in commands]
    assert sum(answer["fetched"]["count"] for answer in answers) == 2
    assert layout_contents(person.layout) == contents(image)
    assert len(entries(person.layout)) == 1


def test_a_folder_of_something_else(registry: Registry, repository: str, person: Person) -> None:
    push_image(HTTPClient(registry.host), repository, make_image(), "1")
    person.layout.mkdir()
    (person.layout / "letter.txt").write_text("dear")
    sentence = person.fail(f"{registry.host}/{repository}:1")
    assert "holds something else than an image layout" in sentence
    assert [each.name for each in person.layout.iterdir()] == ["letter.txt"]


# A registry that says what is not so.


@dataclass
class Liar:
    """A registry with one image, whose answers a test changes."""

    image: Image
    change: Callable[[Asked, Answer], Answer]

    def __call__(self, asked: Asked) -> Answer:
        for content in (*self.image.blobs, self.image.manifest):
            if asked.path in (
                f"/v2/app/{kind}/{content.digest}" for kind in ("blobs", "manifests")
            ):
                return self.change(asked, (200, {"Content-Type": content.media_type}, content.data))
        if asked.path == "/v2/app/manifests/1":
            manifest = self.image.manifest
            return self.change(asked, (200, {"Content-Type": manifest.media_type}, manifest.data))
        return 404, {}, b""


def test_a_registry_without_ranges(script: Start, person: Person) -> None:
    image = make_image((100_000,), "without")
    layer = image.layers[0]
    waiting = person.layout / ".partial" / layer.digest.replace(":", "-")
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(layer.data[:1000])
    server = script(Liar(image, lambda asked, answer: answer))
    person.pull(f"{server.host}/app:1")
    assert layout_contents(person.layout) == contents(image)
    [asked] = [each for each in server.asked if each.path.endswith(layer.digest)]
    assert asked.headers["Range"] == "bytes=1000-"


def test_ranges_that_were_not_asked_for(script: Start, person: Person) -> None:
    image = make_image((100_000,), "ranges")
    layer = image.layers[0]

    def change(asked: Asked, answer: Answer) -> Answer:
        if "Range" not in asked.headers:
            return answer
        if len(server.asked) % 2:
            return 416, {}, b""
        return 206, {"Content-Range": "bytes 0-9/10"}, layer.data[:10]

    server = script(Liar(image, change))
    for _ in range(2):
        shutil.rmtree(person.layout, ignore_errors=True)
        waiting = person.layout / ".partial" / layer.digest.replace(":", "-")
        waiting.parent.mkdir(parents=True)
        waiting.write_bytes(layer.data[:1000])
        person.pull(f"{server.host}/app:1")
        assert layout_contents(person.layout) == contents(image)


@pytest.mark.parametrize("added", [b"more", bytes(1_000_000)])
def test_more_bytes_than_were_named(script: Start, person: Person, added: bytes) -> None:
    image = make_image((100_000,), "more")

    def change(asked: Asked, answer: Answer) -> Answer:
        long = asked.path.endswith(image.layers[0].digest)
        return (*answer[:2], answer[2] + added) if long else answer

    server = script(Liar(image, change))
    assert "sent other bytes than" in person.fail(f"{server.host}/app:1")
    assert not person.has(image.layers[0])


def test_fewer_bytes_than_were_named(script: Start, person: Person) -> None:
    image = make_image((100_000,), "fewer")
    layer = image.layers[0]

    def change(asked: Asked, answer: Answer) -> Answer:
        if not asked.path.endswith(layer.digest):
            return answer
        return (200, {}, layer.data[:-1]) if "Range" not in asked.headers else (416, {}, b"")

    server = script(Liar(image, change))
    assert f"ended {layer.digest} too early" in person.fail(f"{server.host}/app:1")


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_another_manifest_than_was_named(script: Start, person: Person, by: str) -> None:
    image, other = make_image(seed="this"), make_image(seed="that")

    def change(asked: Asked, answer: Answer) -> Answer:
        if "/manifests/" not in asked.path:
            return answer
        headers = {**answer[1], "Docker-Content-Digest": image.manifest.digest}
        return 200, headers, other.manifest.data

    server = script(Liar(image, change))
    reference = ":1" if by == "tag" else f"@{image.manifest.digest}"
    sentence = person.fail(f"{server.host}/app{reference}")
    assert f"sent other bytes than {image.manifest.digest} names" in sentence
    assert not person.layout.exists()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>", "not JSON"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema 1"),
        (
            b'{"schemaVersion": 2, "config": {"digest": "../../x", "size": 1}, "layers": []}',
            "config",
        ),
    ],
)
def test_what_is_no_manifest(script: Start, person: Person, data: bytes, why: str) -> None:
    server = script(lambda asked: (200, {}, data))
    sentence = person.fail(f"{server.host}/app:1")
    assert "The manifest 1 cannot be used." in sentence
    assert why in sentence


# Others read what was written.


def test_skopeo_reads_the_layout(registry: Registry, repository: str, person: Person) -> None:
    need("skopeo", "skopeo")
    images, index = push_platforms(HTTPClient(registry.host), repository, "amd64", "arm64")
    single = make_image(SIZES, "skopeo")
    push_image(HTTPClient(registry.host), repository, single, "1")
    person.pull(f"{registry.host}/{repository}:all", "--all")
    person.pull(f"{registry.host}/{repository}:1")

    target = f"docker://{registry.host}/{repository}/copied"
    options = ("--all", "--preserve-digests", "--dest-tls-verify=false")
    for tag, manifest in (("all", index), ("1", single.manifest)):
        run("skopeo", "copy", *options, f"oci:{person.layout}:{tag}", f"{target}:{tag}")
        raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"{target}:{tag}").stdout
        assert raw.encode() == manifest.data
    assert len(images) == 2


@pytest.mark.long
def test_crane_reads_the_layout(registry: Registry, repository: str, person: Person) -> None:
    crane = client("crane", person.home)
    image = as_docker_pushes(make_image(SIZES, "crane"))
    push_image(HTTPClient(registry.host), repository, image, "1")
    person.pull(f"{registry.host}/{repository}:1")
    name = f"{registry.host}/{repository}/copied:1"
    crane("push", person.layout, name)
    assert crane("manifest", name).encode() == image.manifest.data
    crane("validate", "--remote", name)


@pytest.mark.long
def test_memory_is_bounded(registry: Registry, repository: str, person: Person) -> None:
    """A large layer takes no more memory than a small one."""
    size = 600 << 20
    piece = make_bytes(1 << 20, "memory")
    digest = hashlib.sha256()
    for _ in range(600):
        digest.update(piece)
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": f"sha256:{digest.hexdigest()}",
        "size": size,
    }
    small = make_image((10,), "memory")
    registry_client = HTTPClient(registry.host)
    location = registry_client.request("POST", f"/v2/{repository}/blobs/uploads/").location
    location = registry_client.request("PATCH", location, (piece for _ in range(600))).location
    joint = "&" if "?" in location else "?"
    answer = registry_client.request("PUT", f"{location}{joint}digest={layer['digest']}")
    assert answer.status == 201
    push_blob(registry_client, repository, small.config.data)
    value = {**json.loads(small.manifest.data), "layers": [layer]}
    manifest = Content(small.manifest.media_type, json.dumps(value).encode())
    assert push_manifest(registry_client, repository, manifest, "1").status == 201

    command = person.start(f"{registry.host}/{repository}:1", person.layout)
    highest = 0
    while command.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{command.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                highest = int(found[1])
        time.sleep(0.01)
    assert command.returncode == 0
    assert 10_000 < highest < 60_000
