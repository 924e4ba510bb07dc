"""The packaged stack, deployed into ministack as `make localstack` does: an API Gateway, a Lambda
and a CloudFormation that others wrote, and checked against AWS. Before it stands our front, with
AWS's limits and renames."""

import json
import os
import re
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from standardwebhooks import Webhook as Verifier

from chalicelib import digests
from infra.localstack.clouds import Ministack
from infra.localstack.stack import Stack, deployed
from tests.accounts import command, set_visibility
from tests.client import HTTPClient, push_blob, push_image
from tests.clients.build import DIRECTORY
from tests.clients.test_docker import files_of, load, remove_images
from tests.conftest import need
from tests.hosts.lambda_registry import AUTHORIZATION, PASSWORD, USER, LoggedIn, migrated
from tests.hosts.lambda_runtime import ROOT
from tests.images import layout_contents, make_bytes, make_image, write_layout
from tests.jobs.receiver import Receiver
from tests.servers import (
    OPENREGISTRY,
    DockerEngine,
    Kubo,
    Postgres,
    Server,
    answers,
    free_port,
    run,
    stopping,
    wait_until,
)

pytestmark = pytest.mark.long

Query = Callable[[str], list[list[object]]]


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Ministack]:
    server = Ministack(directory / "ministack")
    with stopping(server):
        yield server.start()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Whom webhooks tell."""
    with closing(Receiver()) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stack(
    server: Ministack,
    directory: Path,
    postgres: Postgres,
    receiver: Receiver,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    """The registry, deployed. Its schedule is off until a test wants it. It has an IPFS node where
    one has been built."""
    folder = directory / "stack"
    folder.mkdir()
    url = migrated(postgres.new_database())
    settings = {
        "OPENREGISTRY_PRIVATE_WEBHOOKS": receiver.origin,
        "OPENREGISTRY_GRACE": "1s",
        "OPENREGISTRY_PRESIGN_EXPIRY": "60s",
    }
    if (DIRECTORY / "ipfs").exists():
        settings["OPENREGISTRY_IPFS_NODES"] = request.getfixturevalue("kubo").url
    with deployed(server, folder, url, free_port(), settings=settings, scheduled=False) as stack:
        yield stack


@pytest.fixture
def host(stack: Stack) -> str:
    """host:port of the deployed registry."""
    return stack.host


@pytest.fixture
def client(host: str) -> LoggedIn:
    return LoggedIn(host)


@pytest.fixture
def query(stack: Stack, postgres: Postgres) -> Query:
    """Ask the database that the functions share."""
    name = stack.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    return lambda sql: postgres.query(sql, name)


def test_a_stranger_is_challenged(host: str) -> None:
    answer = HTTPClient(host).request("GET", "/v2/")
    assert answer.status == 401, answer
    challenge = f'Bearer realm="http://{host}/token",service="{host}"'
    assert answer.headers["WWW-Authenticate"] == challenge
    assert answer.code == "UNAUTHORIZED"


def test_a_functions_own_challenge_is_renamed(host: str) -> None:
    answer = LoggedIn(host, USER, "wrong password").request("GET", "/token")
    assert answer.status == 401, answer
    assert "WWW-Authenticate" not in answer.headers
    assert answer.headers["x-amzn-Remapped-WWW-Authenticate"]


def test_health_and_readiness(host: str) -> None:
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        answer = HTTPClient(host).request("GET", path)
        assert (answer.status, answer.json["status"]) == (200, status), answer


def test_the_version_is_answered(host: str) -> None:
    answer = HTTPClient(host).request("GET", "/v2/", headers=AUTHORIZATION)
    assert answer.status == 200, answer


def test_a_body_that_lambda_does_not_take(client: LoggedIn) -> None:
    """4.4 MB pass, 4.8 MB do not, and neither do 11 MB; no function is asked."""
    push_blob(client, "stack/large", make_bytes(4_400_000))
    for size in (4_800_000, 11 << 20):
        location = client.request("POST", "/v2/stack/large/blobs/uploads/").location
        answer = client.request("PATCH", location, make_bytes(size))
        assert (answer.status, answer.code) == (413, "SIZE_INVALID"), answer
        assert "openregistry proxy" in answer.json["errors"][0]["message"]


def test_docker_logs_in_pushes_and_pulls(
    stack: Stack, docker: DockerEngine, tmp_path: Path
) -> None:
    tag = f"{stack.host}/stack/docker:1"
    image = make_image((1000, 20, 2 << 20), tag)
    load(docker, tmp_path, tag, image)
    docker.run("login", "--username", USER, "--password", PASSWORD, stack.host)
    try:
        assert docker.run("push", tag).stdout.count(": Pushed") == 3
        remove_images(docker)
        docker.run("pull", tag)
        assert files_of(docker, tag, tmp_path) == image.files
    finally:
        docker.run("logout", stack.host)
        remove_images(docker)


def test_a_blob_is_pulled_from_the_bucket(stack: Stack, client: LoggedIn) -> None:
    data = make_bytes(100_000, "redirect")
    digest = push_blob(client, "stack/redirect", data)
    for method, body in (("GET", data), ("HEAD", b"")):
        answer = client.request(method, f"/v2/stack/redirect/blobs/{digest}")
        assert answer.status == 307, answer
        assert answer.location.startswith(f"{stack.cloud.endpoint}/{stack.bucket}/")
        assert "Signature=" in answer.location
        stored = HTTPClient(stack.host).request(method, answer.location)
        assert (stored.status, stored.body) == (200, body)
        assert stored.headers["Content-Length"] == "100000"


def test_skopeo_pushes_and_pulls(host: str, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    image = make_image((1000, 0, 2 << 20), "ministack")
    layout = write_layout(tmp_path / "pushed", [image])
    name = f"docker://{host}/stack/skopeo:1"
    user = f"{USER}:{PASSWORD}"
    run("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", user, f"oci:{layout}", name)
    pulled = tmp_path / "pulled"
    run("skopeo", "copy", "--src-tls-verify=false", "--src-creds", user, name, f"oci:{pulled}:1")
    assert layout_contents(pulled) == {
        content.digest: content.data for content in (*image.blobs, image.manifest)
    }


def test_layers_that_no_request_carries(stack: Stack, tmp_path: Path) -> None:
    """They go to the bucket in parts, and functions that the queue wakes verify them."""
    need("skopeo", "skopeo")
    image = make_image((20 << 20, 1000), "any size")
    layout = write_layout(tmp_path / "pushed", [image])
    name = f"{stack.host}/stack/large-layers:1"
    credentials = {
        "auths": {stack.host: {"auth": b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}
    }
    (tmp_path / "config.json").write_text(json.dumps(credentials))
    run(OPENREGISTRY, "push", layout, name, DOCKER_CONFIG=str(tmp_path))
    pulled = tmp_path / "pulled"
    user = ("--src-creds", f"{USER}:{PASSWORD}")
    run("skopeo", "copy", "--src-tls-verify=false", *user, f"docker://{name}", f"oci:{pulled}:1")
    assert layout_contents(pulled) == {
        content.digest: content.data for content in (*image.blobs, image.manifest)
    }


def test_pulls_are_counted_by_the_queue(client: LoggedIn, query: Query, server: Ministack) -> None:
    push_image(client, "stack/pulls", make_image((10,), "pulls"), "1")
    for _ in range(3):
        assert client.request("GET", "/v2/stack/pulls/manifests/1").status == 200
    sql = (
        "SELECT p.pulls FROM repository_pulls p JOIN repositories r ON r.id = p.repository_id"
        " WHERE r.name = 'stack/pulls'"
    )
    wait_until(lambda: query(sql) == [[3]], 60, server.story)


def test_a_push_is_told_to_a_webhook(stack: Stack, client: LoggedIn, receiver: Receiver) -> None:
    """The queue wakes the workers: the schedule is off."""
    push_image(client, "stack/told", make_image((10,), "told"), "1")
    where = ("--event", "push", "--repository", "stack/told")
    hook = command(stack.settings, "webhook", "add", receiver.origin, *where)
    digest = push_image(client, "stack/told", make_image((20,), "told"), "2")
    [request] = receiver.wait(1, 60)
    told = Verifier(hook["secret"]).verify(request.body, request.headers)
    assert (told["data"]["repository"], told["data"]["digest"]) == ("stack/told", digest)
    assert told["source"] == f"http://{stack.host}"


def test_a_push_goes_to_a_resolver(
    stack: Stack, client: LoggedIn, query: Query, kubo: Kubo, server: Ministack
) -> None:
    """An IPFS node has what is pushed, byte for byte."""
    push_image(client, "stack/resolved", make_image((10,), "resolved"), "1")
    set_visibility(stack.settings, "stack/resolved", "public")
    command(stack.settings, "resolver", "choose", "--repository", "stack/resolved", "ipfs")
    image = make_image((1000, 300_000), "resolved")
    push_image(client, "stack/resolved", image, "2")

    def cids() -> dict[str, str]:
        rows = query("SELECT digest, cid FROM resolver_copies WHERE state = 'there'")
        return {digests.unpack(cast("bytes", digest)): str(cid) for digest, cid in rows}

    contents = (*image.blobs, image.manifest)
    wait_until(lambda: cids().keys() >= {each.digest for each in contents}, 60, server.story)
    for content in contents:
        url = f"{kubo.gateway}/ipfs/{cids()[content.digest]}"
        assert HTTPClient(stack.host).request("GET", url).body == content.data


def test_the_schedule_collects(
    stack: Stack, client: LoggedIn, query: Query, server: Ministack
) -> None:
    """What nothing names is gone from the bucket. Its grace is a second here; two of the
    schedule's minutes are waited for, and what else would be is taken from the clocks."""
    s3 = server.client("s3")
    digest = push_blob(client, "stack/collected", make_bytes(1000, "collected"))
    key = urlsplit(client.request("GET", f"/v2/stack/collected/blobs/{digest}").location).path
    _, bucket, name = key.split("/", 2)
    assert s3.head_object(Bucket=bucket, Key=name)
    assert client.request("DELETE", f"/v2/stack/collected/blobs/{digest}").status == 202

    events = server.client("events")
    [rule] = [each for each in events.list_rules()["Rules"] if "Work" in each["Name"]]
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    events.enable_rule(Name=rule["Name"])

    def due_until(sql: str, rows: list[list[object]]) -> None:
        """Have the job be due whenever the schedule comes, until a query gives these rows."""

        def done() -> bool:
            query("DELETE FROM schedules WHERE kind = 'collect'")
            time.sleep(0.5)
            return query(sql) == rows

        wait_until(done, 200, server.story)

    due_until(f"SELECT key FROM doomed_objects WHERE key = '{name}'", [[name]])
    # The redirect that was handed out has ended.
    query("UPDATE doomed_objects SET doomed_at = doomed_at - interval '1 hour'")
    due_until("SELECT key FROM doomed_objects", [])
    found = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    assert name not in [each["Key"] for each in found]


def test_what_is_not_the_registrys_ends_among_the_dead_letters(server: Ministack) -> None:
    """It comes again by itself, and what came with it does not."""
    queues = server.client("sqs")
    urls = queues.list_queues()["QueueUrls"]
    [queue] = [url for url in urls if "DeadLetters" not in url]
    [dead] = [url for url in urls if "DeadLetters" in url]
    queues.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "1"})
    queues.send_message(QueueUrl=queue, MessageBody="not ours")
    queues.send_message(QueueUrl=queue, MessageBody="{}")

    def letters() -> list[Any]:
        found = queues.receive_message(QueueUrl=dead, WaitTimeSeconds=1)
        return [each["Body"] for each in found.get("Messages", [])]

    wait_until(lambda: letters() == ["not ours"], 90, server.story)


class Command(Server):
    """`make localstack`, with the environment's LOCALSTACK_ENDPOINT if there is to be one."""

    name = "localstack"

    def __init__(self, directory: Path, endpoint: str = "", port: int = 0) -> None:
        super().__init__(directory)
        self.host = f"127.0.0.1:{port or free_port()}"
        self.endpoint = endpoint

    def command(self) -> list[str]:
        port = self.host.rpartition(":")[2]
        return [sys.executable, "-m", "infra.localstack", "--port", port]

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.directory),
            "LOCALSTACK_ENDPOINT": self.endpoint,
        }

    def ready(self) -> bool:
        return "Ctrl-C" in self.output() and answers(f"http://{self.host}/ready")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGHUP], ids=lambda each: each.name)
def test_the_command(directory: Path, ending: signal.Signals) -> None:
    """It serves, tells who may log in, and leaves nothing when it is ended, or its terminal is."""
    command = Command(directory / f"command-{ending.name}")
    with stopping(command):
        command.start(within=200)
        told = command.output()
        found = re.search(r"docker login --username (\S+) --password (\S+) (\S+)", told)
        assert found, told
        name, password, host = found.groups()
        assert host == command.host
        push_image(LoggedIn(host, name, password), "hello/app", make_image((10,), "command"), "1")
        [settings] = re.findall(r"set -a; \. (\S+);", told)
        assert Path(settings).exists()
        command.signal(ending)
        wait_until(lambda: not command.alive(), 60, command.story)
        assert command.output().endswith("ended\n")
    assert list(command.directory.iterdir()) == [command.log]


def test_the_command_with_a_localstack(directory: Path) -> None:
    """It deploys into one that runs already, with the functions beside it, and leaves nothing
    there: neither at its end nor, once it is run again, after it was killed. ministack stands for
    LocalStack here."""
    cloud = Ministack(directory / "localstack")
    with stopping(cloud):
        cloud.start()
        killed = Command(directory / "killed", cloud.endpoint)
        with stopping(killed):
            killed.start(within=200)
            [bucket] = set(re.findall(r"s3://(\S+)", killed.output()))
            client = LoggedIn(killed.host, "admin", "password")
            push_image(client, "hello/app", make_image((10,), "killed"), "1")
            assert cloud.client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] > 0
            # What it has started would outlive it.
            children = [int(pid) for pid in run("pgrep", "-P", str(killed.pid)).stdout.split()]
            killed.kill9()
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        command = Command(directory / "again", cloud.endpoint)
        with stopping(command):
            command.start(within=200)
            image = make_image((10, 100_000), "again")
            client = LoggedIn(command.host, "admin", "password")
            digest = push_image(client, "hello/app", image, "1")
            answer = client.request("GET", "/v2/hello/app/manifests/1")
            assert answer.headers["Docker-Content-Digest"] == digest
            command.signal(signal.SIGTERM)
            wait_until(lambda: not command.alive(), 60, command.story)
            assert command.output().endswith("ended\n"), command.story()
        assert cloud.client("s3").list_buckets()["Buckets"] == []
        assert cloud.client("ssm").describe_parameters()["Parameters"] == []
        stacks = cloud.client("cloudformation").describe_stacks()["Stacks"]
        assert {stack["StackStatus"] for stack in stacks} <= {"DELETE_COMPLETE"}


def test_the_command_says_what_is_in_its_way(directory: Path, server: Ministack) -> None:
    """Before anything is started."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    for name, endpoint, port, told in (
        ("busy", "", server.port, f"127.0.0.1:{server.port} cannot be had: Address already in use"),
        ("nowhere", nowhere, 0, f"no LocalStack answers at {nowhere}"),
        ("nonsense", "nonsense", 0, "LOCALSTACK_ENDPOINT is no URL"),
    ):
        command = Command(directory / name, endpoint, port)
        with stopping(command), pytest.raises(RuntimeError):
            command.start(within=30)
        assert told in command.output()
        assert "Traceback" not in command.output()
        assert "starting" not in command.output()
