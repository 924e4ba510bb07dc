"""The API's own description (OpenAPI 3.1), made from the table of operations."""

import re
from typing import Any

import msgspec

from chalicelib import __version__
from chalicelib.api import operations
from chalicelib.api.operations import Answer, Call, Needs, Operation
from chalicelib.api.problems import MEDIA_TYPE
from chalicelib.http import JSON

_REFERENCE = "#/components/schemas/{name}"


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
    return Answer(document())


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    rows = [operation for operation, _ in operations.table()]
    types = [ProblemDetails]
    for row in rows:
        types += [each for each in (row.body, row.answer, row.query) if each not in (None, Any)]
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for row in rows:
        paths.setdefault(operations.PREFIX + row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenRegistry", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
                "session": {"type": "apiKey", "in": "cookie", "name": operations.SESSION_COOKIE},
            },
        },
    }


def _operation(row: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", row.path)
    ]
    parameters += _query_parameters(row)
    if row.answer is None:
        status = 204 if row.status == 200 else row.status
        responses: dict[str, Any] = {str(status): {"description": "Done"}}
    else:
        responses = {str(row.status): _content("The answer", JSON, _schema(row.answer))}
    problem = _schema(ProblemDetails)
    for status in sorted(_problems(row)):
        responses[str(status)] = _content("A problem", MEDIA_TYPE, problem)
    described: dict[str, Any] = {
        "operationId": row.id,
        "summary": row.summary,
        "responses": responses,
        "parameters": parameters,
        "security": []
        if row.needs is Needs.NOTHING
        else [{"token": []}, {"password": []}, {"session": []}],
    }
    if row.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": _schema(row.body)}},
        }
    return described


def _problems(row: Operation) -> set[int]:
    found = {*row.problems, 429, 503}
    if row.needs is not Needs.NOTHING:
        found |= {401, 403}
    if "{" in row.path:
        found.add(404)
    if row.body is not None:
        found |= {400, 413, 415, 422}
    if row.query is not None:
        found.add(422)
    if row.method != "GET":
        found.add(403)
    return found


def _query_parameters(row: Operation) -> list[dict[str, Any]]:
    if row.query is None:
        return []
    _, components = msgspec.json.schema_components([row.query], ref_template=_REFERENCE)
    struct = components[row.query.__name__]
    required = struct.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": each}
        for name, each in struct["properties"].items()
    ]


def _content(description: str, media_type: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _schema(of: Any) -> Any:
    (schema,), _ = msgspec.json.schema_components([of], ref_template=_REFERENCE)
    return schema


OPERATIONS = (
    Operation("GET", "/openapi.json", describe, Needs.NOTHING, "This description",
              answer=dict[str, Any]),
)  # fmt: skip
