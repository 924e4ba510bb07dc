"""Pulls are counted where a limit is set, and the client is told how many are left."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from chalicelib.hosts import build_context
from chalicelib.identity import users
from chalicelib.settings import Settings
from tests.client import Answer, Body, CoreClient, push_image
from tests.images import make_image
from tests.servers import Postgres

PASSWORD = "correct horse"
AUTHORIZATION = {"Authorization": "Basic " + b64encode(f"ada:{PASSWORD}".encode()).decode()}
MANIFEST = "/v2/ada/app/manifests/1"


class Ada(CoreClient):
    """A client that logs in, unless it brings a token."""

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return super().request(method, target, body, {**AUTHORIZATION, **(headers or {})})


@contextmanager
def registry(postgres: Postgres, tmp_path: Path, **settings: str) -> Iterator[Ada]:
    with postgres.migrated_database() as url:
        environment = {f"OPENREGISTRY_{name}": value for name, value in settings.items()}
        context = build_context(
            Settings.from_environment(
                {
                    "OPENREGISTRY_DATABASE_URL": url,
                    "OPENREGISTRY_DATA_DIR": str(tmp_path),
                    "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
                    "OPENREGISTRY_NEW_REPOSITORIES": "public",
                    **environment,
                }
            )
        )
        users.create(
            context.database, "ada", "ada@example.org", PASSWORD, by="operator", email_verified=True
        )
        client = Ada(context)
        push_image(client, "ada/app", make_image((100,)), "1")
        yield client
        context.database.close()


@pytest.fixture
def limited(postgres: Postgres, tmp_path: Path) -> Iterator[Ada]:
    with registry(postgres, tmp_path, PULL_LIMIT="5/1h", ANONYMOUS_PULL_LIMIT="2/1h") as client:
        yield client


def test_an_account(limited: Ada) -> None:
    for left in range(4, -1, -1):
        assert limited.request("HEAD", MANIFEST).status == 200  # a HEAD is no pull
        answer = limited.request("GET", MANIFEST)
        assert answer.status == 200
        assert f";r={left};" in answer.headers["RateLimit"]
        assert answer.headers["RateLimit-Policy"].endswith(";q=5;w=3600")
    answer = limited.request("GET", MANIFEST)
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
    assert int(answer.headers["Retry-After"]) > 0
    assert limited.request("GET", "/v2/ada/app/tags/list").status == 200


def test_nobody_in_particular(limited: Ada) -> None:
    nobody = CoreClient(limited.context)
    token = nobody.request("GET", "/token?scope=repository:ada/app:pull").json["token"]
    anonymous = {"Authorization": f"Bearer {token}"}
    statuses = [limited.request("GET", MANIFEST, headers=anonymous).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert limited.request("GET", MANIFEST).status == 200  # an account has its own


def test_without_a_limit(postgres: Postgres, tmp_path: Path) -> None:
    with registry(postgres, tmp_path) as client:
        assert "RateLimit" not in client.request("GET", MANIFEST).headers
