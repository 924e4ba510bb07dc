"""Fluent Bit's configuration, against real lines of the log.

Fluent Bit itself could not be had where this was written. What is checked here is what its manual
says: which options there are, and what its JSON parser makes of a line.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.client import HTTPClient
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn
from tests.hosts.lambda_runtime import ROOT
from tests.hosts.wire import until
from tests.servers import Registry

FOLDER = ROOT / "infra" / "fluent-bit"
MAINS = ("stdout", "loki", "s3")

STORED = {"storage.type"}
DELIVERED = {"match", "retry_limit", "storage.total_limit_size"}
OPTIONS = {
    "service": {
        "flush", "grace", "log_level", "storage.path", "storage.sync", "storage.checksum",
        "storage.backlog.mem_limit",
    },
    "parsers": {"name", "format", "time_key", "time_format", "time_keep"},
    "forward": {"listen", "port", "tag", "tag_prefix", "shared_key"} | STORED,
    "tail": {
        "tag", "path", "db", "parser", "read_from_head", "refresh_interval", "buffer_max_size",
        "skip_long_lines",
    } | STORED,
    "parser": {"match", "key_name", "parser", "reserve_data"},
    "stdout": {"format"} | DELIVERED,
    "loki": {"host", "port", "tls", "labels", "line_format"} | DELIVERED,
    "s3": {
        "bucket", "region", "endpoint", "s3_key_format", "use_put_object", "compression",
        "total_file_size", "upload_timeout", "store_dir", "store_dir_limit_size", "json_date_key",
    } | DELIVERED,
}  # fmt: skip
"""What the manual of Fluent Bit has for each section and plugin, as far as it is used."""


def load(name: str) -> dict[str, Any]:
    """A configuration with what it includes."""
    whole: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for other in whole.pop("includes", []):
        included = load(Path(other).stem)
        whole = {**included, **whole, "pipeline": {**included["pipeline"], **whole["pipeline"]}}
    return whole


@pytest.fixture(params=MAINS)
def configuration(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_every_option_is_one_of_the_manuals(configuration: dict[str, Any]) -> None:
    assert configuration.keys() == {"service", "parsers", "pipeline"}
    assert not configuration["service"].keys() - OPTIONS["service"]
    for parser in configuration["parsers"]:
        assert not parser.keys() - OPTIONS["parsers"]
    assert configuration["pipeline"].keys() == {"inputs", "filters", "outputs"}
    for plugins in configuration["pipeline"].values():
        for plugin in plugins:
            assert not plugin.keys() - OPTIONS[plugin["name"]] - {"name"}, plugin


def test_nothing_is_lost_by_a_restart(configuration: dict[str, Any]) -> None:
    assert configuration["service"]["storage.path"]
    pipeline = configuration["pipeline"]
    assert {each["storage.type"] for each in pipeline["inputs"]} == {"filesystem"}
    assert all(each["db"] for each in pipeline["inputs"] if each["name"] == "tail")
    for each in pipeline["outputs"]:
        assert each["match"] == "*"
        assert each["name"] == "stdout" or each["retry_limit"] == "no_limits"


def test_parsers_that_are_named_exist(configuration: dict[str, Any]) -> None:
    names = {parser["name"] for parser in configuration["parsers"]}
    used = [
        plugin["parser"]
        for plugins in configuration["pipeline"].values()
        for plugin in plugins
        if "parser" in plugin
    ]
    assert len(used) == 2
    assert set(used) == names


def parsed(line: str) -> tuple[datetime, dict[str, Any]]:
    """What Fluent Bit's JSON parser makes of a line: its time, and its fields."""
    [parser] = load("stdout")["parsers"]
    record = json.loads(line)
    # %L is its own: what comes after the seconds.
    form = parser["time_format"].replace("%S.%L", "%S.%f")
    return datetime.strptime(record[parser["time_key"]], form).astimezone(UTC), record


def check(line: str) -> None:
    at, record = parsed(line)
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=30)
    # Loki's labels are fields of every line.
    [loki] = load("loki")["pipeline"]["outputs"]
    labels = [part.partition("=$")[2] for part in loki["labels"].split(", ")[1:]]
    assert labels == ["level", "logger"]
    assert all(isinstance(record[label], str) and record[label] for label in labels)


def lines(registry: Registry) -> Iterator[str]:
    return (line for line in registry.output().splitlines() if line.startswith("{"))


def test_lines_of_the_harness_are_read(registry: Registry) -> None:
    HTTPClient(registry.host).request("GET", "/v2/", headers={"X-Request-Id": "for-fluent-bit"})
    for _ in until():
        if any("for-fluent-bit" in line for line in lines(registry)):
            break
    for line in lines(registry):
        check(line)


def test_lines_of_lambda_are_read(lambda_registry: LambdaRegistry) -> None:
    LoggedIn(lambda_registry.host).request("GET", "/v2/")
    found = lambda_registry.logs()
    assert found
    for line in found:
        check(json.dumps(line))
