"""What is remembered of one request for its span, its metrics and its one log line."""

from dataclasses import dataclass, field

from opentelemetry.trace import Span

from octavo_gateway import metrics
from octavo_gateway.attempt import Plan
from octavo_gateway.meter import Meter
from octavo_gateway.openai import Ask
from octavo_shared.clock import now_ms
from octavo_shared.errors import OctavoError
from octavo_shared.messages.generation import Finished, Started, Timings
from octavo_shared.telemetry import current_trace_id, log

CLIENT_CLOSED = 499
"""The status, which nobody reads, of a request whose client left."""


@dataclass
class RequestRecord:
    """Filled while the request runs. Holds no name, key or prompt, so all of it may be logged."""

    request_id: str
    entry: str
    at_ms: float
    started: Started | None = None
    timings: Timings = field(default_factory=Timings)
    reason: str = ""
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    ttft_ms: float | None = None
    is_cancelled: bool = False
    plan: Plan | None = None

    def describe(self, span: Span, ask: Ask, plan: Plan, base_name: str) -> None:
        """Name the span and set what is known before the first token.

        The model is the base's name: an adapter's name is its owner's, and traces are not erased with it.
        """
        self.plan = plan
        operation = ask.kind.value
        span.update_name(f"{operation} {base_name}")
        span.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "octavo",
                "gen_ai.request.model": base_name,
                "gen_ai.response.model": base_name,
                "gen_ai.response.id": self.request_id,
                "gen_ai.request.max_tokens": plan.sampling.max_tokens,
                "gen_ai.request.temperature": plan.sampling.temperature,
                "gen_ai.request.top_p": plan.sampling.top_p,
                "gen_ai.request.stream": ask.is_stream,
                "gen_ai.usage.input_tokens": self.num_prompt_tokens,
            }
        )

    def first_text(self) -> None:
        """Note the time to the first text, once."""
        if self.ttft_ms is None and self.started is not None:
            self.ttft_ms = now_ms() - self.at_ms
            metrics.TTFT.labels(self.started.tier.value).observe(self.ttft_ms / 1000)

    def end(self, finished: Finished | None) -> None:
        """Note how the first answer ended; None: by a stop string."""
        self.reason = finished.reason.value if finished else "stop"
        if finished is not None:
            self.timings = finished.timings

    def finish(self, error: OctavoError | None, span: Span) -> None:
        """Write the log line and the metrics of a request that has ended."""
        status = CLIENT_CLOSED if self.is_cancelled else error.http_status if error else 200
        metrics.REQUESTS.labels(self.entry, f"{status // 100}xx").inc()
        started = self.started
        span.set_attribute("gen_ai.usage.output_tokens", self.num_completion_tokens)
        if self.reason:
            span.set_attribute("gen_ai.response.finish_reasons", [self.reason])
        if started is not None:
            span.set_attribute("octavo.tier", started.tier.value)
            if started.digest is not None:
                span.set_attributes({"octavo.digest": started.digest, "octavo.revision": started.revision or 0})
        if self.ttft_ms is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", self.ttft_ms / 1000)
        log.info(
            "request_finished",
            request_id=self.request_id,
            trace_id=current_trace_id(),
            entry=self.entry,
            status=status,
            code=error.code if error else None,
            reason=self.reason or None,
            worker_id=started.worker_id if started else None,
            tier=started.tier.value if started else None,
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            ttft_ms=None if self.ttft_ms is None else round(self.ttft_ms, 1),
            duration_ms=round(now_ms() - self.at_ms, 1),
        )

    def meter(self, meter: Meter) -> None:
        """Let what was delivered be counted, once, however it ended; of a request that no worker began, nothing is."""
        if self.plan is None or self.started is None:
            return
        adapter_id = self.plan.adapter.adapter_id if self.plan.adapter else None
        meter.count(self.plan.tenant_id, adapter_id, self.num_prompt_tokens, self.num_completion_tokens)
