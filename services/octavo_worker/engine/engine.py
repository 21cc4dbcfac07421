"""The engine: ``step()`` schedules, runs and commits. It knows neither NATS nor asyncio; one thread steps it."""

import threading
import time
from dataclasses import dataclass

import torch

from octavo_shared.errors import (
    AdapterRefused,
    ContextExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Refusal,
)
from octavo_shared.messages.generation import FinishReason
from octavo_shared.pack import PackHeader
from octavo_shared.telemetry import log
from octavo_worker.adapters.pages import Arena, OutOfPages, PageUse
from octavo_worker.adapters.placement import Placement
from octavo_worker.adapters.residents import AdapterKey, Residents
from octavo_worker.engine import batch
from octavo_worker.engine.batch import Batch, Part
from octavo_worker.engine.sampler import Choice, choose
from octavo_worker.engine.scheduler import Candidate, StepLimits, StepPlan, schedule
from octavo_worker.engine.sequence import Sequence, SequenceRequest, SequenceStarted, StepEvent, TokensDecoded
from octavo_worker.engine.slots import SlotTables
from octavo_worker.model.base import BaseModel

_NUM_PLANS_MAX = 3
"""How often a step is planned again because a load took pages after the plan was made."""
_DURATION_WEIGHT = 0.1
"""Of the newest sequence in the moving mean of durations that ``Retry-After`` is estimated from."""


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one engine. ``num_kv_pages_min`` pages are never lent to adapters; None: one full context,
    at most half of the arena. A sequence that needs more than those is refused."""

    num_running_max: int = 32
    num_waiting_max: int = 256
    num_step_tokens_max: int = 256
    num_kv_pages_min: int | None = None


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is. ``num_waiting`` includes sequences whose adapter is not resident."""

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
        num_kv_pages = min(base.kv_shape.num_pages(base.manifest.context_tokens), max(1, arena.num_pages // 2))
        self._base = base
        self._arena = arena
        self._limits = limits
        self._step_limits = StepLimits(limits.num_running_max, limits.num_step_tokens_max, base.kv_shape.page_tokens)
        self._num_kv_pages_min = limits.num_kv_pages_min or num_kv_pages
        self._residents = Residents(base.manifest, arena, arena.num_pages - self._num_kv_pages_min)
        self._slots = SlotTables(tuple(base.manifest.modules), base.device)
        # Touched by the stepping thread only.
        self._running: dict[int, Sequence] = {}
        self._waiting: dict[int, Sequence] = {}
        # Guarded by the lock, which is held for moments only.
        self._news = threading.Condition(threading.Lock())
        self._has_news = False
        self._is_runnable = False
        self._inbox: list[Sequence] = []
        self._cancelled: set[int] = set()
        self._refusals: dict[AdapterKey, Refusal] = {}
        self._live: dict[str, Sequence] = {}
        self._num_submitted = 0
        self._num_running = 0
        self._num_waiting = 0
        self._mean_duration_s = 1.0

    # Any thread.

    def submit(self, request: SequenceRequest) -> None:
        """Queue a request. A newer attempt at a request that is still here replaces the older one.

        Raises ``Overloaded`` when the queue is full, ``ContextExceeded`` or ``InvalidRequest`` when it cannot be
        served at all.
        """
        self._check(request)
        with self._news:
            num_waiting = self._num_waiting + len(self._inbox)
            if num_waiting >= self._limits.num_waiting_max:
                rounds = num_waiting / self._limits.num_running_max
                raise Overloaded(retry_after_s=max(1, round(rounds * self._mean_duration_s)))
            if older := self._live.get(request.request_id):
                if older.request.attempt >= request.attempt:
                    raise InvalidRequest("attempt", "is not newer than the one that is being served")
                self._cancelled.add(older.order)
            self._num_submitted += 1
            sequence = Sequence(request, order=self._num_submitted)
            if request.adapter_key is not None:
                self._residents.pin(request.adapter_key)
            self._live[request.request_id] = sequence
            self._inbox.append(sequence)
            self._notify()

    def cancel(self, request_id: str) -> None:
        """End a sequence within one step; an unknown id is ignored."""
        with self._news:
            if sequence := self._live.get(request_id):
                self._cancelled.add(sequence.order)
                self._notify()

    def install(self, key: AdapterKey, pack: memoryview, header: PackHeader) -> None:
        """Make a verified pack resident; sequences that wait for it join at the next step. See ``Residents``."""
        self._residents.install(key, pack, header)
        with self._news:
            # A refusal of an earlier try no longer holds.
            self._refusals.pop(key, None)
            self._notify()

    def evict(self, key: AdapterKey) -> bool:
        """Free an adapter's pages; False while it is pinned."""
        is_evicted = self._residents.evict(key)
        with self._news:
            self._notify()
        return is_evicted

    def fail_adapter(self, key: AdapterKey, refusal: Refusal) -> None:
        """End the sequences that wait for an adapter which cannot be loaded."""
        with self._news:
            if any(sequence.request.adapter_key == key for sequence in self._live.values()):
                self._refusals[key] = refusal
                self._notify()

    def residency(self) -> list[tuple[AdapterKey, int, int]]:
        """Return what is resident: key, size in bytes, number of pins."""
        return self._residents.residency()

    def load(self) -> EngineLoad:
        """Return how busy the engine is, as of the last step."""
        with self._news:
            num_running, num_waiting = self._num_running, self._num_waiting + len(self._inbox)
        arena = self._arena
        return EngineLoad(num_running, num_waiting, arena.num_free, arena.num_pages, arena.page_bytes)

    def wait_for_work(self, timeout_s: float) -> bool:
        """Block until a step would do something, at most ``timeout_s``; returns whether it would."""
        with self._news:
            return self._news.wait_for(lambda: self._has_news or self._is_runnable, timeout_s)

    # The stepping thread.

    def step(self) -> list[StepEvent]:
        """Schedule, run and commit one batch; returns what happened, in order."""
        events: list[StepEvent] = []
        self._take_in(events)
        parts = self._schedule()
        if parts:
            self._run(parts, events)
        self._settle(has_run=bool(parts))
        return events

    def check_integrity(self) -> None:
        """Assert that free, KV and adapter pages are all pages; between steps, while nothing is installed."""
        self._arena.check_integrity()
        self._residents.check_integrity()
        sequences = [*self._running.values(), *self._waiting.values()]
        num_kv_pages = sum(len(sequence.pages) for sequence in sequences)
        assert num_kv_pages == self._arena.num_used(PageUse.KV), "pages of keys and values were lost"

    def _check(self, request: SequenceRequest) -> None:
        given = (*request.prompt, *request.forced)
        if not request.prompt:
            raise InvalidRequest("prompt", "has no tokens")
        if min(given) < 0 or max(given) >= self._base.vocab_size:
            # It would fail inside the batch, and take the neighbours with it.
            raise InvalidRequest("prompt", f"holds token ids outside 0 to {self._base.vocab_size - 1}")
        num_tokens = len(request.prompt) + request.sampling.max_tokens
        context_tokens = min(
            self._base.manifest.context_tokens, self._num_kv_pages_min * self._base.kv_shape.page_tokens
        )
        if num_tokens > context_tokens:
            raise ContextExceeded(
                "prompt",
                prompt_tokens=len(request.prompt),
                max_tokens=request.sampling.max_tokens,
                context_tokens=context_tokens,
            )

    def _notify(self) -> None:
        self._has_news = True
        self._news.notify_all()

    def _take_in(self, events: list[StepEvent]) -> None:
        """Bring in what other threads asked for since the last step."""
        with self._news:
            arrived, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, set()
            refusals, self._refusals = self._refusals, {}
            self._has_news = False
            self._num_waiting += len(arrived)
        now_ns = time.monotonic_ns()
        for sequence in arrived:
            self._waiting[sequence.order] = sequence
            if sequence.num_answer_tokens >= sequence.request.sampling.max_tokens:
                events.append(self._started(sequence, now_ns))
                self._end(sequence, FinishReason.LENGTH, now_ns, events)
        for order in cancelled:
            if sequence_or_none := self._running.get(order) or self._waiting.get(order):
                self._end(sequence_or_none, FinishReason.CANCELLED, now_ns, events)
        for sequence in list(self._waiting.values()):
            key = sequence.request.adapter_key
            if key in refusals and self._residents.get(key) is None:
                self._drop(sequence)
                events.append(sequence.failed(refusals[key]))

    def _schedule(self) -> list[Part]:
        """Choose the parts of the next batch and give them their pages."""
        for _ in range(_NUM_PLANS_MAX):
            ready = [sequence for sequence in self._waiting.values() if self._is_ready(sequence)]
            plan = schedule(
                [_candidate(sequence) for sequence in self._running.values()],
                [_candidate(sequence) for sequence in ready],
                self._arena.num_free,
                self._step_limits,
            )
            try:
                return self._apply(plan)
            except OutOfPages:
                # A load took pages since they were counted; what was given out already is counted next time.
                continue
        return []

    def _is_ready(self, sequence: Sequence) -> bool:
        key = sequence.request.adapter_key
        return key is None or self._residents.get(key) is not None

    def _apply(self, plan: StepPlan) -> list[Part]:
        for order in plan.preempted:
            sequence = self._running.pop(order)
            self._arena.free(sequence.drop_pages(), PageUse.KV)
            self._waiting[order] = sequence
        parts = []
        for chunk in plan.chunks:
            sequence = self._running.get(chunk.order) or self._waiting[chunk.order]
            if chunk.num_new_pages:
                pages = self._arena.alloc(chunk.num_new_pages, PageUse.KV)
                sequence.add_pages(pages, self._arena.page_elements)
            parts.append(Part(sequence, chunk.num_tokens))
        for part in parts:
            self._waiting.pop(part.sequence.order, None)
            self._running[part.sequence.order] = part.sequence
        return parts

    def _run(self, parts: list[Part], events: list[StepEvent]) -> None:
        start_ns = time.monotonic_ns()
        for part in parts:
            part.sequence.first_step_ns = part.sequence.first_step_ns or start_ns
        try:
            packed, choice = self._forward(parts)
        except Exception:
            failure = InternalError()
            log.exception("step_failed", error_id=failure.fields["error_id"], num_sequences=len(parts))
            for part in parts:
                self._drop(part.sequence)
                events.append(part.sequence.failed(failure.refusal()))
            return
        self._commit(packed, choice, events)

    def _forward(self, parts: list[Part]) -> tuple[Batch, Choice]:
        adapters: dict[AdapterKey, Placement] = {}
        for part in parts:
            key = part.sequence.request.adapter_key
            if key is not None and key not in adapters:
                placement = self._residents.get(key)
                assert placement is not None, "a pinned adapter was evicted"
                adapters[key] = placement
        with torch.inference_mode():
            tables = self._slots.select(adapters)
            slots = [self._slots.slot_of(part.sequence.request.adapter_key) for part in parts]
            packed = batch.build(parts, slots, tables, self._arena.memory, self._base.kv_shape)
            logits = self._base.logits(packed.inputs, packed.tokens, packed.positions, packed.rows)
            sequences = [part.sequence for part in packed.sampled]
            if not sequences:
                return packed, Choice([], [])
            return packed, choose(
                logits,
                [sequence.request.sampling for sequence in sequences],
                [sequence.num_answer_tokens for sequence in sequences],
            )

    def _commit(self, packed: Batch, choice: Choice, events: list[StepEvent]) -> None:
        now_ns = time.monotonic_ns()
        for part in packed.parts:
            part.sequence.num_cached_tokens += part.num_tokens
            if not part.sequence.is_started:
                events.append(self._started(part.sequence, now_ns))
        for part, token, is_finite in zip(packed.sampled, choice.tokens, choice.is_finite, strict=True):
            sequence = part.sequence
            if not is_finite:
                self._drop(sequence)
                events.append(sequence.failed(_not_a_number(sequence)))
                continue
            sequence.first_token_ns = sequence.first_token_ns or now_ns
            sampling = sequence.request.sampling
            if token in sampling.stop_token_ids:
                self._end(sequence, FinishReason.STOP, now_ns, events)
                continue
            request = sequence.request
            events.append(TokensDecoded(request.request_id, request.attempt, sequence.num_answer_tokens, (token,)))
            sequence.tokens.append(token)
            if sequence.num_answer_tokens >= sampling.max_tokens:
                self._end(sequence, FinishReason.LENGTH, now_ns, events)

    def _started(self, sequence: Sequence, now_ns: int) -> SequenceStarted:
        sequence.is_started = True
        return SequenceStarted(sequence.request.request_id, sequence.request.attempt, sequence.timings(now_ns))

    def _end(self, sequence: Sequence, reason: FinishReason, now_ns: int, events: list[StepEvent]) -> None:
        self._drop(sequence)
        events.append(sequence.finished(reason, now_ns))
        if sequence.first_step_ns:
            duration_s = (now_ns - sequence.first_step_ns) / 1e9
            with self._news:
                self._mean_duration_s += _DURATION_WEIGHT * (duration_s - self._mean_duration_s)

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence and give back all that it held."""
        self._running.pop(sequence.order, None)
        self._waiting.pop(sequence.order, None)
        if sequence.pages:
            self._arena.free(sequence.drop_pages(), PageUse.KV)
        if sequence.request.adapter_key is not None:
            self._residents.unpin(sequence.request.adapter_key)
        with self._news:
            if self._live.get(sequence.request.request_id) is sequence:
                del self._live[sequence.request.request_id]

    def _settle(self, has_run: bool) -> None:
        is_ready = bool(self._running) or any(self._is_ready(sequence) for sequence in self._waiting.values())
        with self._news:
            self._num_running, self._num_waiting = len(self._running), len(self._waiting)
            # A step that could run nothing would not do better again until something changes.
            self._is_runnable = has_run and is_ready


def _candidate(sequence: Sequence) -> Candidate:
    return Candidate(
        order=sequence.order,
        tenant_id=sequence.request.tenant_id,
        num_tokens=len(sequence.tokens),
        num_cached_tokens=sequence.num_cached_tokens,
        num_pages=len(sequence.pages),
    )


def _not_a_number(sequence: Sequence) -> Refusal:
    if sequence.request.adapter_key is None:
        return InternalError().refusal()
    return AdapterRefused("not_finite", "the adapter's answer is not a number").refusal()
