"""Passwords: argon2id, with the parameters that OWASP's Password Storage Cheat Sheet gives.

A hash is slow on purpose, so strangers who guess could keep every thread busy: few are checked at
a time, and few may wait for their turn.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from chalicelib.http import RegistryError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST, LONGEST = 8, 1024
"""Characters that a password may have (NIST SP 800-63B-3, section 5.1.1.2: at least 8)."""
_AT_ONCE = 2
_WAITING = 6
"""Those that may wait for their turn: each keeps a thread."""
_PATIENCE = 1.5
"""Seconds that a request waits for its turn."""

_turns = threading.BoundedSemaphore(_AT_ONCE)
_places = threading.BoundedSemaphore(_AT_ONCE + _WAITING)


class PasswordError(ValueError):
    """A password that cannot be one; the text is a sentence for the person who chose it."""


def hashed(password: str, shortest: int = SHORTEST) -> str:
    """The hash of a new password. Raises ``PasswordError`` where it is too short or too long."""
    if not shortest <= len(password) <= LONGEST:
        raise PasswordError(f"A password has from {shortest} to {LONGEST} characters.")
    with _turn():
        return _hasher().hash(password.encode(errors="surrogatepass"))


def verify(password: str, against: str | None) -> bool:
    """Whether this is the password. Where there is none to check against it takes as long, so that
    time does not tell which names exist. Raises a 429 where too many wait."""
    from argon2.exceptions import Argon2Error, InvalidHashError

    with _turn():
        try:
            _hasher().verify(against or _decoy(), password[:LONGEST].encode(errors="surrogatepass"))
        except (Argon2Error, InvalidHashError):
            return False
    return against is not None


@cache
def _hasher() -> "PasswordHasher":
    import argon2

    return argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _decoy() -> str:
    return _hasher().hash(b"nobody's password")


@contextmanager
def _turn() -> Iterator[None]:
    if not _places.acquire(blocking=False):
        raise _too_many()
    try:
        if not _turns.acquire(timeout=_PATIENCE):
            raise _too_many()
        try:
            yield
        finally:
            _turns.release()
    finally:
        _places.release()


def _too_many() -> RegistryError:
    return RegistryError(
        "Too many passwords are waiting to be checked.",
        "try again in a moment; an access token need not wait",
        code="TOOMANYREQUESTS",
        status=429,
        headers=[("Retry-After", "1")],
    )
