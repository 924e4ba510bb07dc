"""Every function of the system, declared in one place for AWS: HTTP and schedules.

`chalice package` makes the stack from this file and .chalice/. The routes are greedy:
``chalicelib.endpoints`` reads the path by the specification's grammar, and decides who may do
what.
"""

from collections.abc import Callable
from typing import Any, cast

from chalice.app import (
    AuthRequest,
    AuthResponse,
    CaseInsensitiveMapping,
    Chalice,
    CloudWatchEvent,
    Rate,
    Request,
    Response,
)

from chalicelib.hosts import aws_lambda

# Logs go through the standard library to the handler that Lambda's runtime sets up; with the JSON
# format (.chalice/resources.yaml) it writes one object a line with the request's id. Powertools'
# Logger would do the same for a third of the cold start's budget.
app = Chalice(app_name="openregistry", configure_logs=False)
app.api.binary_types = ["*/*"]

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@app.middleware("http")
def accept_anything(request: Request, get_response: Callable[[Request], Response]) -> Response:
    """Answer clients that send no ``Accept`` too: Chalice, with binary types, gives them a 400."""
    request.headers = CaseInsensitiveMapping({**request.headers, "accept": "*/*"})
    return get_response(request)


@app.authorizer(ttl_seconds=3600)
def challenge(request: AuthRequest) -> AuthResponse:
    """Let through whoever brings credentials; the functions check them.

    It is here for those that bring none: API Gateway turns them away with a 401 of its own, whose
    ``WWW-Authenticate`` (.chalice/resources.yaml) reaches the client. One in a function's answer
    is renamed, and `docker login` would not see it.
    """
    return AuthResponse(routes=["*"], principal_id="client")


@app.route("/v2", methods=METHODS, content_types=["*/*"], authorizer=challenge)
def base() -> Response:
    """The root of the API: whether one may log in."""
    return aws_lambda.answer(_event())


@app.route("/v2/{proxy+}", methods=METHODS, content_types=["*/*"], authorizer=challenge)
def distribution() -> Response:
    """The OCI Distribution Specification."""
    return aws_lambda.answer(_event())


@app.route("/health", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/ready", methods=["GET", "HEAD"], content_types=["*/*"])
def status() -> Response:
    """Whether the function runs at all; whether Postgres and storage answer too."""
    return aws_lambda.answer(_event())


@app.schedule(Rate(5, Rate.MINUTES))
def expire_uploads(event: CloudWatchEvent) -> None:
    """Remove what uploads left behind that nobody goes on with."""
    from chalicelib.registry import uploads

    uploads.expire(aws_lambda.context())


def _event() -> dict[str, Any]:
    return cast("Request", app.current_request).to_original_event()
