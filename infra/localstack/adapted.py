"""What an AWS that is none lacks of what the template asks for, and what is done instead.

Everything in which the stack here differs from the one on AWS is in this file, each with its
reason.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from infra.localstack.clouds import REGION, Cloud
from tests.hosts.api_gateway import resolved


def adapt(template: Any, cloud: Cloud, settings: Mapping[str, str], *, scheduled: bool) -> None:
    """Change a template so that it can be deployed here. ``settings`` are added to the functions'
    environment: the template has no parameters for what is private to one machine, such as
    webhooks at 127.0.0.1. Without ``scheduled`` the schedule is off until somebody wants it."""
    resources = template["Resources"]
    for resource in resources.values():
        if resource["Type"] == "AWS::Serverless::Function":
            # What `aws cloudformation package` does.
            resource["Properties"]["CodeUri"] = "s3://openregistry-code/deployment.zip"
            variables = resource["Properties"].get("Environment", {}).get("Variables", {})
            if "OPENREGISTRY_STORAGE_URL" in variables:
                variables |= settings
                # The bucket is not at AWS's address.
                variables["OPENREGISTRY_STORAGE_URL"] = {
                    "Fn::Sub": f"s3://${{Blobs}}?{storage_query(cloud)}"
                }
    # There is no DNS and no certificate: the front is the domain, and speaks HTTP. So does S3.
    for name in ("Domain", "Root", "Record", "BlobsByTls"):
        del resources[name]
    del template["Outputs"]["DomainTarget"]
    # ministack's RestApi takes the binary types from this property alone, which the one of SAM
    # loses on its way there.
    definition = resources["RestAPI"]["Properties"]["DefinitionBody"]
    resources["RestAPI"] = {
        "Type": "AWS::ApiGateway::RestApi",
        "Properties": {
            "Name": "openregistry",
            "Body": definition,
            "BinaryMediaTypes": definition["x-amazon-apigateway-binary-media-types"],
        },
    }
    if not scheduled:
        [schedule] = resources["Work"]["Properties"]["Events"].values()
        schedule["Properties"]["State"] = "DISABLED"


def storage_query(cloud: Cloud) -> str:
    """What follows the bucket's name in a storage URL."""
    return f"region={REGION}&path_style=true&endpoint={cloud.endpoint}"


def queue_url(cloud: Cloud, url: str) -> str:
    """A queue's URL at the address that is known: LocalStack tells one with a name that has to be
    looked up in DNS."""
    return f"{cloud.endpoint}{urlsplit(url).path}"


def gateway_responses(template: Any, parameters: Mapping[str, str]) -> Any:
    """API Gateway's own answers, with what CloudFormation makes of the parameters."""
    definition = template["Resources"]["RestAPI"]["Properties"]["Body"]
    return resolved(definition["x-amazon-apigateway-gateway-responses"], parameters)


def publish(cloud: Cloud, api: str, answers: Any) -> None:
    """Put API Gateway's own answers, which are not taken from a definition here, and deploy the
    stage anew, so that they and its binary types hold."""
    gateway = cloud.client("apigateway")
    for kind, answer in answers.items():
        gateway.put_gateway_response(restApiId=api, responseType=kind, **answer)
    gateway.create_deployment(restApiId=api, stageName="prod")


def without_functions(template: Any) -> Any:
    """The template without functions, and without all that names one."""
    resources = template["Resources"]
    gone = {name for name, each in resources.items() if "Function" in each["Type"]}
    while more := {n for n, each in resources.items() if n not in gone and _named(each) & gone}:
        gone |= more
    kept = {name: each for name, each in resources.items() if name not in gone}
    outputs = {n: each for n, each in template["Outputs"].items() if not _named(each) & gone}
    return {**template, "Resources": kept, "Outputs": outputs}


def _named(part: Any) -> set[str]:
    """The resources and parameters that a part of a template names."""
    match part:
        case {"Ref": str(name)}:
            return {name}
        case {"Fn::GetAtt": [name, *_]}:
            return {name}
        case {"Fn::GetAtt": str(text)}:
            return {text.partition(".")[0]}
        case {"Fn::Sub": text}:
            words = text if isinstance(text, str) else text[0]
            inner = set() if isinstance(text, str) else _named(text[1])
            return inner | {w.partition(".")[0] for w in re.findall(r"\${([\w.]+)}", words)}
        case dict():
            depends = part.get("DependsOn", [])
            named = {depends} if isinstance(depends, str) else set(depends)
            return named.union(*(_named(each) for each in part.values()))
        case list():
            return set().union(*(_named(each) for each in part))
    return set()
