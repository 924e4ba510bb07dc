"""How much of the database a page looks at: no more where there is much, whether or not Postgres
knows that."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chalicelib.metadata import fsck
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from tests.servers import Postgres

MANY = 20_000


@pytest.fixture(scope="module", params=["as made", "analysed"])
def full(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Database]:
    """Blobs, copies and manifests."""
    url = postgres.new_database()
    migrate(url)
    database = Database(url)
    numbered = f"sha256(int8send(n)) AS d FROM generate_series(CAST(1 AS bigint), {MANY}) n"
    database.run("INSERT INTO repositories (name) VALUES ('full')")
    database.run(
        f"INSERT INTO blobs (digest, size) SELECT '\\x12' || d, 1 FROM (SELECT {numbered}) s"
    )
    database.run(
        "INSERT INTO blob_copies (digest, store, key) SELECT digest, 's3',"
        " right(encode(digest, 'hex'), 32) FROM blobs"
    )
    database.run(
        "INSERT INTO manifests (repository_id, digest, media_type, artifact_type, payload,"
        " annotations) SELECT r.id, b.digest, 'a/b', '', '', '{}' FROM repositories r, blobs b"
    )
    database.run(
        "INSERT INTO manifest_references (repository_id, manifest, digest, is_manifest)"
        " SELECT repository_id, digest, digest, true FROM manifests"
    )
    if request.param == "analysed":
        database.run("ANALYZE")
    yield database
    database.close()


class _Counting:
    """A database that counts the rows that each step of a statement takes, all together; it gives
    no pages after the second."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.rows: list[float] = []

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
        [[found]] = self._database.run(explain, **parameters)
        [plan] = found if isinstance(found, list) else json.loads(found)
        self.rows.append(_rows(plan["Plan"]))
        return self._database.run(sql, **parameters) if len(self.rows) < 3 else []


def _rows(step: dict[str, Any]) -> float:
    taken = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
    return float(taken * step["Actual Loops"] + sum(map(_rows, step.get("Plans", ()))))


@pytest.mark.parametrize(
    ("read", "most"),
    [
        (lambda database: fsck.copies(database, "s3"), 6 * fsck.PAGE),
        (lambda database: fsck.uncopied(database, "s3"), 6 * fsck.PAGE),
        (fsck.manifests, 300),
        (lambda database: fsck.there(database, "s3", b""), 6 * fsck.PAGE),
    ],
    ids=["copies", "uncopied", "manifests", "there"],
)
def test_a_page_looks_at_little(full: Database, read: Any, most: int) -> None:
    counting = _Counting(full)
    list(read(counting))
    assert len(counting.rows) == 3
    assert max(counting.rows) < most
