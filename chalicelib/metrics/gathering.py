"""A ``Recorder`` in memory, from which what was added since the last time is taken."""

import itertools
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from chalicelib.metrics import Counter, Gauge, Histogram, Labels

Key = tuple[str, Labels]
"""A metric's name, and its labels' values."""


@dataclass(slots=True)
class Distribution:
    """How often each bound of a histogram was the first that was no smaller than a value (beyond
    the last in ``counts``: none was), and the sum of the values."""

    counts: list[int]
    sum: float = 0.0

    def add(self, other: "Distribution") -> None:
        """Count another's values too."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


@dataclass(slots=True)
class Added:
    """What was counted in a while, and the gauges' values at its end."""

    counters: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    histograms: dict[Key, Distribution] = field(default_factory=dict)
    gauges: dict[Key, float] = field(default_factory=dict)

    def pieces(self, most: int) -> "Iterator[Added]":
        """The same in pieces of at most so many counters and histograms; each has all gauges."""
        keys = iter([*self.counters, *self.histograms])
        first = True
        while (some := set(itertools.islice(keys, most))) or first:
            first = False
            yield Added(
                {key: self.counters[key] for key in some & self.counters.keys()},
                {key: self.histograms[key] for key in some & self.histograms.keys()},
                self.gauges,
            )

    def add(self, other: "Added") -> None:
        """Count what another has counted too."""
        for key, amount in other.counters.items():
            self.counters[key] += amount
        for key, distribution in other.histograms.items():
            if (known := self.histograms.get(key)) is None:
                self.histograms[key] = distribution
            else:
                known.add(distribution)


class Gathered:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added = Added()

    def add(self, metric: Counter, labels: Labels, amount: float) -> None:
        with self._lock:
            self._added.counters[metric.name, labels] += amount

    def observe(self, metric: Histogram, labels: Labels, value: float) -> None:
        place = bisect_left(metric.bounds, value)
        key = metric.name, labels
        with self._lock:
            found = self._added.histograms.get(key)
            if found is None:
                found = Distribution([0] * (len(metric.bounds) + 1))
                self._added.histograms[key] = found
            found.counts[place] += 1
            found.sum += value

    def set(self, metric: Gauge, labels: Labels, value: float) -> None:
        with self._lock:
            self._added.gauges[metric.name, labels] = value

    def clear(self, metric: Gauge) -> None:
        with self._lock:
            gauges = self._added.gauges
            self._added.gauges = {key: gauges[key] for key in gauges if key[0] != metric.name}

    def take(self) -> Added:
        """What was counted since this was last called, and all gauges."""
        with self._lock:
            taken = self._added
            self._added = Added(gauges=dict(taken.gauges))
            return taken

    def put_back(self, taken: Added) -> None:
        """Have it taken another time: it could not be delivered."""
        with self._lock:
            self._added.add(taken)
