"""The functions, with a real Postgres and each kind of storage; and over each host."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.client import Client, CoreClient, HTTPClient
from tests.hosts.lambda_registry import Redirected
from tests.servers import S3, Postgres, Registry


@pytest.fixture(scope="session")
def _migrated(postgres: Postgres) -> str:
    url = postgres.new_database()
    migrate(url)
    return url


@pytest.fixture(scope="session")
def core_settings(directory: Path, _migrated: str) -> Settings:
    """Settings of a registry on the tests' Postgres with a folder of its own."""
    return Settings.from_environment(
        {
            "OPENREGISTRY_ACCESS": "open",
            "OPENREGISTRY_STATUS_PROBES": "false",
            "OPENREGISTRY_DATABASE_URL": _migrated,
            "OPENREGISTRY_DATA_DIR": str(directory / "core"),
            "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
        }
    )


def _context(settings: Settings) -> Iterator[Context]:
    context = build_context(settings)
    yield context
    context.database.close()


@pytest.fixture(scope="session")
def file_context(core_settings: Settings) -> Iterator[Context]:
    """The functions with blobs in a folder."""
    yield from _context(core_settings)


@pytest.fixture(scope="session")
def s3_context(core_settings: Settings, s3_server: S3, postgres: Postgres) -> Iterator[Context]:
    """The functions with blobs in a bucket, and a database of their own."""
    url = postgres.new_database()
    migrate(url)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        storage_url = s3_server.new_storage_url()
        yield from _context(
            replace(core_settings, storage_url=storage_url, database_url=url, part_size=5 << 20)
        )


@pytest.fixture(params=["file", "s3"])
def context(request: pytest.FixtureRequest) -> Context:
    """The functions, over each kind of storage."""
    found: Context = request.getfixturevalue(f"{request.param}_context")
    return found


@pytest.fixture
def core(context: Context) -> Client:
    """A client of the functions themselves."""
    return CoreClient(context)


@pytest.fixture(params=["core", "harness", "lambda"])
def client(request: pytest.FixtureRequest) -> Client:
    """A client of the functions, through each host."""
    if request.param == "core":
        return CoreClient(request.getfixturevalue("file_context"))
    if request.param == "lambda":
        return Redirected(request.getfixturevalue("lambda_registry").host)
    registry: Registry = request.getfixturevalue("registry")
    return HTTPClient(registry.host)


@pytest.fixture
def repository() -> str:
    """A repository that nobody has used."""
    return f"test/{uuid.uuid4().hex}"
