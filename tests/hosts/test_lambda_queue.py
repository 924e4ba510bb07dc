"""The functions' queue: what is sent to it, and what the function does that takes messages."""

import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from chalicelib.hosts import aws_queue
from chalicelib.hosts.aws_queue import Queue
from chalicelib.hosts.aws_signing import NoCredentialsError, signed
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from tests.client import push_image
from tests.hosts.lambda_jobs import sqs_event
from tests.hosts.lambda_registry import LambdaRegistry, LoggedIn
from tests.hosts.lambda_runtime import Function, RuntimeApi
from tests.images import make_image
from tests.servers import stopping

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "a secret",
    "AWS_SESSION_TOKEN": "a token",
    "AWS_REGION": "eu-west-1",
}


@pytest.mark.parametrize("left_out", [None, "AWS_SESSION_TOKEN"])
def test_a_message_is_signed_as_botocore_would(left_out: str | None) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != left_out}
    host, body = "sqs.eu-west-1.amazonaws.com", b'{"a": 1}'
    keys = Credentials(
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
        environment.get("AWS_SESSION_TOKEN"),
    )
    while True:
        now = datetime.now(UTC)
        ours = signed("sqs", "AmazonSQS.SendMessage", "text/x", host, body, environment, now)
        fields = {name: ours[name] for name in ("content-type", "host", "x-amz-target")}
        request = AWSRequest("POST", f"https://{host}/", fields, body)
        SigV4Auth(keys, "sqs", "eu-west-1").add_auth(request)
        # It looks at the clock itself.
        if request.headers["X-Amz-Date"] == ours["x-amz-date"]:
            break
    assert ours["authorization"] == request.headers["Authorization"]
    assert ours.get("x-amz-security-token") == request.headers.get("X-Amz-Security-Token")


def test_without_credentials_nothing_is_signed() -> None:
    with pytest.raises(NoCredentialsError, match="AWS_SECRET_ACCESS_KEY"):
        signed("sqs", "x", "y", "host", b"", {"AWS_ACCESS_KEY_ID": "x"}, datetime.now(UTC))


def test_a_queue_that_is_silent_keeps_nobody_waiting_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(aws_queue, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        queue = Queue(f"http://127.0.0.1:{silent.getsockname()[1]}/1/q")
        queue.wake()
        begun = time.monotonic()
        queue.flush()
        assert time.monotonic() - begun < 2
    assert "the queue did not take a message" in caplog.text
    # What was not sent is lost: the next request sends its own alone.
    caplog.clear()
    queue.flush()
    assert caplog.text == ""


@pytest.fixture(scope="module")
def messages(lambda_registry: LambdaRegistry, directory: Path) -> Iterator[RuntimeApi]:
    """The function that takes messages."""
    api = RuntimeApi()
    function = Function(directory / "messages", "app.messages", api, lambda_registry.settings)
    with stopping(function):
        function.start()
        yield api
    api.shutdown()


@pytest.fixture
def database(lambda_registry: LambdaRegistry) -> Iterator[Database]:
    database = Database(lambda_registry.settings["OPENREGISTRY_DATABASE_URL"])
    yield database
    database.close()


def pulls(repository: str, digest: str, tag: str = "1") -> Mapping[str, object]:
    return {"pulls": [[repository, tag, digest, "account:1"]]}


def counted(database: Database, name: str) -> list[list[Any]]:
    return database.run(
        "SELECT p.pulls, extract(epoch FROM now() - p.pulled_at) > 50 FROM repository_pulls p"
        " JOIN repositories r ON r.id = p.repository_id WHERE r.name = :name",
        name=name,
    )


def test_pulls_are_added_up_and_what_cannot_be_read_comes_again(
    lambda_registry: LambdaRegistry, messages: RuntimeApi, database: Database
) -> None:
    repository = f"queue/{uuid.uuid4().hex}"
    digest = push_image(LoggedIn(lambda_registry.host), repository, make_image((10,), "q"), "1")
    before = counted(database, repository)
    mine = pulls(repository, digest)
    bad = [
        "no JSON",
        "[]",
        {"pulls": [["too", "few"]]},
        pulls(repository, "no digest"),
        # Postgres has it in no text: the others are counted nevertheless.
        pulls("\0", digest),
    ]
    result = messages.invoke(sqs_event(mine, *bad, mine, age=100))
    assert [each["itemIdentifier"] for each in result["batchItemFailures"]] == list("12345")
    count = 0 if not before else before[0][0]
    assert counted(database, repository) == [[count + 2, True]]


def test_the_queue_wakes_workers(messages: RuntimeApi, database: Database) -> None:
    jobs.add(database, "uploads.expire", {})
    [[job]] = database.run("SELECT max(id) FROM jobs WHERE kind = 'uploads.expire'")
    assert messages.invoke(sqs_event({"pulls": []}), 900) == {"batchItemFailures": []}
    assert jobs.find(database, job) is not None
    assert messages.invoke(sqs_event({"wake": True}), 900) == {"batchItemFailures": []}
    assert jobs.find(database, job) is None


def test_without_a_queue_a_pull_is_counted_before_its_answer(
    lambda_registry: LambdaRegistry, database: Database
) -> None:
    client = LoggedIn(lambda_registry.host)
    repository = f"queue/{uuid.uuid4().hex}"
    push_image(client, repository, make_image((10,), "direct"), "1")
    assert client.request("GET", f"/v2/{repository}/manifests/1").status == 200
    assert counted(database, repository) == [[1, False]]
