"""Metrics on Lambda: lines of the log from which CloudWatch makes metrics (AWS, "Specification:
Embedded metric format"), written by Powertools when a call of a function ends.

Each combination of a metric's dimensions is a metric that costs money; ``Metric.cloudwatch`` says
which there are.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)

from chalicelib import logs, metrics
from chalicelib.metrics import Counter, Gauge, Histogram, Labels, Metric

NAMESPACE = "OpenRegistry"

_Dimensions = tuple[tuple[str, str], ...]


class _Call:
    """The ``Recorder`` of one call of a function."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[_Dimensions, Metric], float] = defaultdict(float)
        self._values: list[tuple[_Dimensions, Metric, float]] = []
        self._gauges: dict[tuple[Gauge, Labels], float] = {}

    def add(self, metric: Counter, labels: Labels, amount: float) -> None:
        if metric.cloudwatch is not None and amount:
            with self._lock:
                self._counts[_dimensions(metric, labels), metric] += amount

    def observe(self, metric: Histogram, labels: Labels, value: float) -> None:
        if metric.cloudwatch is not None:
            with self._lock:
                self._values.append((_dimensions(metric, labels), metric, value))

    def set(self, metric: Gauge, labels: Labels, value: float) -> None:
        if metric.cloudwatch is not None:
            with self._lock:
                self._gauges[metric, labels] = value

    def clear(self, metric: Gauge) -> None:
        with self._lock:
            self._gauges = {key: self._gauges[key] for key in self._gauges if key[0] is not metric}

    def write(self) -> None:
        """Write a line for each set of dimensions."""
        with self._lock:
            counts = [(*key, value) for key, value in self._counts.items()]
            values = [*counts, *self._values, *self._joined()]
        lines: dict[_Dimensions, AmazonCloudWatchEMFProvider] = {}
        for dimensions, metric, value in values:
            if (line := lines.get(dimensions)) is None:
                line = AmazonCloudWatchEMFProvider(namespace=NAMESPACE, service=logs.SERVICE)
                for name, text in dimensions:
                    line.add_dimension(name, text)
                lines[dimensions] = line
            line.add_metric(metric.name, _unit(metric), value)
        for line in lines.values():
            # A hundred values were a line of their own.
            if line.metric_set:
                line.flush_metrics()

    def _joined(self) -> Iterator[tuple[_Dimensions, Metric, float]]:
        """Gauges, one value for each set of dimensions: of ages the largest, else the sum."""
        joined: dict[tuple[_Dimensions, Gauge], list[float]] = defaultdict(list)
        for (metric, labels), value in self._gauges.items():
            joined[_dimensions(metric, labels), metric].append(value)
        for (dimensions, metric), found in joined.items():
            yield dimensions, metric, max(found) if _unit(metric) == "Seconds" else sum(found)


@contextmanager
def written() -> Iterator[None]:
    """Write the metrics of what is done within."""
    call = _Call()
    metrics.record(call)
    try:
        yield
    finally:
        metrics.record(None)
        call.write()


def _dimensions(metric: Metric, labels: Labels) -> _Dimensions:
    wanted = metric.cloudwatch or ()
    return tuple(pair for pair in zip(metric.labels, labels, strict=True) if pair[0] in wanted)


def _unit(metric: Metric) -> str:
    if "_seconds" in metric.name:
        return "Seconds"
    return "Bytes" if "_bytes" in metric.name else "Count"
