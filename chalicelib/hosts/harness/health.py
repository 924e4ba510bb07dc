"""Whether the registry of this container serves: what its health check runs.

``python -m chalicelib.hosts.harness.health`` ends with 0 once ``GET /health`` is answered where
the settings say that ``serve`` listens, else with 1. It imports little, since it runs every few
seconds.
"""

import http.client
import ssl
import sys

from chalicelib.settings import Settings

_SECONDS = 3


def serves(settings: Settings) -> bool:
    """Whether there is an answer. A certificate is not checked: it is for the registry's name, and
    not for this address."""
    host, port = settings.listen.here
    if settings.secure:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host,
            port,
            timeout=_SECONDS,
            context=ssl._create_unverified_context(),  # noqa: S323
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not serves(Settings.from_environment()))
