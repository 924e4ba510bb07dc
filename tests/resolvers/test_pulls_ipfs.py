"""Pulls of images that an IPFS node has too, while storage, the node or a gateway fails."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chalicelib.digests import of
from chalicelib.resolvers import ResolverError, blocks
from chalicelib.resolvers.gateways import Gateway
from chalicelib.resolvers.kubo import Kubo as KuboResolver
from chalicelib.resolvers.placing import Bytes, place
from chalicelib.storage import made_here
from tests.client import HTTPClient
from tests.clients.test_skopeo import contents, pull, push
from tests.conftest import need
from tests.images import Image, make_bytes, make_image, write_layout
from tests.servers import S3, Kubo, Postgres, Registry, stopping, wait_until
from tests.storage.faults import Fault, FaultyProxy

pytestmark = pytest.mark.long

SIZES = (1000, 3 << 20)


class FaultyGateway(ThreadingHTTPServer):
    """Passes on to a gateway, ``healthy`` times; then it has a fault."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.fault, self.healthy, self.asked = "", 0, 0
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Connections break here, as they should."""

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyGateway

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked += 1
        fault = server.fault if server.asked > server.healthy else ""
        with closing(HTTPConnection(server.target, timeout=30)) as connection:
            connection.request("GET", self.path, headers={"Accept": self.headers["Accept"]})
            answer = connection.getresponse()
            body = answer.read()
        if fault == "hangs":
            server.released.wait(60)
        if fault == "lies":
            body = b"x" + body[1:]
        self.send_response(503 if fault == "is overloaded" else answer.status)
        length = 100 << 20 if fault == "does not end" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "truncates":
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)
        with suppress(OSError):
            while fault == "does not end" and not server.released.is_set():
                self.wfile.write(bytes(65536))


@pytest.fixture
def gateway(kubo: Kubo) -> Iterator[FaultyGateway]:
    with closing(FaultyGateway(kubo.gateway)) as made:
        yield made


@pytest.mark.parametrize("healthy", [0, 4])
@pytest.mark.parametrize(
    "fault", ["", "hangs", "lies", "truncates", "is overloaded", "does not end"]
)
def test_a_gateway_with_a_fault_is_left_in_the_middle_of_a_blob(
    fault: str,
    healthy: int,
    kubo: Kubo,
    gateway: FaultyGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another test's gateway may have had the port.
    monkeypatch.setattr(blocks, "_shunned", {})
    data = make_bytes((6 << 20) + 3, fault)
    node = KuboResolver([kubo.url])
    cid = place(node, Bytes("blob", data), of(data))
    gateway.fault, gateway.healthy = fault, healthy
    began = time.monotonic()
    found = b"".join(blocks.read([Gateway(gateway.url), node], cid, 5, len(data) - 5))
    assert found == data[5:]
    assert gateway.asked > healthy
    assert time.monotonic() - began < 6
    gateway.released.set()
    if fault not in ("", "hangs", "does not end"):
        with pytest.raises(ResolverError):
            b"".join(blocks.read([Gateway(gateway.url)], cid, 0, len(data)))


# A registry as a user starts it.


@pytest.fixture
def start(postgres: Postgres, kubo: Kubo, tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Start a registry whose public images go to the node."""
    need("skopeo", "skopeo")
    with postgres.migrated_database() as url:
        postgres.query(
            "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{ipfs}', 'test')",
            url.rpartition("/")[2],
        )
        started: list[Registry] = []

        def begin(**settings: str) -> Registry:
            registry = Registry(
                tmp_path / "registry",
                {
                    "OPENREGISTRY_DATABASE_URL": url,
                    "OPENREGISTRY_NEW_REPOSITORIES": "public",
                    "OPENREGISTRY_IPFS_NODES": kubo.url,
                    "OPENREGISTRY_IPFS_GATEWAYS": kubo.gateway,
                    **settings,
                },
            )
            started.append(registry)
            return registry.start()

        yield begin
        for registry in started:
            registry.stop()


def pushed(registry: Registry, folder: Path) -> Image:
    """An image that is in storage and on the node."""
    image = make_image(SIZES, str(folder))
    push(write_layout(folder / "pushed", [image]), registry, "a/b:1")
    client = HTTPClient(registry.host)

    def there() -> bool:
        found = client.request("GET", "/v2/a/b/manifests/1").headers.get("Link", "")
        return found.count("ipfs://") >= len(image.blobs) + 1

    wait_until(there, 60, lambda: "the image to be on the node; " + registry.story())
    return image


def test_objects_that_are_deleted_are_served_and_healed(
    start: Callable[..., Registry], tmp_path: Path
) -> None:
    registry = start()
    image = pushed(registry, tmp_path)
    store = registry.data_dir / "blobs"

    def blobs() -> list[int]:
        """Sizes of objects; what the registry publishes of itself lies there too."""
        return sorted(path.stat().st_size for path in store.rglob("*") if made_here(path.name))

    before = blobs()
    shutil.rmtree(store)
    assert pull(registry, "a/b:1", tmp_path / "pulled") == contents(image)

    wait_until(lambda: blobs() == before, 60, lambda: "the objects to be back; " + registry.story())
    assert pull(registry, "a/b:1", tmp_path / "again") == contents(image)


@pytest.mark.parametrize("downloads", ["redirect", "stream"])
def test_s3_is_stopped(downloads: str, start: Callable[..., Registry], tmp_path: Path) -> None:
    server = S3(tmp_path / "s3")
    with stopping(server):
        server.start()
        registry = start(
            OPENREGISTRY_STORAGE_URL=server.new_storage_url(),
            OPENREGISTRY_DOWNLOADS=downloads,
            **server.environment(),
        )
        image = pushed(registry, tmp_path)
        server.kill9()
        began = time.monotonic()
        assert pull(registry, "a/b:1", tmp_path / "pulled") == contents(image)
        assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("downloads", "fault"),
    [
        ("redirect", Fault(hang=True)),
        ("stream", Fault(hang=True)),
        ("stream", Fault(lost=700_000)),
    ],
)
def test_s3_hangs_or_breaks(
    fault: Fault,
    downloads: str,
    s3_server: S3,
    start: Callable[..., Registry],
    tmp_path: Path,
) -> None:
    with closing(FaultyProxy(s3_server.endpoint)) as proxy:
        registry = start(
            OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(endpoint=proxy.endpoint),
            OPENREGISTRY_DOWNLOADS=downloads,
            **s3_server.environment(),
        )
        image = pushed(registry, tmp_path)
        proxy.always = dict.fromkeys(("HeadObject", "GetObject"), fault)
        began = time.monotonic()
        assert pull(registry, "a/b:1", tmp_path / "pulled") == contents(image)
        assert time.monotonic() - began < 15


def test_by_gateway_and_through_the_network(start: Callable[..., Registry], tmp_path: Path) -> None:
    registry = start(OPENREGISTRY_DOWNLOADS="gateway")
    image = pushed(registry, tmp_path)
    shutil.rmtree(registry.data_dir / "blobs")
    client = HTTPClient(registry.host)
    layer = image.layers[-1]
    path = f"/v2/a/b/blobs/{layer.digest}"
    sent = client.request("GET", path)
    assert sent.status == 307
    assert (
        client.request("GET", sent.location, headers={"Range": "bytes=5-9"}).body
        == layer.data[5:10]
    )
    assert client.request("GET", f"{path}?source=network").body == layer.data
    assert pull(registry, "a/b:1", tmp_path / "pulled") == contents(image)
