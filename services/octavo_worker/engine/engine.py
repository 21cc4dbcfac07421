"""The engine: ``step()`` schedules, runs and commits. It knows neither NATS nor asyncio; one thread steps it."""

import bisect
import math
import time
from dataclasses import dataclass

from octavo_shared.errors import AdapterRefused, InternalError, Refusal
from octavo_shared.messages.generation import FinishReason
from octavo_shared.pack import PackHeader
from octavo_shared.references import AdapterId, PackKey
from octavo_shared.telemetry import log
from octavo_worker.adapters.pages import Arena
from octavo_worker.adapters.residents import Residents
from octavo_worker.engine.acceptance import check_request
from octavo_worker.engine.batch import Part
from octavo_worker.engine.forward import ForwardPass, Outcome
from octavo_worker.engine.guides import Guides
from octavo_worker.engine.intake import Intake
from octavo_worker.engine.roster import Roster
from octavo_worker.engine.scheduler import NUM_STEP_TOKENS_MAX, StepLimits
from octavo_worker.engine.sequence import Sequence, SequenceRequest, SequenceStarted, StepEvent, TokensDecoded
from octavo_worker.model.base import BaseModel


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one engine. ``num_kv_pages_min`` pages are never lent to adapters; None: one full context,
    at most half of the arena. A sequence that could ever need more than those at once is refused."""

    num_running_max: int = 32
    num_waiting_max: int = 256
    num_step_tokens_max: int = NUM_STEP_TOKENS_MAX
    num_kv_pages_min: int | None = None


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is. ``num_waiting`` includes sequences whose adapter is not resident.

    ``num_pages_free`` counts those that only hold what finished sequences may share with later ones.
    """

    num_running: int
    num_waiting: int
    num_pages_free: int
    num_pages: int
    page_bytes: int


def new_arena(base: BaseModel, arena_bytes: int) -> Arena:
    """Return an arena of at most ``arena_bytes`` for ``base``; raises ``ValueError`` when not one page fits."""
    page_elements = base.kv_shape.page_elements
    return Arena(page_elements, arena_bytes // (page_elements * base.dtype.itemsize), base.dtype, base.device)


class Engine:
    """Serves many sequences, each with its own adapter, in one batch per step.

    ``step`` and ``check_integrity`` belong to one thread. Every other method may be called from any thread and
    returns without waiting for a step; what it asks for takes effect at the next one.
    """

    def __init__(self, base: BaseModel, arena: Arena, limits: EngineLimits) -> None:
        self._base = base
        self._arena = arena
        self._step_limits = StepLimits(limits.num_running_max, limits.num_step_tokens_max, base.kv_shape)
        num_kv_pages_min = limits.num_kv_pages_min or min(
            self._num_pages_max(base.manifest.context_tokens), max(1, arena.num_pages // 2)
        )
        # Pages never fall with tokens, so the longest sequence that fits stands before the first that does not.
        lengths = range(1, base.manifest.context_tokens + 1)
        self._context_tokens = bisect.bisect_right(lengths, num_kv_pages_min, key=self._num_pages_max)
        self._residents = Residents(base.manifest, arena, arena.num_pages - num_kv_pages_min)
        self._guides = Guides(base.tokenizer_json, base.manifest.stop_token_ids)
        self._intake = Intake(limits.num_waiting_max, limits.num_running_max)
        # Touched by the stepping thread only.
        self._roster = Roster(arena, self._residents, self._step_limits)
        self._forward = ForwardPass(base, arena, self._residents)

    # Any thread.

    @property
    def context_tokens(self) -> int:
        """The longest sequence that is accepted: the base's context, or less where fewer pages are kept for KV."""
        return self._context_tokens

    def warm(self) -> None:
        """Build what requests share and the first one would otherwise wait for."""
        self._guides.warm()

    def submit(self, request: SequenceRequest) -> None:
        """Queue a request, whose id nothing that is still here may have.

        Raises ``Overloaded`` when the queue is full, ``ContextExceeded`` or ``InvalidRequest`` when it cannot be
        served at all.
        """
        check_request(request, self._base.vocab_size, self._context_tokens)
        schema, key = request.sampling.schema, request.adapter_key
        guide = self._guides.guide(schema, request.forced) if schema else None
        # Pinned first: the step that takes it in may run at once.
        if key is not None:
            self._residents.pin(key)
        try:
            self._intake.submit(request, guide)
        except BaseException:
            if key is not None:
                self._residents.unpin(key)
            raise

    def cancel(self, request_id: str) -> None:
        """End a sequence within one step; an unknown id is ignored."""
        self._intake.cancel(request_id)

    def install(self, key: PackKey, pack: memoryview, header: PackHeader) -> None:
        """Make a verified pack resident; sequences that wait for it join at the next step. See ``Residents``."""
        self._residents.install(key, pack, header)
        self._intake.nudge()

    def evict(self, key: PackKey) -> bool:
        """Free an adapter's pages; False while it is pinned."""
        is_evicted = self._residents.evict(key)
        self._intake.nudge()
        return is_evicted

    def forget(self, adapter_id: AdapterId) -> None:
        """Zero the keys and values that were computed with an adapter; no sequence may use it any more."""
        self._roster.kv.forget(adapter_id)
        self._intake.nudge()

    def residency(self) -> list[tuple[PackKey, int, int]]:
        """Return what is resident: key, size in bytes, number of pins."""
        return self._residents.residency()

    def load(self) -> EngineLoad:
        """Return how busy the engine is, as of the last step."""
        arena = self._arena
        return EngineLoad(*self._intake.counts(), self._roster.kv.num_available, arena.num_pages, arena.page_bytes)

    def wait_for_work(self, timeout_s: float) -> bool:
        """Block until a step would do something, at most ``timeout_s``; returns whether it would."""
        return self._intake.wait(timeout_s)

    # The stepping thread.

    def step(self) -> list[StepEvent]:
        """Schedule, run and commit one batch; returns what happened, in order."""
        events: list[StepEvent] = []
        self._take_in(events)
        parts = self._roster.schedule(time.monotonic_ns())
        if parts:
            self._run(parts, events)
        roster = self._roster
        # A step that could run nothing would not do better again until something changes.
        is_runnable = bool(parts) and roster.has_ready()
        self._intake.settle(len(roster.running), len(roster.waiting), is_runnable=is_runnable)
        return events

    def check_integrity(self) -> None:
        """Assert that free, KV and adapter pages are all pages; between steps, while nothing is installed."""
        self._arena.check_integrity()
        self._residents.check_integrity()
        self._roster.check_integrity()

    def _num_pages_max(self, num_tokens: int) -> int:
        """Return the most pages that a sequence of ``num_tokens`` tokens ever holds."""
        return self._base.kv_shape.num_pages_max(num_tokens, self._step_limits.num_step_tokens_max)

    def _take_in(self, events: list[StepEvent]) -> None:
        """Bring in what other threads asked for since the last step."""
        news = self._intake.take()
        now_ns = time.monotonic_ns()
        for sequence in news.arrived:
            self._roster.arrived(sequence)
            if sequence.num_answer_tokens >= sequence.request.sampling.max_tokens and not sequence.is_scored:
                events.append(self._started(sequence, now_ns))
                self._end(sequence, FinishReason.LENGTH, now_ns, events)
        for order in news.cancelled:
            if (cancelled := self._roster.find(order)) is not None:
                self._end(cancelled, FinishReason.CANCELLED, now_ns, events)

    def _run(self, parts: list[Part], events: list[StepEvent]) -> None:
        start_ns = time.monotonic_ns()
        for part in parts:
            part.sequence.first_step_ns = part.sequence.first_step_ns or start_ns
        try:
            outcome = self._forward.run(parts)
        except Exception:
            failure = InternalError()
            log.exception("step_failed", error_id=failure.fields["error_id"], num_sequences=len(parts))
            for part in parts:
                self._fail(part.sequence, failure.refusal(), events)
            return
        self._commit(outcome, events)

    def _commit(self, outcome: Outcome, events: list[StepEvent]) -> None:
        """Give each sequence what was computed for it, and end those that are done."""
        now_ns, packed, chosen = time.monotonic_ns(), outcome.batch, outcome.chosen
        for part, found in zip(packed.scored, outcome.scores, strict=True):
            # One that was preempted computes again what it had told.
            del part.sequence.prompt_logprobs[part.sequence.num_cached_tokens :]
            part.sequence.prompt_logprobs += found
        for part in packed.parts:
            sequence = part.sequence
            self._roster.kv.computed(sequence, part.num_tokens)
            num_answered = int(part.is_sampled)
            self._roster.shares.charge(sequence.request.tenant_id, part.num_tokens - num_answered, num_answered)
            if not sequence.is_started:
                events.append(self._started(sequence, now_ns))
        for sequence in [part.sequence for part in packed.parts if part.sequence.is_scored]:
            if not all(map(math.isfinite, sequence.prompt_logprobs)):
                self._fail(sequence, _not_a_number(sequence), events)
            elif sequence.num_cached_tokens == len(sequence.tokens):
                self._end(sequence, FinishReason.LENGTH, now_ns, events)
        rows = zip(packed.sampled, chosen.tokens, chosen.is_finite, chosen.logprobs, strict=True)
        for part, token, is_finite, logprobs in rows:
            sequence = part.sequence
            sequence.first_token_ns = sequence.first_token_ns or now_ns
            if not is_finite:
                self._fail(sequence, _not_a_number(sequence), events)
            elif sequence.guide is not None and not sequence.guide.advance(token):
                # The guide forbids such tokens, so it and the answer have parted.
                self._fail(sequence, InternalError().refusal(), events)
            elif token in sequence.request.sampling.stop_token_ids:
                self._end(sequence, FinishReason.STOP, now_ns, events)
            else:
                events.append(TokensDecoded(*sequence.id, sequence.num_answer_tokens, (token,), logprobs))
                sequence.tokens.append(token)
                if sequence.guide is not None and sequence.guide.is_complete:
                    self._end(sequence, FinishReason.STOP, now_ns, events)
                elif sequence.num_answer_tokens >= sequence.request.sampling.max_tokens:
                    self._end(sequence, FinishReason.LENGTH, now_ns, events)

    def _started(self, sequence: Sequence, now_ns: int) -> SequenceStarted:
        sequence.is_started = True
        return SequenceStarted(*sequence.id, sequence.timings(now_ns))

    def _end(self, sequence: Sequence, reason: FinishReason, now_ns: int, events: list[StepEvent]) -> None:
        self._drop(sequence, (now_ns - sequence.first_step_ns) / 1e9 if sequence.first_step_ns else None)
        events.append(sequence.finished(reason, now_ns))

    def _fail(self, sequence: Sequence, refusal: Refusal, events: list[StepEvent]) -> None:
        self._drop(sequence, None)
        events.append(sequence.failed(refusal))

    def _drop(self, sequence: Sequence, duration_s: float | None) -> None:
        self._roster.left(sequence)
        self._intake.ended(sequence, duration_s)


def _not_a_number(sequence: Sequence) -> Refusal:
    if sequence.request.adapter_key is None:
        return InternalError().refusal()
    return AdapterRefused("not_finite", "the adapter's answer is not a number").refusal()
