"""What hosts count of each request."""

from chalicelib import endpoints
from chalicelib.metrics import catalogue

_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


def count(method: str, path: str, route: str, status: int, seconds: float) -> str:
    """Count a request that has been answered. ``route`` is its row's path, where the answer told
    it; gives the one it was counted by."""
    if not route:
        found = endpoints.find(method, path)
        route = found.path if found else "none"
    known = method if method in _METHODS else "other"
    # Another registry, behind a proxy's functions, answers with what it likes (up to 999).
    answered = _CLASSES[status // 100] if status < 600 else "none"
    catalogue.REQUEST_SECONDS.observe(seconds, route, known, answered)
    return route
