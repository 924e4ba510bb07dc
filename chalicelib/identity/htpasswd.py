"""Accounts in a file, as Apache's ``htpasswd`` writes it: everyone in it may do everything.

The file is looked at with each request, so that a change holds at once. Hashes are slow on
purpose; what has been verified is remembered (as an HMAC under a key of this process) until the
file changes. Guesses are checked one at a time, and few may wait for their turn: strangers must
not keep the threads that answer those who are known.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from chalicelib.http import RegistryError, Request, Unauthorized
from chalicelib.identity import Permission
from chalicelib.settings import SettingsError

_log = logging.getLogger(__name__)

CHALLENGE = 'Basic realm="OpenRegistry"'
_BCRYPT = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
_ARGON2 = re.compile(r"\$argon2(id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
_REMEMBERED = 4096
"""Verified credentials that are remembered at most."""
_AT_ONCE = 3
"""Requests that are checked or wait to be: fewer than the harness has threads for small reads."""
_PATIENCE = 1.5
"""Seconds that a request waits for its turn to be checked."""
_SIEGE = 4, 10.0
"""So many wrong passwords in so many seconds: somebody is guessing."""


class Htpasswd:
    """A ``Policy``: the accounts of a file of ``name:hash`` lines, hashes being bcrypt or argon2.
    A subject is a name. Raises ``SettingsError`` where the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()  # held for moments alone
        self._turn = threading.Lock()
        self._inside = 0
        self._wrong: deque[float] = deque(maxlen=_SIEGE[0])
        try:
            self._version = _version(path)
            self._hashes, wrong = _read(path)
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(f"{path} cannot be read: {error}") from error
        if wrong:
            raise _unusable(f"{path}, {wrong[0]}")
        if not self._hashes:
            raise _unusable(f"{path} holds no account; `htpasswd -B {path} NAME` adds one")
        self._verified: set[bytes] = set()
        self._checks: dict[bytes, Future[bool]] = {}

    def authorise(self, request: Request, permission: Permission, repository: str | None) -> str:
        if permission is Permission.ANONYMOUS:
            return ""
        name, password = _credentials(request)
        self._refresh()
        proof = hmac.digest(self._key, f"{len(name)}:{name}{password}".encode(), hashlib.sha256)
        if proof in self._verified:
            return name
        if not self._check(name, password, proof):
            raise _unauthorized("The name or the password is wrong.")
        return name

    def permits(self, subject: str, permission: Permission, repository: str | None) -> bool:
        self._refresh()
        return subject in self._hashes

    def _check(self, name: str, password: str, proof: bytes) -> bool:
        """Whether they are right. A client that begins with sixteen requests at once costs one
        check; while somebody guesses, its requests are not admitted in any number either."""
        with self._lock:
            if proof in self._verified:
                return True
            checks = self._checks
            check = checks.get(proof)
            besieged = self._besieged()
            if (besieged or check is None) and self._inside >= _AT_ONCE:
                raise _busy()
            leads = check is None
            if check is None:
                check = checks[proof] = Future()
            self._inside += 1
        try:
            if leads:
                try:
                    check.set_result(self._verify(name, password, proof))
                except BaseException as error:
                    check.set_exception(error)
            return check.result()
        finally:
            with self._lock:
                self._inside -= 1
                if leads:
                    checks.pop(proof, None)

    def _verify(self, name: str, password: str, proof: bytes) -> bool:
        """Check the password against the hash, when it is this request's turn."""
        if not self._turn.acquire(timeout=_PATIENCE):
            raise _busy()
        try:
            with self._lock:
                hashes, verified = self._hashes, self._verified
            # An unknown name costs what a known one does, so that time does not tell them apart.
            known = name in hashes
            matches = _matches(password, hashes[name] if known else _decoy(hashes))
        finally:
            self._turn.release()
        with self._lock:
            if not (known and matches):
                self._wrong.append(time.monotonic())
                return False
            if len(verified) >= _REMEMBERED:
                verified.clear()
            verified.add(proof)
        return True

    def _besieged(self) -> bool:
        count, seconds = _SIEGE
        return len(self._wrong) == count and time.monotonic() - self._wrong[0] < seconds

    def _refresh(self) -> None:
        """Read the file again where it has changed. While it cannot be read nothing changes."""
        try:
            version = _version(self._path)
            if version == self._version:
                return
            with self._lock:
                hashes, wrong = _read(self._path)
                self._hashes, self._verified, self._version = hashes, set(), version
                self._checks = {}  # under way with what no longer holds: nobody may join them
        except (OSError, UnicodeDecodeError) as error:
            _log.error("%s cannot be read; the accounts stay as they were: %s", self._path, error)
            return
        for sentence in wrong:
            _log.error("%s, %s", self._path, sentence)


def _credentials(request: Request) -> tuple[str, str]:
    """The name and password that a request brings (RFC 7617)."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        raise _unauthorized("Log in: this registry is for its accounts alone.")
    try:
        if scheme.lower() != "basic":
            raise ValueError("another scheme")
        name, colon, password = (
            base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        )
        if not colon:
            raise ValueError("no password")
    except (ValueError, binascii.Error):
        raise _unauthorized(
            "The Authorization field is not that of Basic authentication."
        ) from None
    return name, password


def _matches(password: str, hashed: str) -> bool:
    if _BCRYPT.fullmatch(hashed):
        import bcrypt

        try:
            # bcrypt looks at 72 bytes; htpasswd cuts longer passwords likewise.
            return bcrypt.checkpw(password.encode()[:72], hashed.encode())
        except ValueError:
            return False
    import argon2

    try:
        return argon2.PasswordHasher().verify(hashed, password)
    except (argon2.exceptions.Argon2Error, argon2.exceptions.InvalidHashError):
        return False


def _decoy(hashes: dict[str, str]) -> str:
    """A hash to check the password of an unknown name against: somebody's, as dear as any."""
    return next(iter(hashes.values()), "")


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    """The hash of each name, and a sentence for each line that is wrong."""
    hashes: dict[str, str] = {}
    wrong: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, hashed = text.partition(":")
        if not name or not hashed:
            wrong.append(f"line {number}: it must be name:hash")
        elif not (_BCRYPT.fullmatch(hashed) or _ARGON2.fullmatch(hashed)):
            wrong.append(
                f"line {number}: {name}'s hash is neither bcrypt (`htpasswd -B`) nor argon2"
            )
        else:
            hashes[name] = hashed
    return hashes, wrong


def _version(path: Path) -> tuple[int, int, int]:
    """What changes when the file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _unauthorized(sentence: str) -> Unauthorized:
    return Unauthorized(sentence, headers=[("WWW-Authenticate", CHALLENGE)])


def _busy() -> RegistryError:
    return RegistryError(
        "Too many names and passwords are waiting to be checked.",
        "try again in a moment; credentials that were right before need not wait",
        code="TOOMANYREQUESTS",
        status=429,
        headers=[("Retry-After", "1")],
    )


def _unusable(sentence: str) -> SettingsError:
    return SettingsError("OPENREGISTRY_HTPASSWD", sentence)
