"""What it costs to collect a blob, from a thousand to a hundred thousand of them.

Against a Postgres and an S3 server of the bench's own. Rows and objects are made by hand: tiny
objects, in one repository, that no manifest names.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.jobs import collection
from chalicelib.jobs.collection import Report
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.servers import S3, Postgres, stopping

COUNTS = (1_000, 10_000, 100_000)
_THREADS = 16


def measure(counts: tuple[int, ...] = COUNTS) -> Iterator[str]:
    """Lines of a table: milliseconds a blob, of the rows and of the objects."""
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-"))
    place.chmod(0o755)
    try:
        with ExitStack() as stack:
            s3, postgres = S3(place / "s3"), Postgres(place / "postgres")
            for server in (s3, postgres):
                stack.enter_context(stopping(server.start()))
            os.environ.update(s3.environment())
            for count in counts:
                yield _measured(s3, postgres, count)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measured(s3: S3, postgres: Postgres, count: int) -> str:
    url = postgres.new_database()
    migrate(url)
    context = build_context(
        Settings.from_environment(
            {
                "OPENREGISTRY_ACCESS": "open",
                "OPENREGISTRY_DATABASE_URL": url,
                "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(),
                "OPENREGISTRY_SECRET_KEY": "a secret for the bench alone",
            }
        )
    )
    try:
        _fill(context, count)
        report = Report()
        begun = time.perf_counter()
        collection.collect(context, 0, report)
        rows = time.perf_counter()
        collection.delete_objects(context, 0, report)
        ended = time.perf_counter()
    finally:
        context.database.close()
    if (report.links, report.blobs, report.objects) != (count, count, count):
        raise RuntimeError(f"not everything was collected: {report}")
    return (
        f"collection of {count:7,} blobs: {(rows - begun) / count * 1e3:.3f} ms of Postgres and"
        f" {(ended - rows) / count * 1e3:.3f} ms of S3 a blob"
    )


def _fill(context: Context, count: int) -> None:
    keys = [f"{number:032x}" for number in range(count)]

    def store(key: str) -> None:
        writer = context.store.writer(None, key, lambda _: 1)
        writer.write([b"x"])
        writer.close(final=True)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(store, keys))
    database = context.database
    database.run("INSERT INTO repositories (name) VALUES ('bench/app')")
    for start in range(0, count, 10_000):
        some = keys[start : start + 10_000]
        database.run(
            "WITH named AS (SELECT key, '\\x12'::bytea || sha256(key::bytea) AS digest"
            " FROM unnest(CAST(:keys AS text[])) AS k (key)),"
            " made AS (INSERT INTO blobs (digest, size) SELECT digest, 1 FROM named),"
            " copied AS (INSERT INTO blob_copies (digest, store, key)"
            " SELECT digest, :store, key FROM named)"
            " INSERT INTO repository_blobs (repository_id, digest)"
            " SELECT r.id, digest FROM named, repositories r",
            keys=some,
            store=context.store.name,
        )
