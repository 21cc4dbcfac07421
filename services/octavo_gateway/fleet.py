"""The fleet as this gateway sees it: built from heartbeats alone, forgotten when they stop."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from octavo_gateway.routing import Candidate, pick
from octavo_shared.clock import now_ms
from octavo_shared.messages.fleet import HEARTBEAT_TIMEOUT_MS, Heartbeat, WorkerState
from octavo_shared.messages.generation import Tier
from octavo_shared.references import Fingerprint, PackKey, WorkerId
from octavo_shared.telemetry import log

_WORKERS_MAX = 4096


@dataclass
class WorkerView:
    """What is known of one worker. ``tiers`` is empty while a heartbeat is missing, until the next snapshot."""

    heartbeat: Heartbeat
    heard_ms: float
    is_synced: bool = False
    tiers: dict[PackKey, Tier] = field(default_factory=dict)


class FleetView:
    """Applies heartbeats and answers questions about live workers."""

    def __init__(self, clock_ms: Callable[[], float] = now_ms) -> None:
        self._clock_ms = clock_ms
        self._workers: dict[WorkerId, WorkerView] = {}
        self._sent: dict[WorkerId, int] = {}
        self._changed = asyncio.Event()

    def apply(self, heartbeat: Heartbeat) -> None:
        """Take one heartbeat in; those of an older epoch, or out of order, change nothing."""
        at_ms = self._clock_ms()
        view = self._workers.get(heartbeat.worker_id)
        if view is not None and heartbeat.epoch < view.heartbeat.epoch:
            return
        if view is None or heartbeat.epoch > view.heartbeat.epoch:
            if view is None and len(self._workers) >= _WORKERS_MAX:
                log.warning("worker_ignored", worker_id=heartbeat.worker_id, num_workers_max=_WORKERS_MAX)
                return
            log.info("worker_joined", worker_id=heartbeat.worker_id, epoch=heartbeat.epoch)
            view = self._workers[heartbeat.worker_id] = WorkerView(heartbeat, at_ms)
            is_next = False
        else:
            if heartbeat.sequence <= view.heartbeat.sequence:
                return
            is_next = heartbeat.sequence == view.heartbeat.sequence + 1
        # Load numbers are whole in every heartbeat; only the residency is sent as changes.
        view.heartbeat, view.heard_ms = heartbeat, at_ms
        if heartbeat.is_snapshot:
            view.is_synced, view.tiers = True, {}
        elif not is_next:
            view.is_synced, view.tiers = False, {}
        if view.is_synced:
            for placed in heartbeat.placed:
                key = placed.pack_key
                if placed.tier is Tier.COLD:
                    view.tiers.pop(key, None)
                else:
                    view.tiers[key] = placed.tier
        self._changed.set()

    def live(self) -> list[WorkerView]:
        """Return the workers heard of in time, and forget the others."""
        horizon = self._clock_ms() - HEARTBEAT_TIMEOUT_MS
        for worker_id in [name for name, view in self._workers.items() if view.heard_ms < horizon]:
            log.warning("worker_lost", worker_id=worker_id)
            del self._workers[worker_id]
        return list(self._workers.values())

    def epoch_of(self, worker_id: WorkerId) -> int | None:
        """Return the epoch of a live worker, or None."""
        view = self._workers.get(worker_id)
        if view is None or view.heard_ms < self._clock_ms() - HEARTBEAT_TIMEOUT_MS:
            return None
        return view.heartbeat.epoch

    def is_draining(self, worker_id: WorkerId) -> bool:
        view = self._workers.get(worker_id)
        return view is not None and view.heartbeat.state is WorkerState.DRAINING

    def bases(self) -> dict[Fingerprint, str]:
        """Return fingerprint and name of every base that a live worker holds."""
        return {view.heartbeat.base: view.heartbeat.base_name for view in self.live()}

    def context_tokens(self, base: Fingerprint, context_tokens: int) -> int:
        """Return the longest sequence of a base of ``context_tokens`` that every live worker's memory can hold."""
        limits = [view.heartbeat.context_tokens for view in self.live() if view.heartbeat.base == base]
        return min([context_tokens, *(limit for limit in limits if limit)])

    def pick(
        self, base: Fingerprint, adapter: PackKey | None, request_id: str, excluded: Collection[WorkerId]
    ) -> WorkerId | None:
        """Return the worker that ``routing.pick`` chooses now."""
        candidates = [
            Candidate(view.heartbeat.worker_id, view.heartbeat.state, view.heartbeat.base, self._load(view), view.tiers)
            for view in self.live()
        ]
        return pick(candidates, base, adapter, request_id, excluded)

    def has_room(self, base: Fingerprint, excluded: Collection[WorkerId]) -> bool:
        """Tell whether a ready worker of ``base`` could run one more sequence at once."""
        return any(
            view.heartbeat.state is WorkerState.READY
            and view.heartbeat.base == base
            and view.heartbeat.worker_id not in excluded
            and self._load(view) < view.heartbeat.num_running_max
            for view in self.live()
        )

    @contextlib.contextmanager
    def sent_to(self, worker_id: WorkerId) -> Iterator[None]:
        """Count a request of this gateway at a worker, so that a burst between two heartbeats spreads."""
        self._sent[worker_id] = self._sent.get(worker_id, 0) + 1
        try:
            yield
        finally:
            self._sent[worker_id] -= 1
            if not self._sent[worker_id]:
                del self._sent[worker_id]

    async def changed(self, timeout_s: float) -> None:
        """Return at the next heartbeat that changed the view, or after ``timeout_s``."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _load(self, view: WorkerView) -> int:
        heartbeat = view.heartbeat
        return max(heartbeat.num_running + heartbeat.num_waiting, self._sent.get(heartbeat.worker_id, 0))
