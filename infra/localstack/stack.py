"""The registry's stack, deployed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from botocore.exceptions import ClientError

from infra.localstack.adapted import (
    adapt,
    gateway_responses,
    publish,
    queue_url,
    storage_query,
    without_functions,
)
from infra.localstack.beside import running
from infra.localstack.clouds import Cloud, LocalStack
from infra.localstack.front import Domain
from tests.hosts.lambda_package import package

NAME, CODE = "openregistry-localstack", "openregistry-code"
SECRETS = ("database-url", "secret-key")
SECRET_KEY = "no secret, since all of this is on one machine"  # noqa: S105


@dataclass(frozen=True)
class Stack:
    """The deployed registry: ``host`` is where it serves, ``bucket`` has its blobs, ``settings``
    are what an operator's commands need, ``cloud`` is what it was deployed into."""

    host: str
    bucket: str
    settings: Mapping[str, str]
    cloud: Cloud


@contextmanager
def deployed(
    cloud: Cloud,
    directory: Path,
    database_url: str,
    port: int,
    *,
    settings: Mapping[str, str],
    scheduled: bool = True,
) -> Iterator[Stack]:
    """Package the registry in ``directory``, deploy it, and serve it at a port of 127.0.0.1 as
    AWS would, until the block ends.

    ``database_url`` is a database with its schema. ``settings`` are added to the functions' own.
    """
    template = package(directory, packages=True)
    adapt(template, cloud, settings, scheduled=scheduled)
    parameters = cloud.client("ssm")
    for name, value in zip(SECRETS, (database_url, SECRET_KEY), strict=True):
        parameters.put_parameter(Name=_parameter(name), Value=value, Type="SecureString")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket=CODE)
    s3.upload_file(str(directory / "out" / "deployment.zip"), CODE, "deployment.zip")
    given = {"PublicUrl": f"http://127.0.0.1:{port}"}
    beside = isinstance(cloud, LocalStack)
    outputs = create(cloud, without_functions(template) if beside else template, given)
    operators = {
        "OPENREGISTRY_DATABASE_URL": database_url,
        "OPENREGISTRY_STORAGE_URL": f"s3://{outputs['Bucket']}?{storage_query(cloud)}",
        "OPENREGISTRY_SECRET_KEY": SECRET_KEY,
        "OPENREGISTRY_PUBLIC_URL": given["PublicUrl"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        **settings,
    }
    stack = Stack(f"127.0.0.1:{port}", outputs["Bucket"], operators, cloud)
    if beside:
        with running(cloud, directory, port, queue_url(cloud, outputs["Queue"]), operators):
            yield stack
        return
    answers = gateway_responses(template, given)
    publish(cloud, outputs["RestAPIId"], answers)
    target = f"{cloud.endpoint}/_aws/execute-api/{outputs['RestAPIId']}/prod"
    with Domain(port, target, answers):
        yield stack


def remove(cloud: Cloud) -> None:
    """Take all that was deployed away again, images too, whether or not all of it is there."""
    stacks, s3 = cloud.client("cloudformation"), cloud.client("s3")
    buckets = [CODE]
    try:
        resources = stacks.describe_stack_resources(StackName=NAME)["StackResources"]
    except ClientError:  # there is no such stack
        resources = []
    # The stack leaves its bucket, and would not go with one that is full where it does not.
    kind = "AWS::S3::Bucket"
    buckets += [each["PhysicalResourceId"] for each in resources if each["ResourceType"] == kind]
    for bucket in buckets:
        with suppress(s3.exceptions.NoSuchBucket):
            while found := s3.list_objects_v2(Bucket=bucket).get("Contents"):
                for each in found:
                    s3.delete_object(Bucket=bucket, Key=each["Key"])
    stacks.delete_stack(StackName=NAME)
    stacks.get_waiter("stack_delete_complete").wait(
        StackName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    for bucket in buckets:
        with suppress(s3.exceptions.NoSuchBucket):
            s3.delete_bucket(Bucket=bucket)
    cloud.client("ssm").delete_parameters(Names=[_parameter(name) for name in SECRETS])


def _parameter(name: str) -> str:
    return f"/openregistry/{name}"


def create(cloud: Cloud, template: Any, parameters: Mapping[str, str]) -> dict[str, str]:
    """Do what `aws cloudformation deploy` does with a template that is too long to be sent; give
    the outputs."""
    text = yaml.safe_dump(template).encode()
    cloud.client("s3").put_object(Bucket=CODE, Key="stack.yaml", Body=text)
    stacks = cloud.client("cloudformation")
    stacks.create_stack(
        StackName=NAME,
        TemplateURL=f"{cloud.endpoint}/{CODE}/stack.yaml",
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    stacks.get_waiter("stack_create_complete").wait(
        StackName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    [stack] = stacks.describe_stacks(StackName=NAME)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
