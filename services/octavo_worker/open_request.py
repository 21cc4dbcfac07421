"""One attempt while it is open at this worker: what was asked, where its answers go, its spans."""

import time
from asyncio import Task, TimerHandle
from dataclasses import dataclass, field

import numpy as np
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from octavo_shared.errors import Refusal
from octavo_shared.messages.generation import Busy, Failed, Finished, Generate, Started, Tier, Timings, TokenChunk
from octavo_shared.references import PackKey, WorkerId
from octavo_shared.telemetry import tracer
from octavo_worker.adapters.loader import Loaded
from octavo_worker.engine.sequence import SequenceFinished, SequenceRequest, SequenceTimings, TokensDecoded
from octavo_worker.engine.sequence import Span as Stretch


@dataclass(eq=False)
class OpenRequest:
    """Belongs to the event loop. ``found`` is the tier on arrival, until a load tells where the pack was."""

    generate: Generate
    reply: str
    found: Tier
    span: Span
    deadline: TimerHandle | None = None
    load: Task[Loaded] | None = None
    load_timings: Timings = field(default_factory=Timings)
    is_started: bool = False

    @property
    def engine_id(self) -> str:
        """The id that the engine knows it by: two attempts at one request may overlap here."""
        return f"{self.generate.request_id}/{self.generate.attempt}"

    @property
    def key(self) -> PackKey | None:
        adapter = self.generate.adapter
        return adapter.pack_key if adapter else None

    def sequence_request(self) -> SequenceRequest:
        """Return what the engine is asked."""
        generate = self.generate
        return SequenceRequest(
            request_id=self.engine_id,
            attempt=generate.attempt,
            tenant_id=generate.tenant_id,
            prompt=generate.prompt,
            forced=generate.forced,
            sampling=generate.sampling,
            adapter_key=self.key,
        )

    def take_load(self) -> None:
        """Note where the pack was found, once its load has ended well."""
        if self.load is not None and self.load.done() and not self.load.cancelled() and not self.load.exception():
            self.found, self.load_timings = self.load.result().tier, self.load.result().timings

    def started(self, worker_id: WorkerId, timings: SequenceTimings) -> Started:
        """Return the message that precedes the first token."""
        adapter = self.generate.adapter
        return Started(
            request_id=self.generate.request_id,
            attempt=self.generate.attempt,
            worker_id=worker_id,
            base=self.generate.base,
            tier=self.found,
            revision=adapter.revision if adapter else None,
            digest=adapter.digest if adapter else None,
            timings=self._timings(timings),
        )

    def chunk(self, event: TokensDecoded) -> TokenChunk:
        """Return the message that brings what a step decoded."""
        return TokenChunk(
            self.generate.request_id, self.generate.attempt, event.first_index, event.tokens, event.logprobs
        )

    def finished(self, event: SequenceFinished) -> Finished:
        """Return the message that ends this attempt well."""
        return Finished(
            request_id=self.generate.request_id,
            attempt=self.generate.attempt,
            reason=event.reason,
            num_prompt_tokens=event.num_prompt_tokens,
            num_completion_tokens=event.num_completion_tokens,
            timings=self._timings(event.timings),
            num_cached_tokens=event.num_reused_tokens,
            prompt_logprobs=np.array(event.prompt_logprobs, dtype="<f4").tobytes(),
        )

    def failed(self, refusal: Refusal) -> Failed:
        """Return the message that ends this attempt with an error."""
        return Failed(self.generate.request_id, self.generate.attempt, refusal)

    def busy(self, reason: str) -> Busy:
        """Return the message that sends this attempt to another worker."""
        return Busy(self.generate.request_id, self.generate.attempt, reason)

    def end_span(self, event: SequenceFinished | None, refusal: Refusal | None) -> None:
        """End ``worker.generate``, and record prefill and decode below it from the times that the engine noted."""
        self.span.set_attribute("octavo.tier", self.found.value)
        if event is not None:
            self.span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": event.num_prompt_tokens,
                    "gen_ai.usage.output_tokens": event.num_completion_tokens,
                    "gen_ai.response.finish_reasons": [event.reason.value],
                }
            )
            _record("prefill", event.timings.prefill, self.span)
            _record("decode", event.timings.decode, self.span)
        if refusal is not None:
            self.span.set_attribute("error.type", refusal.code)
            self.span.set_status(Status(StatusCode.ERROR, refusal.message))
        self.span.end()

    def _timings(self, timings: SequenceTimings) -> Timings:
        load = self.load_timings
        return Timings(
            queued_ms=timings.queued_ms,
            load_ms=load.load_ms,
            fetch_ms=load.fetch_ms,
            verify_ms=load.verify_ms,
            copy_ms=load.copy_ms,
            prefill_ms=timings.prefill_ms,
            decode_ms=timings.decode_ms,
        )


def open_span(generate: Generate, worker_id: WorkerId, base_name: str) -> Span:
    """Begin ``worker.generate`` below the current context, which is the sender's."""
    return tracer.start_span(
        "worker.generate",
        kind=SpanKind.CONSUMER,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": base_name,
            "gen_ai.request.max_tokens": generate.sampling.max_tokens,
            "octavo.worker_id": worker_id,
            "octavo.attempt": generate.attempt,
        },
    )


def _record(name: str, stretch: Stretch | None, parent: Span) -> None:
    if stretch is None:
        return
    # The engine measures on the monotonic clock; spans are dated.
    offset_ns = time.time_ns() - time.monotonic_ns()
    child = tracer.start_span(name, context=trace.set_span_in_context(parent), start_time=stretch.start_ns + offset_ns)
    child.end(end_time=stretch.end_ns + offset_ns)
