"""The stack that goes to AWS."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

import boto3
import pytest
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from app import METHODS
from chalicelib.endpoints import ENDPOINTS
from chalicelib.settings import Settings, SettingsError
from infra.aws import package as packages
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


def role(template: Any, function: str) -> dict[str, Any]:
    """The statements of a function's role, by what they allow."""
    properties = template["Resources"][function]["Properties"]
    [name, _] = properties["Role"]["Fn::GetAtt"]
    statements = {}
    for policy in template["Resources"][name]["Properties"]["Policies"]:
        for statement in policy.get("Fn::If", [None, policy])[1]["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            for action in [actions] if isinstance(actions, str) else actions:
                assert "*" not in action
                statements[action] = statement["Resource"]
    return statements


def test_each_function_may_do_what_it_does(template: Any) -> None:
    services = {
        function: {action.partition(":")[0] for action in role(template, function)}
        for function in ("APIHandler", "Challenge", "Work", "Messages")
    }
    common = {"logs", "ssm", "s3", "ses", "ec2"}
    assert services == {
        "APIHandler": common | {"sqs"},
        "Challenge": {"logs", "ssm"},
        "Work": common,
        "Messages": common | {"sqs"},
    }
    queue = {"Fn::GetAtt": ["Queue", "Arn"]}
    for function, actions in (
        ("APIHandler", {"sqs:SendMessage"}),
        ("Messages", {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}),
    ):
        allowed = role(template, function)
        assert {action for action in allowed if action.startswith("sqs:")} == actions
        assert all(allowed[action] == queue for action in actions)
    for function in services:
        for action, resource in role(template, function).items():
            # What AWS lets nobody narrow down: the network interfaces of functions in a VPC.
            assert (resource == "*") == action.startswith("ec2:"), action


ALLOWED_BY = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "complete_multipart_upload": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "delete_object": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_bucket": "s3:ListBucket",
    "head_object": "s3:GetObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_objects_v2": "s3:ListBucket",
    "list_parts": "s3:ListMultipartUploadParts",
    "put_object": "s3:PutObject",
    "upload_part": "s3:PutObject",
}
"""What allows operations (AWS, "Actions, resources, and condition keys for Amazon S3")."""


def test_functions_may_do_with_the_bucket_what_the_code_asks_of_it(template: Any) -> None:
    """Neither ministack nor SeaweedFS asks for permissions."""
    code = [path.read_text() for path in (packages.ROOT / "chalicelib/storage").glob("*.py")]
    asked = set(re.findall(r"\bclient\.s3\.(\w+)|\bself\.s3\.(\w+)\(", "".join(code)))
    operations = {first or second for first, second in asked} - {"generate_presigned_url"}
    needed = {ALLOWED_BY[operation] for operation in operations}
    for function in ("APIHandler", "Work", "Messages"):
        allowed = role(template, function)
        assert {action for action in allowed if action.startswith("s3:")} == needed
        for action in needed:
            # AWS has rights to objects and rights to the bucket, and takes neither for the other.
            objects = allowed[action]["Fn::Sub"][0].endswith("/*")
            assert objects == ("Bucket" not in action), action


def test_the_authorizer_knows_no_more_than_keys(template: Any) -> None:
    names = [each["Fn::Sub"].partition("}/")[2] for each in role(template, "Challenge")[KEYS]]
    assert names == ["secret-key", "old-secret-key"]
    assert "Environment" not in template["Resources"]["Challenge"]["Properties"]
    assert set(template["Globals"]["Function"]["Environment"]["Variables"]) == {
        "OPENREGISTRY_SECRET_KEY",
        "OPENREGISTRY_OLD_SECRET_KEY",
        "OPENREGISTRY_PUBLIC_URL",
    }


KEYS = "ssm:GetParameters"


def test_no_secret_has_to_be_in_the_template(template: Any) -> None:
    parameters = template["Parameters"]
    hidden = {name for name, each in parameters.items() if each.get("NoEcho")}
    assert all(parameters[name]["Default"][:8] in ("", "aws-ssm:") for name in hidden)
    assert {"DatabaseUrl", "SecretKey", "OldSecretKey"} <= hidden


def test_lambda_itself_logs_failures_alone(template: Any) -> None:
    """At INFO, its default, it adds two lines to each call, the authorizer's too: as many bytes as
    ours, which nobody measures here and docs/cost.md would have to know of."""
    assert template["Globals"]["Function"]["LoggingConfig"]["SystemLogLevel"] == "WARN"


def test_the_bucket_stays_private_and_outlives_the_stack(template: Any) -> None:
    bucket = template["Resources"]["Blobs"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    [rule] = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    days = rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]
    with pytest.raises(SettingsError):  # nor may the registry keep an upload for as long
        Settings.from_environment({"OPENREGISTRY_UPLOAD_EXPIRY": f"{days}d"})


def test_connections_to_postgres_are_bounded(template: Any) -> None:
    """docs/lambda.md has the sum: a connection for each of these at most."""
    resources = template["Resources"]
    assert template["Parameters"]["Concurrency"]["Default"] == 40
    reserved = [
        resources[name]["Properties"]["ReservedConcurrentExecutions"]["Fn::If"][1]
        for name in ("APIHandler", "Work")
    ]
    assert reserved == [{"Ref": "Concurrency"}, 2]
    [source] = resources["Messages"]["Properties"]["Events"].values()
    assert source["Properties"]["ScalingConfig"] == {"MaximumConcurrency": 5}
    for name in ("APIHandler", "Work", "Messages"):
        variables = resources[name]["Properties"]["Environment"]["Variables"]
        assert variables["OPENREGISTRY_DATABASE_POOL"] == "1"


def test_the_stack_has_no_nat_gateway_and_no_proxy_of_databases(template: Any) -> None:
    """Each costs more at rest than all else together."""
    kinds = {resource["Type"] for resource in template["Resources"].values()}
    assert not {kind for kind in kinds if kind.startswith(("AWS::RDS", "AWS::EC2::Nat"))}
    interfaces = [
        each["Properties"]["VpcEndpointType"]
        for each in template["Resources"].values()
        if each["Type"] == "AWS::EC2::VPCEndpoint"
    ]
    assert interfaces == ["Gateway"]


def test_alarms_are_no_more_than_cost_nothing(template: Any) -> None:
    alarms = [
        resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    assert len(alarms) == 10
    assert all(alarm["AlarmActions"] == [{"Ref": "Alarms"}] for alarm in alarms)
    for alarm in alarms:
        for dimension in alarm["Dimensions"]:
            [value] = dimension["Value"].values()
            name = value if isinstance(value, str) else value[0]
            assert name in template["Resources"] or name == "AWS::StackName"


@pytest.mark.parametrize("domain", ["", "arn:aws:acm:us-east-1:123456789012:certificate/1"])
def test_sam_makes_cloudformation_of_it(template: Any, domain: str) -> None:
    """By AWS's own program, which has the validator of SAM in it."""
    managed = {
        "AWSLambdaBasicExecutionRole": "arn:aws:iam::aws:policy/AWSLambdaBasicExecutionRole",
    }
    stack = copy.deepcopy(template)
    for resource in stack["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://code/lambda.zip"
    parameters = {"PublicUrl": "https://r.example.org", "CertificateArn": domain}
    session = boto3.session.Session(region_name="us-east-1")
    translator = Translator(managed, Parser(), boto_session=session)
    made = translator.translate(stack, parameter_values=parameters)
    kinds = Counter(resource["Type"] for resource in made["Resources"].values())
    assert kinds["AWS::Lambda::Function"] == 4
    assert kinds["AWS::IAM::Role"] == 4, "SAM made a role of its own"
    assert kinds["AWS::Lambda::EventSourceMapping"] == 1
    # Root has to wait for the stage.
    assert made["Resources"]["Root"]["Properties"]["Stage"] == {"Ref": "RestAPIprodStage"}


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


@pytest.mark.parametrize(
    "kind", ["INTEGRATION_FAILURE", "AUTHORIZER_FAILURE", "AUTHORIZER_CONFIGURATION_ERROR"]
)
def test_who_finds_no_function_free_is_to_come_again(template: Any, kind: str) -> None:
    answer = definition(template)["x-amazon-apigateway-gateway-responses"][kind]
    assert answer["statusCode"] == "503"
    assert answer["responseParameters"] == {"gatewayresponse.header.Retry-After": "'2'"}
    [error] = json.loads(answer["responseTemplates"]["application/json"])["errors"]
    assert error["code"] == "UNAVAILABLE"


def test_every_setting_is_one(template: Any) -> None:
    from chalicelib.settings import strangers

    variables = dict(template["Globals"]["Function"]["Environment"]["Variables"])
    for name in ("APIHandler", "Work", "Messages"):
        variables |= template["Resources"][name]["Properties"]["Environment"]["Variables"]
    assert list(strangers(variables)) == []


def test_a_library_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.so").write_bytes(b"\x7fELF".ljust(18) + (183).to_bytes(2, "little"))
    packages.check_libraries(tmp_path, "arm64")
    with pytest.raises(packages.PackageError, match=r"ours\.so is not for x86_64"):
        packages.check_libraries(tmp_path, "x86_64")


def test_a_library_that_lambda_is_too_old_for_is_refused(tmp_path: Path) -> None:
    head = b"\x7fELF".ljust(18) + (62).to_bytes(2, "little")
    (tmp_path / "new.so").write_bytes(head + b"GLIBC_2.14 GLIBC_2.99")
    with pytest.raises(packages.PackageError, match=r"new\.so wants glibc 2\.99"):
        packages.check_libraries(tmp_path, "x86_64")


def test_a_package_that_is_refused_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one half made: whoever takes what is in dist/ takes what has passed."""

    def install(architecture: str, folder: Path) -> None:
        (folder / "new.so").write_bytes(b"\x7fELF".ljust(18) + (62).to_bytes(2, "little"))

    monkeypatch.setattr(packages, "_install", install)
    with pytest.raises(packages.PackageError, match=r"new\.so is not for arm64"):
        packages.build("arm64", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What packages are made of, as it is now."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("chalicelib", "infra", ".chalice"):
        shutil.copytree(packages.ROOT / name, folder / name, ignore=ignored)
    for name in ("app.py", "requirements.txt"):
        shutil.copy(packages.ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """What `make package` makes, by pip."""
    return made(source)


def made(source: Path, **environment: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "infra.aws.package"],
        cwd=source,
        env={**os.environ, **environment},
        check=True,
    )
    return source / "dist"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_package_is_the_same_wherever_it_is_made(
    source: Path, built: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(source, elsewhere, ignore=shutil.ignore_patterns("dist", "__pycache__"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    again = made(elsewhere, TMPDIR=str(temporary), PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    names = sorted(path.name for path in again.iterdir())
    assert names == [
        *("lambda-arm64.zip", "lambda-x86_64.zip", "stack-arm64.yaml", "stack-x86_64.yaml"),
    ]
    for name in names:
        assert (again / name).read_bytes() == (built / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.timeout(300)
def test_both_packages_hold_the_same(built: Path) -> None:
    """But for what compilers have made, of which there is one of each module in both."""
    modules, libraries = [], []
    for architecture in packages.MACHINES:
        with zipfile.ZipFile(built / f"lambda-{architecture}.zip") as file:
            names = [name for name in file.namelist() if ".dist-info/" not in name]
            assert sum(entry.file_size for entry in file.infolist()) < packages.SIZE
            assert not [name for name in names if name.startswith(("/", "bin/")) or ".." in name]
        modules.append({name for name in names if not name.endswith(".so")})
        libraries.append({name.partition(".")[0] for name in names if name.endswith(".so")})
    # pycryptodomex has instructions of the one processor in modules of their own.
    only = {name for name in libraries[1] ^ libraries[0] if "Cryptodome" not in name}
    assert modules[0] == modules[1]
    assert not only
    assert "cryptography/hazmat/bindings/_rust" in libraries[0]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_everything_is_in_the_package(built: Path, tmp_path: Path) -> None:
    """Every module of the functions can be imported with nothing else to import from, and S3 be
    asked: what botocore knows of it is there."""
    with zipfile.ZipFile(built / f"lambda-{os.uname().machine}.zip") as file:
        file.extractall(tmp_path)
    harness = ("hosts.harness", "hosts.proxy", "client", "metadata.embedded", "__main__")
    script = f"""if True:
        import sys
        sys.path.append({str(tmp_path)!r})
        import importlib, pkgutil, chalicelib, app
        for module in pkgutil.walk_packages(chalicelib.__path__, "chalicelib."):
            if not module.name.startswith(tuple("chalicelib." + each for each in {harness!r})):
                importlib.import_module(module.name)
        import boto3
        session = boto3.session.Session("id", "key", region_name="eu-west-1")
        session.client("sesv2")
        place = {{"Bucket": "bucket", "Key": "key"}}
        print(session.client("s3").generate_presigned_url("get_object", place))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], env={}, cwd="/", capture_output=True, text=True
    )
    assert "https://bucket.s3.amazonaws.com/key?" in done.stdout, done.stderr
    assert packages.import_seconds(tmp_path) < packages.IMPORT
