"""Fixtures for the tests of faults: where registries keep things, and registries that stand."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.contract.stores import s3
from tests.hosts.wire import until
from tests.servers import S3, Postgres, Registry, stopping

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["s3"]


@dataclass(frozen=True)
class Place:
    """A database and a store, for one registry or several, and a look behind them."""

    settings: dict[str, str]
    query: Callable[[str], list[list[Any]]]
    names: Callable[[], set[str]]
    """Of all that the store keeps, staged or not, but for a sweep's marker."""

    def blobs(self) -> set[str]:
        """The names that the bytes of blobs have in the store."""
        return {key for (key,) in self.query("SELECT key FROM blob_copies")}

    def holds_nothing_but_blobs(self, registry: Registry) -> None:
        """That nothing else is left once every upload has expired."""
        self.query("UPDATE uploads SET expires_at = now() - interval '1 second'")
        self.query("UPDATE schedules SET due_at = now() WHERE kind = 'uploads.expire'")
        registry.restart()
        for _ in until(60, 0.1):
            if self.query("SELECT count(*) FROM uploads") == [[0]]:
                break
        assert self.names() == self.blobs()
        assert self.query("SELECT count(*) FROM upload_keys") == [[0]]


@pytest.fixture(params=["filesystem", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of storage, with nothing in it."""
    made: Place = request.getfixturevalue(f"{request.param}_place")
    return made


@pytest.fixture(params=["filesystem", pytest.param("s3", marks=pytest.mark.long)])
def place_in_short(request: pytest.FixtureRequest) -> Place:
    """The same, S3 in the long tests alone."""
    made: Place = request.getfixturevalue(f"{request.param}_place")
    return made


@pytest.fixture
def filesystem_place(postgres: Postgres, directory: Path) -> Place:
    """A folder."""
    folder = Path(tempfile.mkdtemp(prefix="blobs-", dir=directory))

    def names() -> set[str]:
        return {file.name for file in folder.rglob("*") if file.is_file()}

    return _place(postgres, names, OPENREGISTRY_STORAGE_URL=folder.as_uri())


@pytest.fixture
def s3_place(postgres: Postgres, s3_server: S3, s3: "S3Client") -> Place:
    """A prefix of a bucket, where a blob of more than 5 MiB is several parts."""
    url = s3_server.new_storage_url()
    prefix = urlsplit(url).path.strip("/") + "/"

    def names() -> set[str]:
        where: dict[str, Any] = {"Bucket": s3_server.bucket, "Prefix": prefix}
        pages = s3.get_paginator("list_objects_v2").paginate(**where)
        found = [one["Key"] for page in pages for one in page.get("Contents", [])]
        parts = s3.list_multipart_uploads(**where).get("Uploads", [])
        found += [f"{one['Key']} in parts" for one in parts]
        return {name.removeprefix(prefix) for name in found}

    return _place(
        postgres,
        names,
        OPENREGISTRY_STORAGE_URL=url,
        OPENREGISTRY_PART_SIZE="5MiB",
        **s3_server.environment(),
    )


def _place(postgres: Postgres, names: Callable[[], set[str]], **settings: str) -> Place:
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    settings["OPENREGISTRY_DATABASE_URL"] = url
    settings["OPENREGISTRY_SECRET_KEY"] = "a secret for the tests of faults"

    def unmarked() -> set[str]:
        return {name for name in names() if not name.startswith("openregistry-")}

    return Place(settings, lambda sql: postgres.query(sql, name), unmarked)


@pytest.fixture(scope="session")
def s3_registry(directory: Path, postgres: Postgres, s3_server: S3) -> Iterator[Registry]:
    """A registry on S3, as `registry` is one on a folder."""
    settings = {
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        "OPENREGISTRY_PART_SIZE": "5MiB",
        **s3_server.environment(),
    }
    server = Registry(directory / "registry-on-s3", settings)
    with stopping(server):
        yield server.start()


@pytest.fixture(params=["filesystem", "s3"])
def either(request: pytest.FixtureRequest) -> Registry:
    """A registry on each kind of storage, which others use too."""
    name = "registry" if request.param == "filesystem" else "s3_registry"
    found: Registry = request.getfixturevalue(name)
    return found
