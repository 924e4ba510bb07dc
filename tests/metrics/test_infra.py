"""Dashboards, rules and Prometheus's configuration, checked against the metrics that there are."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from chalicelib import endpoints
from chalicelib.metrics import Histogram, catalogue
from tests.conftest import need
from tests.metrics import expressions
from tests.metrics.expressions import Asked, Selector

ASKED = [*expressions.of_dashboards(), *expressions.of_rules()]
METRICS = {metric.name: metric for metric in catalogue.METRICS}
RECORDED = {rule["record"] for rule in expressions.rules() if "record" in rule}
OTHERS = {"up": {"instance", "job"}}
"""Metrics of Prometheus itself."""
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""

VALUES = {
    "method": {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "other"},
    "status": {"2xx", "3xx", "4xx", "5xx"},
    "state": {"waiting", "running", "failing", "dead", "used", "idle"},
    "outcome": {"ok", "refused", "failed"},
    "kind": {"collect"},
    "route": {row.path for row in endpoints.ENDPOINTS},
}
"""The values of labels that expressions may name."""


def _labels(name: str) -> set[str] | None:
    """The labels of a series; None where there is no such metric."""
    if name in OTHERS or name in RECORDED:
        return OTHERS.get(name, set())
    base = re.sub("_(bucket|sum|count)$", "", name)
    if isinstance(metric := METRICS.get(base), Histogram) and base != name:
        return {*metric.labels, *SCRAPED, *({"le"} if name.endswith("_bucket") else ())}
    if (metric := METRICS.get(name)) is None or isinstance(metric, Histogram):
        return None
    return {*metric.labels, *SCRAPED}


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.place)
def test_it_asks_for_what_there_is(asked: Asked) -> None:
    found = expressions.selectors(asked.text)
    assert found or asked.text.startswith("vector")
    known: set[str] = set()
    for selector in found:
        labels = _labels(selector.name)
        assert labels is not None, f"there is no metric {selector.name}"
        known |= labels
        for label, operator, value in selector.matchers:
            assert label in labels, f"{selector.name} has no label {label}"
            assert _possible(label, operator, value), f"{label} is never {operator} {value}"
    assert expressions.groupings(asked.text) <= known


def _possible(label: str, operator: str, value: str) -> bool:
    if label not in VALUES:
        return True
    if operator in ("=", "!="):
        return value in VALUES[label]
    return any(re.fullmatch(value, each) for each in VALUES[label])


def test_a_mistake_would_be_found() -> None:
    [selector] = expressions.selectors("sum by (nonsense) (rate(openregistry_bogus{a='b'}[5m]))")
    assert selector == Selector("openregistry_bogus", (("a", "=", "b"),))
    assert _labels(selector.name) is None
    assert expressions.groupings("sum by (nonsense) (up)") == {"nonsense"}
    assert not _possible("route", "=", "/v2/{name}/manifests/{reference}")
    with pytest.raises(ValueError, match="unclosed"):
        expressions.selectors("sum by (")


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {
        re.sub("_(bucket|sum|count)$", "", selector.name)
        for asked in expressions.of_dashboards()
        for selector in expressions.selectors(asked.text)
    }
    assert set(METRICS) - shown == set()


def test_every_rule_says_what_to_do() -> None:
    for rule in expressions.rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert {"summary", "description"} <= rule["annotations"].keys()


def test_rules_and_configuration_are_valid() -> None:
    need("promtool", "prometheus")
    for command in (
        ["check", "config", str(expressions.CONFIGURATION)],
        ["check", "rules", str(expressions.RULES)],
        ["test", "rules", str(Path(__file__).with_name("alerts.yml"))],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire() -> None:
    """In alerts.yml, which promtool runs."""
    tests = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
    fired = {
        each["alertname"]
        for test in tests
        for each in test["alert_rule_test"]
        if each.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in expressions.rules() if "alert" in rule}


@pytest.mark.parametrize("path", expressions.DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        assert not _overlap(one, other)


@pytest.mark.parametrize("path", expressions.DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_know_all_of_it(path: Path) -> None:
    """What they do not know, they drop."""
    plugins.register_default_plugins()
    dashboard = json.loads(path.read_text())
    known = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert list(_unknown(dashboard, known)) == []


def _unknown(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """The places in a value that another one lacks or has otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from _unknown(value, theirs.get(name), f"{place}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from _unknown(one, other, f"{place}[]")
    elif ours != theirs:
        yield f"{place}: {ours!r}, not {theirs!r}"


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_grafana_finds_them() -> None:
    folder = expressions.INFRA / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    [provider] = yaml.safe_load((folder / "dashboards" / "openregistry.yaml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
    assert len(expressions.DASHBOARDS) == 3
