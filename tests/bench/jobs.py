"""How fast two workers drain the outbox, and that they do each job once."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from tests.jobs import program
from tests.jobs.program import Working
from tests.servers import Postgres, stopping

GOAL = 1000
"""Jobs a second, each with a change in Postgres of its own, fsync on."""
COUNT = 100_000
WORKERS = 2
ONE_SUBJECT = 50
"""Jobs of one subject wait for each other: of these a run has so much fewer."""
SUBJECTS = {"no subject": "''", "1000 subjects": "'s' || n % 1000", "one subject": "'s'"}


def measure(quick: int) -> list[str]:
    """Lines of a table. ``quick`` divides how many jobs there are."""
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-"))
    place.chmod(0o755)
    try:
        with ExitStack() as stack:
            server = Postgres(place)
            stack.enter_context(stopping(server.start()))
            return list(_measured(server, place, COUNT // quick))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measured(server: Postgres, place: Path, count: int) -> Iterator[str]:
    for name, subject in SUBJECTS.items():
        url = server.new_database()
        migrate(url)
        few = count // ONE_SUBJECT if name == "one subject" else count
        with closing(Database(url)) as database, ExitStack() as stack:
            program.make_table(database)
            database.run(
                f"INSERT INTO jobs (kind, subject, data) SELECT 'effect', {subject},"
                f" jsonb_build_object('n', n) FROM generate_series(1, {few}) n"
            )
            workers = [
                Working(
                    place / f"{url.rpartition('/')[2]}-{number}", program.settings_for(url, place)
                )
                for number in range(WORKERS)
            ]
            begun = time.monotonic()
            for each in workers:
                stack.enter_context(stopping(each.start()))
            while jobs.page(database, 0, 1):
                time.sleep(0.1)
            seconds = time.monotonic() - begun
            [[rows, once]] = database.run("SELECT count(*), count(DISTINCT n) FROM effects")
        if (rows, once) != (few, few):
            raise RuntimeError(f"{few} jobs had {rows} effects, {once} of them different")
        goal = f" (goal: {GOAL} or more)" if name == "no subject" else ""
        yield (
            f"{name:14} {few:7} jobs, {WORKERS} workers: {few / seconds:7.0f} /s{goal};"
            " each had its effect once"
        )
