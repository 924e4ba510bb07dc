"""Traces (OpenTelemetry): where a request's time goes, and what came of it later in jobs.

They are sent by OTLP over HTTP once the environment names a receiver, in OpenTelemetry's own
variables (``OTEL_EXPORTER_OTLP_ENDPOINT`` and those beside it). Until a process calls ``start``
there are no spans, and what is asked of this module costs a tenth of a microsecond.

A span of Postgres, of storage or of a request to others is a child of the request's or the job's;
where there is none there is no span either, so that a worker that looks for jobs tells nothing.
What a job was caused by is in its row (``jobs.trace``).
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from chalicelib import __version__, logs

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as RealSpan
    from opentelemetry.trace import Tracer

    from chalicelib.http import Request

_log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_PROBES = ("/health", "/ready")
_STATEMENT = 1000
"""Characters of a statement that its span keeps. They hold no values."""

_PATIENCE = 3.0
"""Seconds that a process which ends waits for the receiver."""

_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None


class Span(Protocol):
    """What may be said of something that is being done."""

    def set_attribute(self, key: str, value: str | int) -> None: ...


class _Nothing:
    """In a span's place where there is none."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *error: object) -> None: ...

    def set_attribute(self, key: str, value: str | int) -> None: ...


_NOTHING = _Nothing()


def wanted() -> bool:
    """Whether the environment names a receiver of traces."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in _ENDPOINTS)


def preload() -> None:
    """Load what ``start`` needs where traces are wanted: processes that are forked afterwards share
    it."""
    if wanted():
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401


def start() -> None:
    """Send this process's spans from now on, where the environment says so. They leave on a thread
    of their own, which a forked process would not have; what the receiver does not take in time is
    dropped."""
    global _provider, _tracer  # noqa: PLW0603
    if not wanted():
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # That a batch is lost is told, not each attempt to send it.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    for name in _PROTOCOLS:
        if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
            _log.warning("%s: traces are sent by %s alone", name, _PROTOCOL)
    attributes = {"service.version": __version__}
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
        attributes["service.name"] = logs.SERVICE
    try:
        provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        # What only tells of the registry does not stop it.
        _log.error("there are no traces, since a variable of OpenTelemetry's is wrong: %s", error)
        return
    _provider = provider
    _tracer = provider.get_tracer("openregistry", __version__)


def stop() -> None:
    """Send what waits, and no more; what the receiver does not take in a few seconds is lost."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        last = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_PATIENCE)


def request(request: "Request") -> "RealSpan | None":
    """Begin the span of a request, whose parent may be the caller's (W3C Trace Context). Probes
    have none."""
    if _tracer is None or request.path in _PROBES:
        return None
    from opentelemetry.trace import SpanKind

    attributes = {
        "http.request.method": request.method,
        "url.path": request.path[:_STATEMENT],
        "url.scheme": "https" if request.secure else "http",
        "client.address": request.client,
    }
    if agent := request.headers.get("user-agent"):
        attributes["user_agent.original"] = agent[:_STATEMENT]
    return _tracer.start_span(
        request.method,
        _remote(request.headers),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )


def within(span: "RealSpan | None") -> AbstractContextManager[object]:
    """Have what is done within be part of a request's span."""
    if span is None:
        return _NOTHING
    from opentelemetry.trace import use_span

    return use_span(span, record_exception=False, set_status_on_exception=False)


def answered(
    span: "RealSpan | None", method: str, route: str, status: int, request_id: str
) -> None:
    """End a request's span. ``route`` is the path's pattern in the table of endpoints."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", status)
    span.set_attribute("openregistry.request_id", request_id)
    if route:
        span.set_attribute("http.route", route)
        span.update_name(f"{method} {route}")
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


def job(kind: str, job_id: int, tries: int, trace: str) -> AbstractContextManager[Span]:
    """The span of a job that is being done, whose parent is what caused it: ``trace`` is what
    ``traceparent`` said there."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace import SpanKind

    return _marked(
        _tracer.start_as_current_span(
            f"job {kind}",
            _remote({"traceparent": trace}),
            kind=SpanKind.CONSUMER,
            attributes={
                "openregistry.job.kind": kind,
                "openregistry.job.id": job_id,
                "openregistry.job.tries": tries,
            },
            record_exception=False,
            set_status_on_exception=False,
        )
    )


def statement(sql: str) -> AbstractContextManager[object]:
    """The span of one statement, or of a transaction (``BEGIN``)."""
    if _tracer is None:
        return _NOTHING
    operation = sql.partition(" ")[0]
    return span(
        "transaction" if operation == "BEGIN" else operation,
        **{
            "db.system.name": "postgresql",
            "db.operation.name": operation,
            "db.query.text": sql[:_STATEMENT],
        },
    )


def span(name: str, **attributes: str | int) -> AbstractContextManager[Span]:
    """The span of something that is asked of others, where it is part of a request or of a job."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace import SpanKind, get_current_span

    if not get_current_span().is_recording():
        return _NOTHING
    return _marked(
        _tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
    )


@contextmanager
def _marked(opened: "AbstractContextManager[RealSpan]") -> Iterator[Span]:
    """The same, which has failed where something is raised. Only what kind of error is told: its
    text may hold values, as Postgres tells of a key that is there already."""
    from opentelemetry.trace import StatusCode

    with opened as span:
        try:
            yield span
        except Exception as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def traceparent() -> str:
    """What names the current span to others (W3C Trace Context); "" where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id(span: "RealSpan | None") -> str:
    """The name of a span's trace; "" without one."""
    return "" if span is None else f"{span.get_span_context().trace_id:032x}"


def _remote(fields: Mapping[str, str]) -> "Context":
    """What header fields, or a job's row, say of the span before; a new trace where they say
    nothing, or nonsense."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    known = {name: fields[name] for name in ("traceparent", "tracestate") if name in fields}
    return TraceContextTextMapPropagator().extract(known, Context())
