"""What every function is given beside its request: the process's long-lived things."""

from collections.abc import Callable
from dataclasses import dataclass, field

from chalicelib.afterwards import Afterwards
from chalicelib.identity import Policy, Subject
from chalicelib.identity.capabilities import Capabilities
from chalicelib.identity.keys import Keys
from chalicelib.mail import Mailer
from chalicelib.metadata import repositories
from chalicelib.metadata.database import Database
from chalicelib.registry.pulls import Pulls
from chalicelib.resolvers.opening import Resolvers
from chalicelib.settings import Settings
from chalicelib.storage import ObjectStore


@dataclass(frozen=True, slots=True)
class Context:
    """One for each process. ``head_by_redirect`` is set by a host whose front loses the
    ``Content-Length`` of answers to HEAD (API Gateway): blob HEADs then redirect to storage, and
    manifest HEADs carry the body for the front to strip. ``challenges`` is false where the front
    hides a function's ``WWW-Authenticate``: what can be answered otherwise then is. ``wake`` is
    called where a request has written jobs, for a host whose workers sleep, and has them woken
    once the request is answered; neither it nor ``pulls.count`` waits or raises."""

    settings: Settings
    database: Database
    store: ObjectStore
    access: Policy
    keys: Keys
    capabilities: Capabilities
    mailer: Mailer
    pulls: Pulls
    resolvers: Resolvers
    head_by_redirect: bool = False
    challenges: bool = True
    afterwards: Afterwards = field(default_factory=Afterwards)
    wake: Callable[[], None] = lambda: None

    def new_repository(self, subject: Subject) -> repositories.New:
        """What a repository gets that this subject makes."""
        return repositories.New(
            created_by=subject.id, public=self.settings.new_repositories == "public"
        )

    def location(self, path: str) -> tuple[str, str]:
        """The ``Location`` field: a path, or a URL where the registry knows its public one."""
        return "Location", f"{self.settings.public_url}{path}"
