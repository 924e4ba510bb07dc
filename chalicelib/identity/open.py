"""Everyone may do everything: for a registry that only its own machine can reach."""

from collections.abc import Sequence

from chalicelib.http import Request
from chalicelib.identity import NOBODY, Permission, Subject
from chalicelib.metadata import repositories
from chalicelib.metadata.database import Database


class Open:
    """A ``Policy`` that never refuses. Its subject is nobody."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def authorise(
        self, request: Request, permission: Permission, repository: str | None
    ) -> Subject:
        return NOBODY

    def count_pull(self, request: Request) -> Sequence[tuple[str, str]]:
        return ()

    def widen(self, request: Request, repository: str, sources: Sequence[str]) -> None:
        pass

    def permits(self, subject: Subject, permission: Permission, repository: str) -> bool:
        return True

    def repositories(self, subject: Subject, last: str, count: int) -> list[str]:
        return repositories.page(self._database, last, count)
