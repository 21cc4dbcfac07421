"""What is where, as heartbeats tell it. Soft: a manager that starts with nothing knows all again in seconds. Pure."""

from dataclasses import dataclass, field

import msgspec

from octavo_shared.messages.fleet import HEARTBEAT_TIMEOUT_MS, Heartbeat, Placed
from octavo_shared.messages.generation import Tier
from octavo_shared.references import PackKey, WorkerId

_NUM_WORKERS_MAX = 1_024


@dataclass
class WorkerView:
    """One worker. ``is_complete`` is False from a missed heartbeat until the next snapshot."""

    last: Heartbeat
    heard_ms: float
    placed: dict[PackKey, Placed] = field(default_factory=dict)
    is_complete: bool = False

    def in_tier(self, tier: Tier) -> list[Placed]:
        """Return what this worker holds in ``tier`` as its nearest copy."""
        return [placed for placed in self.placed.values() if placed.tier is tier]

    def nearest_bytes(self, tier: Tier) -> int:
        """Return the bytes of what has its nearest copy in ``tier``."""
        return sum(placed.size_bytes for placed in self.in_tier(tier))

    def tier_of(self, key: PackKey) -> Tier:
        """Return where ``key`` is; COLD when it is not here, or not known to be."""
        placed = self.placed.get(key)
        return placed.tier if placed else Tier.COLD


class FleetView:
    """All workers that were heard in the last ``HEARTBEAT_TIMEOUT_MS``."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, WorkerView] = {}

    def heard(self, heartbeat: Heartbeat, now_ms: float) -> WorkerView | None:
        """Take in one heartbeat; returns the worker's view, or None for a stale or surplus one."""
        known = self._workers.get(heartbeat.worker_id)
        if known is not None and (heartbeat.epoch, heartbeat.sequence) <= (known.last.epoch, known.last.sequence):
            return None
        if known is None or heartbeat.epoch != known.last.epoch:
            if known is None and len(self._workers) >= _NUM_WORKERS_MAX:
                return None
            known = self._workers[heartbeat.worker_id] = WorkerView(heartbeat, now_ms)
        elif heartbeat.sequence != known.last.sequence + 1:
            known.is_complete = False
        if heartbeat.is_snapshot:
            known.placed.clear()
            known.is_complete = True
        # Deltas after a gap are applied too: each is true by itself, only what the gap held is missing.
        for placed in heartbeat.placed:
            key = placed.pack_key
            if placed.tier is Tier.COLD:
                known.placed.pop(key, None)
            else:
                known.placed[key] = placed
        known.last = heartbeat
        known.heard_ms = now_ms
        return known

    def forget_silent(self, now_ms: float) -> list[WorkerId]:
        """Drop workers that have been silent for too long, and name them."""
        silent = [name for name, view in self._workers.items() if now_ms - view.heard_ms > HEARTBEAT_TIMEOUT_MS]
        for name in silent:
            del self._workers[name]
        return silent

    def worker(self, worker_id: WorkerId) -> WorkerView | None:
        return self._workers.get(worker_id)

    def holders(self, key: PackKey) -> list[WorkerId]:
        """Return the workers that hold ``key`` in any tier above cold."""
        return [name for name, view in self._workers.items() if key in view.placed]

    def incomplete(self) -> list[WorkerId]:
        """Return the workers of which a snapshot is awaited."""
        return [name for name, view in self._workers.items() if not view.is_complete]

    def snapshots(self) -> tuple[Heartbeat, ...]:
        """Return every worker's last heartbeat with its whole residency in it."""
        return tuple(
            msgspec.structs.replace(view.last, placed=tuple(view.placed.values()), is_snapshot=view.is_complete)
            for view in self._workers.values()
        )
