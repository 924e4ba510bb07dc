"""The API's own description (OpenAPI 3.1), made from the table of operations."""

import re
from http import HTTPStatus
from typing import Any

import msgspec

from chalicelib import __version__
from chalicelib.api import operations
from chalicelib.api.operations import Answer, Call, Needs, Operation
from chalicelib.api.problems import MEDIA_TYPE
from chalicelib.http import JSON

_REFERENCE = "#/components/schemas/{name}"

_PARTS = {
    "account": "The name of a user, an organisation or a robot",
    "delivery": "The id of a delivery, which is the event's",
    "digest": "A digest, like sha256:… with 64 digits",
    "grantee": "The name of a user, of a robot (OWNER+NAME) or of a team (ORGANISATION:NAME)",
    "identity": "The id of an identity at another service",
    "invitation": "The id of an invitation",
    "job": "The id of a job",
    "login": "The id of a login",
    "member": "The name of a user who belongs to the organisation",
    "passkey": "The id of a passkey",
    "provider": "One of those with whom one can sign in",
    "reference": "A tag or a digest",
    "repository": "The whole name of a repository; its slashes may be percent-encoded",
    "resolver": "What a resolver is called among those of the account, or of all",
    "robot": "The name of a robot, OWNER+NAME",
    "rule": "The id of a rule",
    "session": "The id of a session",
    "tag": "A tag",
    "team": "The name of a team",
    "token": "The id of an access token",
    "trigger": "The id of a trigger",
    "webhook": "The id of a webhook",
}
"""What the parts of paths are."""

_PROBLEMS = {
    307: "The repository has another name now: Location is the same thing there",
    400: "The body is no JSON",
    401: "Nobody has signed in, or the credentials are wrong or no longer hold",
    403: "The caller may not do this, or another site had a browser ask for it",
    404: "There is no such thing, or it is not the caller's to see",
    409: "It would be right but for what is there",
    413: f"The body has more than {operations.LARGEST_BODY} bytes",
    415: "The body is not application/json",
    422: "The request is understood, and wrong: errors names the fields",
    429: "Too many requests: Retry-After says when to come back",
    503: "Postgres, or another service that is needed, does not answer: try again",
}
"""What is wrong, by the status of the problem."""


class FieldProblem(msgspec.Struct):
    """A field of the request that is wrong."""

    field: str
    detail: str


class ProblemDetails(msgspec.Struct):
    """What was wrong (RFC 9457)."""

    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []


def describe(call: Call) -> Answer:
    """The description of the API."""
    return Answer(document(operations.cookie_name(call.request)))


def document(cookie: str) -> dict[str, Any]:
    """The OpenAPI document, of a registry whose sessions are in a cookie of that name."""
    rows = operations.table()
    types = [ProblemDetails]
    for row in rows:
        types += [each for each in (row.body, row.answer) if each is not None]
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for row in rows:
        paths.setdefault(operations.PREFIX + row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenRegistry", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _without_nul(components),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
                "session": {"type": "apiKey", "in": "cookie", "name": cookie},
            },
        },
    }


def _operation(row: Operation) -> dict[str, Any]:
    if row.answer is None:
        status = 204 if row.status == 200 else row.status
        responses: dict[str, Any] = {str(status): {"description": HTTPStatus(status).phrase}}
    else:
        responses = {str(row.status): _content("The answer", JSON, _schema(row.answer))}
    problem = _schema(ProblemDetails)
    for status in sorted(_problems(row)):
        responses[str(status)] = _content(_PROBLEMS[status], MEDIA_TYPE, problem)
    described: dict[str, Any] = {
        "operationId": row.id,
        "summary": row.summary,
        "responses": responses,
        "parameters": [*_path_parameters(row), *_query_parameters(row)],
        "security": _security(row),
    }
    if row.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": _without_nul(_schema(row.body))}},
        }
    return described


def _security(row: Operation) -> list[dict[str, list[str]]]:
    """The kinds of credentials that may do; an empty one: without any."""
    nobody = row.needs in (Needs.NOTHING, Needs.REPOSITORY_READ)
    person = row.needs in (Needs.PERSON, Needs.ADMINISTRATOR)
    found: list[dict[str, list[str]]] = [{"password": []}, {"session": []}]
    if not person:
        found.insert(0, {"token": []})
    return [{}, *found] if nobody else found


def _problems(row: Operation) -> set[int]:
    found = {*row.problems, 401, 429, 503}
    if row.needs is not Needs.NOTHING or row.method != "GET":
        found.add(403)
    if "{" in row.path:
        found.add(404)
    if row.needs.value.startswith("repository:"):
        found.add(307)
    if row.body is not None:
        found |= {400, 413, 415, 422}
    if row.query is not None:
        found.add(422)
    return found


def _path_parameters(row: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARTS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"{(\w+)}", row.path)
    ]


def _query_parameters(row: Operation) -> list[dict[str, Any]]:
    if row.query is None:
        return []
    _, components = msgspec.json.schema_components([row.query], ref_template=_REFERENCE)
    struct = components[row.query.__name__]
    required = struct.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_nul(each)}
        for name, each in struct["properties"].items()
    ]


def _without_nul(schema: Any) -> Any:
    """The schema, in which texts say that they have no NUL."""
    if isinstance(schema, list):
        return [_without_nul(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: _without_nul(each) for name, each in schema.items()}
    if schema.get("type") == "string" and not {"pattern", "format", "enum"} & schema.keys():
        schema["pattern"] = r"^[^\u0000]*$"
    return schema


def _content(description: str, media_type: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _schema(of: Any) -> Any:
    (schema,), _ = msgspec.json.schema_components([of], ref_template=_REFERENCE)
    return schema


OPERATIONS = (
    Operation("GET", "/openapi.json", describe, Needs.NOTHING, "This description",
              answer=dict[str, Any]),
)  # fmt: skip
