"""Metrics for Prometheus, on an address of their own: they tell of what goes on, and so are not for
everybody who reaches the registry."""

import itertools
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import NoReturn

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from chalicelib import __version__
from chalicelib.hosts.harness import child
from chalicelib.hosts.harness.reports import Channel, Reporter
from chalicelib.metrics import Gauge, Histogram, Labels, Metric, catalogue
from chalicelib.metrics.gathering import Added

_log = logging.getLogger(__name__)

SURVEY_SECONDS = 15.0
"""How often Postgres is asked about what all hosts share."""
SILENT_SECONDS = 10.0
"""A process that reports no more for so long has ended, and its gauges with it."""
_CLIENT_SECONDS = 10.0

Survey = Callable[[], None]
"""Sets the gauges of what all hosts share. May raise."""


class Sums(Collector):
    """What all processes of a host have counted, those that have ended too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added = Added()
        self._gauges: dict[str, tuple[float, Added]] = {}

    def deliver(self, process: str, added: Added) -> bool:
        """Take in a report."""
        with self._lock:
            self._added.add(added)
            self._gauges[process] = (time.monotonic(), added)
        return True

    def collect(self) -> Iterator[Family]:
        """All metrics of the catalogue, as prometheus_client wants them."""
        with self._lock:
            self._forget()
            families = [self._family(metric) for metric in catalogue.METRICS]
        yield from families

    def describe(self) -> Iterator[Family]:
        """Nothing: this is the registry's only collector."""
        return iter(())

    def _forget(self) -> None:
        since = time.monotonic() - SILENT_SECONDS
        self._gauges = {name: each for name, each in self._gauges.items() if each[0] > since}

    def _family(self, metric: Metric) -> Family:
        if isinstance(metric, Histogram):
            return self._distributions(metric)
        family: CounterMetricFamily | GaugeMetricFamily
        if metric.kind == "counter":
            family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        else:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        if isinstance(metric, Gauge):
            for labels, value in self._values(metric):
                family.add_metric(labels, value)
        else:
            for (name, labels), value in self._added.counters.items():
                if name == metric.name:
                    family.add_metric(labels, value)
        return family

    def _values(self, metric: Gauge) -> Iterator[tuple[Labels, float]]:
        for process, (_, added) in self._gauges.items():
            for (name, labels), value in added.gauges.items():
                if name == metric.name:
                    yield labels if metric.shared else (process, *labels), value

    def _distributions(self, metric: Histogram) -> HistogramMetricFamily:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
        for (name, labels), found in self._added.histograms.items():
            if name == metric.name:
                totals = map(float, itertools.accumulate(found.counts))
                family.add_metric(labels, list(zip(bounds, totals, strict=True)), found.sum)
        return family


class Exporter:
    """Answers Prometheus at ``listener``."""

    def __init__(self, listener: socket.socket, survey: Survey) -> None:
        self._listener = listener
        self._survey = survey
        self._sums = Sums()
        self.channel = Channel()

    def run(self, parent: socket.socket) -> NoReturn:
        """Be a process of the supervisor, until SIGTERM, which is blocked, or until ``parent``
        comes to its end, as it does when the supervisor is gone."""
        child.begin(parent)

        def receive() -> None:
            while True:
                self._sums.deliver(*self.channel.receive())

        threading.Thread(target=receive, name="receive", daemon=True).start()
        self.start("metrics")
        child.wait()
        os._exit(0)

    def start(self, process: str) -> None:
        """Answer in threads of this process, and tell of it under that name."""
        Reporter(process, self._sums.deliver).start()
        catalogue.BUILD.set(1, __version__, platform.python_version())
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._sums)
        # A client that is silent must not hold its thread for ever.
        members = {"registry": registry, "timeout": _CLIENT_SECONDS}
        handler = type("Handler", (MetricsHandler,), members)
        server = ThreadingHTTPServer(("", 0), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = self._listener
        threading.Thread(target=server.serve_forever, name="answer", daemon=True).start()
        threading.Thread(target=_keep_surveying, args=[self._survey], daemon=True).start()


def _keep_surveying(survey: Survey) -> None:
    while True:
        try:
            survey()
        except Exception:
            _log.warning("metrics of the database are missing", exc_info=True)
            _forget_shared()
            catalogue.DATABASE_UP.set(0)
        else:
            catalogue.DATABASE_UP.set(1)
        time.sleep(SURVEY_SECONDS)


def _forget_shared() -> None:
    for metric in catalogue.METRICS:
        if isinstance(metric, Gauge) and metric.shared and metric is not catalogue.BUILD:
            metric.clear()
