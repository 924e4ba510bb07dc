"""Whether the memory of processes is flat."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

WARM_UP = 1 / 3
"""The share of a run that is not judged: caches fill, threads and connections begin."""
TOLERATED, TOLERATED_SHARE = 3.0, 0.03
"""MiB, and the share of what a process has, by which it may grow over what is judged."""

Sample = tuple[float, float]
"""Seconds since the beginning, and MiB."""


class Verdict(NamedTuple):
    """Of one process: MiB at the beginning of what is judged and at the end, as a line through all
    samples has them, and how many MiB an hour that is."""

    first: float
    last: float
    slope: float
    peak: float

    @property
    def flat(self) -> bool:
        return self.last - self.first <= max(TOLERATED, TOLERATED_SHARE * self.first)


def judge(samples: Sequence[Sample]) -> Verdict:
    """A line through the samples (least squares) after the warm-up. Raises ``ValueError`` for
    fewer than three."""
    end = samples[-1][0] if samples else 0.0
    judged = [sample for sample in samples if sample[0] >= end * WARM_UP]
    if len(judged) < 3:
        raise ValueError("the run was too short to judge memory")
    count = len(judged)
    middle = sum(at for at, _ in judged) / count
    mean = sum(size for _, size in judged) / count
    spread = sum((at - middle) ** 2 for at, _ in judged)
    slope = sum((at - middle) * (size - mean) for at, size in judged) / spread
    first, last = (mean + slope * (at - middle) for at in (judged[0][0], judged[-1][0]))
    return Verdict(first, last, slope * 3600, max(size for _, size in samples))


def own_memory(pid: int) -> float:
    """MiB of a process, pages that it shares counted in parts, without those of files: they are
    shared with whatever else runs of the same Python. 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    counted = ("Pss_Anon:", "Pss_Shmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(counted)) / 1024


class Watch:
    """Samples the memory of named processes every ``interval`` seconds: ``measure`` gives MiB."""

    def __init__(self, measure: Callable[[], Mapping[str, float]], interval: float) -> None:
        self._measure = measure
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: dict[str, list[Sample]] = {}

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        begun = time.monotonic()
        while True:
            at = time.monotonic() - begun
            for name, size in self._measure().items():
                self.samples.setdefault(name, []).append((at, size))
            if self._done.wait(self._interval):
                return
