"""What API Gateway does to a request on its way to a function, and to the answer.

A REST API with a Lambda proxy integration, with ``*/*`` as binary media types, at the root of a
domain of its own. It does the worst that AWS documents or users have reported: see each constant.
Its routes are those of ``app.py``, its own answers those of ``.chalice/resources.yaml``.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping
from http.client import responses as reasons
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.hosts.lambda_runtime import (
    PAYLOAD_LIMIT,
    ROOT,
    FunctionError,
    FunctionTimeoutError,
    RuntimeApi,
)

BODY_LIMIT = 10 * 2**20
"""Bytes of a body ("Quotas for configuring and running a REST API": payload size)."""

TIMEOUT = 29
"""Seconds (the same page: integration timeout)."""

DROPPED_FROM_REQUEST = {
    "connection",
    "content-length",
    "content-md5",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
}
REMAPPED_IN_ANSWER = {
    "authorization",
    "connection",
    "content-length",
    "content-md5",
    "date",
    "host",
    "max-forwards",
    "server",
    "user-agent",
    "www-authenticate",
}
"""Fields that come out as ``x-amzn-remapped-…`` ("Amazon API Gateway important notes"), and
``Content-Length``, of which that was seen with HEAD."""
HEADERS_LIMIT = 10240
"""Bytes of an answer's fields ("Quotas for configuring and running a REST API")."""
DROPPED_FROM_ANSWER = {"expect", "proxy-authenticate", "te", "trailer", "transfer-encoding", "via"}


def own_answers(public_url: str) -> dict[str, Any]:
    """The gateway responses that the project's template sets, in a stack with this PublicUrl."""
    template = yaml.safe_load((ROOT / ".chalice" / "resources.yaml").read_text())
    body = template["Resources"]["RestAPI"]["Properties"]["DefinitionBody"]
    answers: dict[str, Any] = resolved(
        body["x-amazon-apigateway-gateway-responses"], {"PublicUrl": public_url}
    )
    return answers


def resolved(value: Any, parameters: Mapping[str, str]) -> Any:
    """A part of a template with what CloudFormation's functions make of the parameters."""
    if isinstance(value, list):
        return [resolved(item, parameters) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Ref": name}:
            return parameters[name]
        case {"Fn::Sub": [text, variables]}:
            known = {**parameters, **resolved(variables, parameters)}
            return re.sub(r"\${(\w+)}", lambda found: known[found[1]], text)
        case {"Fn::Split": [separator, text]}:
            return resolved(text, parameters).split(separator)
        case {"Fn::Select": [index, items]}:
            return resolved(items, parameters)[index]
    return {key: resolved(item, parameters) for key, item in value.items()}


def own_answer(
    own: Mapping[str, Any], kind: str, status: int, message: str, context: Mapping[str, str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, fields and body of an answer that no function gave, as the template shapes it. Its
    fields are constants or variables of the authorizer's context, in its body variables are
    replaced and no more (not VTL)."""
    known = {f"context.authorizer.{name}": value for name, value in context.items()}
    template = own.get("responseTemplates", {}).get("application/json")
    fields = [("Content-Type", "application/json"), ("x-amzn-ErrorType", kind)]
    for target, value in own.get("responseParameters", {}).items():
        assert target.startswith("gatewayresponse.header.")
        name = target.removeprefix("gatewayresponse.header.")
        if value[0] == value[-1] == "'":
            fields.append((name, value[1:-1]))
        elif value in known:
            fields.append((name, known[value]))
    text = template or json.dumps({"message": message})
    text = re.sub(r"\$(context\.[\w.]*\w)", lambda found: known.get(found[1], ""), text)
    return int(own.get("statusCode", status)), fields, text.encode()


def resource_of(path: str, resources: Collection[str]) -> str | None:
    """The resource that a path belongs to; a slash at the end makes no difference."""
    bare = path.rstrip("/") or "/"
    if bare in resources:
        return bare
    for resource in resources:
        if resource.endswith("/{proxy+}") and bare.startswith(resource[: -len("{proxy+}")]):
            return resource
    return None


class ApiGateway(ThreadingHTTPServer):
    """The API: an HTTP server on loopback that invokes the function for every request.

    ``routes`` maps resource paths to methods and the name of the authorizer or None. The authorizer
    is of type TOKEN, and its answers are not kept (a TTL of 0).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        function: RuntimeApi,
        authorizer: RuntimeApi,
        routes: Mapping[str, Mapping[str, str | None]],
        port: int,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.function = function
        self.authorizer = authorizer
        self.routes = routes
        self.host = f"127.0.0.1:{port}"
        self.own_answers = own_answers(f"http://{self.host}")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def refusal(self, token: str, arn: str) -> tuple[str, dict[str, str]] | None:
        """Why a request with this token is turned away: the kind of the answer, and the
        authorizer's context for it. A header field that is empty never reaches the authorizer."""
        if not token:
            return "UNAUTHORIZED", {}
        event = {"type": "TOKEN", "authorizationToken": token, "methodArn": arn}
        policy = self.authorizer.invoke(event)
        [statement] = policy["policyDocument"]["Statement"]
        assert statement["Action"] == "execute-api:Invoke"
        assert statement["Resource"] == "*"
        if statement["Effect"] == "Allow":
            return None
        assert all(isinstance(value, str) for value in policy["context"].values())
        return "ACCESS_DENIED", policy["context"]


class Front(BaseHTTPRequestHandler):
    """Reads a request as a whole, however its body is sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def read_body(self) -> bytes | None:
        """The body, None where it is too long; then the rest of it is read and thrown away, and
        the connection ends."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces = self.chunks()
        else:
            pieces = self.pieces(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        for piece in pieces:
            if len(body) <= BODY_LIMIT:
                body += piece
        if len(body) > BODY_LIMIT:
            self.close_connection = True
            return None
        return bytes(body)

    def pieces(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self.rfile.read(min(length, 1 << 16))
            if not piece:
                raise ConnectionError("the client went away in the middle of a body")
            length -= len(piece)
            yield piece

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self.pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def write(self, status: int, fields: list[tuple[str, str]], data: bytes) -> None:
        """Send an answer; to HEAD without its body."""
        self.send_response_only(status, reasons.get(status))
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class _Handler(Front):
    server: ApiGateway

    def serve(self) -> None:
        body = self.read_body()
        if body is None:
            return self.answer_alone("REQUEST_TOO_LARGE", 413, "Request Too Long")
        url = urlsplit(self.path)
        resource = resource_of(url.path, self.server.routes)
        if resource is None or self.command not in self.server.routes[resource]:
            return self.answer_alone(
                "MISSING_AUTHENTICATION_TOKEN", 403, "Missing Authentication Token"
            )
        if self.server.routes[resource][self.command] is not None:
            token = self.headers.get("Authorization", "").strip()
            arn = f"arn:aws:execute-api:eu-west-1:1:api/prod/{self.command}{url.path}"
            if refusal := self.server.refusal(token, arn):
                kind, context = refusal
                message = "Unauthorized" if kind == "UNAUTHORIZED" else "explicit deny"
                status = 401 if kind == "UNAUTHORIZED" else 403
                return self.answer_alone(kind, status, message, context)
        event = self.event(resource, body)
        if len(json.dumps(event)) > PAYLOAD_LIMIT:
            return self.answer_alone("REQUEST_TOO_LARGE", 413, "Request Too Long")
        try:
            answer = self.server.function.invoke(event, TIMEOUT)
        except FunctionTimeoutError:
            return self.answer_alone("INTEGRATION_TIMEOUT", 504, "Endpoint request timed out")
        except FunctionError:
            return self.answer_alone("INTEGRATION_FAILURE", 502, "Internal server error")
        return self.pass_on(answer)

    def event(self, resource: str, body: bytes) -> dict[str, Any]:
        """The request as payload format 1.0. The path stays as it was sent; the query is
        decoded."""
        url = urlsplit(self.path)
        fields: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            if name.lower() not in DROPPED_FROM_REQUEST:
                fields.setdefault(name, []).append(value)
        fields["X-Forwarded-For"] = [self.client_address[0]]
        fields["X-Forwarded-Proto"] = ["https"]
        query: dict[str, list[str]] = {}
        for name, value in parse_qsl(url.query, keep_blank_values=True):
            query.setdefault(name, []).append(value)
        prefix = resource.removesuffix("{proxy+}")
        return {
            "resource": resource,
            "path": url.path,
            "httpMethod": self.command,
            "headers": {name: values[-1] for name, values in fields.items()},
            "multiValueHeaders": fields,
            "queryStringParameters": {n: values[-1] for n, values in query.items()} or None,
            "multiValueQueryStringParameters": query or None,
            "pathParameters": {"proxy": url.path[len(prefix) :].rstrip("/")}
            if "{proxy+}" in resource
            else None,
            "stageVariables": None,
            "requestContext": {
                "accountId": "1",
                "apiId": "api",
                "httpMethod": self.command,
                "identity": {
                    "sourceIp": self.client_address[0],
                    "userAgent": self.headers.get("User-Agent"),
                },
                "path": url.path,
                "protocol": "HTTP/1.1",
                "requestId": str(uuid.uuid4()),
                "resourceId": hashlib.sha256(resource.encode()).hexdigest()[:6],
                "resourcePath": resource,
                "stage": "prod",
            },
            "body": base64.b64encode(body).decode() if body else None,
            "isBase64Encoded": bool(body),
        }

    def pass_on(self, answer: dict[str, Any]) -> None:
        """The function's answer, to the client."""
        assert set(answer) <= {
            "statusCode",
            "headers",
            "multiValueHeaders",
            "body",
            "isBase64Encoded",
        }, f"API Gateway answers 502 to this: {sorted(answer)}"
        body = answer.get("body") or ""
        # Base64 is undone for a client whose Accept is a binary media type; */* is all of them,
        # and no Accept is none.
        decode = answer.get("isBase64Encoded") and self.headers.get("Accept")
        data = base64.b64decode(body) if decode else body.encode()
        fields = {name: [value] for name, value in (answer.get("headers") or {}).items()}
        fields |= answer.get("multiValueHeaders") or {}
        kept = []
        for name, values in fields.items():
            if name.lower() in REMAPPED_IN_ANSWER:
                kept += [(f"x-amzn-Remapped-{name}", value) for value in values]
            elif name.lower() not in DROPPED_FROM_ANSWER:
                kept += [(name, value) for value in values]
        if sum(len(name) + len(value) for name, value in kept) > HEADERS_LIMIT:
            return self.answer_alone("INTEGRATION_FAILURE", 502, "Internal server error")
        return self.write(int(answer["statusCode"]), kept, data)

    def answer_alone(
        self, kind: str, status: int, message: str, context: Mapping[str, str] | None = None
    ) -> None:
        """Give one of the API's own answers."""
        own = self.server.own_answers.get(kind, {})
        self.write(*own_answer(own, kind, status, message, context or {}))
