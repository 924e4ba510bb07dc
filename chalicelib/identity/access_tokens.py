"""Access tokens of people and robots: PASETO v4.local behind a prefix that secret scanners know.

The token holds its id alone, sealed: what it may do and until when is in its row, so that a
revocation bites at once. The row has its SHA-256, not the token. It is shown once.
"""

import hashlib
import hmac
import json
import uuid
from collections.abc import Sequence
from typing import NamedTuple, cast

from chalicelib.identity.keys import Keys
from chalicelib.identity.scopes import Scope
from chalicelib.metadata import access_tokens, audit
from chalicelib.metadata.database import Database, Runner, Transaction

PREFIX = "orp_"
_PURPOSE = "access tokens"
_HEADER = "v4.local."
_LONGEST = 512


class Created(NamedTuple):
    """A new token: its id, and the only copy of it."""

    id: str
    token: str


def create(
    runner: Runner,
    keys: Keys,
    account_id: int,
    name: str,
    scopes: Sequence[Scope],
    *,
    seconds: int | None = None,
    created_by: int | None = None,
) -> Created:
    """A token of an account, that expires after so many seconds, or never."""
    import pyseto

    token_id = str(uuid.uuid4())
    key = pyseto.Key.new(version=4, purpose="local", key=keys.derived(_PURPOSE)[0])
    sealed = pyseto.encode(key, json.dumps({"jti": token_id}).encode()).decode()
    token = PREFIX + sealed.removeprefix(_HEADER)
    access_tokens.add(
        runner,
        token_id,
        account_id,
        name,
        [str(scope) for scope in scopes],
        _hash(token),
        seconds,
        created_by,
    )
    return Created(token_id, token)


def make(
    database: Database,
    keys: Keys,
    account_id: int,
    name: str,
    scopes: Sequence[Scope],
    *,
    by: str,
    seconds: int | None = None,
    created_by: int | None = None,
) -> Created:
    """Create a token as somebody asks for it, which the audit log tells."""

    def work(transaction: Transaction) -> Created:
        created = create(
            transaction, keys, account_id, name, scopes, seconds=seconds, created_by=created_by
        )
        audit.add(transaction, "token.create", by, account=account_id, id=created.id)
        return created

    return database.transaction(work)


def revoke(database: Database, token_id: str, *, by: str, account_id: int | None = None) -> bool:
    """Void a token, of one account if that is given; False where there is none that holds."""

    def work(transaction: Transaction) -> bool:
        account = access_tokens.revoke(transaction, token_id, account_id)
        if account is None:
            return False
        audit.add(transaction, "token.revoke", by, account=account, id=token_id)
        return True

    return database.transaction(work)


def looks_like(password: str) -> bool:
    """Whether a password is meant to be an access token."""
    return password.startswith(PREFIX)


def verify(runner: Runner, keys: Keys, token: str) -> tuple[int, str] | None:
    """The account and the id of a token that holds now; None for any other. One that we never
    made costs no query."""
    token_id = _opened(keys, token)
    if token_id is None:
        return None
    found = access_tokens.find(runner, token_id)
    if found is None or not hmac.compare_digest(found.hash, _hash(token)):
        return None
    return found.account_id, token_id


def _opened(keys: Keys, token: str) -> str | None:
    """The id that a token holds, where we sealed it."""
    import pyseto

    if len(token) > _LONGEST:
        return None
    for secret in keys.derived(_PURPOSE):
        key = pyseto.Key.new(version=4, purpose="local", key=secret)
        try:
            opened = pyseto.decode(key, _HEADER + token.removeprefix(PREFIX), deserializer=json)
            return str(uuid.UUID(cast("dict[str, str]", opened.payload)["jti"]))
        except (pyseto.PysetoError, ValueError, KeyError, TypeError):
            continue
    return None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
