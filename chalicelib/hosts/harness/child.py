"""What the supervisor's processes have in common that have no event loop."""

import os
import signal
import socket
import threading


def begin(parent: socket.socket) -> None:
    """Leave Ctrl-C and a closed terminal to the supervisor; and send this process a SIGTERM once
    ``parent`` comes to its end, as it does when the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def watch() -> None:
        parent.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def wait() -> None:
    """Wait for SIGTERM, which is blocked. It is not handled: a handler could come upon a lock that
    its thread holds."""
    signal.sigwait([signal.SIGTERM])
