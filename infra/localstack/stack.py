"""The registry's stack, deployed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.localstack.adapted import adapt, gateway_responses, publish
from infra.localstack.clouds import REGION, Cloud
from infra.localstack.front import Domain
from tests.hosts.lambda_package import package

NAME, BUCKET, CODE = "openregistry", "blobs", "code"


@dataclass(frozen=True)
class Stack:
    """The deployed registry: ``host`` is where it serves, ``settings`` are what an operator's
    commands need, ``cloud`` is what it was deployed into."""

    host: str
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
    parameters = {
        "DatabaseUrl": database_url,
        "Bucket": BUCKET,
        "StorageUrl": f"s3://{BUCKET}?region={REGION}&path_style=true&endpoint={cloud.endpoint}",
        "SecretKey": "no secret, since all of this is on one machine",
        "PublicUrl": f"http://127.0.0.1:{port}",
    }
    adapt(template, settings, scheduled=scheduled)
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.create_bucket(Bucket=CODE)
    s3.upload_file(str(directory / "out" / "deployment.zip"), CODE, "deployment.zip")
    outputs = create(cloud, template, parameters)
    answers = gateway_responses(template, parameters)
    publish(cloud, outputs["RestAPIId"], answers)
    target = f"{cloud.endpoint}/_aws/execute-api/{outputs['RestAPIId']}/prod"
    with Domain(port, target, answers) as domain:
        operators = {
            "OPENREGISTRY_DATABASE_URL": database_url,
            "OPENREGISTRY_STORAGE_URL": parameters["StorageUrl"],
            "OPENREGISTRY_SECRET_KEY": parameters["SecretKey"],
            "OPENREGISTRY_PUBLIC_URL": parameters["PublicUrl"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        yield Stack(domain.host, {**operators, **settings}, cloud)


def create(cloud: Cloud, template: Any, parameters: Mapping[str, str]) -> dict[str, str]:
    """Do what `aws cloudformation deploy` does; give the outputs."""
    stacks = cloud.client("cloudformation")
    stacks.create_stack(
        StackName=NAME,
        TemplateBody=yaml.safe_dump(template),
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    stacks.get_waiter("stack_create_complete").wait(
        StackName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    [stack] = stacks.describe_stacks(StackName=NAME)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
