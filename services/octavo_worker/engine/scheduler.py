"""Who computes how many tokens in the next step. Pure: values in, a plan out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from octavo_shared.references import TenantId
from octavo_worker.model.kv_shape import KvShape

NUM_STEP_TOKENS_MAX = 256
"""Rows of one step unless told otherwise: enough that the weights are read for many, few enough that decodes flow."""


@dataclass(frozen=True)
class Candidate:
    """A sequence as the scheduler sees it. ``order`` names it: smaller came first.

    It holds ``num_pages`` pages, which have room for its first ``num_reserved_tokens`` tokens.
    """

    order: int
    tenant_id: TenantId
    num_tokens: int
    num_cached_tokens: int
    num_reserved_tokens: int
    num_pages: int
    served: float = 0.0
    """What its tenant was served, in weighted tokens."""
    is_overdue: bool = False
    """It has waited so long that it comes before all shares."""

    @property
    def num_missing(self) -> int:
        """Tokens whose keys and values are not computed yet; 1 while decoding."""
        return self.num_tokens - self.num_cached_tokens


@dataclass(frozen=True)
class StepLimits:
    """``num_step_tokens_max`` rows per step, no less than ``num_running_max`` so that every decode finds room."""

    num_running_max: int
    num_step_tokens_max: int
    kv_shape: KvShape

    def __post_init__(self) -> None:
        if not 1 <= self.num_running_max <= self.num_step_tokens_max:
            raise ValueError(f"{self.num_step_tokens_max} tokens per step cannot hold {self.num_running_max} sequences")


@dataclass(frozen=True)
class Chunk:
    """``num_tokens`` more tokens of a sequence, for which it needs ``num_new_pages`` more pages."""

    order: int
    num_tokens: int
    num_new_pages: int


@dataclass(frozen=True)
class StepPlan:
    """``preempted`` give back their pages first; then ``chunks`` get theirs. Waiting ones with a chunk are admitted."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[int, ...]


def schedule(
    running: Sequence[Candidate], waiting: Sequence[Candidate], num_pages_free: int, limits: StepLimits
) -> StepPlan:
    """Plan one step: decodes first, then prefills that run, then newcomers of the tenants that were served least.

    ``waiting`` holds only sequences that could run: their adapter is resident. When pages run out, the youngest
    running sequence gives its own back and will compute again; the oldest is never preempted, so it always
    advances. Newcomers enter when all their known tokens fit; they preempt nobody, but for one that is overdue while
    every place is taken: then the youngest of the tenant that holds most places gives its own up.
    """
    step = _Step(running, num_pages_free, limits)
    for candidate in sorted(running, key=lambda c: (c.num_missing > 1, c.order)):
        step.advance(candidate)
    step.admit(waiting)
    return StepPlan(tuple(step.chunks.values()), tuple(step.preempted))


class _Step:
    """The plan while it is made."""

    def __init__(self, running: Sequence[Candidate], num_pages_free: int, limits: StepLimits) -> None:
        self._limits = limits
        self._free = num_pages_free
        self._tokens_left = limits.num_step_tokens_max
        self._running = {candidate.order: candidate for candidate in running}
        self.chunks: dict[int, Chunk] = {}
        self.preempted: list[int] = []

    def advance(self, candidate: Candidate) -> None:
        """Give a running sequence its chunk, preempting younger ones for pages; or leave it out of this step."""
        num_tokens = min(candidate.num_missing, self._tokens_left)
        if candidate.order not in self._running or num_tokens < 1:
            return
        needed = self._new_pages(candidate, num_tokens)
        while needed > self._free and (youngest := max(self._running)) > candidate.order:
            self._preempt(self._running[youngest])
        if needed > self._free:
            # Nobody younger is left to give way: take what fits, or keep what it has and wait.
            num_tokens = self._num_fitting(candidate, num_tokens)
            if num_tokens < 1:
                return
        self._grant(candidate, num_tokens)

    def admit(self, waiting: Sequence[Candidate]) -> None:
        """Let waiting sequences in, while there is room: overdue ones first, then the least served tenant's."""
        if self.preempted:
            # Whoever was preempted just now would be let in again at once.
            return
        self._make_place(waiting)
        served = {candidate.tenant_id: candidate.served for candidate in waiting}
        left = list(waiting)
        while left and self._tokens_left > 0 and len(self._running) < self._limits.num_running_max:
            candidate = min(left, key=lambda c: (not c.is_overdue, not c.is_overdue and served[c.tenant_id], c.order))
            if self._num_pages_to_begin(candidate) > self._free:
                if self._running:
                    return
                # Alone it may start with what fits.
                num_tokens = self._num_fitting(candidate, min(candidate.num_missing, self._tokens_left))
                if num_tokens < 1:
                    return
                self._running[candidate.order] = candidate
                self._grant(candidate, num_tokens)
                return
            left.remove(candidate)
            # What is let in now counts at once, or one tenant would fill all places before anything is charged.
            served[candidate.tenant_id] += candidate.num_missing
            self._running[candidate.order] = candidate
            self._grant(candidate, min(candidate.num_missing, self._tokens_left))

    def _make_place(self, waiting: Sequence[Candidate]) -> None:
        overdue = min((c for c in waiting if c.is_overdue), key=lambda c: c.order, default=None)
        if overdue is None or len(self._running) < self._limits.num_running_max:
            return
        num_places = Counter(candidate.tenant_id for candidate in self._running.values())
        num_places[overdue.tenant_id] += 1
        tenant_id, num_held = num_places.most_common(1)[0]
        if tenant_id == overdue.tenant_id or num_held <= num_places[overdue.tenant_id]:
            return
        youngest = max((c for c in self._running.values() if c.tenant_id == tenant_id), key=lambda c: c.order)
        if self._num_pages_to_begin(overdue) <= self._free + youngest.num_pages:
            self._preempt(youngest)

    def _new_pages(self, candidate: Candidate, num_tokens: int) -> int:
        shape = self._limits.kv_shape
        return shape.num_new_pages(candidate.num_cached_tokens + num_tokens, candidate.num_reserved_tokens)

    def _num_fitting(self, candidate: Candidate, num_tokens_max: int) -> int:
        """Return how many tokens, at most ``num_tokens_max``, the free pages have room for."""
        fits = (num for num in range(num_tokens_max, 0, -1) if self._new_pages(candidate, num) <= self._free)
        return next(fits, 0)

    def _num_pages_to_begin(self, candidate: Candidate) -> int:
        """Return the most pages that a waiting sequence, which holds none, needs until its first decode is done.

        Pages that a window passes meanwhile are used again, so this may be less than its tokens fill. With one token
        more than it has, so that its first decode does not have to preempt somebody.
        """
        return self._limits.kv_shape.num_pages_max(candidate.num_tokens + 1, self._limits.num_step_tokens_max)

    def _grant(self, candidate: Candidate, num_tokens: int) -> None:
        num_new_pages = self._new_pages(candidate, num_tokens)
        self._free -= num_new_pages
        self._tokens_left -= num_tokens
        self.chunks[candidate.order] = Chunk(candidate.order, num_tokens, num_new_pages)

    def _preempt(self, candidate: Candidate) -> None:
        del self._running[candidate.order]
        self._free += candidate.num_pages
        self.preempted.append(candidate.order)
        if chunk := self.chunks.pop(candidate.order, None):
            self._free += chunk.num_new_pages
            self._tokens_left += chunk.num_tokens
