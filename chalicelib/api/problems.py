"""Errors of the API: problem details (RFC 9457)."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from chalicelib.http import RegistryError, Response

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
        return response(self.status, self.message, self.headers, self.members)


def response(
    status: int,
    detail: str,
    headers: Sequence[tuple[str, str]] = (),
    members: Mapping[str, Any] | None = None,
) -> Response:
    """An answer that tells a problem."""
    title = HTTPStatus(status).phrase
    body = {"title": title, "status": status, "detail": detail, **(members or {})}
    return Response(status, [("Content-Type", MEDIA_TYPE), *headers], json.dumps(body).encode())


def invalid(detail: str, field: str = "", status: int = 422) -> Problem:
    """A request that is understood and wrong."""
    errors = [{"field": field, "detail": detail}] if field else []
    return Problem(status, detail, members={"errors": errors} if errors else {})
