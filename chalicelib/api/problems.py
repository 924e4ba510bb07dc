"""Errors of the API: problem details (RFC 9457)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from chalicelib.http import RegistryError, Request, Response

MEDIA_TYPE = "application/problem+json"


class Problem(RegistryError):
    """What the API cannot do: a status and a sentence; ``members`` are further members of the
    problem, like ``errors``, a list of the fields that are wrong."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, status=status, headers=headers)
        self.members = members or {}

    def response(self) -> Response:
        """The problem as JSON."""
        return _response(self, self.members)


def refusal(request: Request, error: RegistryError) -> Response:
    """The answer to a request to the API that cannot be carried out, whatever found that out."""
    members = error.members if isinstance(error, Problem) else {}
    response = _response(error, members)
    return replace(response, headers=[*response.headers, *security_headers(request)])


def _response(error: RegistryError, members: Mapping[str, Any]) -> Response:
    title = HTTPStatus(error.status).phrase
    body = {"title": title, "status": error.status, "detail": error.message, **members}
    fields = [("Content-Type", MEDIA_TYPE), *error.headers]
    return Response(error.status, fields, json.dumps(body).encode())


def security_headers(request: Request) -> list[tuple[str, str]]:
    """What keeps browsers from doing with an answer what it is not for."""
    headers = [
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if request.secure:
        headers.append(("Strict-Transport-Security", "max-age=63072000"))
    return headers


def invalid(detail: str, field: str = "", status: int = 422) -> Problem:
    """A request that is understood and wrong."""
    errors = [{"field": field, "detail": detail}] if field else []
    return Problem(status, detail, members={"errors": errors} if errors else {})
