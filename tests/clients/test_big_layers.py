"""Layers of 1 GB go into a registry that is functions, from clients that know nothing of that: by a
host beside the functions that takes uploads, and by `openregistry proxy`, without any server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest

from tests.big_image import BIG, BigImage, digests_in, write_big_image
from tests.clients.programs import Run, client
from tests.clients.test_containerd import Containerd
from tests.conftest import need
from tests.hosts.lambda_jobs import LambdaJobs, Queue
from tests.hosts.lambda_registry import PASSWORD, USER, LambdaRegistry, LoggedIn, migrated
from tests.hosts.proxies import Proxy
from tests.images import make_image, write_layout
from tests.servers import S3, DockerEngine, Postgres, Registry, free_port, run, stopping, wait_until
from tests.witness import Witness

pytestmark = pytest.mark.long

ROOM = 24 << 30
"""Bytes on the disk that the tests may take for a while: what is pushed, what clients keep of it,
and what comes back."""


@pytest.fixture(scope="module")
def folder(directory: Path) -> Iterator[Path]:
    """Where all is that is large: gone with the last test."""
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        pytest.skip(f"{directory} has {free >> 30} GiB left, of {ROOM >> 30} that this may need")
    path = Path(tempfile.mkdtemp(prefix="big-", dir=directory))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def image(folder: Path) -> BigImage:
    """What all clients push."""
    return write_big_image(folder / "image")


# The registry.


@dataclass(frozen=True)
class Road:
    """A way to push large layers."""

    host: str
    """host:port that clients push to and pull from."""
    bytes: Witness
    """Sees all that goes to the host for uploads, or what goes to storage from here."""
    functions: LambdaRegistry
    upload_host: Registry | None = None


Share = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def share(postgres: Postgres, s3_server: S3) -> Share:
    """What the hosts of one registry share, for a new registry."""

    def share(**parameters: str) -> dict[str, str]:
        return {
            "OPENREGISTRY_DATABASE_URL": migrated(postgres.new_database()),
            "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(**parameters),
            "OPENREGISTRY_SECRET_KEY": "a secret that the functions share",
            "AWS_REGION": s3_server.region,
            **s3_server.environment(),
        }

    return share


@pytest.fixture(scope="module")
def settings(share: Share) -> dict[str, str]:
    """The settings of functions with a host for uploads, and of that host."""
    return share()


@pytest.fixture(scope="module")
def by_upload_host(settings: dict[str, str], folder: Path) -> Iterator[Road]:
    """Functions that send uploads to another host, which has their settings."""
    listen = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        witness = stack.enter_context(closing(Witness(listen)))
        upload_url = {"OPENREGISTRY_UPLOAD_URL": f"http://{witness.host}"}
        functions = LambdaRegistry(folder / "functions", settings | upload_url)
        of_its_own = {
            "OPENREGISTRY_ACCESS": "accounts",  # as where other machines reach it
            "OPENREGISTRY_DATABASE_POOL": "",
            "OPENREGISTRY_LISTEN": listen,
            "OPENREGISTRY_WORK": "false",
        }
        server = Registry(folder / "uploads", functions.settings | of_its_own)
        stack.enter_context(stopping(server))
        server.start()
        stack.enter_context(functions)
        yield Road(functions.host, witness, functions, server)


@pytest.fixture(scope="module")
def alone(share: Share, s3_server: S3, folder: Path) -> Iterator[Road]:
    """Functions, a queue and a schedule, and nothing else. Clients are given URLs of storage that a
    witness is behind."""
    with ExitStack() as stack:
        witness = stack.enter_context(closing(Witness(s3_server.endpoint.removeprefix("http://"))))
        queue = stack.enter_context(closing(Queue()))
        settings = share(public_endpoint=f"http://{witness.host}")
        settings |= {"OPENREGISTRY_QUEUE_URL": queue.url}
        functions = stack.enter_context(LambdaRegistry(folder / "alone", settings))
        stack.enter_context(LambdaJobs(folder / "jobs", functions, queue.messages))
        yield Road(functions.host, witness, functions)


@pytest.fixture(scope="module")
def by_proxy(alone: Road, folder: Path) -> Iterator[Road]:
    """A proxy of functions that are alone."""
    server = Proxy(folder / "proxy", f"http://{alone.host}")
    with stopping(server):
        yield replace(alone, host=server.start().host)


@pytest.fixture(scope="module")
def road(request: pytest.FixtureRequest) -> Road:
    """The road that the test's parameter names."""
    found: Road = request.getfixturevalue(request.param)
    return found


# The clients.


class Program(Protocol):
    """What a person does with a client. Each raises ``AssertionError`` where it fails."""

    def login(self, host: str) -> None:
        """Log in as ``USER``."""

    def push(self, name: str) -> None:
        """Push the image."""

    def pull(self, name: str) -> None:
        """Pull what was pushed, of which nothing is left here, and compare."""


@dataclass(frozen=True)
class Docker:
    """Compresses the layers anew, and checks what it pulls by the manifest's digests and the
    config's."""

    engine: DockerEngine
    image: BigImage

    def login(self, host: str) -> None:
        self.engine.run("login", "--username", USER, "--password", PASSWORD, host)

    def push(self, name: str) -> None:
        if not self.engine.run("images", "--quiet", "big:latest").stdout:
            self.engine.run("load", "--input", self.image.archive)
        self.engine.run("tag", "big:latest", name)
        pushed = self.engine.run("push", name).stdout
        assert pushed.count(": Pushed") == len(self.image.layers)

    def pull(self, name: str) -> None:
        [pushed] = self._digests(name)
        self.engine.run("image", "rm", "--force", self.image.config)
        assert self.engine.run("images", "--all", "--quiet").stdout == ""
        self.engine.run("pull", name)
        assert self._digests(name) == [pushed]
        found = self.engine.run("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()
        assert found == self.image.config
        self.engine.run("tag", name, "big:latest")
        self.engine.run("image", "rm", name)

    def _digests(self, name: str) -> list[str]:
        template = '{{join .RepoDigests "\\n"}}'
        digests = self.engine.run("image", "inspect", "--format", template, name).stdout.split()
        repository = name.rpartition(":")[0]
        return [digest for digest in digests if digest.startswith(f"{repository}@")]


@dataclass(frozen=True)
class Podman:
    """Compresses the layers anew, and checks what it pulls as docker does."""

    home: Path
    image: BigImage

    def login(self, host: str) -> None:
        run("podman", "login", *self._there, "--username", USER, "--password", PASSWORD, host)

    def push(self, name: str) -> None:
        if self._run("image", "exists", self.image.config, check=False).returncode:
            self._run("load", "--quiet", "--input", str(self.image.archive))
        self._run("push", *self._there, self.image.config, name)

    def pull(self, name: str) -> None:
        self._run("rmi", "--all", "--force")
        pulled = self._run("pull", "--quiet", *self._there, name).stdout.strip()
        assert f"sha256:{pulled}" == self.image.config

    @property
    def _there(self) -> tuple[str, ...]:
        return ("--tls-verify=false", f"--authfile={self.home / 'auth.json'}")

    def _run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        storage = (
            *("--root", self.home / "root", "--runroot", self.home / "run"),
            *("--tmpdir", self.home / "tmp", "--storage-driver", "vfs"),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
        )
        return run("podman", *storage, *arguments, check=check)


@dataclass(frozen=True)
class Skopeo:
    """Copies to the byte."""

    home: Path
    image: BigImage

    def login(self, host: str) -> None:
        options = ("--tls-verify=false", f"--authfile={self._authentication}")
        run("skopeo", "login", *options, "--username", USER, "--password", PASSWORD, host)

    def start(self, source: str, target: str) -> "subprocess.Popen[str]":
        """Begin to copy."""
        # It keeps in mind where it has seen a layer, to have it mounted from there; so does podman,
        # in the same place. Both variables are needed to give root another one.
        memory = {"XDG_DATA_HOME": tempfile.mkdtemp(dir=self.home), "_CONTAINERS_ROOTLESS_UID": "1"}
        return subprocess.Popen(
            [
                *("skopeo", "copy", "--preserve-digests", f"--authfile={self._authentication}"),
                *("--src-tls-verify=false", "--dest-tls-verify=false", source, target),
            ],
            env=os.environ | memory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def copy(self, source: str, target: str) -> str:
        """Copy; gives its words where it fails."""
        with self.start(source, target) as process:
            words, _ = process.communicate(timeout=300)
            return words if process.returncode else ""

    def push(self, name: str) -> None:
        assert self.copy(f"oci:{self.image.layout}:latest", f"docker://{name}") == ""

    def pull(self, name: str) -> None:
        layout = self.home / "pulled"
        assert self.copy(f"docker://{name}", f"oci:{layout}:latest") == ""
        found = digests_in(layout / "blobs" / "sha256")
        shutil.rmtree(layout)
        assert found == self.image.contents

    @property
    def _authentication(self) -> Path:
        return self.home / "auth.json"


@dataclass(frozen=True)
class Ctr:
    """containerd's own client: it copies to the byte, and checks what it pulls by the digests. What
    one namespace has, another one fetches for itself (``Containerd``)."""

    run: Run
    image: BigImage

    def login(self, host: str) -> None:
        """It is told who one is with each command."""

    def push(self, name: str) -> None:
        if "big:latest" not in self.run("-n", "pushed", "images", "ls", "--quiet"):
            imports = ("images", "import", "--no-unpack", "--index-name=big:latest")
            self.run("-n", "pushed", *imports, self.image.archive, within=300)
        self.run("-n", "pushed", "images", "tag", "big:latest", name)
        self.run("-n", "pushed", "images", "push", *self._there, name, within=300)

    def pull(self, name: str) -> None:
        self.run("-n", "pulled", "content", "fetch", *self._there, name, within=300)
        found = set(self.run("-n", "pulled", "content", "ls", "--quiet").split())
        self.run("-n", "pulled", "images", "rm", "--sync", name)
        assert found > self.image.contents  # with an index of the one manifest, which it made

    @property
    def _there(self) -> tuple[str, ...]:
        return ("--plain-http", f"--user={USER}:{PASSWORD}")


@pytest.fixture(scope="module")
def docker_client(docker: DockerEngine, image: BigImage) -> Iterator[Program]:
    yield Docker(docker, image)
    docker.run("image", "rm", "--force", image.config)


@pytest.fixture(scope="module")
def podman_client(folder: Path, image: BigImage) -> Iterator[Program]:
    need("podman", "podman")
    home = folder / "podman"
    home.mkdir()
    (home / "auth.json").write_text("{}")
    yield Podman(home, image)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def skopeo(folder: Path, image: BigImage) -> Skopeo:
    need("skopeo", "skopeo")
    home = folder / "skopeo"
    home.mkdir()
    (home / "auth.json").write_text("{}")
    return Skopeo(home, image)


@pytest.fixture(scope="module")
def containerd_client(folder: Path, image: BigImage) -> Iterator[Program]:
    server = Containerd(folder / "containerd")
    home = folder / "ctr"
    home.mkdir()
    ctr = client("ctr", home, CONTAINERD_ADDRESS=str(server.socket))
    with stopping(server):
        server.start()
        yield Ctr(ctr, image)


@pytest.fixture(scope="module")
def program(
    request: pytest.FixtureRequest,
) -> Program:
    """The client that the test's parameter names."""
    made: Program = request.getfixturevalue(request.param)
    return made


PROGRAMS = ("docker_client", "podman_client", "skopeo", "containerd_client")


@pytest.mark.parametrize("road", ["by_upload_host", "by_proxy"], indirect=True)
@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_push_and_pull(road: Road, program: Program) -> None:
    """What a client sends to the host for uploads beside the capability, its token, is not looked
    at: docker and containerd send none."""
    name = f"{road.host}/big/{type(program).__name__.lower()}:1"
    program.login(road.host)
    before = road.bytes.relayed
    program.push(name)
    assert BIG < road.bytes.relayed - before < BIG * 1.02
    program.pull(name)
    assert [line for line in road.functions.logs() if line["level"] != "INFO"] == []


def test_without_an_upload_host_the_refusal_names_the_ways(
    settings: dict[str, str], skopeo: Skopeo, folder: Path
) -> None:
    with LambdaRegistry(folder / "refusing", settings, processes=1) as functions:
        skopeo.login(functions.host)
        layout = f"oci:{skopeo.image.layout}:latest"
        words = skopeo.copy(layout, f"docker://{functions.host}/big/alone:1")
    assert "`openregistry proxy`" in words
    assert "OPENREGISTRY_UPLOAD_URL" in words


def test_an_upload_host_that_is_down(
    by_upload_host: Road, settings: dict[str, str], skopeo: Skopeo, folder: Path
) -> None:
    """Clients name it. Pulls, and all else, go on."""
    image = make_image((1000,), "down")
    skopeo.login(by_upload_host.host)
    layout = f"oci:{write_layout(folder / 'small', [image])}:latest"
    assert skopeo.copy(layout, f"docker://{by_upload_host.host}/big/small:1") == ""
    address = f"127.0.0.1:{free_port()}"
    down = settings | {"OPENREGISTRY_UPLOAD_URL": f"http://{address}"}
    with LambdaRegistry(folder / "down", down, processes=1) as functions:
        skopeo.login(functions.host)
        words = skopeo.copy(layout, f"docker://{functions.host}/big/other:1")
        assert f"dial tcp {address}: connect: connection refused" in words
        pulled = folder / "small-pulled"
        assert skopeo.copy(f"docker://{functions.host}/big/small:1", f"oci:{pulled}:latest") == ""
        assert image.manifest.digest in digests_in(pulled / "blobs" / "sha256")


def test_an_upload_host_that_is_killed_in_the_middle(by_upload_host: Road, skopeo: Skopeo) -> None:
    """The client says that the connection was lost, nothing of it is visible, and the same push
    works when the host is back."""
    witness, name = by_upload_host.bytes, f"{by_upload_host.host}/big/killed"
    server = by_upload_host.upload_host
    assert server is not None
    skopeo.login(by_upload_host.host)
    before = witness.relayed
    with skopeo.start(f"oci:{skopeo.image.layout}:latest", f"docker://{name}:1") as push:
        wait_until(lambda: witness.relayed - before > BIG // 4, 120, lambda: "some of the layer")
        server.kill9()
        words, _ = push.communicate(timeout=120)
    try:
        assert push.returncode != 0
        assert "writing blob" in words.lower()
        client = LoggedIn(by_upload_host.host)
        target = f"/v2/big/killed/blobs/{skopeo.image.layers[-1]}"
        assert client.request("HEAD", target).status == 404
        assert client.request("GET", "/v2/big/killed/manifests/1").status == 404
    finally:
        server.start()
    skopeo.push(f"{name}:1")
    assert client.request("HEAD", target).status == 307
    assert client.request("GET", "/v2/big/killed/manifests/1").status == 200


def test_a_push_that_was_cut_goes_on_from_another_machine(
    alone: Road, skopeo: Skopeo, postgres: Postgres, folder: Path
) -> None:
    """Client and proxy are killed in the middle, and a minute goes by, in which the upload is given
    to nobody else; then another proxy sends what is missing."""
    first, second = (Proxy(folder / f"proxy-{number}", f"http://{alone.host}") for number in "12")
    source = f"oci:{skopeo.image.layout}:latest"
    sent = alone.bytes.relayed
    with stopping(first):
        skopeo.login(first.start().host)
        with skopeo.start(source, f"docker://{first.host}/big/cut:1") as push:
            wait_until(
                lambda: alone.bytes.relayed - sent > BIG // 2, 120, lambda: "half of the layer"
            )
            push.kill()
            first.kill9()
    client = LoggedIn(alone.host)
    assert client.request("GET", "/v2/big/cut/manifests/1").status == 404
    database = alone.functions.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    postgres.query("UPDATE direct_uploads SET held_until = now()", database)
    sent = alone.bytes.relayed
    with stopping(second):
        skopeo.login(second.start().host)
        skopeo.push(f"{second.host}/big/cut:1")
        # Half of it, and what was on its way when all was cut.
        assert alone.bytes.relayed - sent < BIG * 0.6
    target = f"/v2/big/cut/blobs/{skopeo.image.layers[-1]}"
    assert client.request("HEAD", target).status == 307
    assert client.request("GET", "/v2/big/cut/manifests/1").status == 200
