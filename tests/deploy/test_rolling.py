"""Registries behind a real balancer are restarted in turn, and no push fails.

The balancer is Caddy with infra/compose/Caddyfile. What pushes tries nothing twice, unlike docker.
"""

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.client import HTTPClient, begin, push_image, push_manifest, sha256, with_query
from tests.conftest import need
from tests.deploy.engines import ROOT
from tests.images import layout_contents, make_bytes, make_image, write_layout
from tests.servers import S3, Registry, Server, answers, free_ports, run, stopping

pytestmark = [pytest.mark.long, pytest.mark.alone]

Serve = Callable[..., Registry]


class Caddy(Server):
    """The balancer of infra/compose, before registries of this machine."""

    name = "caddy"

    def __init__(self, directory: Path, *hosts: str) -> None:
        super().__init__(directory)
        port, admin = free_ports(2)
        self.host = f"127.0.0.1:{port}"
        self._variables = {
            "SITE": f"http://:{port}",
            "UPSTREAMS": " ".join(hosts),
            "CADDY_ADMIN": f"127.0.0.1:{admin}",
            "XDG_DATA_HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory),
        }

    def command(self) -> list[str]:
        file = ROOT / "infra/compose/Caddyfile"
        return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]

    def environment(self) -> Mapping[str, str]:
        return self._variables

    def ready(self) -> bool:
        return answers(f"http://{self.host}/ready")


class Pushers:
    """Threads that push and pull one small image after the other, as long as they are let."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._stop = threading.Event()
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(work, number))
            for work in (self._push_by_one_put, self._push_in_chunks, self._pull)
            for number in range(2)
        ]

    def __enter__(self) -> "Pushers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, work: Callable[[HTTPClient, str], None], number: int) -> None:
        for count in itertools.count():
            if self._stop.is_set():
                return
            # A connection of its own, for several requests, as a client has it.
            client = HTTPClient(self._host)
            try:
                work(client, f"{number}-{count}")
                self.done[work.__name__] += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{work.__name__} {count}: {error!r}")

    def _push_by_one_put(self, client: HTTPClient, seed: str) -> None:
        push_image(client, "rolling/put", make_image((20_000,), f"put {seed}"), f"t-{seed}")

    def _push_in_chunks(self, client: HTTPClient, seed: str) -> None:
        """As docker: POST, PATCH of unknown length, PUT. The body comes slowly."""
        image = make_image((300_000,), f"chunks {seed}")
        for blob in image.blobs:
            location = begin(client, "rolling/chunks")
            answer = client.request("PATCH", location, _slowly(blob.data))
            assert answer.status == 202, answer
            target = with_query(answer.location, digest=blob.digest)
            answer = client.request("PUT", target)
            assert answer.status == 201, answer
        answer = push_manifest(client, "rolling/chunks", image.manifest, f"t-{seed}")
        assert answer.status == 201, answer

    def _pull(self, client: HTTPClient, _seed: str) -> None:
        answer = client.request("GET", f"/v2/rolling/kept/blobs/{sha256(KEPT)}")
        assert (answer.status, answer.body) == (200, KEPT), answer.status


KEPT = make_bytes(100_000, "kept")


def _slowly(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]
        time.sleep(0.1)


@pytest.fixture
def settings(s3_server: S3, serve: Serve) -> dict[str, str]:
    """What the registries share; the first one has made its database."""
    return {
        **s3_server.environment(),
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        "OPENREGISTRY_SECRET_KEY": "of all registries behind one balancer",
        "OPENREGISTRY_DOWNLOADS": "stream",
        "OPENREGISTRY_WORKERS": "2",
        "OPENREGISTRY_SHUTDOWN_DELAY": "3",
    }


@pytest.fixture
def pair(serve: Serve, postgres: object, settings: dict[str, str]) -> tuple[Registry, Registry]:
    first = serve(**settings)
    url = first.settings["OPENREGISTRY_DATABASE_URL"]
    return first, serve(OPENREGISTRY_DATABASE_URL=url, **settings)


@pytest.fixture
def balancer(pair: tuple[Registry, Registry], tmp_path: Path) -> Iterator[Caddy]:
    need("caddy", "caddy")
    caddy = Caddy(tmp_path / "caddy", *(registry.host for registry in pair))
    with stopping(caddy):
        yield caddy.start()


def test_no_push_fails(pair: tuple[Registry, Registry], balancer: Caddy) -> None:
    client = HTTPClient(balancer.host)
    location = begin(client, "rolling/kept")
    assert client.request("PUT", with_query(location, digest=sha256(KEPT)), KEPT).status == 201
    with Pushers(balancer.host) as pushers:
        time.sleep(2)
        for registry in pair * 2:
            before = pushers.done.copy()
            registry.restart()
            time.sleep(2)
            for work, count in before.items():
                assert pushers.done[work] > count, work
    assert pushers.failures == []
    assert sum(pushers.done.values()) > 100, pushers.done


def test_skopeo_pushes_on(pair: tuple[Registry, Registry], balancer: Caddy, tmp_path: Path) -> None:
    """A real client that tries little twice, with a layer of several parts."""
    need("skopeo", "skopeo")
    images = [make_image((9_000_000,), f"skopeo {number}") for number in range(4)]
    outputs: list[str] = []

    def push() -> None:
        for number, image in enumerate(images):
            layout = write_layout(tmp_path / f"pushed-{number}", [image])
            name = f"docker://{balancer.host}/rolling/skopeo:{number}"
            copy = ("skopeo", "copy", "--retry-times=0", "--dest-tls-verify=false")
            outputs.append(run(*copy, f"oci:{layout}:latest", name).stdout)

    thread = threading.Thread(target=push)
    thread.start()
    for registry in pair:
        registry.restart()
    thread.join()
    assert len(outputs) == len(images)
    for number, image in enumerate(images):
        source = f"docker://{balancer.host}/rolling/skopeo:{number}"
        pulled = tmp_path / f"pulled-{number}"
        run("skopeo", "copy", "--src-tls-verify=false", source, f"oci:{pulled}:latest")
        assert image.manifest.digest in layout_contents(pulled)
