"""The registry on Lambda, as near to AWS as one machine gets: real runtime processes that run
``app.py``, behind a front that does what API Gateway does."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from chalicelib.metadata.migrate import migrate
from tests.accounts import add_user
from tests.client import Answer, Body, HTTPClient
from tests.hosts.api_gateway import ApiGateway
from tests.hosts.lambda_runtime import Function, RuntimeApi
from tests.servers import S3, Postgres, free_port, stopping

USER, PASSWORD = "tester", "correct horse"


def basic(name: str, password: str) -> dict[str, str]:
    """The Authorization field that logs in."""
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


AUTHORIZATION = basic(USER, PASSWORD)


def migrated(database_url: str) -> str:
    """The database with its schema, and with ``USER``, who may do everything."""
    migrate(database_url)
    settings = {"OPENREGISTRY_DATABASE_URL": database_url}
    add_user(settings, USER, PASSWORD, administrator=True)
    return database_url


class LambdaRegistry:
    """`with LambdaRegistry(directory, settings) as registry:` serves at ``registry.url``.

    ``settings`` are the functions' environment, ``port`` is where API Gateway listens.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        *,
        processes: int = 2,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.settings = {
            "OPENREGISTRY_PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "OPENREGISTRY_SECRET_KEY": "a secret for the tests of Lambda",
            "OPENREGISTRY_DATABASE_POOL": "1",  # as in .chalice/resources.yaml
            **settings,
        }
        self.function, self.authorizer = RuntimeApi(), RuntimeApi()
        self.processes = [
            Function(directory / f"app-{number}", "app.app", self.function, self.settings)
            for number in range(processes)
        ]
        self.processes.append(
            Function(directory / "challenge", "app.challenge", self.authorizer, self.settings)
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from app import app

        with ExitStack() as stack:
            for process in self.processes:
                stack.enter_context(stopping(process))
                process.start()
            routes = {
                path: {
                    method: route.authorizer.name if route.authorizer else None
                    for method, route in methods.items()
                }
                for path, methods in app.routes.items()
            }
            self.front = ApiGateway(self.function, self.authorizer, routes, self.port)
            stack.callback(self.front.server_close)
            stack.callback(self.front.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self.function.shutdown()
        self.authorizer.shutdown()

    @property
    def host(self) -> str:
        """host:port, for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address to put before a path."""
        return f"http://{self.host}"

    def logs(self) -> list[dict[str, object]]:
        """What the functions logged, in Lambda's JSON format."""
        return [line for line in self._lines() if "_aws" not in line]

    def metrics(self) -> list[dict[str, object]]:
        """The lines of the log that CloudWatch takes for metrics."""
        return [line for line in self._lines() if "_aws" in line]

    def _lines(self) -> list[dict[str, object]]:
        return [
            json.loads(line)
            for process in self.processes
            for line in process.output().splitlines()
            if line.startswith("{")
        ]


@pytest.fixture(scope="session")
def lambda_registry(directory: Path, postgres: Postgres, s3_server: S3) -> Iterator[LambdaRegistry]:
    """The registry on Lambda behind API Gateway, both as the tests imitate them; ``.host`` and
    ``.url`` are for clients, who log in as ``USER`` with ``PASSWORD``."""
    settings = {
        "OPENREGISTRY_DATABASE_URL": migrated(postgres.new_database()),
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        **s3_server.environment(),
    }
    with LambdaRegistry(directory / "lambda", settings) as registry:
        yield registry


class LoggedIn:
    """A client that sends its credentials, and no ``Accept``: many Go programs send none."""

    def __init__(self, host: str, name: str = USER, password: str = PASSWORD) -> None:
        self._client = HTTPClient(host)
        self._authorization = basic(name, password)

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return self._client.request(method, target, body, self._authorization | dict(headers or {}))


class Redirected(LoggedIn):
    """A client that goes on to storage where the registry sends it there. Its answer is that of
    storage, with what the registry said of the blob."""

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        answer = super().request(method, target, body, headers)
        if answer.status != 307:
            return answer
        stored = self._client.request(method, answer.location, headers=headers)
        said = [
            (name, value)
            for name, value in answer.fields
            if name not in stored.headers and name not in ("Location", "Cache-Control")
        ]
        return Answer(stored.status, [*stored.fields, *said], stored.body)
