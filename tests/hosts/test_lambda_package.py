"""The stack that goes to AWS."""

import json
import zipfile
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

import pytest

from app import METHODS
from chalicelib.endpoints import ENDPOINTS
from tests.hosts.api_gateway import resolved, resource_of
from tests.hosts.lambda_package import package


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def template(out: Path) -> Any:
    return package(out)


def definition(template: Any) -> Any:
    return template["Resources"]["RestAPI"]["Properties"]["DefinitionBody"]


def test_every_function_is_in_the_stack(template: Any) -> None:
    functions = {
        resource["Properties"]["Handler"]: resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    assert set(functions) == {"app.app", "app.challenge", "app.work", "app.messages"}
    [schedule] = functions["app.work"]["Events"].values()
    assert schedule["Properties"] == {"Schedule": "rate(1 minute)"}


def test_what_fails_of_the_queue_comes_again_by_itself(template: Any) -> None:
    resources = template["Resources"]
    [source] = resources["Messages"]["Properties"]["Events"].values()
    assert source["Type"] == "SQS"
    assert source["Properties"]["Queue"] == {"Fn::GetAtt": ["Queue", "Arn"]}
    assert source["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    queue = resources["Queue"]["Properties"]
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}
    # AWS, "Configuring a queue to use with Lambda".
    assert queue["VisibilityTimeout"] >= 6 * resources["Messages"]["Properties"]["Timeout"]


def test_the_functions_may_use_no_other_queue(template: Any) -> None:
    [role] = [
        resource
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::IAM::Role"
    ]
    statements = [
        statement
        for policy in role["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]
    [queue] = [each for each in statements if "sqs:" in str(each["Action"])]
    assert queue["Resource"] == {"Fn::GetAtt": ["Queue", "Arn"]}
    assert "*" not in str(queue["Action"])


def test_the_package_holds_the_code_and_the_migrations(template: Any, out: Path) -> None:
    with zipfile.ZipFile(out / "out" / "deployment.zip") as file:
        names = set(file.namelist())
    assert {"app.py", "chalicelib/endpoints.py", "chalice/app.py"} <= names
    assert "chalicelib/console/account.html" in names
    assert any(name.startswith("chalicelib/metadata/migrations/") for name in names)


def test_every_module_is_compiled(template: Any, out: Path) -> None:
    with zipfile.ZipFile(out / "out" / "deployment.zip") as file:
        modules = [Path(name) for name in file.namelist() if name.endswith(".py")]
        for module in modules:
            compiled = file.read(cache_from_source(str(module)))
            assert compiled[:4] == MAGIC_NUMBER
            unchecked = (1).to_bytes(4, "little")  # PEP 552
            assert compiled[4:8] == unchecked, module


def test_bodies_are_binary(template: Any) -> None:
    assert definition(template)["x-amazon-apigateway-binary-media-types"] == ["*/*"]


def test_all_methods_of_the_table_get_through() -> None:
    assert {method for endpoint in ENDPOINTS for method in endpoint.methods} == set(METHODS)


def test_clients_without_credentials_are_challenged(template: Any) -> None:
    for path in ("/v2", "/v2/{proxy+}"):
        for method in METHODS:
            security = definition(template)["paths"][path][method.lower()]["security"]
            assert security == [{"challenge": []}]
    answer = definition(template)["x-amazon-apigateway-gateway-responses"]["UNAUTHORIZED"]
    assert resolved(answer["responseParameters"], {"PublicUrl": "https://r.example.org:8443"}) == {
        "gatewayresponse.header.WWW-Authenticate": (
            '\'Bearer realm="https://r.example.org:8443/token",service="r.example.org:8443"\''
        )
    }
    [error] = json.loads(answer["responseTemplates"]["application/json"])["errors"]
    assert error["code"] == "UNAUTHORIZED"


def test_the_authorizer_is_asked_each_time(template: Any) -> None:
    security = definition(template)["securityDefinitions"]["challenge"]
    assert (security["in"], security["name"]) == ("header", "Authorization")
    authorizer = security["x-amazon-apigateway-authorizer"]
    assert (authorizer["type"], authorizer["authorizerResultTtlInSeconds"]) == ("token", 0)


def test_what_the_authorizer_refuses_is_challenged_by_its_words(template: Any) -> None:
    answer = definition(template)["x-amazon-apigateway-gateway-responses"]["ACCESS_DENIED"]
    assert answer["statusCode"] == "401"
    assert answer["responseParameters"] == {
        "gatewayresponse.header.WWW-Authenticate": "context.authorizer.challenge"
    }
    [error] = json.loads(answer["responseTemplates"]["application/json"])["errors"]
    assert error == {"code": "UNAUTHORIZED", "message": "$context.authorizer.message"}


def test_every_path_of_the_table_has_a_route(template: Any) -> None:
    """Only what is under /v2 needs credentials before a function is asked."""
    paths = definition(template)["paths"]
    for endpoint in ENDPOINTS:
        resource = resource_of(endpoint.path, paths)
        assert resource is not None, endpoint
        for method in endpoint.methods:
            guarded = "security" in paths[resource][method.lower()]
            assert guarded == endpoint.path.startswith("/v2/"), endpoint


def test_too_large_a_body_is_told_what_to_do(template: Any) -> None:
    answer = definition(template)["x-amazon-apigateway-gateway-responses"]["REQUEST_TOO_LARGE"]
    assert answer["statusCode"] == "413"
    [error] = json.loads(answer["responseTemplates"]["application/json"])["errors"]
    assert error["code"] == "SIZE_INVALID"
    assert "`openregistry proxy`" in error["message"]
    assert "OPENREGISTRY_UPLOAD_URL" in error["message"]


def test_every_setting_is_one(template: Any) -> None:
    from chalicelib.settings import strangers

    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    assert list(strangers(variables)) == []
