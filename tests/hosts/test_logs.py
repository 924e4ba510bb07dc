"""The log: one object a line, with the same fields in the harness and on Lambda."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib import logs
from tests.client import HTTPClient
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn
from tests.hosts.wire import until
from tests.servers import Postgres, Registry, stopping

ACCESS = {
    "timestamp", "level", "service", "logger", "message", "method", "path", "status", "bytes",
    "received", "ms", "client", "subject", "request_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(directory: Path, postgres: Postgres) -> Iterator[Registry]:
    """A registry with a log and a folder of its own."""
    url = postgres.new_database()
    registry = Registry(directory / "logs", {"OPENREGISTRY_DATABASE_URL": url})
    with stopping(registry):
        yield registry.start()


def lines(registry: Registry, **fields: object) -> list[dict[str, Any]]:
    """The lines that have these fields, once there is one."""
    for _ in until():
        found = [
            line
            for text in registry.output().splitlines()
            if text.startswith("{") and (line := json.loads(text)).items() >= fields.items()
        ]
        if found:
            return found
    raise AssertionError


def test_an_access_line(served: Registry) -> None:
    given = uuid.uuid4().hex
    answer = HTTPClient(served.host).request("GET", "/v2/", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    [line] = lines(served, request_id=given)
    assert line.keys() == ACCESS
    assert (line["level"], line["service"], line["logger"]) == ("INFO", "openregistry", "access")
    assert line["message"] == "GET /v2/ 200"


def test_what_a_request_has_logged_has_its_id(served: Registry) -> None:
    """Also where its body is taken by other threads than the one that it came to."""
    client, given = HTTPClient(served.host), uuid.uuid4().hex
    blobs = served.data_dir / "blobs"
    begun = client.request("POST", "/v2/logs/a/blobs/uploads/")
    shutil.rmtree(blobs)
    blobs.write_text("no folder")
    try:
        answer = client.request(
            "PATCH", begun.headers["Location"], b"x" * 100_000, headers={"X-Request-Id": given}
        )
    finally:
        blobs.unlink()
    assert answer.status == 503
    about = lines(served, request_id=given, level="WARNING")
    assert {line["logger"] for line in about} == {"chalicelib.endpoints"}
    lines(served, request_id=given, logger="access", status=503)


def test_what_a_job_has_logged_names_the_job(served: Registry, postgres: Postgres) -> None:
    database = served.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    [[job]] = postgres.query(
        "INSERT INTO jobs (kind, data) VALUES ('webhook.deliver', '{}') RETURNING id", database
    )
    [line] = lines(served, job=job, kind="webhook.deliver")[:1]
    assert line["logger"] == "chalicelib.jobs.worker"
    assert line["exception_name"] == "KeyError"
    assert line["exception"].startswith("Traceback")
    assert "request_id" not in line


def test_lines_on_lambda_have_the_same_fields(lambda_registry: LambdaRegistry) -> None:
    given = uuid.uuid4().hex
    path = f"/uploads/a/{uuid.uuid4()}?_state=secret.token"
    answer = LoggedIn(lambda_registry.host).request("GET", path, headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    [line] = [line for line in lambda_registry.logs() if line.get("request_id") == given]
    ours = {"function_request_id", "cold_start"}
    assert line.keys() == ACCESS | ours
    assert line["path"] == path.partition("=")[0] + "=***"
    assert line["status"] == answer.status
    assert (line["level"], line["service"], line["logger"]) == ("INFO", "openregistry", "access")
    assert line["bytes"] == len(answer.body)


def test_lambda_gives_an_id_where_none_came(lambda_registry: LambdaRegistry) -> None:
    answer = LoggedIn(lambda_registry.host).request("GET", "/v2/")
    assert len(answer.headers["X-Request-Id"]) == 36


@pytest.mark.parametrize("given", [None, "", "a b", 'a"b', "a\\b", "ä", "a\nb", "x" * 65])
def test_an_id_that_would_spoil_a_line_is_not_taken(given: str | None) -> None:
    assert logs.request_id(given) is None


def test_fields_are_bound_to_what_happens_within() -> None:
    with logs.bound(request_id="a"):
        with logs.bound(job=1):
            assert logs.fields() == {"request_id": "a", "job": 1}
        assert logs.fields() == {"request_id": "a"}
    assert not logs.fields()
