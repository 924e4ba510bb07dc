"""A registry with accounts, called as its hosts call it."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity import passwords, users
from chalicelib.settings import Settings
from tests.client import Answer, CoreClient
from tests.servers import Postgres

PASSWORD = "a password: with ünusual characters"


@pytest.fixture(scope="package", autouse=True)
def _cheap_hashes() -> Iterator[None]:
    """Hash passwords with less work: many of these tests make users and log them in, and none is
    about how dear a guess is (tests/identity has those)."""
    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", lambda: cheap)
        passwords._decoy.cache_clear()
        yield
    passwords._decoy.cache_clear()


@dataclass(frozen=True)
class World:
    """A registry of its own with the users alice, bob and root, the last an administrator."""

    context: Context
    client: CoreClient
    ids: Mapping[str, int]

    def call(
        self, method: str, path: str, body: Any = None, *, by: str = "", **headers: str
    ) -> Answer:
        """Call the API: JSON, by a user with their password, or by nobody."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if by:
            fields["Authorization"] = basic(by, PASSWORD)
        if body is not None:
            fields["Content-Type"] = "application/json"
        data = b"" if body is None else json.dumps(body).encode()
        return self.client.request(method, f"/api/v1{path}", data, fields)


def basic(name: str, password: str) -> str:
    """The Authorization field of Basic authentication."""
    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


@contextmanager
def opened(postgres: Postgres, folder: Path, **settings: str) -> Iterator[World]:
    """A registry with settings besides, by the names of their variables."""
    with postgres.migrated_database() as url:
        environment = {
            "OPENREGISTRY_ACCESS": "accounts",
            "OPENREGISTRY_DATABASE_URL": url,
            "OPENREGISTRY_DATA_DIR": str(folder),
            "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
        }
        context = build_context(Settings.from_environment({**environment, **settings}))
        with closing(context.database):
            ids = {
                name: users.create(
                    context.database,
                    name,
                    f"{name}@example.org",
                    PASSWORD,
                    by="operator",
                    email_verified=True,
                    administrator=name == "root",
                )
                for name in ("alice", "bob", "root")
            }
            yield World(context, CoreClient(context), ids)


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[World]:
    with opened(postgres, tmp_path) as registry:
        yield registry
