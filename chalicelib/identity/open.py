"""Everyone may do everything: for a registry that only its own machine can reach."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from chalicelib.http import Denied, Request
from chalicelib.identity import NOBODY, Permission, Subject
from chalicelib.metadata import repositories
from chalicelib.metadata.database import Database
from chalicelib.settings import is_loopback


class Open:
    """A ``Policy`` that never refuses. Its subject is nobody."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def authorise(
        self, request: Request, permission: Permission, repository: str | None
    ) -> Subject:
        _refuse_other_sites(request)
        return NOBODY

    def hesitates(self, request: Request) -> bool:
        return False

    def count_pull(self, request: Request) -> Sequence[tuple[str, str]]:
        return ()

    def widen(self, request: Request, repository: str, sources: Sequence[str]) -> None:
        pass

    def permits(self, subject: Subject, permission: Permission, repository: str) -> bool:
        return True

    def repositories(self, subject: Subject, last: str, count: int) -> list[str]:
        return repositories.page(self._database, last, count)


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a web site has a browser on this machine ask for: by a form, which the browser
    tells (W3C, "Fetch Metadata"), or under a name of its own that it has pointed here (DNS
    rebinding), which nothing tells but the name. Addresses, and names that no site can have (RFC
    6761; ICANN's .internal), cannot be rebound."""
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Denied("An open registry answers no other sites.")
    host = request.headers.get("host")
    if host is not None and not is_ours(host):
        raise Denied(
            "An open registry answers to localhost and to addresses.",
            "have it know accounts (OPENREGISTRY_ACCESS=accounts) where it has a name",
        )


@lru_cache(maxsize=64)  # a fifth of the time that a small read takes in Python
def is_ours(host: str) -> bool:
    """Whether no web site can have this name, which a request has as its Host."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) or name.endswith((".internal", ".test")) or bool(ip_address(name))
    except ValueError:
        return False
