"""What an AWS that is none lacks of what the template asks for, and what is done instead.

Everything in which the stack here differs from the one on AWS is in this file, each with its
reason.
"""

from collections.abc import Mapping
from typing import Any

from infra.localstack.clouds import Cloud
from tests.hosts.api_gateway import resolved


def adapt(template: Any, settings: Mapping[str, str], *, scheduled: bool) -> None:
    """Change a template so that it can be deployed here. ``settings`` are added to the functions'
    environment: the template has no parameters for what is private to one machine, such as
    webhooks at 127.0.0.1. Without ``scheduled`` the schedule is off until somebody wants it."""
    resources = template["Resources"]
    template["Globals"]["Function"]["Environment"]["Variables"] |= settings
    for resource in resources.values():
        if resource["Type"] == "AWS::Serverless::Function":
            # What `aws cloudformation package` does.
            resource["Properties"]["CodeUri"] = "s3://code/deployment.zip"
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
