"""What the processes of one host tell the one that Prometheus asks."""

import json
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chalicelib import metrics
from chalicelib.metrics import catalogue
from chalicelib.metrics.gathering import Added, Distribution, Gathered

_log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
"""How often a process tells what it has counted."""
_SERIES = 200
"""How many values one datagram has at most, beside gauges: 40 KiB, of the 200 that Linux takes."""

Deliver = Callable[[str, Added], bool]
"""Given a process's name and what it has counted; False where that must be tried again."""


class Reporter:
    """Keeps this process's metrics from now on, and delivers them for as long as it lives."""

    def __init__(self, process: str, deliver: Deliver) -> None:
        self._process = process
        self._deliver = deliver
        self._gathered = Gathered()
        self._lock = threading.Lock()
        metrics.record(self._gathered)
        catalogue.STARTED.set(time.time())

    def start(self) -> None:
        """Begin to report."""
        threading.Thread(target=self._run, name="report", daemon=True).start()

    def report(self) -> None:
        """Deliver what was counted since the last time."""
        with self._lock:
            metrics.sample()
            _measure_process()
            for piece in self._gathered.take().pieces(_SERIES):
                if not self._deliver(self._process, piece):
                    self._gathered.put_back(piece)

    def _run(self) -> None:
        while True:
            try:
                self.report()
            except Exception:
                _log.exception("metrics of %s are missing", self._process)
            time.sleep(REPORT_SECONDS)


def _measure_process() -> None:
    catalogue.PROCESSOR.set(time.process_time())
    catalogue.FILES_LIMIT.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with suppress(OSError):  # where there is no /proc
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        catalogue.RESIDENT.set(pages * os.sysconf("SC_PAGE_SIZE"))
        # With thousands of connections, half the work of iterdir().
        catalogue.FILES.set(len(os.listdir("/proc/self/fd")))  # noqa: PTH208


class Channel:
    """Datagrams from any number of processes to one. Made before they are forked."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._writing.setblocking(False)

    def deliver(self, process: str, added: Added) -> bool:
        """Send it, unless the reader is behind."""
        message = {
            "process": process,
            "counters": [[*key, amount] for key, amount in added.counters.items()],
            "histograms": [[*key, each.counts, each.sum] for key, each in added.histograms.items()],
            "gauges": [[*key, value] for key, value in added.gauges.items()],
        }
        try:
            self._writing.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def receive(self) -> tuple[str, Added]:
        """Wait for the next datagram."""
        message = json.loads(self._reading.recv(1 << 20))
        added = Added(
            {(name, tuple(labels)): amount for name, labels, amount in message["counters"]},
            {
                (name, tuple(labels)): Distribution(counts, total)
                for name, labels, counts, total in message["histograms"]
            },
            {(name, tuple(labels)): value for name, labels, value in message["gauges"]},
        )
        return message["process"], added
