"""Who asks, and what they may do. The core asks a ``Policy``; which one answers is a setting."""

from enum import Enum
from typing import Protocol

from chalicelib.http import Request


class Permission(Enum):
    """What an endpoint needs, in the table of endpoints."""

    ANONYMOUS = "anonymous"
    LOGIN = "login"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"
    ADMIN = "admin"


class Policy(Protocol):
    """Decides. Both methods may block, and are called before any function runs."""

    def authorise(self, request: Request, permission: Permission, repository: str | None) -> str:
        """The subject (a stable id, "" for nobody) that may do this. Raises ``Unauthorized``
        with a challenge where credentials would help, ``Denied`` where they do not."""

    def permits(self, subject: str, permission: Permission, repository: str | None) -> bool:
        """Whether a subject that was authorised before may do this now: for the source of a
        mount, and again at the commit of an upload."""
