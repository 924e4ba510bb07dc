"""What identity leaves behind: secrets, sessions, tokens and counters whose time is over."""

from chalicelib.metadata import rates
from chalicelib.metadata.database import Database

_TABLES = ("one_time_secrets", "sessions", "refresh_tokens", "exchanged_tokens", "invitations")


def expire(database: Database) -> None:
    """Remove them. For a schedule; any number may run at once."""
    for table in _TABLES:
        database.run(f"DELETE FROM {table} WHERE expires_at < now() - interval '1 day'")
    database.run(
        "DELETE FROM refresh_families f WHERE created_at < now() - interval '1 day'"
        " AND NOT EXISTS (SELECT FROM refresh_tokens t WHERE t.family_id = f.id)"
    )
    rates.remove_expired(database)
