"""How large the database is, for the cost of a glance."""

from chalicelib.metadata.database import Runner

_TABLES = ("repositories", "blobs", "blob_copies", "repository_blobs", "manifests", "tags",
           "uploads", "jobs", "audit", "resolver_copies")  # fmt: skip


def database_size(runner: Runner) -> int:
    """Bytes on disk, indexes included."""
    return int(runner.run("SELECT pg_database_size(current_database())")[0][0])


def estimated_rows(runner: Runner) -> list[tuple[str, int]]:
    """(table, rows) of the tables that grow, as autovacuum last counted them."""
    rows = runner.run(
        "SELECT relname, greatest(reltuples, 0) FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = CAST('public' AS regnamespace) AND relname = ANY(:tables)"
        " ORDER BY relname",
        tables=list(_TABLES),
    )
    return [(str(name), int(count)) for name, count in rows]
