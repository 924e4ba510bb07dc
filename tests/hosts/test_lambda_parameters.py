"""Secrets that functions on Lambda have from Parameter Store (ministack's)."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from chalicelib.hosts import aws_parameters
from chalicelib.hosts.aws_parameters import MOST, resolved
from chalicelib.http import Unavailable
from chalicelib.settings import SettingsError
from infra.localstack.clouds import REGION, Ministack
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn, migrated
from tests.servers import stopping

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}


@pytest.fixture(scope="module")
def cloud(directory: Path) -> Iterator[Ministack]:
    server = Ministack(directory / "parameters")
    with stopping(server):
        yield server.start()


@pytest.fixture
def store(cloud: Ministack) -> Any:
    return cloud.client("ssm")


@pytest.fixture
def environment(cloud: Ministack) -> dict[str, str]:
    return {**KEYS, "AWS_ENDPOINT_URL_SSM": cloud.endpoint}


def put(store: Any, name: str, value: str) -> None:
    store.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)


def test_names_stand_for_parameters(store: Any, environment: dict[str, str]) -> None:
    for number in range(MOST + 2):
        put(store, f"/many/{number}", f"value {number}")
    named = {f"OPENREGISTRY_N{number}": f"aws-ssm:/many/{number}" for number in range(MOST + 2)}
    others = {"OPENREGISTRY_PUBLIC_URL": "https://r.example.org", "ELSE": "aws-ssm:/many/1"}
    wanted = {name: f"value {name.removeprefix('OPENREGISTRY_N')}" for name in named}
    assert resolved({**environment, **named, **others}) == {**environment, **wanted, **others}


def test_without_such_names_nobody_is_asked() -> None:
    assert resolved({"OPENREGISTRY_SECRET_KEY": "x"}) == {"OPENREGISTRY_SECRET_KEY": "x"}


def test_a_missing_parameter_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="put-parameter --type SecureString --name /none") as it:
        resolved({**environment, "OPENREGISTRY_SECRET_KEY": "aws-ssm:/none"})
    assert it.value.name == "OPENREGISTRY_SECRET_KEY"


@pytest.mark.parametrize("credentials", [True, False])
def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, credentials: bool) -> None:
    monkeypatch.setattr(aws_parameters, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {"AWS_ENDPOINT_URL": url, "OPENREGISTRY_SECRET_KEY": "aws-ssm:/x"}
        with pytest.raises(Unavailable):
            resolved(environment | (KEYS if credentials else {}))


class Refusing(BaseHTTPRequestHandler):
    """A Parameter Store that does not let this role read."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = b'{"__type": "AccessDeniedException", "Message": "role/ours of 123456789012"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_a_refusal_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    """What wrong settings say is answered to whoever asks, and this names the account."""
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        named = {"AWS_ENDPOINT_URL": url, "OPENREGISTRY_SECRET_KEY": "aws-ssm:/x"}
        with pytest.raises(SettingsError, match="the log says why") as it:
            resolved(KEYS | named)
        server.shutdown()
    assert "123456789012" not in str(it.value)
    assert "123456789012" in caplog.text


def test_functions_have_their_secrets_from_there(
    store: Any, environment: dict[str, str], tmp_path: Path, database_url: str
) -> None:
    """Until it is there they say what is missing, and then they work: the authorizer too, which has
    the key alone."""
    secret = "a secret that is in no function's configuration"
    settings = {
        **environment,
        "OPENREGISTRY_DATABASE_URL": "aws-ssm:/registry/database-url",
        "OPENREGISTRY_SECRET_KEY": "aws-ssm:/registry/secret-key",
        "OPENREGISTRY_STORAGE_URL": "s3://registry/x?region=us-east-1",
    }
    put(store, "/registry/secret-key", secret)
    with LambdaRegistry(tmp_path, settings, processes=1) as registry:
        client = LoggedIn(registry.host)
        answer = client.request("GET", "/v2/")
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        assert "OPENREGISTRY_DATABASE_URL: names a parameter" in str(answer.json)
        put(store, "/registry/database-url", migrated(database_url))
        assert client.request("GET", "/v2/").status == 200
        token = client.request("GET", "/token").json["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        answer = client.request("GET", "/v2/_catalog", headers=bearer)
        assert answer.status == 401
        assert 'scope="registry:catalog:*"' in answer.headers["WWW-Authenticate"]
        logged = "".join(process.output() for process in registry.processes)
        assert secret not in logged
        assert database_url not in logged
