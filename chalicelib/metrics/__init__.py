"""What is counted and measured while the registry works, without a word of who reads it.

``catalogue`` has all metrics. Code adds to them wherever something happens; a host gives the
process a ``Recorder`` (``hosts/harness/reports.py``, ``hosts/aws_metrics.py``). Without one, as in
commands, nothing is kept, and to add costs next to nothing.
"""

from collections.abc import Callable
from typing import Protocol

Labels = tuple[str, ...]


class Metric:
    """Something that has a value for each combination of ``labels``, of which there are few: never
    a name or an id that clients choose. ``cloudwatch`` are those labels that are dimensions in
    CloudWatch, where each combination costs money; None: it is not sent there."""

    kind: str
    """Prometheus's word: counter, gauge or histogram."""

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Labels = (),
        *,
        cloudwatch: Labels | None = None,
    ) -> None:
        self.name = name
        self.help = help_
        self.labels = labels
        self.cloudwatch = cloudwatch


class Recorder(Protocol):
    """Keeps what a process counts and measures. Called by any thread; neither waits nor raises."""

    def add(self, metric: "Counter", labels: Labels, amount: float) -> None: ...

    def observe(self, metric: "Histogram", labels: Labels, value: float) -> None: ...

    def set(self, metric: "Gauge", labels: Labels, value: float) -> None: ...

    def clear(self, metric: "Gauge") -> None:
        """Forget a gauge's values, some of which may not come again."""


class Counter(Metric):
    """How often, or how much, since the process began."""

    kind = "counter"

    def add(self, amount: float = 1, *labels: str) -> None:
        """Count."""
        if _recorder is not None:
            _recorder.add(self, labels, amount)


class Histogram(Metric):
    """How values are spread: how many are no greater than each of ``bounds``, and their sum."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Labels = (),
        *,
        bounds: tuple[float, ...],
        cloudwatch: Labels | None = None,
    ) -> None:
        super().__init__(name, help_, labels, cloudwatch=cloudwatch)
        self.bounds = bounds

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        if _recorder is not None:
            _recorder.observe(self, labels, value)


class Gauge(Metric):
    """A value that goes up and down. ``shared``: it is of what all processes use, and else of one
    process, whose name comes before its labels as ``process``. Of a ``total`` kind it is a counter
    that something else keeps."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Labels = (),
        *,
        shared: bool = False,
        total: bool = False,
        cloudwatch: Labels | None = None,
    ) -> None:
        super().__init__(
            name, help_, labels if shared else ("process", *labels), cloudwatch=cloudwatch
        )
        self.shared = shared
        if total:
            self.kind = "counter"

    def set(self, value: float, *labels: str) -> None:
        """Replace the value."""
        if _recorder is not None:
            _recorder.set(self, labels, value)

    def clear(self) -> None:
        """Forget the values, some of which may not come again."""
        if _recorder is not None:
            _recorder.clear(self)


_recorder: Recorder | None = None
_samplers: list[Callable[[], None]] = []


def record(recorder: Recorder | None) -> None:
    """Have this process's metrics kept from now on."""
    global _recorder  # noqa: PLW0603
    _recorder = recorder


def sampled(sampler: Callable[[], None]) -> Callable[[], None]:
    """Have a function called before metrics are read, to set gauges."""
    _samplers.append(sampler)
    return sampler


def sample() -> None:
    """Set the gauges that are set only when they are read."""
    for sampler in _samplers:
        sampler()
