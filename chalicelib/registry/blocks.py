"""Blocked digests: a secret that leaked, malware. Nobody reads one or pushes it, in any repository
and whether or not it is there yet; lists may still show it.

It holds for every request that begins after it: nothing remembers a digest that was let through.
But a URL of storage's own that was handed out before stays good until it expires
(OPENREGISTRY_PRESIGN_EXPIRY), and what was pulled stays where it is.
"""

from chalicelib import digests
from chalicelib.http import Denied
from chalicelib.metadata import audit, blocks
from chalicelib.metadata.blocks import Block
from chalicelib.metadata.database import Database, Transaction

LONGEST_REASON = 1000


def add(database: Database, digest: bytes, reason: str, *, public: bool, by: str) -> Block:
    """Block a digest, or say another reason. ``public``: whoever is refused is told the reason.
    Raises ``Refused``."""
    from chalicelib.identity.users import Refused  # needed by no push and no pull

    reason = reason.strip()
    if not 0 < len(reason) <= LONGEST_REASON:
        raise Refused(f"Say why, in at most {LONGEST_REASON} characters.", "reason")

    def work(transaction: Transaction) -> Block:
        block = blocks.add(transaction, digest, reason, public, by)
        text = digests.unpack(digest)
        audit.add(transaction, "block.add", by, digest=text, reason=reason, public=public)
        return block

    return database.transaction(work)


def remove(database: Database, digest: bytes, *, by: str) -> bool:
    """Block a digest no longer; False where it was not blocked."""

    def work(transaction: Transaction) -> bool:
        if not blocks.remove(transaction, digest):
            return False
        audit.add(transaction, "block.remove", by, digest=digests.unpack(digest))
        return True

    return database.transaction(work)


def check(refusal: str | None, digest: bytes) -> None:
    """Raise ``Denied`` where there is something to be said against a digest."""
    if refusal is not None:
        raise Denied(refusal, {"digest": digests.unpack(digest)})
