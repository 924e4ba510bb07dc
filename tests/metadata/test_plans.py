"""How much of the database a read looks at: no more where a repository holds much, though Postgres
knows no figures of its tables yet and guesses."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chalicelib import digests
from chalicelib.metadata import blobs, manifests
from chalicelib.metadata.database import Database, Runner
from chalicelib.metadata.migrate import migrate
from tests.servers import Postgres

MANY = 200
"""Manifests with a tag each, and as many blobs, of one repository."""
MOST = 20
"""Pages of 8 KiB; of each index that is gone through there are two or three, and the row's."""
DIGEST = digests.of(b"100")

Read = Callable[[Runner], object]


@pytest.fixture(scope="module")
def full(postgres: Postgres) -> Iterator[Database]:
    """A repository with much in it, in tables that were never analysed."""
    url = postgres.new_database()
    migrate(url)
    database = Database(url)
    numbered = "decode('12', 'hex') || sha256(convert_to(CAST(n AS text), 'UTF8'))"
    all_numbers = f"generate_series(1, {MANY}) n, repositories r WHERE r.name = 'full'"
    database.run("INSERT INTO repositories (name) VALUES ('full')")
    database.run(
        "INSERT INTO manifests (repository_id, digest, media_type, artifact_type, payload,"
        f" annotations) SELECT r.id, {numbered}, 'a/b', '', '', '{{}}' FROM {all_numbers}"
    )
    database.run(
        "INSERT INTO tags (repository_id, name, digest)"
        f" SELECT r.id, 'tag-' || n, {numbered} FROM {all_numbers}"
    )
    database.run(f"INSERT INTO blobs (digest, size) SELECT {numbered}, 1 FROM {all_numbers}")
    database.run(
        "INSERT INTO blob_copies (digest, store, key)"
        f" SELECT {numbered}, 'file', n FROM {all_numbers}"
    )
    database.run(
        "INSERT INTO repository_blobs (repository_id, digest)"
        f" SELECT r.id, {numbered} FROM {all_numbers}"
    )
    yield database
    database.close()


class _Counting:
    """A runner that counts the pages that its statements look at."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.pages = 0

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}"
        self._database.run(explain, **parameters)  # until it has read what it knows of the tables
        [[found]] = self._database.run(explain, **parameters)
        [plan] = found if isinstance(found, list) else json.loads(found)
        self.pages += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        return self._database.run(sql, **parameters)


@pytest.mark.parametrize(
    "read",
    [
        lambda runner: manifests.by_tag(runner, "full", "tag-100"),
        lambda runner: manifests.by_digest(runner, "full", DIGEST),
        lambda runner: blobs.find(runner, "full", DIGEST, "file"),
    ],
    ids=["manifest by tag", "manifest by digest", "blob"],
)
def test_reads_look_at_little(full: Database, read: Read) -> None:
    runner = _Counting(full)
    assert read(runner) is not None
    assert 0 < runner.pages <= MOST
