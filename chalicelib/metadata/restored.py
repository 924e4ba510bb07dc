"""What has to be done to a database that is an earlier state of itself, before anything uses it.

Whoever has seen the later state remembers it: processes an access epoch, webhooks' receivers the
ids of deliveries, clients a token for an account's id. None of these may come a second time for
something else.
"""

from typing import NamedTuple

from chalicelib.metadata import audit
from chalicelib.metadata.database import Runner, Transaction

GAP = 1_000_000_000
"""How far ids and the epoch go ahead: more than there were since the backup."""


class Settled(NamedTuple):
    """What was ended: sign-ins (sessions, refresh tokens, links of mails), uploads under way, and
    access tokens."""

    sign_ins: int
    uploads: int
    access_tokens: int


def has_tables(runner: Runner) -> bool:
    """Whether a database is one of a registry."""
    return bool(runner.run("SELECT 1 WHERE to_regclass('schema_migrations') IS NOT NULL"))


def settle(transaction: Transaction, *, revoke_tokens: bool, by: str) -> Settled:
    """Have a restored database be safe to go on from. With ``revoke_tokens`` access tokens are
    void: those too that were revoked after the moment to which it was restored, and which hold
    again."""
    # What a process remembers of who may do what holds while the epoch is the same.
    transaction.run("UPDATE access_epoch SET epoch = epoch + :gap", gap=GAP)
    transaction.run(
        "SELECT setval(s, coalesce(pg_sequence_last_value(s), 0) + :gap) FROM ("
        " SELECT CAST(pg_get_serial_sequence(quote_ident(table_name), column_name) AS regclass)"
        " FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND is_identity = 'YES') AS sequences (s)",
        gap=GAP,
    )
    # They may have been used or ended since.
    sign_ins = 0
    for table in ("sessions", "one_time_secrets", "refresh_families"):
        sign_ins += len(transaction.run(f"DELETE FROM {table} RETURNING 1"))
    # Numbers of their parts, and what is staged, have gone on.
    uploads = transaction.run(
        "UPDATE uploads SET state = 'cancelled' WHERE state IN ('open', 'committing') RETURNING 1"
    )
    tokens = []
    if revoke_tokens:
        tokens = transaction.run(
            "UPDATE access_tokens SET revoked_at = now() WHERE revoked_at IS NULL RETURNING 1"
        )
    settled = Settled(sign_ins, len(uploads), len(tokens))
    audit.add(transaction, "database.restored", by, **settled._asdict())
    return settled
