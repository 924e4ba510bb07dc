"""The catalogue of metrics: what it promises, and who keeps it."""

import re
from pathlib import Path

import pytest

from chalicelib.metrics import Histogram, Metric, catalogue
from tests.metrics.documented import table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_it_is_named_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch("openregistry(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if isinstance(metric, Histogram):
        assert metric.name.endswith("_seconds")
        assert list(metric.bounds) == sorted(set(metric.bounds))
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert not metric.help.endswith(".")
    assert all(re.fullmatch("[a-z]+", label) for label in metric.labels)
    assert set(metric.cloudwatch or ()) <= set(metric.labels)


def test_no_name_is_taken_twice() -> None:
    names = [metric.name for metric in catalogue.METRICS]
    assert len(set(names)) == len(names)


def test_each_is_set_somewhere() -> None:
    code = "".join(
        path.read_text()
        for path in (ROOT / "chalicelib").rglob("*.py")
        if path.name != "catalogue.py"
    )
    names = [name for name, value in vars(catalogue).items() if isinstance(value, Metric)]
    unused = [n for n in names if not re.search(rf"catalogue\.{n}\.(add|observe|set)\(", code)]
    assert not unused


def test_no_label_is_of_clients_choosing() -> None:
    """Else whoever pushes many names would fill Prometheus."""
    labels = {label for metric in catalogue.METRICS for label in metric.labels}
    assert not labels & {"repository", "tag", "digest", "account", "subject", "client", "path"}


def test_the_page_has_them_all() -> None:
    page = (ROOT / "docs" / "observing.md").read_text()
    shown = page.partition("<!-- metrics: begin -->\n")[2].partition("<!-- metrics: end -->")[0]
    assert shown == table(), "docs/observing.md has another table than chalicelib/metrics/catalogue"
