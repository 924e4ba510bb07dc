"""A real Prometheus, which scrapes a registry by the configuration and the rules of infra/."""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.client import HTTPClient, push_image
from tests.conftest import need
from tests.images import make_image
from tests.metrics import expressions
from tests.metrics.expressions import Asked
from tests.metrics.test_scrape import Measured, eventually
from tests.servers import S3, Postgres, Server, answers, free_port, stopping

pytestmark = pytest.mark.long

SILENT = {
    # Nothing of this happens to a registry that is well.
    "openregistry_database_failures_total",
    "openregistry_database_pool_timeouts_total",
    "openregistry_parts_spilled_total",
    "openregistry_storage_retries_total",
}
"""Metrics that need have no series yet."""


class Prometheus(Server):
    """Debian's, with what infra/ gives it; but for the hosts, which are named, and its pace."""

    name = "prometheus"

    def __init__(self, directory: Path, targets: list[str]) -> None:
        super().__init__(directory)
        self.host = f"127.0.0.1:{free_port()}"
        configuration = yaml.safe_load(expressions.CONFIGURATION.read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(expressions.RULES)]
        [job] = configuration["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        self.file = directory / "prometheus.yml"
        self.file.write_text(yaml.safe_dump(configuration))

    def command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self.file}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={self.host}",
        ]

    def environment(self) -> Mapping[str, str]:
        return {"GOMAXPROCS": "1"}

    def ready(self) -> bool:
        return answers(f"http://{self.host}/-/ready")

    def ask(self, path: str, **parameters: str) -> Any:
        """Its API's answer."""
        url = f"http://{self.host}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        assert not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """The series that an expression gives now."""
        result: list[Any] = self.ask("query", query=expression)["result"]
        return result


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3_server: S3
) -> Iterator[Measured]:
    server = Measured(
        tmp_path_factory.mktemp("measured"),
        OPENREGISTRY_DATABASE_URL=postgres.new_database(),
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        OPENREGISTRY_GRACE="1s",
        **s3_server.environment(),
    )
    with stopping(server):
        yield server.start()


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, measured: Measured
) -> Iterator[Prometheus]:
    need("prometheus", "prometheus")
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), [measured.metrics])
    with stopping(server):
        server.start()
        client = HTTPClient(measured.host)
        images = [make_image((1000, 5 << 20), seed) for seed in range(3)]

        def work() -> bool:
            """Some of everything, for as long as it takes that rates are known."""
            for number, image in enumerate(images):
                push_image(client, f"some/{number}", image, "latest")
                client.request("GET", f"/v2/some/{number}/manifests/latest")
                client.request("GET", f"/v2/some/{number}/blobs/{image.blobs[0].digest}")
                client.request("HEAD", f"/v2/some/{number}/blobs/{image.blobs[0].digest}")
                client.request("GET", "/token")
            return bool(server.query("rate(openregistry_jobs_done_total[1m])")) and bool(
                server.query("rate(openregistry_http_request_duration_seconds_count[1m]) > 0")
            )

        for _ in range(2):
            eventually(work, "metrics of all kinds", 90)
        yield server


def test_it_reaches_the_registry(prometheus: Prometheus) -> None:
    [target] = prometheus.ask("targets")["activeTargets"]
    assert target["health"] == "up", target["lastError"]


@pytest.mark.parametrize(
    "asked", expressions.of_dashboards(), ids=lambda asked: re.sub(r"\W+", "-", asked.place)
)
def test_every_panel_shows_something(prometheus: Prometheus, asked: Asked) -> None:
    found = prometheus.query(asked.text)
    names = {each.name for each in expressions.selectors(asked.text)}
    if names <= SILENT or 'status="5xx"' in asked.text or 'outcome!="ok"' in asked.text:
        return
    assert found, f"nothing for {asked.text}"


def test_rules_are_evaluated_and_no_alert_fires(prometheus: Prometheus) -> None:
    groups = prometheus.ask("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(expressions.rules())
    for rule in found:
        assert rule["health"] == "ok", rule
        # Nothing was collected within the first minute's rate: pending, as for half an hour.
        assert rule.get("state") != "firing", rule
    assert float(prometheus.query("openregistry:pulls:rate5m")[0]["value"][1]) > 0
    assert float(prometheus.query("openregistry:pushes:rate5m")[0]["value"][1]) > 0
    assert prometheus.query("openregistry:failures:ratio5m")[0]["value"][1] == "0"


def test_a_host_that_is_gone_is_told_of(prometheus: Prometheus, measured: Measured) -> None:
    measured.kill9()

    def pending() -> bool:
        return bool(prometheus.query('ALERTS{alertname="RegistryDown"}'))

    eventually(pending, "the alert", 30)
