"""Resolvers that people add: an account for itself, an administrator for all. Their keys are
sealed, and never shown again.

The name of an account's resolver is ``ACCOUNT/NAME``, so that nobody takes another's; one for all
has no account in it. Whoever adds a resolver chooses whom the registry asks, and could send it
inwards (CWE-918): so there are Filebase's own servers, and those that the settings name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from chalicelib.context import Context
from chalicelib.identity.keys import Keys
from chalicelib.identity.sealing import seal_anew
from chalicelib.identity.users import Refused
from chalicelib.metadata import accounts, audit, resolvers
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.resolvers import Added
from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.filebase import Address
from chalicelib.settings import Settings

MOST = 20
"""Resolvers of one account, and of all."""
KINDS = ("filebase",)
RESERVED = ("bucket", "ipfs", "none")
"""Names of resolvers that settings make, and what people write for none."""
SEALED_FOR = "resolver"
"""The purpose that resolvers' keys are sealed for; their owner is the resolver's name."""

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LONGEST_NAME = 64
_KEY = re.compile(r"[!-~]{1,256}")


def full_name(context: Context, account: int | None, name: str) -> str:
    """What a resolver of an account is called everywhere, by what that account calls it. Raises
    ``Refused`` where there is no such account."""
    if account is None:
        return name
    found = accounts.by_id(context.database, account)
    if found is None or found.name is None:
        raise Refused("There is no such account.")
    return f"{found.name}/{name}"


def add(
    context: Context,
    account: int | None,
    name: str,
    address: Mapping[str, object],
    access_key: str,
    secret_key: str,
    *,
    by: str,
) -> Added:
    """Add a resolver of an account, or for all, that is a bucket of Filebase's. Nobody is asked.
    Raises ``Refused``."""
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise Refused(
            "The name of a resolver is made of a-z and 0-9, with single . _ - between them, and has"
            f" {_LONGEST_NAME} characters at most.",
            "name",
        )
    if name in RESERVED:
        raise Refused(f"{name} is the name of one that settings make.", "name")
    parsed = checked_address(context.settings, address)
    full = full_name(context, account, name)
    keys = _sealed(context.keys, full, access_key, secret_key)

    def work(transaction: Transaction) -> Added:
        if resolvers.count(transaction, account) >= MOST:
            raise Refused(f"There are at most {MOST} resolvers.", conflict=True)
        made = resolvers.add(transaction, full, account, KINDS[0], parsed.as_json(), keys, by)
        if made is None:
            raise Refused(
                f"There is a resolver {full} already, or what it had is being taken away.",
                "name",
                conflict=True,
            )
        _note(transaction, "add", full, account, by, kind=KINDS[0])
        return made

    return context.database.transaction(work)


def checked_address(settings: Settings, given: Mapping[str, object]) -> Address:
    """An address at which the registry may ask. Raises ``Refused``."""
    try:
        address = Address.parse(given)
    except ValueError as error:
        raise Refused(str(error), "address") from None
    refused = first_refused(settings, address)
    if refused:
        raise Refused(
            f"The {refused} of an address is one of Filebase's own servers, over https, or one that"
            " OPENREGISTRY_RESOLVER_ORIGINS names.",
            "address",
        )
    return address


def first_refused(settings: Settings, address: Address) -> str:
    """Which part of an address the registry would not ask; "" where it may ask all."""
    for part in ("endpoint", "gateway", "rpc"):
        url = getattr(address, part)
        if url and not (
            Address(address.bucket, **_only(part, url)).is_public
            or _origin(url) in settings.resolver_origins
        ):
            return part
    return ""


def set_keys(
    context: Context, account: int | None, name: str, access_key: str, secret_key: str, *, by: str
) -> bool:
    """Open a resolver with other keys from now on; False where there is none. Raises
    ``Refused``."""
    keys = _sealed(context.keys, name, access_key, secret_key)

    def work(transaction: Transaction) -> bool:
        found = resolvers.find(transaction, name)
        if found is None or found.account != account:
            return False
        resolvers.set_keys(transaction, name, keys)
        _note(transaction, "keys", name, account, by)
        return True

    return context.database.transaction(work)


def remove(
    context: Context, account: int | None, name: str, *, forget: bool = False, by: str
) -> bool:
    """Have nobody use a resolver any more; False where there is none. What is there is taken away
    first, by the keys, and then it is forgotten; with ``forget`` at once, and all stays there: for
    keys that are not valid any more."""

    def work(transaction: Transaction) -> bool:
        found = resolvers.find(transaction, name)
        if found is None or found.account != account:
            return False
        resolvers.remove(transaction, name)
        if forget:
            resolvers.forget(transaction, name)
        _note(transaction, "remove", name, account, by, forget=forget)
        return True

    done = context.database.transaction(work)
    context.wake()
    return done


def check(context: Context, name: str) -> str:
    """Try a resolver. Gives a sentence that says why it cannot be used, "" where it can."""
    resolver = context.resolvers.get(name)
    if resolver is None:
        return f"There is no resolver {name} here, or it cannot be opened: the log says why."
    try:
        resolver.check()
    except ResolverError as error:
        return str(error)
    return ""


def tend(context: Context) -> None:
    """Forget resolvers that were removed and have nothing more, and seal with the key in force what
    a former one did."""
    resolvers.end_removed(context.database)
    seal_anew(context.database, context.keys, SEALED_FOR, resolvers.KEYS)


def unsealed(keys: Keys, name: str, sealed: bytes) -> tuple[str, str]:
    """The access key and the secret key of a resolver. Raises ``SealError``."""
    opened = json.loads(keys.unseal(SEALED_FOR, name, sealed))
    return opened["access_key"], opened["secret_key"]


def _sealed(keys: Keys, name: str, access_key: str, secret_key: str) -> bytes:
    for field, key in (("access_key", access_key), ("secret_key", secret_key)):
        # One that is empty would have the keys of the registry itself be used.
        if not _KEY.fullmatch(key):
            raise Refused("A key is made of visible characters, 256 at most.", field)
    text = json.dumps({"access_key": access_key, "secret_key": secret_key})
    return keys.seal(SEALED_FOR, name, text.encode())


def _only(part: str, url: str) -> dict[str, str]:
    return {"gateway": "", "rpc": "", part: url}


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _note(
    transaction: Transaction, what: str, name: str, account: int | None, by: str, **detail: Any
) -> None:
    # Of the name no account's is kept: the log holds no names of people.
    short = name.rpartition("/")[2]
    audit.add(transaction, f"resolver.{what}", by, account=account, resolver=short, **detail)
