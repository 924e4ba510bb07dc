"""A registry over an empty database and each kind of store; and a network of one process."""

from dataclasses import replace

import pytest

from chalicelib.context import Context
from chalicelib.metadata.database import Database
from tests.client import CoreClient
from tests.contract.stores import Kept, kept, kept_in_filesystem, kept_in_s3, s3, s3_stores
from tests.jobs.conftest import database, jobs_context
from tests.resolvers.conftest import memory

__all__ = [
    "database",
    "jobs_context",
    "kept",
    "kept_in_filesystem",
    "kept_in_s3",
    "memory",
    "s3",
    "s3_stores",
]


@pytest.fixture
def context(jobs_context: Context, kept: Kept) -> Context:
    settings = replace(jobs_context.settings, new_repositories="public")
    return replace(jobs_context, settings=settings, store=kept.store)


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


@pytest.fixture
def rows(context: Context) -> Database:
    return context.database
