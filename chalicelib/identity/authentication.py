"""Who asks: the credentials that a request brings, and whom they stand for."""

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from chalicelib.http import Request, Unauthorized
from chalicelib.identity import Subject, access_tokens, passwords
from chalicelib.identity.epoch import Epoch
from chalicelib.identity.federation import Federation
from chalicelib.identity.keys import Keys
from chalicelib.identity.limits import Limits
from chalicelib.identity.registry_tokens import RegistryTokens
from chalicelib.metadata import accounts, audit, external_identities
from chalicelib.metadata.access_tokens import USE_NOTED
from chalicelib.metadata.database import Database

if TYPE_CHECKING:
    from concurrent.futures import Future

_REMEMBERED = 10_000
_OF_GITHUB = ("gh", "github_pat_")


class _Known(NamedTuple):
    """A credential that was right when the epoch was this one. A password's hash is kept: where it
    is the same in another epoch, the password need not be hashed anew. ``until`` (by
    ``time.monotonic``): an access token is looked up again then, so that its use is noted."""

    subject: Subject
    epoch: int
    password_hash: str
    until: float = math.inf


class Authenticator:
    """Verifies credentials. What was right is remembered, by an HMAC under a key of this process,
    until the access epoch moves; what was wrong never is."""

    def __init__(
        self,
        database: Database,
        keys: Keys,
        tokens: RegistryTokens,
        limits: Limits,
        epoch: Epoch,
        federation: Federation,
    ) -> None:
        self._database = database
        self._keys = keys
        self._tokens = tokens
        self._limits = limits
        self._epoch = epoch
        self._federation = federation
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known: dict[bytes, _Known] = {}
        self._fields: set[bytes] = set()
        self._checks: dict[bytes, Future[bool]] = {}

    def subject(self, request: Request, *, fresh: bool) -> Subject | None:
        """Who asks, by the Authorization field; None where there is none. ``fresh``: what bites
        now, not a moment ago. Raises ``Unauthorized``."""
        field = request.headers.get("authorization")
        if not field:
            return None
        scheme, _, value = field.partition(" ")
        if scheme.lower() == "bearer":
            return self._bearer(value.strip(), fresh)
        if scheme.lower() != "basic":
            raise Unauthorized("Authorization is Basic or Bearer here.")
        name, password = _basic(value.strip())
        proof = self._proof("field", field)
        try:
            subject = self.log_in(name, password, request.client, fresh=fresh)
        except Unauthorized:
            self._fields.discard(proof)
            raise
        if len(self._fields) >= _REMEMBERED:
            self._fields.clear()
        self._fields.add(proof)
        return subject

    def hesitates(self, request: Request) -> bool:
        """Whether a request brings a name and a password that were not right before."""
        field = request.headers.get("authorization", "")
        return field[:6].lower() == "basic " and self._proof("field", field) not in self._fields

    def log_in(self, name: str, password: str, address: str, *, fresh: bool = True) -> Subject:
        """Who has this name and password. The password is a person's own, or any token, which says
        itself whose it is. Raises ``Unauthorized``, and a 429 to those who guess."""
        if access_tokens.looks_like(password):
            return self._access_token(password, fresh)
        if password.startswith("eyJ"):
            subject = self._tokens.verify(password)
            # What it is exchanged for ends when it does: there is no leeway to be had.
            if subject is not None and (subject.expires or 0) > time.time():
                return subject
        if password.startswith(_OF_GITHUB):
            from chalicelib.identity import github

            if github.looks_like(password):
                return self._github_token(password, address, fresh)
        return self._password(name, password, address, fresh)

    def person(self, name: str, password: str, address: str) -> Subject:
        """The user who has this name and password of their own: no token. Raises as ``log_in``."""
        return self._password(name, password, address, fresh=True)

    def _bearer(self, token: str, fresh: bool) -> Subject:
        if access_tokens.looks_like(token):
            return self._access_token(token, fresh)
        subject = self._tokens.verify(token)
        if subject is None:
            raise Unauthorized("This token is not ours, or it has expired.")
        return subject

    def _access_token(self, token: str, fresh: bool) -> Subject:
        proof = self._proof("token", token)
        epoch = self._epoch.now(fresh=fresh)
        known = self._known.get(proof)
        if known is not None and known.epoch == epoch and known.until > time.monotonic():
            return known.subject
        found = access_tokens.verify(self._database, self._keys, token)
        if found is None:
            raise Unauthorized("This access token is not ours, was revoked, or has expired.")
        account_id, token_id = found
        subject = Subject(account_id, f"token:{token_id}")
        until = time.monotonic() + USE_NOTED
        return self._remember(proof, _Known(subject, epoch, "", until))

    def _github_token(self, token: str, address: str, fresh: bool) -> Subject:
        """Whose account is linked to the holder of a token of GitHub's, whom ``GitHub.holder``
        believes for a minute. A wrong token counts as one account of its own: whoever tries some
        locks out nobody."""
        attempt = f"github:{hashlib.sha256(token.encode()).hexdigest()}"
        self._limits.check_sign_in(address, attempt)
        try:
            person = self._federation.github.holder(token)
        except Unauthorized:
            self._limits.failed(address, attempt)
            raise
        proof = self._proof("github", token)
        epoch = self._epoch.now(fresh=fresh)
        known = self._known.get(proof)
        if known is not None and known.epoch == epoch:
            return known.subject
        link = external_identities.find(self._database, person.issuer, person.subject)
        if link is None:
            self._limits.failed(address, attempt)
            raise Unauthorized(
                "No account here is linked to the holder of this GitHub token.",
                "sign in with a browser, and link GitHub to your account",
            )
        self._limits.succeeded(address, attempt)
        return self._remember(
            proof, _Known(Subject(link.account_id, f"github:{link.id}"), epoch, "")
        )

    def _password(self, name: str, password: str, address: str, fresh: bool) -> Subject:
        proof = self._proof(name, password)
        epoch = self._epoch.now(fresh=fresh)
        # By what was given, a name or an email: an answer must not tell that they are one account.
        login = name.lower()
        known = self._known.get(proof)
        if known is not None:
            # Or else who may guess no more would still be told the right one.
            self._limits.check_sign_in(address, login)
            if known.epoch == epoch:
                return known.subject
        # No account's name has a NUL, and Postgres takes none.
        held = None if "\0" in name else accounts.secret(self._database, name)
        if known is not None and held is not None and held.password_hash == known.password_hash:
            return self._remember(proof, known._replace(epoch=epoch))
        self._limits.check_sign_in(address, login)
        against = held.password_hash if held else None
        if not self._matches(proof, password, against) or held is None:
            # Written for unknown names too, so that time does not tell them apart.
            audit.add(
                self._database, "sign_in.failed", "", account=held.account_id if held else None
            )
            self._limits.failed(address, login)
            raise Unauthorized("The name or the password is wrong.")
        self._limits.succeeded(address, login)
        subject = Subject(held.account_id, password=held.password_number)
        return self._remember(proof, _Known(subject, epoch, against or ""))

    def _matches(self, proof: bytes, password: str, against: str | None) -> bool:
        """Whether a password is right. A client that begins with many requests at once costs one
        check: those with the same name and password share it."""
        from concurrent.futures import Future

        key = proof + (against or "").encode()
        with self._lock:
            check = self._checks.get(key)
            leads = check is None
            if check is None:
                check = self._checks[key] = Future()
        if not leads:
            return check.result()
        try:
            check.set_result(passwords.verify(password, against))
        except BaseException as error:
            check.set_exception(error)
        finally:
            with self._lock:
                del self._checks[key]
        return check.result()

    def _remember(self, proof: bytes, known: _Known) -> Subject:
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[proof] = known
        return known.subject

    def _proof(self, name: str, secret: str) -> bytes:
        text = f"{len(name)}:{name}{secret}"
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), hashlib.sha256)


def _basic(value: str) -> tuple[str, str]:
    """Name and password (RFC 7617, UTF-8)."""
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized("The Authorization field is not that of Basic authentication.") from None
    name, colon, password = text.partition(":")
    if not colon:
        raise Unauthorized("The Authorization field is not that of Basic authentication.")
    return name, password
