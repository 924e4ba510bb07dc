"""Postgres restarts and dies under load: 503 or success, and nothing acknowledged is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import HTTPClient, begin, push_image, sha256, with_query
from tests.faults.crowd import Crowd, whole
from tests.hosts.wire import Wire, until
from tests.images import make_bytes, make_image
from tests.servers import Postgres, Registry, stopping

MIB = 1 << 20
AGREED = {200, 201, 202, 307, 503}


@pytest.fixture(scope="module")
def victim(directory: Path) -> Iterator[Postgres]:
    """A Postgres that nobody else needs."""
    server = Postgres(directory / "victim")
    with stopping(server):
        yield server.start()


def restart(server: Postgres) -> None:
    """A fast shutdown, as service managers do it."""
    server.restart()


def kill(server: Postgres) -> None:
    """Its children end a moment later, and only then another can start."""
    server.kill9()
    for _ in until(30, 0.2):
        try:
            server.start()
            break
        except RuntimeError:
            server.kill9()


def kill_a_child(server: Postgres) -> None:
    """All others end too, and it recovers by itself."""
    pids = server.query("SELECT pid FROM pg_stat_activity WHERE application_name <> '' LIMIT 1")
    for (pid,) in pids:
        os.kill(int(str(pid)), signal.SIGKILL)


def test_restarts_under_load(victim: Postgres, serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_DATABASE_URL=victim.new_database())
    with Crowd(registry.host, clients=4) as crowd:
        for disturb in (restart, kill, kill_a_child):
            crowd.progress(4)
            disturb(victim)
        crowd.progress(8)
    assert set(crowd.statuses) <= AGREED, crowd.statuses
    assert crowd.cut == 0
    assert crowd.pulled > 0
    crowd.check()
    assert '"level": "error"' not in registry.output()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_restarts_under_load_for_a_minute(victim: Postgres, serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_DATABASE_URL=victim.new_database())
    end = time.monotonic() + 60
    with Crowd(registry.host, clients=8) as crowd:
        while time.monotonic() < end:
            for disturb in (restart, kill, kill_a_child):
                time.sleep(1)
                disturb(victim)
        crowd.progress(8)
    assert set(crowd.statuses) <= AGREED, crowd.statuses
    assert crowd.cut == 0
    crowd.check()


def test_it_is_down_for_a_while(victim: Postgres, serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_DATABASE_URL=victim.new_database())
    client = HTTPClient(registry.host)
    image = make_image(seed="down")
    push_image(client, "down/a", image, "latest")
    data = make_bytes(9 * MIB, "down")
    location = begin(client, "down/a")
    port = int(registry.host.rpartition(":")[2])
    with Wire(port, timeout=60) as wire:
        wire.head("PATCH", location, f"Content-Length: {len(data)}").send(data[: 5 * MIB])
        victim.stop()
        try:
            for method, target in (
                ("GET", "/v2/down/a/manifests/latest"),
                ("HEAD", f"/v2/down/a/blobs/{image.config.digest}"),
                ("POST", "/v2/down/a/blobs/uploads/"),
                ("PUT", "/v2/down/a/manifests/latest"),
                ("GET", "/v2/down/a/tags/list"),
                ("GET", "/v2/_catalog"),
                ("GET", "/ready"),
            ):
                body = image.manifest.data if method == "PUT" else b""
                answer = client.request(method, target, body)
                assert answer.status == 503, (method, target, answer)
                if target != "/ready":
                    assert int(answer.headers["Retry-After"]) > 0
                if method != "HEAD" and target != "/ready":
                    assert answer.code == "UNAVAILABLE"
                    assert "database" in answer.json["errors"][0]["message"]
            assert client.request("GET", "/v2/").status == 200
            assert client.request("GET", "/health").status == 200
            # A body that comes meanwhile is taken; its end cannot be kept.
            assert wire.send(data[5 * MIB :]).answer().status == 503
        finally:
            victim.start()
    for _ in until():
        if registry.ready():
            break
    status = client.request("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-0")
    location = client.request("PATCH", status.location, data).location
    assert client.request("PUT", with_query(location, digest=sha256(data))).status == 201
    assert whole(registry.host, "down/a", image, "latest")


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGQUIT, marks=pytest.mark.long)]
)
def test_the_embedded_server_dies_under_load(
    how: signal.Signals, serve: Callable[..., Registry]
) -> None:
    registry = serve(OPENREGISTRY_DATABASE_URL="")
    note = registry.data_dir / "postgres" / "postmaster.pid"
    with Crowd(registry.host, clients=4) as crowd:
        for _ in range(2):
            crowd.progress(4)
            pid = int(note.read_text().split()[0])
            os.kill(pid, how)
            for _ in until(30):
                if note.exists() and int(note.read_text().split()[0]) != pid:
                    break
        crowd.progress(8)
    assert set(crowd.statuses) <= AGREED, crowd.statuses
    assert crowd.cut == 0
    crowd.check()
    registry.kill9()
    registry.start()
    crowd.check()
