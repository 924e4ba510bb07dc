"""Everyone may do everything: for a registry that only its own machine can reach."""

from collections.abc import Sequence
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

    def count_pull(self, request: Request) -> Sequence[tuple[str, str]]:
        return ()

    def widen(self, request: Request, repository: str, sources: Sequence[str]) -> None:
        pass

    def permits(self, subject: Subject, permission: Permission, repository: str) -> bool:
        return True

    def repositories(self, subject: Subject, last: str, count: int) -> list[str]:
        return repositories.page(self._database, last, count)


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a web site has a browser on this machine ask for, by a form or under a name of
    its own that it has pointed here (DNS rebinding). Browsers say so (W3C, "Fetch Metadata"), and
    no client of registries is one."""
    site = request.headers.get("sec-fetch-site")
    if site is None:
        return
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        host = ""
    if site not in ("same-origin", "none") or not is_loopback(host):
        raise Denied("An open registry answers no other sites.")
