"""Rate limits: how often a sign-in may fail, how much mail is sent, and how much may be pulled.

Counters are in Postgres, where all processes and hosts see them, under keys that say nothing about
whom they count. What a process remembers besides spares queries and never decides alone.

A password is guessed from one address, or from many. Failures are counted by address, by account,
and by both; an account that is guessed at from many addresses admits only addresses from which it
has been signed in to before. For these the failures of that pair alone are counted, so that nobody
can lock out an owner but from the owner's own address.
"""

import hashlib
import hmac
import json
import math
import threading
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chalicelib.addresses import one_client
from chalicelib.http import RegistryError
from chalicelib.metadata import rates
from chalicelib.metadata.database import Runner
from chalicelib.settings import DAY, HOUR, MINUTE, Rate, Settings


@dataclass(frozen=True, slots=True)
class Limit:
    """So many (``count``) in a window of so many seconds, under a name that clients see."""

    name: str
    count: int
    seconds: int


SIGN_IN_BY_ADDRESS = Limit("sign-in-by-address", 100, 10 * MINUTE)
"""Failures at one address, whatever the account: passwords are sprayed over accounts."""
SIGN_IN_BY_ADDRESS_AND_ACCOUNT = Limit("sign-in-by-address-and-account", 10, 15 * MINUTE)
"""Failures at one address for one account."""
SIGN_IN_BY_ACCOUNT = Limit("sign-in-by-account", 100, HOUR)
"""Failures for one account at all addresses from which it was never signed in to."""
MAIL_BY_RECIPIENT = Limit("mail-by-recipient", 5, HOUR)
"""Mails to one address. No longer than their links hold: who keeps others from asking for a mail
has had one sent to them that still works."""
MAIL_BY_ADDRESS = Limit("mail-by-address", 30, HOUR)
"""Mails that are asked for at one address, to whomever."""

KNOWN_SECONDS = 30 * DAY
"""How long it is remembered that an account was signed in to from an address."""
_RENEW_SECONDS = KNOWN_SECONDS - DAY
"""What is remembered for no longer than this is remembered anew."""
_BELIEVED_SECONDS = HOUR
"""How long a process believes its own memory that an address is known."""
_MEMORY = 10_000
"""How many keys a process remembers of each kind."""
_SHARE = 32
"""A process takes at most this part of the pulls that are left."""
_BRISK_SECONDS = 10
"""A process that has used its pulls up sooner takes more at the next time."""


class TooManyRequests(RegistryError):
    """A limit is spent (RFC 6585, section 4). Says when to come back, by ``Retry-After`` and the
    fields of draft-ietf-httpapi-ratelimit-headers-11."""

    status, code = 429, "TOOMANYREQUESTS"

    def __init__(self, what: str, limit: Limit, seconds: float) -> None:
        wait = max(1, math.ceil(seconds))
        super().__init__(
            f"{what}; try again in {wait} seconds.",
            headers=(("Retry-After", str(wait)), *_fields(limit, 0, wait)),
        )
        self.limit = limit


class Limits:
    """The limits of one registry. For any thread.

    An ``account`` is a name in the one way in which the caller writes it, of an account that need
    not exist: answers do not tell. Each call may raise ``Unavailable``.
    """

    def __init__(
        self,
        database: Runner,
        settings: Settings,
        secret: bytes,
        *,
        by_address: Limit = SIGN_IN_BY_ADDRESS,
        by_address_and_account: Limit = SIGN_IN_BY_ADDRESS_AND_ACCOUNT,
        by_account: Limit = SIGN_IN_BY_ACCOUNT,
    ) -> None:
        self._database = database
        self._secret = hmac.digest(secret, b"keys of rate limits", "sha256")
        self._sign_in = by_address, by_address_and_account, by_account
        self._pull_by_account = _pull_limit("pull-by-account", settings.pull_limit)
        self._pull_by_address = _pull_limit("pull-by-address", settings.anonymous_pull_limit)
        self._failed = _Memory()
        self._known = _Memory()
        self._shares: dict[tuple[str, str], _Share] = {}
        self._lock = threading.Lock()

    # Signing in.

    def check_sign_in(self, address: str, account: str) -> None:
        """Called before a password is looked at. Raises ``TooManyRequests`` where too many were
        wrong. Asks Postgres only when this process has seen one fail lately: ``failed`` and
        ``succeeded`` notice what it has not seen."""
        if not self._failed:
            return
        attempt = self._attempt(address, account)
        known = self._known.has_any([(address, account)])
        if self._failed.has_any(attempt.limits_of_known if known else attempt.limits):
            self._judge(attempt)

    def failed(self, address: str, account: str) -> None:
        """Count a wrong password. Raises ``TooManyRequests`` where that was one too many: the
        client is to get that answer, as it would for the right password."""
        attempt = self._attempt(address, account)
        known = self._judge(attempt) > 0
        limits = attempt.limits_of_known if known else attempt.limits
        windows = {key: limit.seconds for key, limit in limits.items()}
        counters = rates.add(self._database, windows, 1)
        self._remember_failures(counters)
        _refuse_above(limits, counters, 0)

    def succeeded(self, address: str, account: str) -> None:
        """Called when a password was right, before anything else is. Raises ``TooManyRequests``
        where so many were wrong meanwhile, or elsewhere, that this one must not be accepted; else
        the address is known from now on."""
        known = self._known.has_any([(address, account)])
        if known and not self._failed:
            return
        attempt = self._attempt(address, account)
        if known and not self._failed.has_any(attempt.limits_of_known):
            return
        if self._judge(attempt) <= _RENEW_SECONDS:
            rates.keep(self._database, attempt.known, KNOWN_SECONDS)
        self._known.add((address, account), _BELIEVED_SECONDS)

    def trust(self, address: str, account: str) -> None:
        """Have the address be known without a password: somebody has shown there that the account
        is theirs by what cannot be guessed, a passkey or a link from a mail."""
        rates.keep(self._database, self._attempt(address, account).known, KNOWN_SECONDS)
        self._known.add((address, account), _BELIEVED_SECONDS)

    def _attempt(self, address: str, account: str) -> "_Attempt":
        client = one_client(address)
        by_address, by_pair, by_account = self._sign_in
        pair = {self._key(by_pair.name, client, account): by_pair}
        others = {
            self._key(by_address.name, client): by_address,
            self._key(by_account.name, account): by_account,
        }
        return _Attempt(pair | others, pair, self._key("known", client, account))

    def _judge(self, attempt: "_Attempt") -> float:
        """For how many seconds the address will be known to the account, 0 where it is not. Raises
        ``TooManyRequests``."""
        found = rates.find(self._database, [*attempt.limits, attempt.known])
        known = found.pop(attempt.known, None)
        self._remember_failures(found)
        _refuse_above(attempt.limits_of_known if known else attempt.limits, found, 1)
        return known.seconds if known else 0

    def _remember_failures(self, counters: Mapping[bytes, rates.Counter]) -> None:
        for key, counter in counters.items():
            self._failed.add(key, counter.seconds)

    def _key(self, *parts: str) -> bytes:
        """A keyed hash (RFC 7693), without whose key nobody finds out whom it stands for."""
        text = json.dumps(parts).encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()

    # Mail.

    def mail(self, address: str, recipient: str) -> None:
        """Count a mail that somebody at an address has the registry send, whether or not it then
        is. Raises ``TooManyRequests``."""
        limits = {
            self._key(MAIL_BY_ADDRESS.name, one_client(address)): MAIL_BY_ADDRESS,
            self._key(MAIL_BY_RECIPIENT.name, recipient.lower()): MAIL_BY_RECIPIENT,
        }
        windows = {key: limit.seconds for key, limit in limits.items()}
        counters = rates.add(self._database, windows, 1)
        _refuse_above(limits, counters, 0, "Too many mails were asked for")

    # Pulling.

    def pull(self, account: str, address: str) -> Sequence[tuple[str, str]]:
        """Count the pull of one manifest, by an account or, where that is empty, by an address.
        Gives the header fields that say how many are left: none where no limit is set. Raises
        ``TooManyRequests``.

        Each process takes some of the pulls that are left before they are asked for, no more than
        twice what it has just used up within seconds: so there are few queries, and few pulls are
        lost with it.
        """
        limit = self._pull_by_account if account else self._pull_by_address
        if limit is None:
            return ()
        whom = account or one_client(address)
        with self._lock:
            share = self._live_share(limit, whom)
            if share.left or share.spent:
                return share.use()
            wanted = share.wanted()
        key = self._key(limit.name, whom)
        counter = rates.add(self._database, {key: limit.seconds}, wanted)[key]
        with self._lock:
            share = self._live_share(limit, whom)
            share.take(wanted, counter)
            return share.use()

    def _live_share(self, limit: Limit, whom: str) -> "_Share":
        share = self._shares.get((limit.name, whom))
        if share is None or share.until <= time.monotonic():
            self._shares.pop((limit.name, whom), None)
            if len(self._shares) >= _MEMORY:
                del self._shares[next(iter(self._shares))]
            share = self._shares[limit.name, whom] = _Share(limit)
        return share


class _Attempt(NamedTuple):
    """The counters that a sign-in has to do with: all, those that count where the address is known,
    and what says that it is."""

    limits: Mapping[bytes, Limit]
    limits_of_known: Mapping[bytes, Limit]
    known: bytes


class _Memory:
    """Keys, each for a time; at most ``_MEMORY``, of which the oldest go first."""

    def __init__(self) -> None:
        self._until: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def add(self, key: Hashable, seconds: float) -> None:
        with self._lock:
            self._until.pop(key, None)
            if len(self._until) >= _MEMORY:
                del self._until[next(iter(self._until))]
            self._until[key] = time.monotonic() + seconds

    def has_any(self, keys: Iterable[Hashable]) -> bool:
        now = time.monotonic()
        return any(self._until.get(key, 0) > now for key in keys)

    def __bool__(self) -> bool:
        return bool(self._until)


class _Share:
    """The pulls that a process has taken from one window, and how many are left to all."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._others = limit.count
        self._size = 0
        self._taken = time.monotonic()
        self.left = 0
        self.spent = False
        self.until = math.inf

    def wanted(self) -> int:
        brisk = time.monotonic() - self._taken < _BRISK_SECONDS
        size = 2 * self._size if brisk else self._size // 2
        return max(1, min(size, self._others // _SHARE))

    def take(self, wanted: int, counter: rates.Counter) -> None:
        before = counter.count - wanted
        granted = max(0, min(wanted, self._limit.count - before))
        self._others = max(0, self._limit.count - counter.count)
        self._size = wanted
        self._taken = time.monotonic()
        self.left += granted
        self.spent = self._others == 0
        self.until = self._taken + counter.seconds

    def use(self) -> Sequence[tuple[str, str]]:
        """Use one pull. Raises ``TooManyRequests`` where there is none."""
        seconds = self.until - time.monotonic()
        if not self.left:
            raise TooManyRequests("The limit of pulls is reached", self._limit, seconds)
        self.left -= 1
        return _fields(self._limit, self._others + self.left, seconds)


def _refuse_above(
    limits: Mapping[bytes, Limit],
    counters: Mapping[bytes, rates.Counter],
    more: int,
    what: str = "Too many sign-ins have failed",
) -> None:
    """Raise ``TooManyRequests`` where ``more`` would be too many."""
    spent = [
        (counters[key].seconds, limit)
        for key, limit in limits.items()
        if key in counters and counters[key].count + more > limit.count
    ]
    if spent:
        seconds, limit = max(spent, key=lambda each: each[0])
        raise TooManyRequests(what, limit, seconds)


def _pull_limit(name: str, rate: Rate | None) -> Limit | None:
    return None if rate is None else Limit(name, rate.count, rate.seconds)


def _fields(limit: Limit, left: int, seconds: float) -> Sequence[tuple[str, str]]:
    """The limit, and what is left of it (draft-ietf-httpapi-ratelimit-headers-11)."""
    return (
        ("RateLimit-Policy", f'"{limit.name}";q={limit.count};w={limit.seconds}'),
        ("RateLimit", f'"{limit.name}";r={left};t={max(0, math.ceil(seconds))}'),
    )
