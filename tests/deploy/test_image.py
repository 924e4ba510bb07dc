"""The registry's image, built and run by a real engine."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.client import HTTPClient, begin, push_image, sha256, with_query
from tests.conftest import need
from tests.deploy.engines import ROOT, TAG, Container, Engine
from tests.hosts.wire import Wire
from tests.images import layout_contents, make_bytes, make_image, write_layout
from tests.servers import S3, Postgres, answers, free_port, run, wait_until

pytestmark = pytest.mark.long

DOCKERFILE = ROOT / "infra/Dockerfile"

LOCKED = (
    *("--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--tmpfs=/tmp", "--health-interval=1s"),
)
"""How the registry is run: without rights, and with nothing to write on but /tmp."""


class Place:
    """What containers of one registry share: a database, a bucket, and a secret."""

    def __init__(self, engine: Engine, postgres: Postgres, s3: S3) -> None:
        self._engine = engine
        self.settings = {
            **s3.environment(),
            "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
            "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(),
            "OPENREGISTRY_SECRET_KEY": "of all containers of this registry",
            "OPENREGISTRY_ACCESS": "open",
            "OPENREGISTRY_WORKERS": "1",
        }

    @contextmanager
    def container(self, *options: str, **settings: str) -> Iterator[tuple[Container, str]]:
        """A container that serves, and where it does."""
        host = f"127.0.0.1:{free_port()}"
        pairs = {**self.settings, "OPENREGISTRY_LISTEN": host, **settings}
        environment = [f"--env={name}={value}" for name, value in pairs.items()]
        with self._engine.container(*LOCKED, *options, *environment, TAG) as container:
            wait_until(lambda: answers(f"http://{host}/ready"), 60, container.log)
            yield container, host


@pytest.fixture
def place(engine: Engine, postgres: Postgres, s3_server: S3) -> Place:
    return Place(engine, postgres, s3_server)


def test_it_holds_what_it_needs_and_no_more(engine: Engine) -> None:
    [look] = [
        engine.run("inspect", f"--format={{{{json .{key}}}}}", TAG).stdout for key in ("Config",)
    ]
    assert '"User":"10001:10001"' in look
    assert '"StopSignal":"SIGTERM"' in look
    assert '"org.opencontainers.image.version":"0.1.0"' in look
    size, before = (
        int(engine.run("inspect", "--format={{.Size}}", tag).stdout)
        for tag in (TAG, "base:bookworm")
    )
    assert size - before < 130e6
    with engine.container("--network=none", "--entrypoint=sleep", TAG, "60") as container:
        assert container.run("openregistry", "--version") == "openregistry 0.1.0\n"
        assert (
            container.run("ls", "/opt/openregistry/code/chalicelib/tests", check=False)[:3] == "ls:"
        )
        assert "pip" not in container.run(
            "sh", "-c", "ls /opt/openregistry/venv/lib/*/site-packages"
        )
        counts = 'for end in py pyc; do find /opt/openregistry -name "*.$end" | wc -l; done'
        sources, compiled = container.run("sh", "-c", counts).split()
        assert sources == compiled
        # Whoever runs it can read all, and change nothing.
        unreadable = "find /opt/openregistry ! -readable -o -writable ! -type l"
        assert container.run("sh", "-c", unreadable) == ""


def test_push_and_pull_where_nothing_can_be_written(place: Place, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    image = make_image((1000, 20, 9_000_000), "container")
    with place.container() as (container, host):
        wait_until(lambda: container.health() == "healthy", 30, container.log)
        layout = write_layout(tmp_path / "pushed", [image])
        name = f"docker://{host}/container/image:1"
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest", name)
        run("skopeo", "copy", "--src-tls-verify=false", name, f"oci:{tmp_path / 'pulled'}:latest")
        wanted = {content.digest for content in (*image.blobs, image.manifest)}
        assert set(layout_contents(tmp_path / "pulled")) == wanted
        assert container.engine.run("diff", container.name).stdout == ""
        status = container.run("cat", "/proc/1/status")
        assert "CapEff:\t0000000000000000" in status
        assert "Uid:\t10001\t10001" in status


def test_blobs_in_a_volume(place: Place, engine: Engine) -> None:
    """A named volume belongs to whom the image says, and outlives the container."""
    image = make_image((100_000,), "volume")
    engine.run("volume", "create", "blobs")
    options = "--volume=blobs:/var/lib/openregistry"
    files = {"OPENREGISTRY_STORAGE_URL": "file:///var/lib/openregistry/blobs"}
    with place.container(options, **files) as (_, host):
        push_image(HTTPClient(host), "container/volume", image, "1")
    with place.container(options, **files) as (_, host):
        client = HTTPClient(host)
        assert client.request("GET", "/v2/container/volume/manifests/1").status == 200
        for blob in image.blobs:
            answer = client.request("GET", f"/v2/container/volume/blobs/{blob.digest}")
            assert answer.body == blob.data


def test_a_health_check_fails_where_nothing_serves(engine: Engine) -> None:
    idle = ("--network=none", "--entrypoint=sleep", "--health-interval=1s", "--health-retries=2")
    with engine.container(*idle, "--health-start-period=1ms", TAG, "60") as container:
        wait_until(lambda: container.health() == "unhealthy", 30, container.log)


def test_a_push_that_is_under_way_ends_first(place: Place) -> None:
    data = make_bytes(3_000_000, "under way")
    with place.container() as (container, host):
        client = HTTPClient(host)
        location = begin(client, "container/stop")
        with Wire(int(host.rpartition(":")[2])) as wire:
            wire.head("PATCH", location, f"Content-Length: {len(data)}").send(data[:1_000_000])
            stop = threading.Thread(
                target=container.engine.run, args=("stop", "--time=30", container.name)
            )
            stop.start()
            wait_until(lambda: not answers(f"http://{host}/health"), 20, container.log)
            wire.send(data[1_000_000:])
            answer = wire.answer()
            assert answer.status == 202
            # And so does the request that follows it.
            location = with_query(answer["location"] or "", digest=sha256(data))
            assert wire.put(location, b"").status == 201
        stop.join()
        state = container.look()["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), container.log()


def test_two_containers_are_one_registry(place: Place) -> None:
    """Each request of an upload goes to the other one."""
    data = make_bytes(12_000_000, "hops")
    with ExitStack() as stack:
        hosts = [stack.enter_context(place.container())[1] for _ in range(2)]
        here, there = map(HTTPClient, hosts)
        location = begin(here, "container/hops")
        for start, client in ((0, there), (7_000_000, here)):
            chunk = data[start : start + 7_000_000]
            fields = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
            answer = client.request("PATCH", location, chunk, fields)
            assert answer.status == 202
            location = answer.location
        answer = there.request("PUT", with_query(location, digest=sha256(data)))
        assert answer.status == 201
        for client in (here, there):
            head = client.request("HEAD", f"/v2/container/hops/blobs/{sha256(data)}")
            assert head.headers["Content-Length"] == str(len(data))


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_all_packages_have_wheels_for_a_processor(processor: str, tmp_path: Path) -> None:
    """By the Dockerfile's own base, which cannot be had here; no image of another processor is
    built."""
    [version] = re.findall(
        r"^ARG BASE=python:(\d+\.\d+)-slim", DOCKERFILE.read_text(), re.MULTILINE
    )
    words = (sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed")
    tags = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_36")  # bookworm's
    platforms = [f"--platform={tag}_{processor}" for tag in tags]
    lists = [
        f"--requirement={ROOT / name}" for name in ("requirements.txt", "requirements-harness.txt")
    ]
    wheels = ("--only-binary=:all:", f"--python-version={version}", f"--target={tmp_path}")
    run(*words, *wheels, *platforms, *lists)


def test_buildkit_builds_it_too(engine: Engine) -> None:
    output = engine.build("openregistry:buildkit", buildkit=True)
    assert "naming to docker.io/library/openregistry:buildkit" in output
    words = ("run", "--rm", "--network=none", "openregistry:buildkit", "--version")
    assert engine.run(*words).stdout == "openregistry 0.1.0\n"
    # What was built twice is the same to the byte.
    assert files_of(engine, "openregistry:buildkit") ^ files_of(engine, TAG) == set()


def files_of(engine: Engine, tag: str) -> set[str]:
    """Every file that the build makes, with its hash."""
    hashes = "find /opt/openregistry -type f -exec sha256sum {} +"
    words = ("run", "--rm", "--network=none", "--entrypoint=sh", tag, "-c", hashes)
    lines = set(engine.run(*words).stdout.splitlines())
    assert len(lines) > 1000
    return lines
