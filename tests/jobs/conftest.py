"""A database of one's own, and workers with kinds of one's own."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.metadata.database import Database
from chalicelib.settings import Settings
from tests.servers import Postgres


@pytest.fixture
def jobs_context(core_settings: Settings, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    """The functions over a database and a folder with nothing in them."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.migrated_database())
        context = build_context(
            replace(core_settings, database_url=url, storage_url=(tmp_path / "blobs").as_uri())
        )
        stack.callback(context.database.close)
        yield context


@pytest.fixture
def database(jobs_context: Context) -> Database:
    """Its database."""
    return jobs_context.database
