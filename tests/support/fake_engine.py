"""An engine without a model, for fast tests of the service around it: it echoes the prompt, a token per step."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo_shared.errors import Overloaded
from octavo_shared.messages.generation import FinishReason
from octavo_shared.pack import PackHeader
from octavo_shared.references import AdapterId, PackKey
from octavo_worker.adapters.pages import OutOfPages
from octavo_worker.engine.engine import EngineLoad
from octavo_worker.engine.sequence import (
    SequenceFinished,
    SequenceRequest,
    SequenceStarted,
    SequenceTimings,
    Span,
    StepEvent,
    TokensDecoded,
)

PAGE_BYTES = 1024


@dataclass
class _Sequence:
    request: SequenceRequest
    submitted_ns: int = field(default_factory=time.monotonic_ns)
    begun_ns: int = 0
    num_tokens: int = 0
    is_cancelled: bool = False


class FakeEngine:
    """``step_s`` is how long a step takes; ``num_installs`` counts packs that were made resident.

    ``before_evict`` is called first by every eviction, on the thread that evicts.
    """

    context_tokens = 100

    def __init__(self, num_pages: int = 64, num_waiting_max: int = 8, step_s: float = 0.0) -> None:
        self._num_pages = num_pages
        self._num_waiting_max = num_waiting_max
        self._step_s = step_s
        self._news = threading.Condition()
        self._sequences: dict[str, _Sequence] = {}
        self._resident: dict[PackKey, int] = {}
        self.num_installs = 0
        self.forgotten: list[AdapterId] = []
        self.raises: Exception | None = None
        self.before_evict: Callable[[], object] = lambda: None

    def submit(self, request: SequenceRequest) -> None:
        with self._news:
            if len(self._sequences) >= self._num_waiting_max:
                raise Overloaded(retry_after_s=1)
            self._sequences[request.request_id] = _Sequence(request, num_tokens=len(request.forced))
            self._news.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._news:
            if sequence := self._sequences.get(request_id):
                sequence.is_cancelled = True
                self._news.notify_all()

    def install(self, key: PackKey, pack: memoryview, header: PackHeader) -> None:
        num_pages = -(-len(pack) // PAGE_BYTES)
        with self._news:
            free = self._num_pages - sum(self._resident.values())
            if key not in self._resident and num_pages > free:
                raise OutOfPages(num_pages, free)
            self._resident[key] = num_pages
            self.num_installs += 1
            self._news.notify_all()

    def evict(self, key: PackKey) -> bool:
        self.before_evict()
        with self._news:
            if self._num_pins(key):
                return False
            self._resident.pop(key, None)
            return True

    def forget(self, adapter_id: AdapterId) -> None:
        self.forgotten.append(adapter_id)

    def residency(self) -> list[tuple[PackKey, int, int]]:
        with self._news:
            return [(key, num_pages * PAGE_BYTES, self._num_pins(key)) for key, num_pages in self._resident.items()]

    def load(self) -> EngineLoad:
        with self._news:
            num_running = sum(s.begun_ns > 0 for s in self._sequences.values())
            free = self._num_pages - sum(self._resident.values())
            return EngineLoad(num_running, len(self._sequences) - num_running, free, self._num_pages, PAGE_BYTES)

    def wait_for_work(self, timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: self.raises is not None or bool(self._ready()), timeout_s)

    def step(self) -> list[StepEvent]:
        if self.raises is not None:
            raise self.raises
        time.sleep(self._step_s)
        with self._news:
            return [event for sequence in self._ready() for event in self._advance(sequence)]

    def _ready(self) -> list[_Sequence]:
        return [
            s
            for s in self._sequences.values()
            if s.is_cancelled or s.request.adapter_key is None or s.request.adapter_key in self._resident
        ]

    def _advance(self, sequence: _Sequence) -> list[StepEvent]:
        request, now_ns = sequence.request, time.monotonic_ns()
        if sequence.is_cancelled:
            return [self._finish(sequence, FinishReason.CANCELLED)]
        events: list[StepEvent] = []
        if not sequence.begun_ns:
            sequence.begun_ns = now_ns
            timings = SequenceTimings(queued=Span(sequence.submitted_ns, now_ns))
            events.append(SequenceStarted(request.request_id, request.attempt, timings))
        token = request.prompt[sequence.num_tokens % len(request.prompt)]
        events.append(TokensDecoded(request.request_id, request.attempt, sequence.num_tokens, (token,)))
        sequence.num_tokens += 1
        if sequence.num_tokens >= request.sampling.max_tokens:
            events.append(self._finish(sequence, FinishReason.LENGTH))
        return events

    def _finish(self, sequence: _Sequence, reason: FinishReason) -> SequenceFinished:
        request, now_ns = sequence.request, time.monotonic_ns()
        del self._sequences[request.request_id]
        begun_ns = sequence.begun_ns or now_ns
        timings = SequenceTimings(Span(sequence.submitted_ns, begun_ns), Span(begun_ns, now_ns), None)
        return SequenceFinished(
            request.request_id, request.attempt, reason, len(request.prompt), sequence.num_tokens, timings
        )

    def _num_pins(self, key: PackKey) -> int:
        return sum(s.request.adapter_key == key for s in self._sequences.values())
