"""Every function of the system, declared in one place for AWS: HTTP and schedules.

`chalice package` makes the stack from this file and .chalice/. The routes are greedy:
``chalicelib.endpoints`` reads the path by the specification's grammar, and decides who may do
what.
"""

from collections.abc import Callable
from typing import Any, cast

from chalice.app import (
    AuthRequest,
    CaseInsensitiveMapping,
    Chalice,
    CloudWatchEvent,
    Rate,
    Request,
    Response,
    SQSEvent,
)

from chalicelib.hosts import aws_authorizer, aws_lambda, aws_log

# Logs go through the standard library to the handler of hosts/aws_log.py.
app = Chalice(app_name="openregistry", configure_logs=False)
app.api.binary_types = ["*/*"]

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@app.middleware("http")
def accept_anything(request: Request, get_response: Callable[[Request], Response]) -> Response:
    """Answer clients that send no ``Accept`` too: Chalice, with binary types, gives them a 400."""
    request.headers = CaseInsensitiveMapping({**request.headers, "accept": "*/*"})
    return get_response(request)


@app.authorizer(ttl_seconds=0)
def challenge(request: AuthRequest) -> dict[str, Any]:
    """Refuse registry tokens that will not do; the functions check all credentials.

    API Gateway itself turns away whoever brings none. Nothing is kept: whether a token will do
    depends on the path and on the time.
    """
    return aws_authorizer.answer(request.token, request.method_arn)


@app.route("/v2", methods=METHODS, content_types=["*/*"], authorizer=challenge)
def base() -> Response:
    """The root of the API: whether one may log in."""
    return aws_lambda.answer(_event())


@app.route("/v2/{proxy+}", methods=METHODS, content_types=["*/*"], authorizer=challenge)
def distribution() -> Response:
    """The OCI Distribution Specification."""
    return aws_lambda.answer(_event())


@app.route("/uploads/{proxy+}", methods=METHODS, content_types=["*/*"])
def uploads() -> Response:
    """Uploads whose parts go to storage, by their capabilities."""
    return aws_lambda.answer(_event())


@app.route("/token", methods=["GET", "POST"], content_types=["*/*"])
@app.route("/.well-known/jwks.json", methods=["GET", "HEAD"], content_types=["*/*"])
def tokens() -> Response:
    """Where clients get registry tokens, and the keys that these are signed with."""
    return aws_lambda.answer(_event())


@app.route("/api/v1/{proxy+}", methods=METHODS, content_types=["*/*"])
def api() -> Response:
    """The JSON API."""
    return aws_lambda.answer(_event())


@app.route("/hooks/{proxy+}", methods=["POST"], content_types=["*/*"])
def trigger() -> Response:
    """What signed messages from elsewhere start."""
    return aws_lambda.answer(_event())


@app.route("/account", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/account.js", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/account.css", methods=["GET", "HEAD"], content_types=["*/*"])
def account() -> Response:
    """The page for one's account."""
    return aws_lambda.answer(_event())


@app.route("/status", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/status.json", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/status.css", methods=["GET", "HEAD"], content_types=["*/*"])
def page() -> Response:
    """What came of the registry's probes of itself."""
    return aws_lambda.answer(_event())


@app.route("/health", methods=["GET", "HEAD"], content_types=["*/*"])
@app.route("/ready", methods=["GET", "HEAD"], content_types=["*/*"])
def status() -> Response:
    """Whether the function runs at all; whether Postgres and storage answer too."""
    return aws_lambda.answer(_event())


@app.schedule(Rate(1, Rate.MINUTES))
def work(event: CloudWatchEvent) -> None:
    """Do the jobs that are due."""
    aws_lambda.work(_seconds(event))


# .chalice/resources.yaml puts the stack's own queue in this one's place.
@app.on_sqs_message(
    queue_arn="arn:aws:sqs:us-east-1:000000000000:openregistry",
    batch_size=100,
    maximum_batching_window_in_seconds=1,
    maximum_concurrency=5,
)
def messages(event: SQSEvent) -> dict[str, Any]:
    """Count the pulls that other functions have told of, and do the jobs that they have written."""
    return aws_lambda.receive(event.to_dict(), _seconds(event))


def _event() -> dict[str, Any]:
    request = cast("Request", app.current_request)
    aws_log.begin(request.lambda_context)
    return request.to_original_event()


def _seconds(event: CloudWatchEvent | SQSEvent) -> float:
    """How long the function may take still."""
    context = cast("Any", event).context
    aws_log.begin(context)
    return float(context.get_remaining_time_in_millis() / 1000)
