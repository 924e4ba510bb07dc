"""More functions at once than Postgres has connections: no push is lost, and no function waits in
vain."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.client import Answer, Body, HTTPClient, push_image
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn, migrated
from tests.images import make_image
from tests.metadata.test_connection import PgBouncer
from tests.servers import S3, Postgres, stopping, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

PROCESSES = 24
CONNECTIONS = 16
SECONDS = 15


class Small(Postgres):
    """A Postgres with few connections."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", f"max_connections={CONNECTIONS}"]


class Patient(HTTPClient):
    """A client that comes again after a 503, as docker does, and counts answers."""

    def __init__(self, host: str, fields: Mapping[str, str]) -> None:
        super().__init__(host)
        self._fields = fields
        self.statuses: Counter[int] = Counter()

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        for _ in range(5):
            answer = super().request(method, target, body, {**self._fields, **(headers or {})})
            self.statuses[answer.status] += 1
            if answer.status != 503:
                return answer
            assert answer.code == "UNAVAILABLE", answer
            time.sleep(float(answer.headers["Retry-After"]))
        raise AssertionError(f"{method} {target} was refused five times: {answer}")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Small]:
    small = Small(directory / "few-connections")
    with stopping(small):
        yield small.start()


def test_more_functions_than_connections(server: Small, s3_server: S3, tmp_path: Path) -> None:
    statuses = pushed(server, migrated(server.new_database()), s3_server, tmp_path)
    # Without processes that give connections back it was every sixth.
    assert statuses[503] < statuses.total() / 30, statuses


def test_a_pooler_serves_them_all(
    server: Small, s3_server: S3, directory: Path, tmp_path: Path
) -> None:
    """Two connections are enough."""
    database_url = migrated(server.new_database())
    pooler = PgBouncer(directory / "pooler-of-functions", server)
    with stopping(pooler):
        pooler.start()
        url = pooler.url.removesuffix("postgres") + database_url.rpartition("/")[2]
        more = {"OPENREGISTRY_DATABASE_PREPARE": "false"}
        statuses = pushed(server, url, s3_server, tmp_path, **more)
    assert statuses[503] == 0, statuses


def pushed(
    server: Small, database_url: str, s3_server: S3, tmp_path: Path, **more: str
) -> Counter[int]:
    """Have as many clients as functions push and pull for a while; give the answers by status.
    Whatever was pushed can be pulled, and functions that stand still keep no connection that is
    scarce."""
    settings = {
        "OPENREGISTRY_DATABASE_URL": database_url,
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        **s3_server.environment(),
        **more,
    }
    with LambdaRegistry(tmp_path / "lambda", settings, processes=PROCESSES) as registry:
        scopes = "&".join(f"scope=repository:many/{n}:pull,push" for n in range(PROCESSES))
        token = LoggedIn(registry.host).request("GET", f"/token?{scopes}").json["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        clients = [Patient(registry.host, bearer) for _ in range(PROCESSES)]
        end = time.monotonic() + SECONDS

        def use(number: int) -> None:
            manifests: list[bytes] = []
            while not manifests or time.monotonic() < end:
                image = make_image((1000,), f"{number} {len(manifests)}")
                push_image(clients[number], f"many/{number}", image, str(len(manifests)))
                manifests.append(image.manifest.data)
            for tag, manifest in enumerate(manifests):
                answer = clients[number].request("GET", f"/v2/many/{number}/manifests/{tag}")
                assert answer.body == manifest

        with ThreadPoolExecutor(PROCESSES) as threads:
            list(threads.map(use, range(PROCESSES)))
        wait_until(
            lambda: held(server) * 4 <= CONNECTIONS * 3, 5, lambda: f"{held(server)} to be fewer"
        )
        return sum((client.statuses for client in clients), Counter())


def held(server: Small) -> int:
    """How many connections the server has, but for the one that asks."""
    [[count]] = server.query(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    assert isinstance(count, int)
    return count
