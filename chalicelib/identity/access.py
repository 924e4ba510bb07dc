"""The policy of accounts: everyone may do what their role allows, as far as their token does."""

import threading
import time
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from chalicelib.http import Denied, Moved, NameUnknown, RegistryError, Request, Unauthorized
from chalicelib.identity import NOBODY, Permission, Subject, scopes
from chalicelib.identity.authentication import Authenticator
from chalicelib.identity.challenge import challenge, service
from chalicelib.identity.epoch import Epoch
from chalicelib.identity.federation import Federation
from chalicelib.identity.keys import Keys
from chalicelib.identity.limits import Limits
from chalicelib.identity.registry_tokens import RegistryTokens
from chalicelib.metadata import accounts, permissions
from chalicelib.metadata.database import Database
from chalicelib.metadata.permissions import Decision
from chalicelib.settings import Settings

_REMEMBERED = 10_000
_WIDER = "insufficient_scope"
CATALOG = "registry:catalog"
"""The claim of a registry token that is for the catalog."""

LEAST_ROLES = {
    "pull": permissions.READ,
    "push": permissions.WRITE,
    "delete": permissions.MAINTAIN,
    "admin": permissions.ADMIN,
}
"""The role that each action needs."""


class InsufficientScope(Unauthorized):
    """A registry token that was not made out for this: a wider one may do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, "get a token with the scope that the challenge names")


class Accounts:
    """A ``Policy`` over the accounts, organisations and tokens in the database.

    No request asks what it need not. A decision that allows is remembered until the access epoch
    moves; one that refuses never is, so that a grant holds at once.
    """

    def __init__(self, settings: Settings, database: Database, keys: Keys) -> None:
        epoch = Epoch(database)
        self.keys = keys
        self.tokens = RegistryTokens(keys, service(settings))
        self.limits = Limits(database, settings, keys.derived("rate limits")[0])
        self.federation = Federation(settings)
        self.authenticator = Authenticator(
            database, keys, self.tokens, self.limits, epoch, self.federation
        )
        self._settings = settings
        self._database = database
        self._epoch = epoch
        self._lock = threading.Lock()
        self._decided: dict[tuple[int | None, str, int | None, str], Decision] = {}

    def authorise(
        self, request: Request, permission: Permission, repository: str | None
    ) -> Subject:
        if permission is Permission.ANONYMOUS:
            return NOBODY
        try:
            return self._authorised(request, permission, repository)
        except Unauthorized as error:
            add_challenge(error, self._settings, request, permission, repository)
            raise

    def hesitates(self, request: Request) -> bool:
        return self.authenticator.hesitates(request)

    def count_pull(self, request: Request) -> Sequence[tuple[str, str]]:
        account = "" if request.subject.account is None else str(request.subject.account)
        return self.limits.pull(account, request.client)

    def permits(self, subject: Subject, permission: Permission, repository: str) -> bool:
        return _claimed(subject, repository, permission.value) and self._may(
            subject, permission.value, repository
        )

    def widen(self, request: Request, repository: str, sources: Sequence[str]) -> None:
        subject = request.subject
        for source in sources:
            if not _claimed(subject, source, "pull") and self._may(subject, "pull", source):
                field = challenge(
                    self._settings, request, Permission.PUSH, repository, _WIDER, source
                )
                raise Unauthorized(f"This token is not for pull in {source}.", headers=[field])

    def repositories(self, subject: Subject, last: str, count: int) -> list[str]:
        return permissions.visible(
            self._database, subject.account, self.globs(subject), last, count
        )

    def globs(self, subject: Subject) -> list[str] | None:
        """Globs of the repositories that the subject's credential may pull from, None where it is
        not confined."""
        if not subject.credential:
            return None
        held = permissions.decide(self._database, subject.account, subject.credential, "")
        may = scopes.parse(held.scopes or ())
        return [each.name for each in may if each.kind == "repository" and "pull" in each.actions]

    def actions(self, subject: Subject, repository: str) -> list[str]:
        """All that a subject may do with a repository now, for a token to be made out for."""
        decision = self._decide(subject, "admin", repository, fresh=True)
        return [
            action
            for action in LEAST_ROLES
            if _claimed(subject, repository, action)
            and self._allows(decision, subject, action, repository)
        ]

    def may_create(self, subject: Subject, repository: str) -> bool:
        """Whether a subject may make a repository of that name, also where that is the former name
        of another."""
        decision = permissions.decide(
            self._database, subject.account, subject.credential, repository
        )
        _check(decision, subject)
        return self._allows(decision._replace(moved=None), subject, "push", repository)

    def moved(self, repository: str) -> str | None:
        """The name that a repository has now, where it has another."""
        return permissions.decide(self._database, None, "", repository).moved

    def check(self, subject: Subject) -> None:
        """Raise ``Unauthorized`` where a subject's account or credential no longer holds."""
        if subject.account is not None:
            decision = permissions.decide(self._database, subject.account, subject.credential, "")
            _check(decision, subject)

    def trust(self, address: str, account_id: int) -> None:
        """Have an address be known to an account: somebody has shown there that it is theirs by
        what cannot be guessed."""
        found = accounts.by_id(self._database, account_id)
        if found is not None:
            for login in (found.name, found.email or ""):
                self.limits.trust(address, login.lower())

    def _authorised(
        self, request: Request, permission: Permission, repository: str | None
    ) -> Subject:
        fresh = permission is not Permission.PULL
        subject = self.authenticator.subject(request, fresh=fresh)
        if subject is None:
            if permission is not Permission.PULL:
                raise Unauthorized("Log in, or get a token: this registry has accounts.")
            subject = NOBODY
        check_claims(subject, permission, repository)
        if repository is None:
            self.check(subject)
            return subject
        action = permission.value
        decision = self._decide(subject, action, repository, fresh=fresh)
        if decision.moved is not None and self._readable(subject, decision.moved):
            raise _moved(request, repository, decision.moved, permission)
        if not self._allows(decision, subject, action, repository):
            raise _refusal(decision, subject, action, repository)
        return subject

    def _may(self, subject: Subject, action: str, repository: str) -> bool:
        """Whether the account may, whatever its token was made out for."""
        try:
            decision = self._decide(subject, action, repository, fresh=True)
        except Unauthorized:
            return False
        return self._allows(decision, subject, action, repository)

    def _decide(self, subject: Subject, action: str, repository: str, *, fresh: bool) -> Decision:
        """What is known of a subject and a repository, remembered where that allows the action."""
        key = (subject.account, subject.credential, subject.password, repository)
        epoch = self._epoch.now(fresh=fresh)
        known = self._decided.get(key)
        if (
            known is not None
            and known.epoch == epoch
            and (known.expires is None or known.expires > time.time())
            and self._allows(known, subject, action, repository)
        ):
            return known
        decision = permissions.decide(
            self._database, subject.account, subject.credential, repository
        )
        _check(decision, subject)
        with self._lock:
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            self._decided[key] = decision
        return decision

    def _allows(self, decision: Decision, subject: Subject, action: str, repository: str) -> bool:
        role = decision.role
        if not decision.verified and subject.account is not None:
            role = min(role, permissions.READ)
        if role < LEAST_ROLES[action] or decision.moved is not None:
            return False
        # What everyone may pull, so may who brings a token for something else.
        if not subject.credential or (action == "pull" and decision.public):
            return True
        may = scopes.parse(decision.scopes or ())
        return action in scopes.allowed(may, "repository", repository)

    def _readable(self, subject: Subject, repository: str) -> bool:
        decision = self._decide(subject, "pull", repository, fresh=True)
        return self._allows(decision, subject, "pull", repository)


def check_claims(subject: Subject, permission: Permission, repository: str | None) -> None:
    """Raise ``Unauthorized`` where a registry token was not made out for this."""
    if permission is Permission.CATALOG:
        if subject.claims is not None and CATALOG not in subject.claims:
            raise InsufficientScope("This token is not for the catalog.")
    elif repository is not None and not _claimed(subject, repository, permission.value):
        raise InsufficientScope(f"This token is not for {permission.value} in {repository}.")


def add_challenge(
    error: Unauthorized,
    settings: Settings,
    request: Request,
    permission: Permission,
    repository: str | None,
) -> None:
    """Let a refusal say where to get which token, and whether a wider one is needed."""
    why = _WIDER if isinstance(error, InsufficientScope) else ""
    error.headers = (challenge(settings, request, permission, repository, why),)


def _claimed(subject: Subject, repository: str, action: str) -> bool:
    """Whether a registry token was made out for this; anything else is as good as its account."""
    return subject.claims is None or action in subject.claims.get(f"repository:{repository}", ())


def _check(decision: Decision, subject: Subject) -> None:
    """Raise ``Unauthorized`` where the account or the credential no longer holds."""
    if subject.account is None:
        return
    if not decision.active:
        raise Unauthorized("This account was suspended or deleted.")
    if subject.credential and decision.scopes is None:
        raise Unauthorized("This token was revoked, or it has expired.")
    if subject.password not in (None, decision.password):
        raise Unauthorized("This token was had with a former password.")


def _refusal(decision: Decision, subject: Subject, action: str, repository: str) -> RegistryError:
    """Why not. A repository that one may not read is not told from one that is not there."""
    if subject.account is None:
        return Unauthorized("Log in: this is not for everyone, or it is not there.")
    former = decision.moved is not None
    if decision.role >= LEAST_ROLES[action] and not (former and action == "pull"):
        if former:
            return Denied(
                f"{repository} is the former name of another repository.",
                "who makes a repository of this name by the API may push to it",
            )
        if not decision.verified:
            return Denied("Verify your email first.", "the link is in the mail that you were sent")
        return Denied(f"The scopes of this token do not have {action} in {repository}.")
    if action == "pull":
        return NameUnknown(
            "There is no such repository, or it is not yours to know of.", {"name": repository}
        )
    return Denied(
        f"You may not {action} in {repository}.",
        "the namespace's owner, or who has that role in it, may",
    )


def _moved(request: Request, repository: str, name: str, permission: Permission) -> RegistryError:
    """Where a renamed repository is now. Reads are sent there; a write is told, since clients do
    not repeat a body at another place."""
    if permission is not Permission.PULL:
        return Denied(f"{repository} is called {name} now.", f"push to {name}")
    rest = request.path.removeprefix(f"/v2/{repository}")
    query = [(key, value) for key in request.query for value in request.query.all(key)]
    location = quote(f"/v2/{name}{rest}", safe="/:@") + ("?" + urlencode(query) if query else "")
    return Moved(
        f"{repository} is called {name} now.", {"name": name}, headers=[("Location", location)]
    )
