"""Everyone may do everything: for a registry that only its own machine can reach."""

from chalicelib.http import Request
from chalicelib.identity import Permission


class Open:
    """A ``Policy`` that never refuses. Its subject is nobody."""

    def authorise(self, request: Request, permission: Permission, repository: str | None) -> str:
        return ""

    def permits(self, subject: str, permission: Permission, repository: str | None) -> bool:
        return True
