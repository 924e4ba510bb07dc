"""Who asks, and what they may do. The core asks a ``Policy``; which one answers is a setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chalicelib.http import Request


class Permission(Enum):
    """What an endpoint needs, in the table of endpoints."""

    ANONYMOUS = "anonymous"
    LOGIN = "login"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks: an account (None: nobody known) and the credential that stands for it, as
    ``token:ID`` (an access token), ``rule:ID`` (a trust rule) or ``github:ID`` (a GitHub token, by
    the link to its holder), or "" where it is the account's own. ``claims`` is what a registry
    token was made out for, actions by ``repository:NAME``, and ``expires`` when it ends (seconds
    since 1970); both None where it was no such token. ``password`` is the number of the account's
    password that it comes from, None where it comes from none."""

    account: int | None = None
    credential: str = ""
    claims: Mapping[str, frozenset[str]] | None = None
    expires: float | None = None
    password: int | None = None

    @property
    def id(self) -> str:
        """A stable name for logs, histories and capabilities: "" for nobody. Holds no secret and
        nothing that a person is called by."""
        if self.account is None:
            return ""
        return f"account:{self.account}" + (f"/{self.credential}" if self.credential else "")

    @classmethod
    def of(cls, name: str) -> "Subject":
        """The subject of that id."""
        account, _, credential = name.partition("/")
        return cls(int(account.removeprefix("account:")), credential) if account else NOBODY


NOBODY = Subject()


class Policy(Protocol):
    """Decides. Every method may block."""

    def authorise(
        self, request: "Request", permission: Permission, repository: str | None
    ) -> Subject:
        """Who may do this; called before any function runs. Raises ``Unauthorized`` with a
        challenge where credentials would help, ``Denied`` or ``NameUnknown`` where they do not,
        and ``Moved`` where the repository has another name now."""

    def hesitates(self, request: "Request") -> bool:
        """Whether it may take long to find out who asks: a password is to be hashed."""

    def count_pull(self, request: "Request") -> Sequence[tuple[str, str]]:
        """Count a manifest that a subject is about to get; gives header fields for the answer.
        Raises a 429 where that is one too many."""

    def permits(self, subject: Subject, permission: Permission, repository: str) -> bool:
        """Whether a subject that was authorised before may do this now: for the source of a
        mount, and again at the commit of an upload."""

    def widen(self, request: "Request", repository: str, sources: Sequence[str]) -> None:
        """Called where a blob cannot be mounted from any of these. Raises ``Unauthorized``, with a
        challenge, where it could be with a token for more than the one that was brought."""

    def repositories(self, subject: Subject, last: str, count: int) -> list[str]:
        """At most ``count`` names of repositories that hold a manifest and that the subject may
        pull from, in the order of their bytes, after ``last``."""
