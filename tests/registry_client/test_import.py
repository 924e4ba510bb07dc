"""`openregistry import`: what a registry has, or has left in its storage, is in another one after,
byte for byte; what is there is not sent, and what cannot be had is told."""

import base64
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.accounts import add_user
from tests.bench.servers import DockerRegistry
from tests.client import HTTPClient, push_blob, push_image, push_manifest, sha256
from tests.conftest import need
from tests.hosts.lambda_registry import PASSWORD as LAMBDA_PASSWORD
from tests.hosts.lambda_registry import USER, LambdaRegistry, Redirected
from tests.images import Content, Image, make_image, make_index, write_layout
from tests.registry_client.conftest import Start
from tests.registry_client.script import Answer, Asked
from tests.servers import OPENREGISTRY, S3, Registry, stopping, wait_until
from tests.witness import Witness

ONE = make_image(seed="imported", sizes=(1000, 300_000))
TWO = make_image(seed="imported too", sizes=(2000,), architecture="arm64")
PASSWORD = "a password: ü"


@dataclass
class Person:
    """Who imports, from a home of their own."""

    home: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name},
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home),
            "DOCKER_CONFIG": str(self.home),
        }

    def log_in(self, host: str, user: str, password: str) -> None:
        """What `docker login` does."""
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        (self.home / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))

    def run(
        self, source: str | Path, target: str, *options: str, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [OPENREGISTRY, "import", str(source), target, "--json", *options],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def __call__(self, source: str | Path, target: str, *options: str, **environment: str) -> Any:
        """Import all of it; gives the report."""
        done = self.run(source, target, *options, **environment)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["failures"] == []
        return report

    def in_part(self, source: str | Path, target: str, *options: str) -> tuple[Any, dict[str, str]]:
        """Import what can be; gives the report, and why the rest was not."""
        done = self.run(source, target, *options)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        report = json.loads(done.stdout)
        return report, {each["image"]: each["reason"] for each in report["failures"]}

    def refused(self, source: str | Path, target: str, *options: str) -> str:
        """Import in vain; gives the line that says why."""
        done = self.run(source, target, *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        line: str = done.stderr.splitlines()[-1]
        return line


@pytest.fixture
def bring(tmp_path: Path) -> Person:
    return Person(tmp_path / "home")


@pytest.fixture
def old(tmp_path: Path) -> Iterator[DockerRegistry]:
    """Debian's docker-registry."""
    need("docker-registry", "docker-registry")
    server = DockerRegistry(tmp_path / "old", None)
    with stopping(server):
        yield server.start()


@pytest.fixture
def prefix(repository: str) -> str:
    """What repositories begin with at the target."""
    return repository


def fill(host: str) -> Content:
    """Two repositories with common layers, and an index; gives the index."""
    client = HTTPClient(host)
    push_image(client, "apps/one", ONE, "1.0")
    push_image(client, "apps/one", TWO, "arm")
    index = make_index([ONE, TWO])
    assert push_manifest(client, "apps/one", index, "latest").status == 201
    assert push_manifest(client, "apps/one", ONE.manifest, "stable").status == 201
    push_image(client, "deep/er/two", ONE, "1.0")
    return index


def same(host: str, repository: str, reference: str, manifest: Content) -> None:
    """A manifest is there, and all blobs that it names, byte for byte."""
    client = HTTPClient(host)
    answer = client.request(
        "GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": "*/*"}
    )
    assert (answer.status, answer.body) == (200, manifest.data), answer
    assert answer.headers["Content-Type"] == manifest.media_type
    named = json.loads(manifest.data)
    for each in [*named.get("layers", []), *filter(None, [named.get("config")])]:
        blob = client.request("GET", f"/v2/{repository}/blobs/{each['digest']}")
        assert blob.status == 200
        assert sha256(blob.body) == each["digest"]


def all_there(host: str, prefix: str, index: Content) -> None:
    same(host, f"{prefix}/apps/one", "1.0", ONE.manifest)
    same(host, f"{prefix}/apps/one", "stable", ONE.manifest)
    same(host, f"{prefix}/apps/one", "arm", TWO.manifest)
    same(host, f"{prefix}/apps/one", "latest", index)
    same(host, f"{prefix}/deep/er/two", "1.0", ONE.manifest)


def changes(witness: Witness) -> list[tuple[str, str]]:
    return [each for each in witness.requests if each[0] not in ("GET", "HEAD")]


def test_a_registry(old: DockerRegistry, witness: Witness, bring: Person, prefix: str) -> None:
    index = fill(old.host)
    target = f"http://{witness.host}/{prefix}"
    report = bring(f"http://{old.host}/", target)
    all_there(witness.target, prefix, index)
    blobs = {blob.digest: blob for image in (ONE, TWO) for blob in image.blobs}
    assert (report["repositories"], report["images"], report["there"]) == (2, 5, 0)
    assert report["sent"] == len(blobs)  # each once
    assert report["sent_size"] == sum(len(blob.data) for blob in blobs.values())
    assert report["mounted"] == len(ONE.blobs)
    assert witness.relayed < 400_000

    witness.requests.clear()
    report = bring(f"http://{old.host}", target)
    assert changes(witness) == []  # nothing is brought twice
    assert (report["images"], report["there"], report["sent"], report["manifests"]) == (0, 5, 0, 0)

    three = make_image(seed=3, sizes=(3000,))
    push_image(HTTPClient(old.host), "apps/one", three, "stable")
    report = bring(f"http://{old.host}", target)
    assert (report["images"], report["there"], report["sent"]) == (1, 4, 2)
    same(witness.target, f"{prefix}/apps/one", "stable", three.manifest)
    same(witness.target, f"{prefix}/apps/one", "1.0", ONE.manifest)


@pytest.mark.long
def test_its_storage(old: DockerRegistry, registry: Registry, bring: Person, prefix: str) -> None:
    """No registry runs on it. What has no tag is brought if that is asked for."""
    index = fill(old.host)
    client = HTTPClient(old.host)
    three = make_image(seed=3, sizes=(3000,))
    push_image(client, "apps/one", three, "stable")  # a tag that has moved
    push_image(client, "apps/one", make_image(seed=4), "gone")
    gone = make_image(seed=4).manifest.digest
    assert client.request("DELETE", f"/v2/apps/one/manifests/{gone}").status == 202
    old.stop()
    storage = old.directory / "data"
    report = bring(storage, f"{registry.host}/{prefix}")
    assert (report["repositories"], report["images"]) == (2, 5)
    same(registry.host, f"{prefix}/apps/one", "stable", three.manifest)
    same(registry.host, f"{prefix}/apps/one", "latest", index)
    same(registry.host, f"{prefix}/deep/er/two", "1.0", ONE.manifest)
    below = storage / "docker" / "registry" / "v2"
    assert bring(below.as_uri(), f"{registry.host}/{prefix}")["there"] == 5

    lone = make_image(seed=5)
    old.start()
    client = HTTPClient(old.host)
    push_image(client, "apps/one", lone, "once")
    push_image(client, "apps/one", three, "once")
    report = bring(storage, f"{registry.host}/{prefix}")
    path = f"/v2/{prefix}/apps/one/manifests/{lone.manifest.digest}"
    assert HTTPClient(registry.host).request("HEAD", path).status == 404
    report = bring(storage, f"{registry.host}/{prefix}", "--untagged", "--repository", "apps/*")
    assert (report["repositories"], report["images"]) == (1, 1)
    same(registry.host, f"{prefix}/apps/one", lone.manifest.digest, lone.manifest)


@pytest.mark.long
def test_its_storage_in_a_bucket(
    tmp_path: Path,
    s3_server: S3,
    registry: Registry,
    bring: Person,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("docker-registry", "docker-registry")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # with which it does not start
    server = DockerRegistry(tmp_path / "old", s3_server)
    with stopping(server):
        server.start()
        index = fill(server.host)
    source = f"s3://{s3_server.bucket}/peer?endpoint={s3_server.endpoint}&path_style=true"
    report = bring(source, f"{registry.host}/{prefix}", **s3_server.environment())
    all_there(registry.host, prefix, index)
    assert report["images"] == 5
    again = bring(source, f"{registry.host}/{prefix}", **s3_server.environment())
    assert (again["there"], again["sent"]) == (5, 0)


def test_what_refers_to_images(
    registry: Registry, serve: Callable[..., Registry], bring: Person, prefix: str
) -> None:
    """Signatures and attestations, of the images in an index too; those that came later as well."""
    source = serve()
    client = HTTPClient(source.host)
    push_image(client, "signed", ONE)
    push_image(client, "signed", TWO)
    index = make_index([ONE, TWO])
    push_manifest(client, "signed", index, "latest")
    of_index, of_child = referrer(client, "signed", index), referrer(client, "signed", ONE.manifest)
    of_referrer = referrer(client, "signed", of_index)
    report = bring(source.url, f"{registry.host}/{prefix}")
    assert report["manifests"] == 6
    for each in (of_index, of_child, of_referrer):
        same(registry.host, f"{prefix}/signed", each.digest, each)
    later = [referrer(client, "signed", each) for each in (TWO.manifest, of_referrer)]
    report = bring(source.url, f"{registry.host}/{prefix}")
    assert (report["there"], report["manifests"]) == (1, 2)
    for each in later:
        same(registry.host, f"{prefix}/signed", each.digest, each)


@pytest.mark.long
def test_referrers_in_storage(
    old: DockerRegistry, registry: Registry, bring: Person, prefix: str
) -> None:
    """docker-registry has no API for them, and keeps them."""
    client = HTTPClient(old.host)
    push_image(client, "signed", ONE, "1")
    signature = referrer(client, "signed", ONE.manifest)
    old.stop()
    bring(old.directory / "data", f"{registry.host}/{prefix}")
    same(registry.host, f"{prefix}/signed", signature.digest, signature)


def referrer(client: HTTPClient, repository: str, subject: Content) -> Content:
    """A manifest about another one."""
    config = b"{}"
    push_blob(client, repository, config)
    kind = "application/vnd.oci.image.manifest.v1+json"
    value = {
        "schemaVersion": 2,
        "mediaType": kind,
        "artifactType": "application/vnd.example.signature",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": sha256(config),
            "size": len(config),
        },
        "layers": [],
        "subject": subject.descriptor,
        "annotations": {"of": subject.digest},
    }
    manifest = Content(kind, json.dumps(value).encode())
    assert push_manifest(client, repository, manifest).status == 201
    return manifest


@pytest.mark.long
def test_images_of_skopeo(
    old: DockerRegistry, registry: Registry, bring: Person, prefix: str, tmp_path: Path
) -> None:
    """Docker's schema 2, as skopeo pushes it; and back by skopeo."""
    need("skopeo", "skopeo")
    layout = write_layout(tmp_path / "layout", [ONE], tag="1")

    def copy(source: str, target: str, *options: str) -> None:
        done = subprocess.run(
            ["skopeo", "copy", "--insecure-policy", *options, source, target],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    there = f"docker://{old.host}/of/skopeo:1"
    copy(f"oci:{layout}:1", there, "--dest-tls-verify=false", "--format", "v2s2")
    bring(f"http://{old.host}", f"{registry.host}/{prefix}")
    here = f"docker://{registry.host}/{prefix}/of/skopeo:1"
    copy(here, f"dir:{tmp_path / 'back'}", "--src-tls-verify=false")
    reply = HTTPClient(old.host).request(
        "GET",
        "/v2/of/skopeo/manifests/1",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    assert (tmp_path / "back" / "manifest.json").read_bytes() == reply.body


@pytest.mark.long
def test_to_functions(
    old: DockerRegistry, lambda_registry: LambdaRegistry, bring: Person, prefix: str
) -> None:
    """A layer is larger than what functions take."""
    image = make_image(sizes=(1000, 20 << 20), seed=prefix)
    push_image(HTTPClient(old.host), "large", image, "1")
    bring.log_in(lambda_registry.host, USER, LAMBDA_PASSWORD)
    target = f"{lambda_registry.host}/{USER}/{prefix}"
    report = bring(f"http://{old.host}", target)
    assert (report["images"], report["sent"]) == (1, 3)
    again = bring(f"http://{old.host}", target)
    assert (again["there"], again["sent"], again["manifests"]) == (1, 0, 0)
    client = Redirected(lambda_registry.host)
    path = f"/v2/{USER}/{prefix}/large"
    assert client.request("GET", f"{path}/manifests/1").body == image.manifest.data
    for blob in image.blobs:
        assert client.request("GET", f"{path}/blobs/{blob.digest}").body == blob.data


@pytest.mark.long
def test_to_another_registry(
    old: DockerRegistry, serve: Callable[..., Registry], bring: Person
) -> None:
    """docker-registry mounts nothing without being told from where."""
    source = serve()
    index = fill(source.host)
    report = bring(source.url, f"{old.host}/copies")
    assert (report["images"], report["mounted"]) == (5, 0)
    assert bring(source.url, f"{old.host}/copies")["there"] == 5
    for repository, tag, manifest in (
        ("apps/one", "1.0", ONE.manifest),
        ("apps/one", "latest", index),
        ("deep/er/two", "1.0", ONE.manifest),
    ):
        path = f"/v2/copies/{repository}/manifests/{tag}"
        answer = HTTPClient(old.host).request("GET", path, headers={"Accept": manifest.media_type})
        assert answer.body == manifest.data


# Interruptions


def registry_of(
    images: dict[str, Image], give: Callable[[Asked, bytes], Answer]
) -> Callable[[Asked], Answer]:
    """A registry with these tags in the repository ``some``. ``give`` answers for a blob."""
    blobs = {blob.digest: blob.data for image in images.values() for blob in image.blobs}

    def answer(asked: Asked) -> Answer:
        *_, kind, name = asked.path.split("/")
        if kind == "blobs":
            return give(asked, blobs[name])
        if kind == "manifests":
            manifest = images[name].manifest
            return 200, {"Content-Type": manifest.media_type}, manifest.data
        if name == "_catalog":
            return 200, {}, b'{"repositories": ["some"]}'
        if name == "list":
            return 200, {}, json.dumps({"tags": list(images)}).encode()
        return 404, {}, b""

    return answer


def test_killed_and_gone_on_with(
    script: Start, registry: Registry, bring: Person, prefix: str
) -> None:
    """kill -9 in the middle: no blob that is there is sent again, and no tag is there too early."""
    images = {f"t{n}": make_image((3000, 4000, 5000), f"{prefix}/{n}") for n in range(4)}
    blobs = [blob.digest for image in images.values() for blob in image.blobs]
    served: list[str] = []
    stuck, killed = threading.Event(), threading.Event()

    def give(asked: Asked, data: bytes) -> Answer:
        if len(served) == 6 and not killed.is_set():
            stuck.set()
            killed.wait(60)
        served.append(asked.path)
        return 200, {}, data

    source = script(registry_of(images, give)).url
    process = subprocess.Popen(
        [OPENREGISTRY, "import", source, f"{registry.host}/{prefix}"],
        env=bring.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = HTTPClient(registry.host)

    def there(path: str) -> bool:
        return client.request("HEAD", f"/v2/{prefix}/some/{path}").status == 200

    def arrived() -> int:
        return sum(there(f"blobs/{digest}") for digest in blobs)

    wait_until(lambda: stuck.is_set() and arrived() >= 3, 60, lambda: "blobs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for tag in filter(lambda tag: there(f"manifests/{tag}"), images):
        same(registry.host, f"{prefix}/some", tag, images[tag].manifest)
    kept = arrived()
    killed.set()
    report = bring(source, f"{registry.host}/{prefix}")
    assert 3 <= kept < len(blobs)
    assert report["sent"] == len(blobs) - kept
    for tag, image in images.items():
        same(registry.host, f"{prefix}/some", tag, image.manifest)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_source_that_breaks_off(
    script: Start, registry: Registry, bring: Person, prefix: str, *, ranges: bool
) -> None:
    """Blobs go on where they broke, whether or not the source has ranges."""
    asks: Counter[str] = Counter()
    image = make_image(sizes=(1000, 300_000), seed=prefix)  # which nobody has pushed

    def give(asked: Asked, data: bytes) -> Answer:
        offset, status, headers = 0, 200, {}
        if ranges and (wanted := asked.headers.get("Range")):
            offset = int(wanted.removeprefix("bytes=").rstrip("-"))
            status, headers = 206, {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"}
        asks[asked.path] += 1
        return status, headers, data[offset : len(data) * min(asks[asked.path], 3) // 3]

    bring(script(registry_of({"1": image}, give)).url, f"{registry.host}/{prefix}")
    same(registry.host, f"{prefix}/some", "1", image.manifest)
    assert set(asks.values()) == {3}


@pytest.mark.long
def test_a_source_that_always_breaks_off(
    script: Start, registry: Registry, bring: Person, prefix: str
) -> None:
    """It is told, and ends nothing else."""
    images = {"1": make_image(sizes=(1000,), seed=prefix), "2": TWO}
    broken = [blob.data for blob in images["1"].blobs]

    def give(asked: Asked, data: bytes) -> Answer:
        return 200, {}, data[:10] if data in broken else data

    source = script(registry_of(images, give)).url
    report, why = bring.in_part(source, f"{registry.host}/{prefix}")
    assert report["images"] == 1
    assert why.keys() == {"some:1"}
    assert "too early" in why["some:1"]


# What cannot be imported


def test_damaged_storage(
    old: DockerRegistry, registry: Registry, bring: Person, prefix: str
) -> None:
    """Each damage is told by the image that has it; the others come."""
    fill(old.host)
    client = HTTPClient(old.host)
    broken = {
        name: make_image(seed=name, sizes=(5000,)) for name in ("lost", "other", "cut", "short")
    }
    for name, image in broken.items():
        push_image(client, "broken", image, name)
    below = old.directory / "data" / "docker" / "registry" / "v2"

    def data(digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        return below / "blobs" / "sha256" / value[:2] / value / "data"

    data(broken["lost"].layers[0].digest).unlink()
    layer = broken["other"].layers[0]
    data(layer.digest).write_bytes(layer.data[:-1] + b"!")
    data(broken["cut"].layers[0].digest).write_bytes(b"cut")
    data(broken["short"].manifest.digest).write_bytes(b"{}")
    push_image(client, "broken", make_image(seed="deleted"), "deleted")
    old.stop()
    value = make_image(seed="deleted").manifest.digest.removeprefix("sha256:")
    revisions = below / "repositories" / "broken" / "_manifests" / "revisions" / "sha256"
    (revisions / value / "link").unlink()
    old_manifest(below, "broken", "schema1")
    report, why = bring.in_part(old.directory / "data", f"{registry.host}/{prefix}")
    assert (report["repositories"], report["images"]) == (3, 5)
    assert why.keys() == {f"broken:{name}" for name in (*broken, "schema1", "deleted")}
    assert "has no manifest" in why["broken:deleted"]
    assert "are not there" in why["broken:lost"]
    assert "other ones" in why["broken:other"]
    assert "has 3 bytes" in why["broken:cut"]
    assert "damaged" in why["broken:short"]
    assert "schema 1 manifests are not kept" in why["broken:schema1"]
    client = HTTPClient(registry.host)
    for name in (*broken, "schema1"):
        path = f"/v2/{prefix}/broken/manifests/{name}"
        assert client.request("HEAD", path).status == 404


def old_manifest(below: Path, repository: str, tag: str) -> None:
    """A manifest of Docker's schema 1, as registries kept them until 2017."""
    payload = json.dumps({"schemaVersion": 1, "name": repository, "fsLayers": []}).encode()
    digest = sha256(payload)
    value = digest.removeprefix("sha256:")
    manifests = below / "repositories" / repository / "_manifests"
    for path, text in (
        (manifests / "tags" / tag / "current" / "link", digest.encode()),
        (manifests / "revisions" / "sha256" / value / "link", digest.encode()),
        (below / "blobs" / "sha256" / value[:2] / value / "data", payload),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(text)


@pytest.mark.long
def test_names(old: DockerRegistry, registry: Registry, bring: Person, prefix: str) -> None:
    """Some repositories, by patterns, by names, and out of a file."""
    fill(old.host)
    source, target = f"http://{old.host}", f"{registry.host}/{prefix}"
    assert bring(source, target, "--repository", "deep/*")["images"] == 1
    report, why = bring.in_part(
        source, target, "--repository", "deep/er/two", "--repository", "deep/er/too"
    )
    assert report["there"] == 1
    assert "no image of that name" in why["deep/er/too"]
    assert "deeper/*" in bring.refused(source, target, "--repository", "deeper/*")
    file = bring.home / "names"
    file.write_text("apps/one\n\ndeep/er/two\n")
    assert bring(source, target, "--names", str(file))["images"] == 4
    file.write_text("../../etc\n\x1b[2Jcleared\n")
    done = bring.run(source, target, "--names", str(file))
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[:2] == [
        f"not imported: {name}: This is no name that a repository may have."
        for name in ("../../etc", "?[2Jcleared")
    ]


def test_a_closed_catalog(script: Start, registry: Registry, bring: Person, prefix: str) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/v2/_catalog":
            return 403, {}, b'{"errors": [{"code": "DENIED", "message": "not you"}]}'
        return 404, {}, b""

    line = bring.refused(script(answer).url, f"{registry.host}/{prefix}")
    assert "DENIED: not you" in line
    assert "--names" in line


@pytest.mark.long
def test_a_source_that_goes_down(
    script: Start, registry: Registry, bring: Person, prefix: str
) -> None:
    """It ends the import: what would come after would fail too."""

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v2/_catalog":
            return 200, {}, b'{"repositories": ["some", "other"]}'
        if asked.path == "/v2/some/tags/list":
            return 200, {}, b'{"tags": ["1", "2", "3"]}'
        return 0, {}, b""

    line = bring.refused(script(answer).url, f"{registry.host}/{prefix}")
    assert "run it again, and it goes on" in line


def test_what_is_no_source(registry: Registry, bring: Person, tmp_path: Path) -> None:
    assert "There is no folder" in bring.refused(tmp_path / "x", registry.host)
    assert "like https://HOST" in bring.refused("old.example.org", registry.host)
    assert "s3://b must name a bucket" in bring.refused("s3://b", registry.host)
    (tmp_path / "empty").mkdir()
    assert "is not the storage" in bring.refused(tmp_path / "empty", registry.host)
    assert "no name" in bring.refused("http://127.0.0.1:1", f"{registry.host}/UPPER")


@pytest.mark.long
def test_accounts(old: DockerRegistry, serve: Callable[..., Registry], bring: Person) -> None:
    """Repositories go into a namespace of one's own; another one's are refused and told."""
    fill(old.host)
    target = serve(OPENREGISTRY_ACCESS="accounts")
    add_user(target.settings, "ada", PASSWORD)
    bring.log_in(target.host, "ada", PASSWORD)
    report = bring(f"http://{old.host}", f"{target.host}/ada")
    assert (report["images"], report["mounted"]) == (5, 3)
    again = bring(f"http://{old.host}", f"{target.host}/ada")
    assert (again["there"], again["manifests"], again["sent"]) == (5, 0, 0)
    assert "cannot be reached" in bring.refused("http://127.0.0.1:1", f"{target.host}/ada")
    _, why = bring.in_part(f"http://{old.host}", target.host)
    assert len(why) == 5
    assert all("answered 40" in reason for reason in why.values())
    path = "/v2/ada/apps/one/manifests/latest"
    assert HTTPClient(target.host).request("GET", path).status == 401
