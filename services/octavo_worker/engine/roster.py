"""The sequences that are here, running or waiting, with the pages, shares and pins that they hold."""

from octavo_worker.adapters.pages import Arena, OutOfPages
from octavo_worker.adapters.residents import Residents
from octavo_worker.engine.batch import Part
from octavo_worker.engine.kv_pages import KvPages
from octavo_worker.engine.scheduler import Candidate, StepLimits, StepPlan, schedule
from octavo_worker.engine.sequence import Sequence
from octavo_worker.engine.shares import TenantShares

_NUM_PLANS_MAX = 3
"""How often a step is planned again because a load took pages after the plan was made."""
_PATIENCE_NS = 5_000_000_000
"""Whoever could run and has waited for this long comes before all shares."""


class Roster:
    """Belongs to the stepping thread, but for what ``KvPages`` and ``Residents`` let other threads do.

    A sequence is in ``waiting`` or in ``running``, by its order. One whose adapter is not resident waits and is not
    considered.
    """

    def __init__(self, arena: Arena, residents: Residents, limits: StepLimits) -> None:
        self.kv = KvPages(arena, limits.kv_shape)
        self.shares = TenantShares()
        self.running: dict[int, Sequence] = {}
        self.waiting: dict[int, Sequence] = {}
        self._residents = residents
        self._limits = limits

    def find(self, order: int) -> Sequence | None:
        return self.running.get(order) or self.waiting.get(order)

    def arrived(self, sequence: Sequence) -> None:
        """Take in a sequence whose adapter is pinned."""
        self.shares.arrived(sequence.request.tenant_id)
        self.waiting[sequence.order] = sequence

    def left(self, sequence: Sequence) -> None:
        """Forget a sequence and give back all that it held."""
        self.running.pop(sequence.order, None)
        self.waiting.pop(sequence.order, None)
        self.kv.release(sequence)
        self.shares.left(sequence.request.tenant_id)
        if sequence.request.adapter_key is not None:
            self._residents.unpin(sequence.request.adapter_key)

    def schedule(self, now_ns: int) -> list[Part]:
        """Choose the parts of the next batch and give them their pages."""
        for _ in range(_NUM_PLANS_MAX):
            ready = [sequence for sequence in self.waiting.values() if self._is_ready(sequence)]
            plan = schedule(
                [self._candidate(sequence, now_ns) for sequence in self.running.values()],
                [self._candidate(sequence, now_ns) for sequence in ready],
                self.kv.num_available,
                self._limits,
            )
            try:
                return self._apply(plan)
            except OutOfPages:
                # A load took pages since they were counted; what running ones were given is counted next time.
                self._take_back(plan)
        return []

    def has_ready(self) -> bool:
        """Tell whether any sequence could compute something, pages permitting."""
        return bool(self.running) or any(self._is_ready(sequence) for sequence in self.waiting.values())

    def check_integrity(self) -> None:
        """Assert that the pages of all sequences are those that KV has; between steps."""
        self.kv.check_integrity([*self.running.values(), *self.waiting.values()])

    def _is_ready(self, sequence: Sequence) -> bool:
        key = sequence.request.adapter_key
        return key is None or self._residents.get(key) is not None

    def _apply(self, plan: StepPlan) -> list[Part]:
        for order in plan.preempted:
            sequence = self.running.pop(order)
            self.kv.release(sequence)
            self.waiting[order] = sequence
        parts = []
        for chunk in plan.chunks:
            sequence = self.running.get(chunk.order) or self.waiting[chunk.order]
            if not sequence.num_reserved_tokens:
                # The plan counted on computing all of it, so whatever is found only makes it need less.
                self.kv.attach(sequence)
            num_tokens = min(chunk.num_tokens, len(sequence.tokens) - sequence.num_cached_tokens)
            self.kv.reserve(sequence, sequence.num_cached_tokens + num_tokens)
            parts.append(Part(sequence, num_tokens))
        for part in parts:
            self.waiting.pop(part.sequence.order, None)
            self.running[part.sequence.order] = part.sequence
        return parts

    def _take_back(self, plan: StepPlan) -> None:
        """Free the pages of those that ``plan`` was to let in.

        Only running sequences are ever preempted, so pages left with a waiting one could keep the oldest from
        advancing for good.
        """
        for chunk in plan.chunks:
            if (sequence := self.waiting.get(chunk.order)) is not None and sequence.num_reserved_tokens:
                self.kv.release(sequence)

    def _candidate(self, sequence: Sequence, now_ns: int) -> Candidate:
        return Candidate(
            order=sequence.order,
            tenant_id=sequence.request.tenant_id,
            num_tokens=len(sequence.tokens),
            num_cached_tokens=sequence.num_cached_tokens,
            num_reserved_tokens=sequence.num_reserved_tokens,
            num_pages=sum(len(run.pages) for run in sequence.runs),
            served=self.shares.served(sequence.request.tenant_id),
            is_overdue=not sequence.is_started and now_ns - sequence.submitted_ns > _PATIENCE_NS,
        )
