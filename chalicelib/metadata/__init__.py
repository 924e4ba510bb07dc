"""Postgres: connections, migrations, and the queries, one module a noun."""
