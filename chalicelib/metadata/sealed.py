"""Secrets that rows keep, sealed: those that another key has sealed, and the same sealed anew."""

from typing import NamedTuple

from chalicelib.metadata.database import Runner


class Column(NamedTuple):
    """Where sealed secrets are, and which column, of which type, says whose each of them is."""

    table: str
    name: str
    owner: str = "id"
    owner_type: str = "uuid"


def otherwise(runner: Runner, column: Column, mark: bytes) -> list[tuple[str, bytes]]:
    """Owner and sealed secret, of those that begin with another mark."""
    rows = runner.run(
        f"SELECT CAST({column.owner} AS text), {column.name} FROM {column.table}"
        f" WHERE substring({column.name} FOR :length) <> :mark ORDER BY 1",
        mark=mark,
        length=len(mark),
    )
    return [(owner, bytes(secret)) for owner, secret in rows]


def replace(runner: Runner, column: Column, owner: str, was: bytes, secret: bytes) -> None:
    """Keep the same secret, sealed anew, where it is still that one."""
    runner.run(
        f"UPDATE {column.table} SET {column.name} = :secret"
        f" WHERE {column.owner} = CAST(:owner AS {column.owner_type}) AND {column.name} = :was",
        owner=owner,
        was=was,
        secret=secret,
    )
