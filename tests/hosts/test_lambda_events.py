"""Events into requests, answers into what API Gateway takes: on recorded shapes of events."""

import base64
import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from chalicelib.hosts import aws_lambda
from chalicelib.hosts.aws_lambda import BODY_LIMIT, Answer, request_from
from chalicelib.http import FileRegion, RegistryError, Response
from tests.hosts.lambda_runtime import PAYLOAD_LIMIT

EVENTS = Path(__file__).parents[1] / "events"
JSON_TYPE = ("Content-Type", "application/json")


def load(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


def test_the_root_of_the_api() -> None:
    request = request_from(load("base"))
    assert (request.method, request.path, dict(request.query)) == ("GET", "/v2/", {})
    assert request.headers["authorization"] == "Basic dGVzdGVyOmNvcnJlY3QgaG9yc2U="
    assert request.client == "198.51.100.7"
    assert request.secure
    assert request.body == b""


def test_a_path_keeps_the_slash_at_its_end() -> None:
    assert request_from(load("start-upload")).path == "/v2/team/app/blobs/uploads/"


def test_a_path_is_decoded_once_and_never_tidied() -> None:
    assert request_from(load("dots")).path == "/v2/a/../b/../c+d/manifests/v1%2F2"


def test_a_digest_may_be_percent_encoded() -> None:
    request = request_from(load("put-manifest-tags"))
    digest = hashlib.sha256(request.body).hexdigest()
    assert request.path == f"/v2/team/app/manifests/sha256:{digest}"


def test_repeated_parameters_keep_their_values_and_order() -> None:
    query = request_from(load("put-manifest-tags")).query
    assert query.all("tag") == ["v1", "v1.2+build", "latest"]


def test_parameters_may_hold_what_separates_them() -> None:
    query = request_from(load("list-tags")).query
    assert dict(query) == {"n": "5", "last": "a b&c=d"}


def test_repeated_fields_are_joined() -> None:
    assert request_from(load("get-manifest")).headers["Accept"] == (
        "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    )


def test_a_binary_body_arrives_to_the_byte() -> None:
    request = request_from(load("patch-binary"))
    assert request.body == bytes(range(256)) + b"\r\n\x00\xff"
    assert request.headers["Content-Length"] == "260"
    assert request.query["state"] == "AZaz09-_.x"


def test_a_text_body_arrives_to_the_byte() -> None:
    request = request_from(load("put-manifest-text"))
    assert json.loads(request.body)["annotations"] == {"org.example.name": "été"}
    assert request.headers["Content-Length"] == str(len(request.body))


def test_the_length_is_that_of_the_body_that_came() -> None:
    """API Gateway has read chunked bodies; what it says of the transfer is history."""
    event = load("patch-binary")
    event["multiValueHeaders"] |= {"content-length": ["7"], "Transfer-Encoding": ["chunked"]}
    headers = request_from(event).headers
    assert headers["content-length"] == "260"
    assert "transfer-encoding" not in headers


def test_a_text_goes_out_as_it_is() -> None:
    body = '{"name": "été",\n "nul": "\0"}'.encode()
    answer = Answer(Response(200, [JSON_TYPE], body)).to_dict(["*/*"])
    assert answer == {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "multiValueHeaders": {},
        "body": body.decode(),
        "isBase64Encoded": False,
    }


def test_bytes_go_out_as_base64() -> None:
    body = bytes(range(256))
    answer = Answer(Response(200, [], body)).to_dict()
    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]) == body


def test_a_repeated_field_goes_out_as_often() -> None:
    headers = [("OCI-Tag", "a"), JSON_TYPE, ("OCI-Tag", "b"), ("Warning", '299 - "x"')]
    answer = Answer(Response(201, headers)).to_dict()
    assert answer["multiValueHeaders"] == {"OCI-Tag": ["a", "b"]}
    assert answer["headers"] == {"Content-Type": "application/json", "Warning": '299 - "x"'}


@pytest.mark.parametrize("unit", [b"a", b'"', "é".encode(), b"\0", b"\xff"])
def test_the_largest_manifest_can_be_returned(unit: bytes) -> None:
    """Whatever it holds: escapes in JSON make some texts longer than their base64."""
    body = (unit * (4 << 20))[: 4 << 20]
    answer = Answer(Response(200, [JSON_TYPE], body)).to_dict()
    assert len(json.dumps(answer)) < PAYLOAD_LIMIT
    text = answer["body"]
    assert (base64.b64decode(text) if answer["isBase64Encoded"] else text.encode()) == body


def test_what_does_not_fit_is_a_clear_error() -> None:
    with pytest.raises(RegistryError, match="5242880 bytes") as caught:
        Answer(Response(200, [], b"\xff" * (5 << 20)))
    assert caught.value.status == 501
    assert "OPENREGISTRY_DOWNLOADS" in caught.value.detail


def test_a_region_that_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    region = FileRegion((tmp_path / "blob").open("rb"), 2, 5)
    answer = Answer(Response(206, [("Content-Length", "5")], region)).to_dict()
    assert answer["body"] == "23456"


def test_a_stream_that_does_not_fit_is_let_go_unread() -> None:
    class Stream:
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("it was read")

        def close(self) -> None:
            self.closed = True

    stream = Stream()
    with pytest.raises(RegistryError, match=str(BODY_LIMIT + 1)):
        Answer(Response(200, [("Content-Length", str(BODY_LIMIT + 1))], stream))
    assert stream.closed


def test_a_file_that_does_not_fit_is_closed() -> None:
    file = BytesIO()
    with pytest.raises(RegistryError):
        Answer(Response(200, [("Content-Length", "7000000")], FileRegion(file, 0, 7_000_000)))
    assert file.closed


@pytest.mark.parametrize("missing", ["SECRET_KEY", "PUBLIC_URL", "DATABASE_URL", "STORAGE_URL"])
def test_a_missing_setting_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "SECRET_KEY": "a secret for the tests of Lambda",
        "PUBLIC_URL": "https://registry.example.org",
        "DATABASE_URL": "postgresql://127.0.0.1/none",
        "STORAGE_URL": "s3://registry/x?region=us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"OPENREGISTRY_{name}", "" if name == missing else value)
    answer = aws_lambda.answer(load("base")).to_dict()
    assert answer["statusCode"] == 503
    [error] = json.loads(answer["body"])["errors"]
    assert error["detail"].startswith(f"OPENREGISTRY_{missing}: ")
    assert f"OPENREGISTRY_{missing}: " in caplog.text


def test_files_are_no_storage_for_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENREGISTRY_SECRET_KEY", "a secret for the tests of Lambda")
    monkeypatch.setenv("OPENREGISTRY_PUBLIC_URL", "https://registry.example.org")
    monkeypatch.setenv("OPENREGISTRY_STORAGE_URL", "file:///tmp/blobs")
    answer = aws_lambda.answer(load("base")).to_dict()
    assert "must be s3://bucket/prefix on Lambda" in answer["body"]


def test_functions_are_never_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENREGISTRY_ACCESS", "open")
    monkeypatch.setenv("OPENREGISTRY_SECRET_KEY", "a secret for the tests of Lambda")
    monkeypatch.setenv("OPENREGISTRY_PUBLIC_URL", "http://127.0.0.1:5000")
    monkeypatch.setenv("OPENREGISTRY_DATABASE_URL", "postgresql://127.0.0.1/none")
    monkeypatch.setenv("OPENREGISTRY_STORAGE_URL", "s3://registry/x?region=us-east-1")
    answer = aws_lambda.answer(load("base")).to_dict()
    [error] = json.loads(answer["body"])["errors"]
    assert error["detail"].startswith("OPENREGISTRY_ACCESS: cannot be open")
