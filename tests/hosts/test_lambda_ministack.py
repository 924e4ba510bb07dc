"""The packaged stack, deployed into ministack: an API Gateway, a Lambda and a CloudFormation that
others wrote, and checked against AWS."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
import yaml

from tests.client import Answer, Body, HTTPClient, push_image
from tests.conftest import need
from tests.hosts.api_gateway import Front, resolved
from tests.hosts.lambda_package import package
from tests.hosts.lambda_registry import AUTHORIZATION, PASSWORD, USER, LoggedIn, migrated
from tests.images import layout_contents, make_image, write_layout
from tests.servers import (
    BIN,
    Postgres,
    Server,
    answers,
    free_port,
    run,
    stopping,
    wait_until,
)

pytestmark = pytest.mark.long

REGION, BUCKET = "us-east-1", "blobs"


class Ministack(Server):
    """Its CloudFormation, Lambda, API Gateway and S3, on one port."""

    name = "ministack"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [str(BIN / "ministack")]

    def environment(self) -> Mapping[str, str]:
        return {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "LAMBDA_EXECUTOR": "local",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.directory / "s3"),
        }

    def ready(self) -> bool:
        return answers(f"{self.endpoint}/_ministack/health")

    def client(self, service: Any) -> Any:
        """A boto3 client of one of its services."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


class Domain(ThreadingHTTPServer):
    """A domain of the API's own. ministack has those too, but takes /v2/ for its own ECR."""

    daemon_threads = True

    def __init__(self, port: int, server: Ministack, prefix: str) -> None:
        super().__init__(("127.0.0.1", port), _Forwarding)
        self.target = server.port
        self.prefix = prefix


class _Forwarding(Front):
    server: Domain

    def serve(self) -> None:
        body = self.read_body()
        connection = HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        fields = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("transfer-encoding", "content-length", "expect")
        }
        connection.request(self.command, self.server.prefix + self.path, body or None, fields)
        response = connection.getresponse()
        data = response.read()
        kept = [pair for pair in response.getheaders() if pair[0].lower() != "content-length"]
        if self.command == "HEAD":
            data = bytes(int(response.headers["Content-Length"]))
        self.write(response.status, kept, data)


@dataclass(frozen=True)
class Stack:
    """The deployed registry: where it serves, and what its functions share."""

    host: str
    database: str
    server: Ministack


@pytest.fixture(scope="module")
def stack(directory: Path, postgres: Postgres) -> Iterator[Stack]:
    """The registry, deployed. Its schedule is off until a test wants it."""
    folder = directory / "stack"
    folder.mkdir()
    template = package(folder, packages=True)
    [schedule] = template["Resources"]["Work"]["Properties"]["Events"].values()
    schedule["Properties"]["State"] = "DISABLED"
    server = Ministack(directory / "ministack")
    port = free_port()
    parameters = {
        "DatabaseUrl": migrated(postgres.new_database()),
        "Bucket": BUCKET,
        "StorageUrl": f"s3://{BUCKET}?region={REGION}&path_style=true&endpoint={server.endpoint}",
        "SecretKey": "a secret for the tests of Lambda",
        "PublicUrl": f"http://127.0.0.1:{port}",
    }
    with stopping(server):
        server.start()
        api = deploy(server, template, folder / "out" / "deployment.zip", parameters)
        with Domain(port, server, f"/_aws/execute-api/{api}/prod") as domain:
            Thread(target=domain.serve_forever, daemon=True).start()
            database = parameters["DatabaseUrl"].rpartition("/")[2]
            yield Stack(f"127.0.0.1:{port}", database, server)
            domain.shutdown()


@pytest.fixture
def host(stack: Stack) -> str:
    """host:port of the deployed registry."""
    return stack.host


def deploy(server: Ministack, template: Any, code: Path, parameters: Mapping[str, str]) -> str:
    """Do what `aws cloudformation package` and `deploy` do; give the API's id."""
    s3 = server.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.create_bucket(Bucket="code")
    s3.upload_file(str(code), "code", "deployment.zip")
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://code/deployment.zip"
    # ministack's RestApi takes the binary types from this property alone, which the one of SAM
    # loses on its way there, and takes no gateway responses from a definition.
    definition = template["Resources"]["RestAPI"]["Properties"]["DefinitionBody"]
    template["Resources"]["RestAPI"] = {
        "Type": "AWS::ApiGateway::RestApi",
        "Properties": {
            "Name": "openregistry",
            "Body": definition,
            "BinaryMediaTypes": definition["x-amazon-apigateway-binary-media-types"],
        },
    }
    stacks = server.client("cloudformation")
    stacks.create_stack(
        StackName="openregistry",
        TemplateBody=yaml.safe_dump(template),
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    stacks.get_waiter("stack_create_complete").wait(
        StackName="openregistry", WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    [stack] = stacks.describe_stacks(StackName="openregistry")["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    api = server.client("apigateway")
    identifier: str = outputs["RestAPIId"]
    answers = definition["x-amazon-apigateway-gateway-responses"]
    for kind, answer in resolved(answers, parameters).items():
        api.put_gateway_response(restApiId=identifier, responseType=kind, **answer)
    api.create_deployment(restApiId=identifier, stageName="prod")
    return identifier


def test_a_stranger_is_challenged(host: str) -> None:
    answer = HTTPClient(host).request("GET", "/v2/")
    assert answer.status == 401, answer
    challenge = f'Bearer realm="http://{host}/token",service="{host}"'
    assert answer.headers["WWW-Authenticate"] == challenge
    assert answer.code == "UNAUTHORIZED"


def test_health_and_readiness(host: str) -> None:
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        answer = HTTPClient(host).request("GET", path)
        assert (answer.status, answer.json["status"]) == (200, status), answer


def test_the_version_is_answered(host: str) -> None:
    answer = HTTPClient(host).request("GET", "/v2/", headers=AUTHORIZATION)
    assert answer.status == 200, answer


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


class Typed(LoggedIn):
    """A client that says of bytes that they are. ministack would take them for text."""

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        fields = {"Content-Type": "application/octet-stream"} | dict(headers or {})
        return super().request(method, target, body, fields)


def push(host: str, repository: str) -> LoggedIn:
    client = Typed(host)
    push_image(client, repository, make_image((10,), repository), "1")
    return client


def test_pulls_are_counted_by_the_queue(stack: Stack, postgres: Postgres) -> None:
    client = push(stack.host, "stack/pulls")
    for _ in range(3):
        assert client.request("GET", "/v2/stack/pulls/manifests/1").status == 200
    sql = (
        "SELECT p.pulls FROM repository_pulls p JOIN repositories r ON r.id = p.repository_id"
        " WHERE r.name = 'stack/pulls'"
    )
    wait_until(lambda: postgres.query(sql, stack.database) == [[3]], 60, stack.server.story)


def test_a_push_wakes_the_workers_by_the_queue(stack: Stack, postgres: Postgres) -> None:
    """The job of a webhook is done, though no schedule comes: its receiver is refused."""
    client = push(stack.host, "stack/wakes")
    postgres.query(
        "INSERT INTO webhooks (id, repository_id, url, events, format, secret, created_by)"
        " SELECT gen_random_uuid(), id, 'https://127.0.0.1/', '{push}', 'cloudevents', '', ''"
        " FROM repositories WHERE name = 'stack/wakes'",
        stack.database,
    )
    push_image(client, "stack/wakes", make_image((20,), "wakes"), "2")
    sql = "SELECT count(*) FROM jobs WHERE kind = 'webhook.deliver' AND tries = 0"
    wait_until(lambda: postgres.query(sql, stack.database) == [[0]], 60, stack.server.story)
    sql = "SELECT count(*) FROM webhook_deliveries"
    assert postgres.query(sql, stack.database) == [[1]]


def test_the_schedule_does_jobs(stack: Stack, postgres: Postgres) -> None:
    postgres.query("DELETE FROM schedules", stack.database)
    events = stack.server.client("events")
    [rule] = [each for each in events.list_rules()["Rules"] if "Work" in each["Name"]]
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    events.enable_rule(Name=rule["Name"])
    sql = "SELECT count(*) FROM schedules WHERE kind = 'uploads.expire'"
    wait_until(lambda: postgres.query(sql, stack.database) == [[1]], 150, stack.server.story)


def test_what_is_not_the_registrys_ends_among_the_dead_letters(stack: Stack) -> None:
    """It comes again by itself, and what came with it does not."""
    queues = stack.server.client("sqs")
    urls = queues.list_queues()["QueueUrls"]
    [queue] = [url for url in urls if "DeadLetters" not in url]
    [dead] = [url for url in urls if "DeadLetters" in url]
    queues.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "1"})
    queues.send_message(QueueUrl=queue, MessageBody="not ours")
    queues.send_message(QueueUrl=queue, MessageBody="{}")

    def letters() -> list[Any]:
        found = queues.receive_message(QueueUrl=dead, WaitTimeSeconds=1)
        return [each["Body"] for each in found.get("Messages", [])]

    wait_until(lambda: letters() == ["not ours"], 90, stack.server.story)
