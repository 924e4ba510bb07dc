"""Metrics on Lambda: lines of the log that CloudWatch reads (AWS, "Specification: Embedded metric
format")."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from chalicelib import metrics
from chalicelib.hosts import aws_metrics
from chalicelib.metrics import catalogue
from tests.hosts.lambda_jobs import SCHEDULED
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn
from tests.hosts.lambda_runtime import Function, RuntimeApi
from tests.servers import stopping

UNITS = {"Seconds", "Bytes", "Count"}

Point = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its dimensions: each is one that costs money."""


def points(line: dict[str, Any]) -> dict[Point, list[float]]:
    """What CloudWatch would take from a line, checked against the specification."""
    aws = line["_aws"]
    assert abs(aws["Timestamp"] / 1000 - time.time()) < 3600
    found: dict[Point, list[float]] = {}
    for directive in aws["CloudWatchMetrics"]:
        assert directive["Namespace"] == "OpenRegistry"
        assert 1 <= len(directive["Metrics"]) <= 100
        for dimensions in directive["Dimensions"]:
            assert 1 <= len(dimensions) <= 30
            for name in dimensions:
                assert isinstance(line[name], str)
                assert 1 <= len(line[name]) <= 1024
            for metric in directive["Metrics"]:
                assert metric["Unit"] in UNITS
                value = line[metric["Name"]]
                values = value if isinstance(value, list) else [value]
                assert 1 <= len(values) <= 100
                assert all(isinstance(each, int | float) for each in values)
                key = metric["Name"], tuple((name, line[name]) for name in dimensions)
                found[key] = values
    return found


def taken(lines: Iterable[dict[str, Any]]) -> dict[Point, list[float]]:
    """What CloudWatch would take from several."""
    found: dict[Point, list[float]] = {}
    for line in lines:
        if "_aws" in line:
            for point, values in points(line).items():
                found[point] = found.get(point, []) + values
    return found


def printed(capsys: pytest.CaptureFixture[str]) -> dict[Point, list[float]]:
    return taken(json.loads(line) for line in capsys.readouterr().out.splitlines())


SERVICE = ("service", "openregistry")


def test_one_call_of_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    with aws_metrics.written():
        catalogue.REQUEST_SECONDS.observe(0.25, "/v2/", "GET", "2xx")
        catalogue.STORAGE_SECONDS.observe(0.5, "put_object", "ok")
        catalogue.STORAGE_SECONDS.observe(0.75, "head_object", "refused")
        catalogue.COLLECTED_BYTES.add(10)
        catalogue.COLLECTED_BYTES.add(5)
        catalogue.RECEIVED.add(1000, "/v2/")  # not for CloudWatch
        catalogue.JOBS.set(2, "collect", "waiting")
        catalogue.JOBS.set(3, "webhook", "waiting")
        catalogue.JOBS.set(1, "webhook", "dead")
        catalogue.JOBS_AGE.set(20, "collect")
        catalogue.JOBS_AGE.set(90, "webhook")
    route = ("route", "/v2/")
    assert printed(capsys) == {
        ("openregistry_http_request_duration_seconds", (route, SERVICE)): [0.25],
        ("openregistry_storage_call_duration_seconds", (SERVICE,)): [0.5, 0.75],
        ("openregistry_collected_bytes_total", (SERVICE,)): [15],
        ("openregistry_jobs", (("state", "waiting"), SERVICE)): [5],
        ("openregistry_jobs", (("state", "dead"), SERVICE)): [1],
        ("openregistry_jobs_oldest_due_seconds", (SERVICE,)): [90],
    }


def test_nothing_is_kept_between_calls(capsys: pytest.CaptureFixture[str]) -> None:
    with aws_metrics.written():
        catalogue.JOBS_AGE.set(20, "collect")
    printed(capsys)
    with aws_metrics.written():
        pass
    catalogue.JOBS_AGE.set(20, "collect")
    assert capsys.readouterr().out == ""


def test_a_call_that_fails_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with aws_metrics.written():
            catalogue.DATABASE_FAILURES.add(1, "connect")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(printed(capsys).values()) == [[1]]


@pytest.mark.parametrize("count", [99, 100, 101, 250])
def test_many_values_are_several_lines(capsys: pytest.CaptureFixture[str], count: int) -> None:
    with aws_metrics.written():
        for number in range(count):
            catalogue.DATABASE_SECONDS.observe(number, "statement")
    [values] = printed(capsys).values()
    assert sorted(values) == list(range(count))
    metrics.record(None)


def test_a_request_is_measured(lambda_registry: LambdaRegistry) -> None:
    LoggedIn(lambda_registry.host).request("GET", "/v2/some/name/manifests/none")
    found = taken(lambda_registry.metrics())
    route = ("route", "/v2/{repository}/manifests/{reference}")
    assert found["openregistry_http_request_duration_seconds", (route, SERVICE)]
    assert found["openregistry_database_duration_seconds", (SERVICE,)]


def test_the_schedule_tells_of_jobs(lambda_registry: LambdaRegistry, tmp_path: Path) -> None:
    api = RuntimeApi()
    function = Function(tmp_path, "app.work", api, lambda_registry.settings)
    try:
        with stopping(function):
            function.start()
            api.invoke(SCHEDULED, 60)
            lines = [json.loads(line) for line in function.output().splitlines()]
    finally:
        api.shutdown()
    found = taken(lines)
    for state in ("waiting", "running", "failing", "dead"):
        assert found["openregistry_jobs", (("state", state), SERVICE)][0] >= 0
    assert found["openregistry_jobs_oldest_due_seconds", (SERVICE,)][0] >= 0
    # What it costs to have a stack that nobody uses: docs/observing.md says how many.
    assert len(found) <= 7
