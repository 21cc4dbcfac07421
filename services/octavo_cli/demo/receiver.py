"""A small OTLP/HTTP receiver: takes the spans that the services really export and keeps them in memory."""

import asyncio
import contextlib
import gzip
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from litestar import Litestar, Request, Response, post
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from octavo_cli.processes import free_port
from octavo_shared.service import http_server

_TRACES_MAX = 10_000


@dataclass(frozen=True)
class Span:
    """One finished span; times in nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def operation(self) -> str:
        """The first word of its name; what it was done to may follow."""
        return self.name.partition(" ")[0]

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


class TraceReceiver:
    """Spans by trace id. ``wait_for`` returns a trace once it holds all wanted operations."""

    def __init__(self) -> None:
        self._traces: dict[str, list[Span]] = defaultdict(list)
        self._arrived = asyncio.Condition()
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def take(self, body: bytes) -> None:
        """Keep the spans of one export request."""
        for span in decode_spans(body):
            if span.trace_id in self._traces or len(self._traces) < _TRACES_MAX:
                self._traces[span.trace_id].append(span)
        async with self._arrived:
            self._arrived.notify_all()

    async def wait_for(self, trace_id: str, names: set[str], timeout_s: float) -> list[Span]:
        """Return the trace's spans once all operations in ``names`` are there, or what came in ``timeout_s``."""

        def is_complete() -> bool:
            return names <= {span.operation for span in self._traces[trace_id]}

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._arrived:
                await self._arrived.wait_for(is_complete)
        return list(self._traces[trace_id])

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen while the block runs."""

        @post("/v1/traces", status_code=200)
        async def traces(request: Request[Any, Any, Any]) -> Response[bytes]:
            body = await request.body()
            await self.take(gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            return Response(answer, media_type="application/x-protobuf")

        async with http_server(Litestar([traces], openapi_config=None, logging_config=None), "127.0.0.1", self.port):
            yield


def decode_spans(body: bytes) -> list[Span]:
    """Return the spans of an ``ExportTraceServiceRequest``."""
    request = ExportTraceServiceRequest.FromString(body)
    spans = []
    for resource in request.resource_spans:
        about = {item.key: item.value.string_value for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {
                    item.key: str(getattr(item.value, item.value.WhichOneof("value") or "string_value"))
                    for item in span.attributes
                }
                spans.append(
                    Span(
                        span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                        about.get("service.name", "?"), span.name,
                        span.start_time_unix_nano, span.end_time_unix_nano, attributes,
                    )
                )  # fmt: skip
    return spans
