"""Whether the registry of this container serves: what its health check runs.

``python -m chalicelib.hosts.harness.health`` ends with 0 once ``GET /health`` is answered where
the settings say that ``serve`` listens, else with 1. It imports little, since it runs every few
seconds.
"""

import http.client
import ssl
import sys

from chalicelib.settings import Address, Settings

_SECONDS = 3
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def serves(listen: Address) -> bool:
    """Whether there is an answer, over HTTP or HTTPS. A certificate is not checked: it is for the
    registry's name, and not for this address."""
    host = _EVERYWHERE.get(listen.host, listen.host)
    unchecked = ssl._create_unverified_context()  # noqa: S323
    for connection in (
        http.client.HTTPConnection(host, listen.port, timeout=_SECONDS),
        http.client.HTTPSConnection(host, listen.port, timeout=_SECONDS, context=unchecked),
    ):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(not serves(Settings.from_environment().listen))
