"""`openregistry push`: what is here is there, byte for byte, and nothing is sent that is there."""

import base64
import gzip
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chalicelib.client.compression import compress
from chalicelib.client.ledger import Ledger
from chalicelib.client.push import DISK, _Disk
from chalicelib.client.remote import RemoteError
from chalicelib.client.sources import Descriptor
from tests.accounts import add_user, command
from tests.client import HTTPClient, push_blob, sha256
from tests.conftest import need
from tests.images import (
    Content,
    Image,
    layout_files,
    make_image,
    make_index,
    write_docker_archive,
    write_layout,
)
from tests.registry_client import forms
from tests.servers import (
    OPENREGISTRY,
    S3,
    DockerEngine,
    Postgres,
    Registry,
    run,
    stopping,
    wait_until,
)
from tests.storage.faults import Fault, FaultyProxy
from tests.witness import Witness

SIZES = (1000, 20, 300_000)
PASSWORD = "a password: ü"


class Pusher:
    """`openregistry push` of one machine: with a memory and credentials of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name},
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "DOCKER_CONFIG": str(home / "docker"),
            "XDG_RUNTIME_DIR": str(home),
        }

    def __call__(self, source: Path | str, name: str, **environment: str) -> Any:
        """Push; gives its answer."""
        done = self.run(source, name, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, source: Path | str, name: str) -> str:
        """Push in vain; gives the one line that says why."""
        done = self.run(source, name, "--json")
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        line = done.stderr.splitlines()[-1]
        assert line.startswith("openregistry: ")
        assert "Traceback" not in done.stderr
        return line

    def run(
        self, source: Path | str, name: str, *options: str, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Push, whatever comes of it."""
        return subprocess.run(
            [OPENREGISTRY, "push", *options, str(source), name],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, source: Path | str, name: str, **environment: str) -> "subprocess.Popen[str]":
        """Begin to push."""
        return subprocess.Popen(
            [OPENREGISTRY, "push", str(source), name],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def log_in(self, host: str, user: str, password: str) -> None:
        """What `docker login` does."""
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        (self.home / "docker").mkdir(exist_ok=True)
        forms.write_json(self.home / "docker" / "config.json", {"auths": {host: {"auth": auth}}})


@pytest.fixture
def push(tmp_path: Path) -> Pusher:
    (tmp_path / "home").mkdir()
    return Pusher(tmp_path / "home")


def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
    """How many blobs were sent, skipped and mounted."""
    return len(answer["sent"]), len(answer["skipped"]), len(answer["mounted"])


def program(settings: dict[str, str], *words: str | Path) -> str:
    """Run a program with more in its environment; its output."""
    return run(*words, check=True, within=300, **settings).stdout


def pulled(host: str, name: str) -> tuple[str, bytes]:
    """The digest and bytes of a manifest by its tag."""
    repository, _, tag = name.rpartition(":")
    answer = HTTPClient(host).request("GET", f"/v2/{repository}/manifests/{tag}")
    assert answer.status == 200, answer
    return answer.headers["Docker-Content-Digest"], answer.body


def blob(host: str, repository: str, digest: str) -> bytes:
    """A blob's bytes."""
    client = HTTPClient(host)
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}")
    if answer.status == 307:
        answer = client.request("GET", answer.location)
    assert answer.status == 200, answer
    return answer.body


def assert_there(
    registry: Registry, name: str, *images: Image, index: Content | None = None
) -> None:
    """The images are there byte for byte."""
    repository = name.rpartition(":")[0]
    top = index or images[0].manifest
    assert pulled(registry.host, name) == (top.digest, top.data)
    for image in images:
        found = HTTPClient(registry.host).request(
            "GET", f"/v2/{repository}/manifests/{image.manifest.digest}"
        )
        assert found.body == image.manifest.data
        for content in image.blobs:
            assert blob(registry.host, repository, content.digest) == content.data


def assert_compressed(registry: Registry, name: str, image: Image) -> str:
    """The image is there by its config, its layers compressed; gives its digest."""
    repository = name.rpartition(":")[0]
    digest, payload = pulled(registry.host, name)
    manifest = json.loads(payload)
    assert manifest["config"]["digest"] == image.config.digest
    plain = forms.plain_layers(image)
    assert len(manifest["layers"]) == len(plain)
    for layer, data in zip(manifest["layers"], plain, strict=True):
        assert layer["mediaType"].endswith(("tar.gzip", "tar+gzip"))
        body = blob(registry.host, repository, layer["digest"])
        assert len(body) == layer["size"]
        assert gzip.decompress(body) == data
    return digest


# Every form, there and back.


def test_a_layout_goes_byte_for_byte(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    image = make_image(SIZES, "push layout")
    layout = write_layout(tmp_path / "layout", [image])
    answer = push(layout, f"{registry.host}/push/layout:1")
    assert answer["digest"] == image.manifest.digest
    assert answer["image"] == f"{registry.host}/push/layout:1"
    assert answer["size"] == sum(len(each.data) for each in (*image.blobs, image.manifest))
    assert answer["manifests"] == 1
    assert not answer["rewritten"]
    assert counts(answer) == (4, 0, 0)
    assert {each["digest"] for each in answer["sent"]} == {each.digest for each in image.blobs}
    assert_there(registry, "push/layout:1", image)

    push(layout, f"{registry.host}/push/layout")
    assert_there(registry, "push/layout:latest", image)


def test_an_index_goes_with_its_children(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    images = [make_image(SIZES, f"push {name}", name) for name in ("amd64", "arm64")]
    index = make_index(images)
    layout = write_layout(tmp_path / "layout", images, index)
    answer = push(forms.tar_of(layout, tmp_path / "layout.tar"), f"{registry.host}/push/index:1")
    assert answer["digest"] == index.digest
    assert answer["manifests"] == 3
    assert_there(registry, "push/index:1", *images, index=index)


def test_plain_layers_are_compressed(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    """And always to the same bytes, whatever they are read from: one digest, sent once."""
    image = make_image((*SIZES, 5_000_000), "push plain")
    archive = write_docker_archive(tmp_path / "one.tar", image, "app:1")
    answer = push(archive, f"{registry.host}/push/plain:1")
    digest = assert_compressed(registry, "push/plain:1", image)
    assert answer["digest"] == digest
    assert counts(answer) == (5, 0, 0)
    assert json.loads(pulled(registry.host, "push/plain:1")[1])["mediaType"] == (
        forms.DOCKER_MANIFEST
    )
    saved = forms.write_tar(tmp_path / "two.tar", forms.saved({"app:1": image}))
    answer = Pusher(tmp_path)(saved, f"{registry.host}/push/plain:2")
    assert answer["digest"] == digest
    assert counts(answer) == (0, 5, 0)


def test_an_archive_of_docker_25(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    image, other = make_image(SIZES, "push 25"), make_image((50,), "push 25, other")
    folder = forms.write_saved_25(tmp_path / "folder", {"library/a:1": image, "b.org/b:2": other})
    archive = forms.tar_of(folder, tmp_path / "archive.tar")
    answer = push(f"{archive}#a:1", f"{registry.host}/push/since-25:1")
    assert answer["rewritten"]
    assert answer["digest"] == assert_compressed(registry, "push/since-25:1", image)
    assert json.loads(pulled(registry.host, "push/since-25:1")[1])["mediaType"] == (
        image.manifest.media_type
    )
    said = push.refused(archive, f"{registry.host}/push/since-25:2")
    assert "several images" in said
    assert "docker.io/library/a:1, b.org/b:2" in said


def test_a_rewritten_index(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    """What names an image follows it: the index, and what BuildKit says of it."""
    image = forms.plain(make_image(SIZES, "push rewritten"))
    index, others = forms.with_attestation(image)
    layout = write_layout(tmp_path / "layout", [image], index)
    forms.write_blobs(layout, others)
    answer = push(layout, f"{registry.host}/push/rewritten:1")
    digest, payload = pulled(registry.host, "push/rewritten:1")
    assert answer["digest"] == digest != index.digest
    child, about = json.loads(payload)["manifests"]
    assert about["digest"] == others[-1].digest
    assert about["annotations"]["vnd.docker.reference.digest"] == child["digest"]
    assert child["digest"] != image.manifest.digest
    answer = HTTPClient(registry.host).request(
        "GET", f"/v2/push/rewritten/manifests/{child['digest']}"
    )
    assert len(answer.body) == child["size"]


@pytest.mark.long
def test_a_car_file(push: Pusher, serve: Callable[..., Registry], tmp_path: Path) -> None:
    images = [
        make_image((*SIZES, 2_500_000), f"push car {name}", name) for name in ("amd64", "arm")
    ]
    index = make_index(images)
    one, two = serve(), serve()
    push(write_layout(tmp_path / "layout", images, index), f"{one.host}/push/car:1")
    program(one.settings, OPENREGISTRY, "car", "export", "push/car:1", tmp_path / "image.car")
    answer = push(tmp_path / "image.car", f"{two.host}/push/car:1")
    assert counts(answer) == (10, 0, 0)
    assert_there(two, "push/car:1", *images, index=index)


@pytest.mark.parametrize("form", ["oci", "oci-archive", "dir", "docker-archive"])
def test_what_skopeo_writes(push: Pusher, registry: Registry, tmp_path: Path, form: str) -> None:
    need("skopeo", "skopeo")
    image = make_image(SIZES, f"push {form}")
    layout = write_layout(tmp_path / "layout", [image])
    tag = ":a:1" if form == "docker-archive" else ""
    run("skopeo", "copy", f"oci:{layout}:latest", f"{form}:{tmp_path / 'source'}{tag}")
    name = f"push/{form}:1"
    answer = push(tmp_path / "source", f"{registry.host}/{name}")
    if form == "docker-archive":
        assert answer["digest"] == assert_compressed(registry, name, image)
    else:
        assert_there(registry, name, image)
    source = f"docker://{registry.host}/{name}"
    run("skopeo", "copy", "--src-tls-verify=false", source, f"oci:{tmp_path / 'back'}:1")
    assert layout_files(tmp_path / "back") == image.files


@pytest.mark.long
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "docker-dir", "engine"])
def test_what_podman_has(
    push: Pusher, registry: Registry, directory: Path, tmp_path: Path, form: str
) -> None:
    need("podman", "podman")
    image = make_image(SIZES, f"push podman {form}")
    home = Path(tempfile.mkdtemp(prefix="p-", dir=directory))
    storage = home / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/root"\nrunroot = "{home}/run"\n'
    )
    settings = {"CONTAINERS_STORAGE_CONF": str(storage), "TMPDIR": str(home)}
    podman = ("podman", "--cgroup-manager", "cgroupfs", "--events-backend", "none")
    layout = write_layout(tmp_path / "layout", [image])
    held = program(settings, *podman, "pull", "--quiet", f"oci:{layout}:latest")
    tag = "localhost/some/app:1"
    program(settings, *podman, "tag", held.split()[-1], tag)
    name = f"push/podman-{form}:1"
    if form == "engine":
        # Where docker is there too, it has no engine.
        settings["DOCKER_HOST"] = f"unix://{tmp_path}/none"
        answer = push(tag, f"{registry.host}/{name}", **settings)
    else:
        target = tmp_path / "saved"
        program(settings, *podman, "save", "--format", form, "--output", target, tag)
        answer = push(target, f"{registry.host}/{name}")
    assert answer["digest"] == assert_compressed(registry, name, image)
    program(settings, *podman, "rmi", "--all", "--force")
    program(settings, *podman, "pull", "--tls-verify=false", f"{registry.host}/{name}")
    program(settings, *podman, "rmi", "--all", "--force")


@pytest.mark.parametrize("road", ["archive", "engine"])
def test_what_docker_has(
    push: Pusher, registry: Registry, docker: DockerEngine, tmp_path: Path, road: str
) -> None:
    image = make_image(SIZES, f"push docker {road}")
    tag = f"push-{road}/app:1"
    docker.run("load", "--input", write_docker_archive(tmp_path / "load.tar", image, tag))
    engine = {"DOCKER_HOST": f"unix://{docker.socket}"}
    name = f"push/docker-{road}:1"
    try:
        if road == "archive":
            docker.run("save", "--output", tmp_path / "saved.tar", tag)
            answer = push(tmp_path / "saved.tar", f"{registry.host}/{name}")
        else:
            answer = push(tag, f"{registry.host}/{name}", **engine)
            again = push(f"docker-daemon:{tag}", f"{registry.host}/{name}", **engine)
            assert again["digest"] == answer["digest"]
            docker.run("tag", tag, "push-engine/app:latest")
            again = push("push-engine/app", f"{registry.host}/{name}", **engine)
            assert again["digest"] == answer["digest"]
            done = push.run("push-engine/none", f"{registry.host}/x", **engine)
            assert done.returncode == 1
            assert (
                "There is no file or folder push-engine/none, and: No engine gives" in done.stderr
            )
        docker.run("image", "prune", "--all", "--force")
        docker.run("pull", f"{registry.host}/{name}")
        shown = docker.run("image", "inspect", "--format", "{{.Id}}", f"{registry.host}/{name}")
        assert shown.stdout.strip() == image.config.digest
    finally:
        docker.run("image", "prune", "--all", "--force")
    assert answer["digest"] == assert_compressed(registry, name, image)


# What is not sent.


def test_again_nothing_is_sent(push: Pusher, witness: Witness, tmp_path: Path) -> None:
    image = make_image(SIZES, "push again")
    layout = write_layout(tmp_path / "layout", [image])
    push(layout, f"{witness.host}/push/again:1")
    witness.requests.clear()
    answer = push(layout, f"{witness.host}/push/again:2")
    assert counts(answer) == (0, 4, 0)
    assert len(witness.asked("HEAD", "/blobs/")) == 4
    assert witness.asked("POST") == []


def test_manifests_come_after_blobs_and_the_tag_last(
    push: Pusher, witness: Witness, tmp_path: Path
) -> None:
    images = [make_image((100, 200_000), f"push order {name}", name) for name in ("amd64", "arm")]
    index = make_index(images)
    push(write_layout(tmp_path / "layout", images, index), f"{witness.host}/push/order:1")
    puts = witness.asked("PUT")
    assert all("/blobs/" in path for path in puts[:-3])
    assert len(puts) == 6 + 3
    assert puts[-3:] == [
        *(f"/v2/push/order/manifests/{image.manifest.digest}" for image in images),
        "/v2/push/order/manifests/1",
    ]


def test_known_layers_are_not_compressed_again(
    push: Pusher, witness: Witness, tmp_path: Path
) -> None:
    """Where the registry has them, nothing of the archive's layers is read."""
    image = make_image((*SIZES, 3_000_000), "push known")
    archive = write_docker_archive(tmp_path / "archive.tar", image, "app:1")
    first = push(archive, f"{witness.host}/push/known:1")
    damaged = bytearray(archive.read_bytes())
    damaged[-3_000_000] ^= 1
    archive.write_bytes(damaged)
    again = push(archive, f"{witness.host}/push/known-too:1")
    assert again["digest"] == first["digest"]
    assert counts(again) == (0, 0, 5)
    (push.home / "cache" / "openregistry" / "layers.jsonl").unlink()
    assert "is damaged" in push.refused(archive, f"{witness.host}/push/known:2")


def test_blobs_of_other_repositories_are_mounted(
    push: Pusher, witness: Witness, tmp_path: Path
) -> None:
    """Whoever pushed them there: this machine knows of none."""
    image = make_image(SIZES, "push mount")
    for content in image.layers:
        push_blob(HTTPClient(witness.host), "push/elsewhere", content.data)
    layout = write_layout(tmp_path / "layout", [image])
    witness.requests.clear()
    answer = push(layout, f"{witness.host}/push/mount:1")
    assert counts(answer) == (1, 0, 3)
    assert {each["digest"] for each in answer["mounted"]} == {each.digest for each in image.layers}
    # The config could not be: what was begun instead is given up.
    assert len(witness.asked("DELETE", "/blobs/uploads/")) == 1


# Accounts.


@pytest.fixture(scope="module")
def guarded(directory: Path, postgres: Postgres) -> Iterator[Registry]:
    """A registry with accounts."""
    settings = {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
    }
    server = Registry(Path(tempfile.mkdtemp(prefix="guarded-", dir=directory)), settings)
    with stopping(server):
        server.start()
        for name in ("ada", "bob"):
            add_user(server.settings, name, PASSWORD)
        yield server


def test_accounts(push: Pusher, guarded: Registry, tmp_path: Path) -> None:
    image = make_image(SIZES, "push accounts")
    layout = write_layout(tmp_path / "layout", [image])
    host = guarded.host
    said = push.refused(layout, f"{host}/ada/app:1")
    assert "nobody is logged in there" in said
    assert said.endswith(f"Try: docker login {host}")
    push.log_in(host, "bob", PASSWORD)
    said = push.refused(layout, f"{host}/ada/app:1")
    assert "This token is not for push in ada/app" in said
    assert "this account may not push there" in said
    push.log_in(host, "ada", "wrong")
    assert f"docker login {host}" in push.refused(layout, f"{host}/ada/app:1")

    push.log_in(host, "ada", PASSWORD)
    assert counts(push(layout, f"{host}/ada/app:1")) == (4, 0, 0)
    # The token is for the one repository; it is widened for those to mount from.
    assert counts(push(layout, f"{host}/ada/second:1")) == (0, 0, 4)
    # What is another's own is not mounted.
    push.log_in(host, "bob", PASSWORD)
    assert counts(push(layout, f"{host}/bob/third:1")) == (4, 0, 0)


def test_a_quota_is_told_with_its_figures(push: Pusher, guarded: Registry, tmp_path: Path) -> None:
    push.log_in(guarded.host, "bob", PASSWORD)
    image = make_image((100_000, 200_000), "push quota")
    layout = write_layout(tmp_path / "layout", [image])
    command(guarded.settings, "quota", "set", "--account", "bob", "--bytes", "150000")
    try:
        said = push.refused(layout, f"{guarded.host}/bob/quota:1")
    finally:
        command(guarded.settings, "quota", "unset", "--account", "bob")
    assert "150000 bytes" in said
    assert "docker login" not in said
    assert counts(push(layout, f"{guarded.host}/bob/quota:1"))[0] >= 1


def test_an_immutable_tag(push: Pusher, guarded: Registry, tmp_path: Path) -> None:
    push.log_in(guarded.host, "bob", PASSWORD)
    images = [make_image((100,), f"push immutable {number}") for number in range(2)]
    layouts = [write_layout(tmp_path / str(number), [image]) for number, image in enumerate(images)]
    name = f"{guarded.host}/bob/immutable:v1"
    push(layouts[0], name)
    command(guarded.settings, "immutable-tags", "add", "--repository", "bob/immutable", "v*")
    push(layouts[0], name)
    said = push.refused(layouts[1], name)
    assert "The tag v1 is immutable in bob/immutable" in said
    assert "docker login" not in said


def test_names_that_cannot_be(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [make_image((10,), "push names")])
    digest = f"sha256:{'0' * 64}"
    for name, words in {
        "app:1": "does not say which registry",
        f"{registry.host}/App:1": "is no repository",
        f"{registry.host}/app@{digest}": "A digest cannot be chosen",
    }.items():
        assert words in push.refused(layout, name)
    assert "There is no file or folder" in push.refused(tmp_path / "none", f"{registry.host}/a:1")


# What is damaged, interrupted, or large.


def test_what_is_damaged_is_not_pushed(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    for number in range(2):
        image = make_image((1000, 6_000_000), f"push damaged {number}")
        layout = write_layout(tmp_path / str(number), [image])
        layer = image.layers[number]
        data = bytearray(layer.data)
        data[-1] ^= 1
        (layout / "blobs" / "sha256" / layer.digest[7:]).write_bytes(data)
        said = push.refused(layout, f"{registry.host}/push/damaged:1")
        assert f"The bytes of {layer.digest} are not those of its digest" in said
    path = f"/v2/push/damaged/blobs/{layer.digest}"
    assert HTTPClient(registry.host).request("HEAD", path).status == 404


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_was_interrupted_goes_on(
    push: Pusher, witness: Witness, tmp_path: Path, how: signal.Signals
) -> None:
    """Layers that came are not sent again, nor compressed."""
    image = make_image((*(400_000 + number for number in range(6)), 20_000_000), f"push {how}")
    archive = write_docker_archive(tmp_path / "archive.tar", image, "app:1")
    name = f"{witness.host}/push/interrupted-{how}:1"
    process = push.start(archive, name, TMPDIR=str(tmp_path))
    try:
        wait_until(lambda: len(witness.asked("PUT", "/blobs/")) >= 4, 60, lambda: "some blobs")
        process.send_signal(how)
        began = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - began < 10
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert witness.asked("PUT", "/manifests/") == []
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["archive.tar"]
    witness.requests.clear()
    answer = push(archive, name)
    sent, skipped, _ = counts(answer)
    assert skipped >= 2
    assert sent + skipped == 8
    assert_compressed(
        Registry(tmp_path / "r", {"OPENREGISTRY_LISTEN": witness.target}),
        f"push/interrupted-{how}:1",
        image,
    )


@pytest.mark.long
def test_a_large_layer_goes_on_in_the_middle(
    push: Pusher, serve: Callable[..., Registry], s3_server: S3, tmp_path: Path
) -> None:
    """Where the registry takes direct uploads, of what is compressed here too."""
    with closing(FaultyProxy(s3_server.endpoint)) as storage:
        registry = serve(
            OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(public_endpoint=storage.endpoint),
            **s3_server.environment(),
        )
        image = make_image((100_000_000,), "push direct")
        parts = -(-len(image.layers[0].data) // (8 << 20))
        archive = write_docker_archive(tmp_path / "archive.tar", image, "app:1")
        process = push.start(archive, f"{registry.host}/push/direct:1")
        try:
            wait_until(lambda: storage.count("UploadPart") >= 7, 60, lambda: "some parts")
            storage.always["UploadPart"] = Fault(hang=True)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 130
        storage.always.clear()
        before = storage.count("UploadPart")
        assert 7 <= before < parts
        assert counts(push(archive, f"{registry.host}/push/direct:1")) == (1, 1, 0)
        assert storage.count("UploadPart") <= parts + 4  # those that were cut off
        assert_compressed(registry, "push/direct:1", image)


def test_progress_is_told_on_standard_error(
    push: Pusher, registry: Registry, tmp_path: Path
) -> None:
    image = make_image((1000,), "push progress")
    layout = write_layout(tmp_path / "layout", [image])
    done = push.run(layout, f"{registry.host}/push/progress:1")
    name, counted = done.stdout.splitlines()
    assert name == f"{registry.host}/push/progress:1: {image.manifest.digest}"
    assert counted.startswith("2 blobs sent (")
    assert image.layers[0].digest[7:19] in done.stderr


@pytest.mark.long
def test_memory_and_disk_are_bounded(push: Pusher, registry: Registry, tmp_path: Path) -> None:
    """Five layers of 100 MB, of which half compresses, take less than 200 MB of memory, and no file
    that is seen."""
    members = {}
    for number in range(5):
        data = random.Random(number).randbytes(50_000_000) + bytes(50_000_000)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            member = tarfile.TarInfo("data")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        members[f"{number}.tar"] = layer.getvalue()
    diff_ids = [sha256(layer) for layer in members.values()]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    entry = {"Config": "config", "RepoTags": ["a:1"], "Layers": list(members)}
    members |= {"config": config, "manifest.json": json.dumps([entry]).encode()}
    archive = forms.write_tar(tmp_path / "archive.tar", members)
    del members
    process = push.start(archive, f"{registry.host}/push/memory:1", TMPDIR=str(tmp_path))
    most = 0
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.communicate()))
    reader.start()
    while reader.is_alive():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                most = max(most, int(line.split()[1]) << 10)
        assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["archive.tar"]
        time.sleep(0.05)
    reader.join()
    assert process.returncode == 0, output
    assert 0 < most < 200_000_000


# Pieces of it.


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_compression(size: int, tmp_path: Path) -> None:
    """What gzip reads, and the same however the bytes come and however many threads there are."""
    data = (random.Random(size).randbytes(700) * (size // 700 + 1))[:size]
    found = set()
    for threads, piece in ((1, 7001), (3, 1 << 20), (8, 1 << 22)):
        with ThreadPoolExecutor(threads) as pool, (tmp_path / "layer.gz").open("wb") as file:
            layer = compress(cut(data, piece), file, pool)
        body = (tmp_path / "layer.gz").read_bytes()
        assert layer == Descriptor(sha256(body), size=len(body))
        assert gzip.decompress(body) == data
        assert zlib.decompressobj(31).decompress(body) == data, "one member"
        found.add(body)
    assert len(found) == 1
    if size >= 1000:
        assert len(found.pop()) < size
        done = subprocess.run(["gzip", "-t", tmp_path / "layer.gz"], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_blocks_know_what_was_before_them(tmp_path: Path) -> None:
    """Apart, each block would compress as if nothing had come before."""
    data = random.Random(1).randbytes(30_000) * 350
    with ThreadPoolExecutor(2) as pool, (tmp_path / "layer.gz").open("wb") as file:
        size = compress([data], file, pool).size
    alone = sum(len(zlib.compress(block, 6)) for block in cut(data, 1 << 20))
    assert size is not None
    assert size < alone - 9 * 25_000


def test_what_fails_in_compression_is_told(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(3 << 20)
        raise RemoteError("Given up.")

    with (
        ThreadPoolExecutor(2) as pool,
        (tmp_path / "layer.gz").open("wb") as file,
        pytest.raises(RemoteError),
    ):
        compress(pieces(), file, pool)


def test_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "some" / "layers.jsonl"
    plain, layer = f"sha256:{'1' * 64}", Descriptor(f"sha256:{'2' * 64}", size=5)
    ledger = Ledger(path)
    assert ledger.find(plain) is None
    for _ in range(3):
        ledger.add(plain, layer)
    assert Ledger(path).find(plain) == layer
    assert len(path.read_text().splitlines()) == 1
    newer = Descriptor(f"sha256:{'3' * 64}", size=6)
    with path.open("a") as file:
        file.write('broken\n{"plain": 1}\n[]\n{"plain": "x", "digest": "y", "size": 1}\n')
    Ledger(path).add(plain, newer)
    assert Ledger(path).find(plain) == newer
    assert Ledger(path).find("x") is None
    path.write_bytes(b"\xff\xfe\n")
    assert Ledger(path).find(plain) is None
    (tmp_path / "file").touch()
    Ledger(tmp_path / "file" / "layers.jsonl").add(plain, layer)  # cannot be written


def test_the_ledger_forgets(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    lines = [
        json.dumps({"plain": f"sha256:{n:064}", "digest": f"sha256:{n:064}", "size": n})
        for n in range(20_001)
    ]
    path.write_text("\n".join([*lines, ""]))
    Ledger(path)
    assert path.read_text().splitlines() == lines[-10_000:]


def test_room_for_temporary_files() -> None:
    assert DISK == 8 << 30, "as --help tells"
    disk = _Disk(10)
    held: list[str] = []
    released = threading.Event()

    def take(name: str, size: int) -> None:
        with disk.lent(size):
            held.append(name)
            released.wait(10)

    threads = []
    for name, size in (("a", 6), ("b", 4), ("c", 1)):
        threads.append(threading.Thread(target=take, args=(name, size)))
        threads[-1].start()
        time.sleep(0.05)
    assert held == ["a", "b"]
    released.set()
    for thread in threads:
        thread.join()
    assert held == ["a", "b", "c"]
    with disk.lent(11):
        held.append("one that is larger than all")
    disk.close()
    with pytest.raises(RemoteError), disk.lent(1):
        pass
