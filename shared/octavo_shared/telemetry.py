"""OpenTelemetry: one trace from the HTTP request to the S3 read, carried in NATS headers; and the logs.

Spans are exported over OTLP/HTTP when ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, else they are not recorded.
About six spans per request, none per token. Attribute names follow the GenAI semantic conventions;
no user or adapter id is ever a metric label.
"""

import faulthandler
import logging
import os
import sys
from collections.abc import Mapping

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_EXPORT_DELAY_MS = 500

tracer = trace.get_tracer("octavo")
log = structlog.get_logger()


def start_telemetry(service: str, log_level: str = "info") -> TracerProvider | None:
    """Configure logs for this process and, when an OTLP endpoint is set, span export; returns the provider.

    A crash of the interpreter itself, such as a segmentation fault, leaves on stderr where every thread was.

    The caller shuts the provider down last, which flushes what is still buffered.
    """
    faulthandler.enable()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level.upper()]),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=_EXPORT_DELAY_MS))
    trace.set_tracer_provider(provider)
    return provider


def inject_context(headers: dict[str, str]) -> dict[str, str]:
    """Add the current span's W3C ``traceparent`` to ``headers`` and return them."""
    propagate.inject(headers)
    return headers


def extract_context(headers: Mapping[str, str] | None) -> Context:
    """Return the trace context that a message's ``headers`` carry."""
    return propagate.extract(dict(headers or {}))


def current_trace_id() -> str | None:
    """Return the current trace id in hexadecimal, or None outside a recorded span."""
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None
