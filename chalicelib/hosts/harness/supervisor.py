"""The process that binds the address, forks the workers and the process that does jobs, and watches
over them."""

import gc
import logging
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from chalicelib import tracing
from chalicelib.hosts.harness import jobs
from chalicelib.hosts.harness.certificates import Certificates
from chalicelib.hosts.harness.functions import Functions
from chalicelib.hosts.harness.reports import Reporter
from chalicelib.hosts.harness.worker import Entrance, Worker
from chalicelib.settings import Address, Settings

if TYPE_CHECKING:
    from chalicelib.hosts.harness.exporter import Exporter

_log = logging.getLogger(__name__)

BACKLOG = 2048
BIND_SECONDS = 3
"""How long an address that is in use is tried again: workers of a supervisor that was killed need
a moment to notice."""
RESTART_SECONDS = 1
"""A worker that lived no longer than this is not replaced sooner."""
GRACE_SECONDS = 5
"""How much longer than SHUTDOWN_TIMEOUT workers have to end."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def listen(address: Address) -> socket.socket:
    """A socket that listens there. Raises ``OSError``."""
    [(family, kind, protocol, _, name), *_] = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    end = time.monotonic() + BIND_SECONDS
    while True:
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(name)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            listener.setblocking(False)
            return listener


class Supervisor:
    """Keeps ``count`` workers running, unless the settings say otherwise a process that does jobs,
    and one for ``exporter`` where there is one, until SIGTERM, SIGINT, or SIGHUP, as when its
    terminal is closed; a second one ends them at once."""

    def __init__(
        self,
        functions: Functions,
        settings: Settings,
        listener: socket.socket,
        count: int,
        *,
        certificates: Certificates | None = None,
        others: Sequence[Entrance] = (),
        exporter: "Exporter | None" = None,
    ) -> None:
        self._functions = functions
        self._settings = settings
        self._entrances = [Entrance(listener, functions, certificates), *others]
        self._count = count
        self._exporter = exporter
        # The exporter's index, where there is one.
        self._last = count + settings.work
        self._selector = selectors.DefaultSelector()
        # How many connections each worker has, for all of them to see.
        self._loads = memoryview(mmap.mmap(-1, 8 * count)).cast("Q")
        self._workers: dict[socket.socket, tuple[int, int, float]] = {}
        self._signals = 0
        self._kill_at = float("inf")

    def run(self, begun: Callable[[], None] = lambda: None) -> None:
        """Serve; returns when every worker has ended. ``begun`` is called once there are workers,
        and signals end them."""
        # What is there now is shared by all workers: a collector that visits it would copy it.
        gc.collect()
        gc.freeze()
        # Whoever starts it with nohup wants it to go on.
        stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in _SIGNALS:
            if number != signal.SIGHUP or not stays:
                signal.signal(number, self._on_signal)
        # After the workers the one that does jobs, and the one that Prometheus asks.
        for index in range(self._last + (self._exporter is not None)):
            self._fork(index)
        begun()
        while self._workers:
            for key, _ in self._selector.select(1):
                self._reap(key.data)
            if time.monotonic() > self._kill_at:
                self._signal_workers(signal.SIGKILL)

    def _fork(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        if index < self._count:
            self._loads[index] = 0
        # A signal that comes meanwhile waits until the worker has handlers of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            ours.close()
            self._be_worker(theirs, index)
        theirs.close()
        self._workers[ours] = (pid, index, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, ours)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _be_worker(self, parent: socket.socket, index: int) -> NoReturn:
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            self._selector.close()
            for ours in self._workers:
                ours.close()
            if index >= self._count:
                # As long as anybody has them, the kernel lets clients in, whom nobody answers.
                self._close_entrances()
            tracing.start()
            if index < self._count:
                worker = Worker(self._entrances, self._settings, self._loads, index)
                worker.run(parent, self._reporting(f"worker-{index}"))
            elif index == self._count and self._settings.work:
                jobs.run(self._functions, parent, self._reporting("jobs"))
            elif self._exporter is not None:
                self._exporter.run(parent)
        except BaseException:
            _log.exception("a worker failed")
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _reporting(self, process: str) -> Callable[[], None]:
        """Have the metrics of this process reported; gives what does so for the last time."""
        if self._exporter is None:
            return lambda: None
        reporter = Reporter(process, self._exporter.channel.deliver)
        reporter.start()
        return reporter.report

    def _reap(self, ours: socket.socket) -> None:
        """A worker has ended: replace it, unless all are to end."""
        pid, index, begun = self._workers.pop(ours)
        self._selector.unregister(ours)
        ours.close()
        _, status = os.waitpid(pid, 0)
        if self._signals:
            if [index for _, index, _ in self._workers.values()] == [self._last]:
                self._signal_workers(signal.SIGTERM)
            return
        _log.error("worker %d ended (%s); it is replaced", pid, os.waitstatus_to_exitcode(status))
        if time.monotonic() - begun < RESTART_SECONDS:
            time.sleep(RESTART_SECONDS)
        if not self._signals:
            self._fork(index)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self._close_entrances()
            seconds = self._settings.shutdown_delay + self._settings.shutdown_timeout
            self._kill_at = time.monotonic() + seconds + GRACE_SECONDS
            self._signal_workers(signal.SIGTERM)
        else:
            self._signal_workers(signal.SIGKILL)

    def _close_entrances(self) -> None:
        for entrance in self._entrances:
            entrance.listener.close()

    def _signal_workers(self, number: signal.Signals) -> None:
        """Send it to all, but SIGTERM to the exporter only once it is alone: it tells of the others
        while they end."""
        for pid, index, _ in list(self._workers.values()):
            if index == self._last and number == signal.SIGTERM and len(self._workers) > 1:
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, number)
