"""The process of the harness that does jobs: apart, so that no request waits for its threads."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import NoReturn

from chalicelib.hosts.harness import child, heap
from chalicelib.hosts.harness.functions import Functions

_log = logging.getLogger(__name__)

STOP_SECONDS = 10
"""How long jobs may go on after SIGTERM. One that takes longer is done again later."""
_NICENESS = 10
"""What happens later leaves the processors to requests."""


def run(functions: Functions, parent: socket.socket, report: Callable[[], None]) -> NoReturn:
    """Do jobs until SIGTERM, which is blocked, or until ``parent`` comes to its end, as it does
    when the supervisor is gone; then end the process. ``report`` is called at last, and delivers
    metrics."""
    child.begin(parent)
    os.nice(_NICENESS)
    heap.share()
    stop = threading.Event()
    status = 0

    def work() -> None:
        nonlocal status
        try:
            functions.work(stop)
        except BaseException:
            _log.exception("the worker of jobs failed")
            status = 1
        os.kill(os.getpid(), signal.SIGTERM)

    working = threading.Thread(target=work, name="work", daemon=True)
    working.start()
    child.wait()
    stop.set()
    working.join(STOP_SECONDS)
    report()
    os._exit(status)
