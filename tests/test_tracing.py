"""Traces, as a receiver of OTLP over HTTP has them."""

import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

from chalicelib import tracing
from chalicelib.http import Headers, Request
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database, UniqueViolation
from tests.accounts import command
from tests.client import HTTPClient, push_blob, push_image, sha256
from tests.hosts.wire import until
from tests.images import make_bytes, make_image
from tests.jobs.receiver import Receiver
from tests.servers import S3, Kubo, Postgres, Registry


class Span(NamedTuple):
    """A span, and what is said of the process that sent it."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    failed: bool
    why: str
    attributes: dict[str, str | int]
    resource: dict[str, str | int]
    seconds: float


class Collector(ThreadingHTTPServer):
    """Takes traces."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.pause = 0.0
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def wait(self, which: Callable[[Span], bool], seconds: float = 30) -> list[Span]:
        """The spans that are wanted, once there is one."""
        end = time.monotonic() + seconds
        while not (found := [span for span in list(self.spans) if which(span)]):
            assert time.monotonic() < end, sorted({span.name for span in self.spans})
            time.sleep(0.02)
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        time.sleep(self.server.pause)
        if self.path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _values(group.resource)
                for scope in group.scope_spans:
                    self.server.spans += [_span(span, resource) for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be silent."""


def _values(holder: object) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for each in holder.attributes:  # type: ignore[attr-defined]
        kind = each.value.WhichOneof("value")
        found[each.key] = getattr(each.value, kind)
    return found


def _span(sent: Sent, resource: dict[str, str | int]) -> Span:
    return Span(
        sent.name,
        sent.kind,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        sent.status.code == 2,
        sent.status.message,
        _values(sent),
        resource,
        (sent.end_time_unix_nano - sent.start_time_unix_nano) / 1e9,
    )


@pytest.fixture
def collector() -> Iterator[Collector]:
    with closing(Collector()) as started:
        yield started


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with closing(Receiver()) as started:
        yield started


CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{CALLER[0]}-{CALLER[1]}-01"


def test_one_trace_from_a_push_to_its_webhook(
    serve: Callable[..., Registry], s3_server: S3, collector: Collector, hook: Receiver
) -> None:
    registry = serve(
        OPENREGISTRY_PRIVATE_WEBHOOKS=hook.origin,
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        **s3_server.environment(),
        **collector.environment,
    )
    client = HTTPClient(registry.host)
    push_image(client, "traces/app", make_image([100], seed=1), "v1")
    where = ("--repository", "traces/app")
    command(registry.settings, "webhook", "add", hook.origin, "--event", "push", *where)

    image = make_image([100], seed=2)
    for blob in image.blobs:
        push_blob(client, "traces/app", blob.data)
    answer = client.request(
        "PUT",
        "/v2/traces/app/manifests/v1",
        image.manifest.data,
        {
            "Content-Type": image.manifest.media_type,
            "Traceparent": TRACEPARENT,
            "X-Request-Id": "the-push",
            "User-Agent": "a test",
        },
    )
    assert answer.status == 201

    [told] = hook.wait(1)
    version, trace, sender, flags = told.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", CALLER[0], "01")
    [outgoing] = collector.wait(lambda span: span.name == "POST" and span.trace == trace)
    [delivery] = collector.wait(lambda span: span.name == "job webhook.deliver")
    [root] = collector.wait(lambda span: span.parent == CALLER[1])
    assert sender == delivery.id == outgoing.parent
    assert outgoing.attributes["http.response.status_code"] == 204
    assert outgoing.attributes["server.address"] == "127.0.0.1"

    assert root.name == "PUT /v2/{repository}/manifests/{reference}"
    assert root.kind == Sent.SPAN_KIND_SERVER
    assert delivery.kind == Sent.SPAN_KIND_CONSUMER
    assert delivery.attributes["openregistry.job.outcome"] == "done"
    assert root.resource["service.name"] == "openregistry"
    assert (
        root.attributes.items()
        >= {
            "http.request.method": "PUT",
            "url.path": "/v2/traces/app/manifests/v1",
            "url.scheme": "http",
            "http.route": "/v2/{repository}/manifests/{reference}",
            "http.response.status_code": 201,
            "client.address": "127.0.0.1",
            "user_agent.original": "a test",
            "openregistry.request_id": "the-push",
        }.items()
    )
    # From the request to the delivery each has its parent in the same trace.
    spans = {span.id: span for span in collector.wait(lambda span: span.trace == trace)}
    ancestor, seen = delivery, set()
    while ancestor.id != root.id:
        seen.add(ancestor.name)
        ancestor = spans[ancestor.parent]
    statements = [span for span in spans.values() if span.attributes.get("db.system.name")]
    assert {"SELECT", "transaction", "COMMIT"} <= {span.name for span in statements}
    for _ in until():
        if f'"request_id": "the-push", "trace_id": "{CALLER[0]}"' in registry.output():
            break

    # What a Location carries, a JSON Web Token, is told to nobody.
    assert "eyJ" not in repr(collector.spans)

    # Jobs write to storage too: a marker of the sweep.
    uploads = "PUT /v2/{repository}/blobs/uploads/"
    collector.wait(
        lambda stored: (
            stored.name == "storage put_object"
            and any(
                span.id == stored.parent and span.name.startswith(uploads)
                for span in list(collector.spans)
            )
        )
    )


def test_parts_that_other_threads_send_are_the_requests(
    serve: Callable[..., Registry], s3_server: S3, collector: Collector
) -> None:
    registry = serve(
        OPENREGISTRY_PART_SIZE="5MiB",
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        **s3_server.environment(),
        **collector.environment,
    )
    data = make_bytes(11 << 20, seed=1)
    push_blob(HTTPClient(registry.host), "traces/parts", data)
    [request] = collector.wait(lambda span: span.name.startswith("PUT /v2/"))
    parts = collector.wait(lambda span: span.name == "storage upload_part")
    assert len(parts) == 3
    assert {(part.trace, part.parent) for part in parts} == {(request.trace, request.id)}


def test_what_waits_is_sent_at_the_end_and_probes_and_idle_workers_tell_nothing(
    serve: Callable[..., Registry], collector: Collector
) -> None:
    registry = serve(**{**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"})
    client = HTTPClient(registry.host)
    assert client.request("GET", "/health").status == 200
    assert client.request("GET", "/ready").status == 200
    assert client.request("GET", f"/v2/a/blobs/{sha256(b'')}").status == 404
    assert not collector.spans
    registry.stop()
    routes = [span.name for span in collector.spans if span.kind == Sent.SPAN_KIND_SERVER]
    assert routes == ["GET /v2/{repository}/blobs/{digest}"]
    roots = [span for span in collector.spans if not span.parent]
    assert all(span.name.startswith(("GET ", "job ")) for span in roots)


def test_a_receiver_that_hangs_keeps_nobody_waiting(
    serve: Callable[..., Registry], collector: Collector
) -> None:
    collector.pause = 3600
    registry = serve(**collector.environment, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    client = HTTPClient(registry.host)
    began = time.monotonic()
    for _ in range(200):
        assert client.request("GET", "/v2/").status == 200
    assert time.monotonic() - began < 10
    registry.stop(within=20)
    assert registry.process is not None
    assert registry.process.returncode == 0


def _has_id(identity: str, span: Span) -> bool:
    return span.id == identity


@pytest.mark.long
def test_one_trace_from_a_push_to_the_network_that_its_blobs_are_put_on(
    serve: Callable[..., Registry], kubo: Kubo, collector: Collector
) -> None:
    registry = serve(
        OPENREGISTRY_IPFS_NODES=kubo.url,
        OPENREGISTRY_NEW_REPOSITORIES="public",
        **collector.environment,
    )
    client = HTTPClient(registry.host)
    push_image(client, "traces/ipfs", make_image([100], seed=1), "v1")
    command(registry.settings, "resolver", "choose", "ipfs", "--repository", "traces/ipfs")
    # What is there already is put there by another job, which would take the next image too.
    collector.wait(lambda span: span.name == "job resolve.fill")
    image = make_image([100], seed=2)
    for blob in image.blobs:
        push_blob(client, "traces/ipfs", blob.data)
    answer = client.request(
        "PUT",
        "/v2/traces/ipfs/manifests/v2",
        image.manifest.data,
        {"Content-Type": image.manifest.media_type, "Traceparent": TRACEPARENT},
    )
    assert answer.status == 201
    [put, *_] = collector.wait(
        lambda span: span.name == "POST /api/v0/add" and span.trace == CALLER[0], 90
    )
    names = []
    while put.parent != CALLER[1]:
        [put] = collector.wait(partial(_has_id, put.parent))
        names.append(put.name)
    assert names[0] == "job resolve"
    assert names[-1] == "PUT /v2/{repository}/manifests/{reference}"


@pytest.mark.parametrize("prepare", [True, False])
def test_whoever_writes_a_job_its_row_names_the_trace(
    monkeypatch: pytest.MonkeyPatch, postgres: Postgres, collector: Collector, prepare: bool
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    insert = "INSERT INTO jobs (kind, data) VALUES (:kind, '{}') RETURNING trace"
    with postgres.migrated_database() as url:
        # One connection: what a transaction has set must not be there in the next.
        database = Database(url, pool=1, prepare=prepare)
        tracing.start()
        try:
            span = tracing.request(Request("GET", "/v2/", headers=Headers({})))
            trace = tracing.trace_id(span)
            with tracing.within(span):
                [[alone]] = database.run(insert, kind="alone")
                [[within]] = database.transaction(lambda one: one.run(insert, kind="within"))
                with pytest.raises(UniqueViolation):
                    database.run("INSERT INTO schedules VALUES ('a', now()), ('a', now())")
            [[outside]] = database.run(insert, kind="outside")
            [[after]] = database.transaction(lambda one: one.run(insert, kind="after"))
            jobs.add(database, "plain", {})
            taken = jobs.take(database, ["alone", "plain"], 9, 30)
        finally:
            tracing.answered(span, "GET", "/v2/", 200, "id")
            tracing.stop()
            database.close()
    assert alone.split("-")[1] == within.split("-")[1] == trace
    assert outside == after == ""
    assert {job.kind: job.trace for job in taken} == {"alone": alone, "plain": ""}
    failed = [span for span in collector.spans if span.failed]
    assert failed
    assert {span.trace for span in collector.spans} == {trace}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
            False,
        ),
    ],
)
def test_the_environment_says_whether(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() == wanted


def test_without_a_receiver_there_are_no_spans() -> None:
    assert tracing.request(Request("GET", "/v2/", headers=Headers({}))) is None
    with (
        tracing.within(None),
        tracing.statement("SELECT 1") as one,
        tracing.span("x", a=1) as two,
        tracing.job("kind", 1, 1, TRACEPARENT) as three,
    ):
        assert one is two is three
        assert tracing.traceparent() == ""
    tracing.answered(None, "GET", "", 200, "")


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_a_wrong_variable_costs_the_traces_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    collector: Collector,
    name: str,
) -> None:
    """Every process that the harness forks reads them, and would end and be replaced for ever."""
    for each, value in {**collector.environment, name: "-1"}.items():
        monkeypatch.setenv(each, value)
    tracing.start()
    try:
        assert "there are no traces" in caplog.text
        assert tracing.request(Request("GET", "/v2/", headers=Headers({}))) is None
    finally:
        tracing.stop()


def test_a_receiver_that_hangs_keeps_no_process_from_ending(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    collector.pause = 3600
    tracing.start()
    span = tracing.request(Request("GET", "/v2/", headers=Headers({})))
    tracing.answered(span, "GET", "/v2/", 200, "id")
    began = time.monotonic()
    tracing.stop()
    assert time.monotonic() - began < 6


def test_what_fails_is_told_without_values(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, postgres: Postgres
) -> None:
    """Postgres's own words have them: `Key (email)=(…) already exists.`"""
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    insert = "INSERT INTO people VALUES (:email)"
    with closing(Database(postgres.new_database())) as database:
        database.run("CREATE TABLE people (email text UNIQUE)")
        database.run(insert, email="somebody@example.org")
        tracing.start()
        span = tracing.request(Request("GET", "/v2/", headers=Headers({})))
        with tracing.within(span), pytest.raises(UniqueViolation, match="somebody"):
            database.run(insert, email="somebody@example.org")
        tracing.answered(span, "GET", "/v2/", 409, "id")
        tracing.stop()
    [statement] = [sent for sent in collector.spans if sent.name == "INSERT"]
    assert (statement.failed, statement.why) == (True, "UniqueViolation")
    assert "somebody" not in repr(collector.spans)


def test_another_protocol_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, collector: Collector
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with caplog.at_level(logging.WARNING):
        tracing.start()
    try:
        assert "OTEL_EXPORTER_OTLP_PROTOCOL" in caplog.text
        span = tracing.request(Request("GET", "/v2/", headers=Headers({"traceparent": "nonsense"})))
        with tracing.within(span):
            assert tracing.traceparent()
        tracing.answered(span, "GET", "/v2/", 503, "id")
    finally:
        tracing.stop()
    [sent] = collector.spans
    assert sent.resource["service.name"] == "mine"
    assert sent.failed
    assert not sent.parent
