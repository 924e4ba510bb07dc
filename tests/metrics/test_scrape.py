"""A registry of several processes, as Prometheus sees it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from chalicelib.metrics import catalogue
from tests.client import HTTPClient, begin, push_image
from tests.images import make_image
from tests.metrics.scrapes import Scrape, labels_of
from tests.servers import (
    OPENREGISTRY,
    S3,
    Postgres,
    Registry,
    Server,
    answers,
    free_port,
    stopping,
    wait_until,
)

COUNT = "openregistry_http_request_duration_seconds_count"
MANIFEST = "/v2/{repository}/manifests/{reference}"


class Measured(Registry):
    """A registry that answers Prometheus."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.metrics = f"127.0.0.1:{free_port()}"
        super().__init__(
            directory,
            {
                "OPENREGISTRY_METRICS_LISTEN": self.metrics,
                "OPENREGISTRY_WORKERS": "2",
                "OPENREGISTRY_STATUS_PROBES": "false",
                **settings,
            },
        )

    def scrape(self) -> Scrape:
        return Scrape(self.metrics)

    def start(self, within: float = 60) -> Self:
        super().start(within)
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        self.first = sorted(map(int, children))
        """The processes that it began with: two workers, jobs, metrics."""
        return self


def eventually(condition: Callable[[], bool], what: str, within: float = 15) -> None:
    """Processes report once a second."""
    wait_until(condition, within, lambda: what)


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3_server: S3
) -> Iterator[Measured]:
    server = Measured(
        tmp_path_factory.mktemp("measured"),
        OPENREGISTRY_DATABASE_URL=postgres.new_database(),
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        **s3_server.environment(),
    )
    with stopping(server):
        yield server.start()


def test_every_process_reports(measured: Measured) -> None:
    processes = {"worker-0", "worker-1", "jobs", "metrics"}

    def reported() -> bool:
        found = measured.scrape()
        names = found.values("openregistry_process_resident_memory_bytes", "process")
        collected = found.sum("openregistry_job_duration_seconds_count", kind="collect")
        return (
            names == processes
            and collected > 0
            and found.sum("openregistry_database_size_bytes") > 1 << 20
        )

    eventually(reported, "all processes to report, and the first collection", 30)
    found = measured.scrape()
    assert found.sum("openregistry_process_resident_memory_bytes", process="worker-0") > 10 << 20
    assert found.sum("openregistry_process_cpu_seconds_total", process="jobs") > 0
    assert found.sum("openregistry_process_open_fds", process="worker-1") > 5
    assert abs(found.sum("openregistry_process_start_time_seconds", process="jobs")
               - time.time()) < 300  # fmt: skip
    assert found.sum("openregistry_database_up") == 1
    assert found.sum("openregistry_build_info") == 1
    assert found.sum("openregistry_job_duration_seconds_count", kind="collect", outcome="done") >= 1


def test_a_push_and_a_pull_are_counted_whichever_process_served_them(measured: Measured) -> None:
    before = measured.scrape()
    image = make_image((1000, 2000))
    for _ in range(5):
        client = HTTPClient(measured.host)
        push_image(client, "many/names/below", image, "latest")
        answer = client.request("GET", "/v2/many/names/below/manifests/latest")
        assert answer.status == 200
        assert client.request("GET", "/v2/many/names/below/manifests/none").status == 404

    def grown(name: str, **labels: str) -> float:
        return measured.scrape().sum(name, **labels) - before.sum(name, **labels)

    eventually(lambda: grown(COUNT, route=MANIFEST, method="GET", status="4xx") == 5, "the counts")
    assert grown(COUNT, route=MANIFEST, method="GET", status="2xx") == 5
    assert grown(COUNT, route=MANIFEST, method="PUT", status="2xx") == 5
    sent = 5 * len(image.manifest.data)
    assert 0 <= grown("openregistry_http_sent_bytes_total", route=MANIFEST) - sent < 5 * 500
    received = grown("openregistry_http_received_bytes_total",
                     route="/v2/{repository}/blobs/uploads/{upload}")  # fmt: skip
    assert received == 5 * sum(len(blob.data) for blob in image.blobs)
    assert grown("openregistry_storage_call_duration_seconds_count", operation="put_object",
                 outcome="ok") >= len(image.blobs)  # fmt: skip
    assert grown("openregistry_database_duration_seconds_count", kind="transaction") > 5


def test_what_no_endpoint_takes_makes_no_series_of_its_own(measured: Measured) -> None:
    client = HTTPClient(measured.host)
    for number in range(20):
        client.request("GET", f"/nowhere/{number}")
        client.request("PROPFIND", f"/v2/some/{number}/manifests/x")
    eventually(
        lambda: measured.scrape().sum(COUNT, method="other", status="4xx") >= 20, "the counts"
    )
    found = measured.scrape()
    assert found.sum(COUNT, route="none", status="4xx") >= 20
    assert "PROPFIND" not in found.text
    assert "nowhere" not in found.text


def test_uploads_under_way_are_seen_and_those_that_vanish_are_counted(measured: Measured) -> None:
    before = measured.scrape().sum(COUNT, method="PATCH", status="4xx")
    location = begin(HTTPClient(measured.host), "slow")
    host, port = measured.host.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegun".encode()
        )
        eventually(
            lambda: measured.scrape().sum("openregistry_uploads_in_progress") == 1, "the upload"
        )
        found = measured.scrape()
        assert found.sum("openregistry_http_connections") >= 1
        assert found.sum("openregistry_http_requests_in_progress") >= 1
    route = "/v2/{repository}/blobs/uploads/{upload}"
    eventually(
        lambda: (
            measured.scrape().sum(COUNT, method="PATCH", route=route, status="4xx") == before + 1
        ),
        "the end to be counted",
    )
    assert measured.scrape().sum("openregistry_uploads_in_progress") == 0


def test_a_scrape_is_what_the_catalogue_says(measured: Measured) -> None:
    found = measured.scrape()
    metrics = {metric.name.removesuffix("_total"): metric for metric in catalogue.METRICS}
    assert found.families.keys() == metrics.keys()
    for name, family in found.families.items():
        assert family.type == metrics[name].kind
        assert family.documentation == metrics[name].help
        for sample in family.samples:
            assert labels_of(sample.labels) == set(metrics[name].labels), sample
        if family.type == "histogram":
            counts: dict[frozenset[tuple[str, str]], list[float]] = {}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    labels = frozenset(sample.labels.items() - {("le", sample.labels["le"])})
                    counts.setdefault(labels, []).append(sample.value)
            for labels, buckets in counts.items():
                assert buckets == sorted(buckets)
                assert buckets[-1] == found.sum(f"{name}_count", **dict(labels)) > 0
    assert len(found.text) < 300_000


def test_the_registry_itself_does_not_tell(measured: Measured) -> None:
    assert HTTPClient(measured.host).request("GET", "/metrics").status == 404


def test_a_silent_client_keeps_nobody_waiting(measured: Measured) -> None:
    host, port = measured.metrics.split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert measured.scrape().families


def test_counts_outlive_a_process_and_gauges_do_not(measured: Measured) -> None:
    for _ in range(10):
        HTTPClient(measured.host).request("GET", "/v2/")
    eventually(lambda: measured.scrape().sum(COUNT, route="/v2/") >= 10, "the counts")
    before = measured.scrape().sum(COUNT, route="/v2/")
    begun = measured.scrape().sum("openregistry_process_start_time_seconds", process="worker-0")
    for pid in measured.first[:2]:
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: (
            measured.scrape().sum("openregistry_process_start_time_seconds", process="worker-0")
            > begun
        ),
        "the workers' successors",
    )
    assert measured.scrape().sum(COUNT, route="/v2/") >= before


def test_the_process_that_answers_prometheus_is_replaced_too(measured: Measured) -> None:
    os.kill(measured.first[-1], signal.SIGKILL)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            HTTPClient(measured.host).request("GET", "/v2/")
            return measured.scrape().sum(COUNT, route="/v2/") > 0
        return False

    eventually(answers, "another one", 30)


@pytest.mark.long
def test_postgres_that_is_down_leaves_the_rest(
    tmp_path_factory: pytest.TempPathFactory, directory: Path
) -> None:
    own = Postgres(directory / "postgres-that-stops")
    with stopping(own):
        own.start()
        url = own.new_database()
        server = Measured(tmp_path_factory.mktemp("down"), OPENREGISTRY_DATABASE_URL=url)
        with stopping(server):
            server.start()
            eventually(lambda: server.scrape().sum("openregistry_database_up") == 1, "Postgres")
            own.kill9()
            with contextlib.suppress(OSError):
                HTTPClient(server.host).request("GET", "/v2/some/manifests/x")
            eventually(
                lambda: "openregistry_database_up 0.0" in server.scrape().text, "its end", 40
            )
            found = server.scrape()
            assert not found.values("openregistry_jobs", "kind")
            assert found.sum("openregistry_database_failures_total") > 0
            assert found.sum("openregistry_process_resident_memory_bytes") > 0
            assert found.sum(COUNT, route=MANIFEST, status="5xx") >= 1


class Work(Server):
    """`openregistry work`, which answers Prometheus."""

    name = "work"

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.metrics = f"127.0.0.1:{free_port()}"
        self._settings = {**settings, "OPENREGISTRY_METRICS_LISTEN": self.metrics}

    def command(self) -> list[str]:
        return [str(OPENREGISTRY), "work"]

    def environment(self) -> Mapping[str, str]:
        return self._settings

    def ready(self) -> bool:
        return answers(f"http://{self.metrics}/metrics")


@pytest.mark.long
def test_a_worker_of_its_own_answers_too(measured: Measured, tmp_path: Path) -> None:
    worker = Work(tmp_path, measured.settings)
    with stopping(worker):
        worker.start()
        eventually(
            lambda: Scrape(worker.metrics).sum("openregistry_database_up") == 1, "a survey", 30
        )
        found = Scrape(worker.metrics)
        assert found.values("openregistry_process_resident_memory_bytes", "process") == {"jobs"}
        worker.stop()
        assert worker.process is not None
        assert worker.process.returncode == 0


@pytest.mark.long
def test_a_host_that_ends_tells_of_it_until_its_last_request(
    postgres: Postgres, tmp_path: Path
) -> None:
    server = Measured(tmp_path, OPENREGISTRY_DATABASE_URL=postgres.new_database())
    host, port = server.host.split(":")
    with stopping(server):
        server.start()
        location = begin(HTTPClient(server.host), "slow")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbegun".encode()
            )
            eventually(
                lambda: server.scrape().sum("openregistry_uploads_in_progress") == 1, "the upload"
            )
            server.signal(signal.SIGTERM)
            time.sleep(2)
            assert server.scrape().sum("openregistry_uploads_in_progress") == 1
            client.sendall(b"over")
            assert client.recv(100).startswith(b"HTTP/1.1 202")
        eventually(lambda: not server.alive(), "all processes to end", 30)


@pytest.mark.long
def test_an_address_that_is_taken_stops_the_start(measured: Measured, tmp_path: Path) -> None:
    settings = {
        **measured.settings,
        "OPENREGISTRY_DATA_DIR": str(tmp_path),
        "OPENREGISTRY_LISTEN": f"127.0.0.1:{free_port()}",
    }
    done = subprocess.run(
        [OPENREGISTRY, "serve"],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    sentence = f"OPENREGISTRY_METRICS_LISTEN: {measured.metrics} cannot be listened on"
    assert sentence in done.stderr
