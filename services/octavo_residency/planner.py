"""Which orders follow from what is known: prefetch on demand, evict where a tier runs full. Pure."""

from collections import OrderedDict

from octavo_residency.popularity import Popularity
from octavo_residency.view import WorkerView
from octavo_shared.messages.fleet import Demand, Evict, Placed, Prefetch, TierUse
from octavo_shared.messages.generation import Tier
from octavo_shared.policy import EvictionPolicy
from octavo_shared.references import PackKey, WorkerId

HIGH_WATER = 0.9
LOW_WATER = 0.8

_REPEAT_MS = 200.0
"""A second demand within this time adds nothing to an order that is on its way."""
_EVICTED_MS = 1_000.0
"""After a commanded eviction the view may still say resident for this long: heartbeats on their way are older."""
_ORDERED_MS = 60_000.0
"""Longer than a load takes with all its deadlines: by then heartbeats show it, or it has failed."""
_NUM_ORDERS_REMEMBERED = 10_000

_TIERS = (Tier.RESIDENT, Tier.WARM, Tier.LOCAL)
_BELOW = {Tier.RESIDENT: Tier.WARM, Tier.WARM: Tier.LOCAL, Tier.LOCAL: Tier.COLD}

_RELOAD_MS = {Tier.RESIDENT: (0.5, 1.0), Tier.WARM: (1.0, 2.0), Tier.LOCAL: (20.0, 10.0)}
"""Reload from the tier below, as constant ms and ms per MiB; heartbeats do not carry measured costs."""

_Policies = dict[Tier, EvictionPolicy[PackKey]]


class Planner:
    """Decides orders. What it remembers is soft: a fresh planner only repeats itself and ranks worse for a while."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity
        self._ordered: OrderedDict[tuple[WorkerId, PackKey], float] = OrderedDict()
        self._evicted: OrderedDict[tuple[WorkerId, PackKey], float] = OrderedDict()
        self._policies: dict[WorkerId, _Policies] = {}

    def on_demand(self, demand: Demand, worker: WorkerView | None, now_ms: float) -> Prefetch | None:
        """Return the order that ``demand`` calls for, or None when the adapter is resident or was just ordered.

        An unknown worker gets its order too: orders are idempotent, and the manager may have just started.
        """
        adapter = demand.adapter
        key = adapter.pack_key
        order = (demand.worker_id, key)
        self._popularity.asked(adapter.adapter_id, now_ms)
        if worker is not None and (placed := worker.placed.get(key)) is not None:
            self._use(self._policy(demand.worker_id, placed.tier), placed, now_ms)
            is_doubtful = now_ms - self._evicted.get(order, float("-inf")) < _EVICTED_MS
            if placed.tier is Tier.RESIDENT and not is_doubtful:
                return None
        if now_ms - self._ordered.get(order, float("-inf")) < _REPEAT_MS:
            return None
        _remember(self._ordered, order, now_ms)
        return Prefetch(adapter)

    def on_heartbeat(self, worker_id: WorkerId, worker: WorkerView, now_ms: float) -> list[Evict]:
        """Return the evictions that bring every tier above ``HIGH_WATER`` down to ``LOW_WATER``.

        Counted are nearest copies alone, because those are what an eviction frees. A tier may hold as many bytes
        again for adapters that are nearer too; no order of this manager can free them, and the worker's own bound
        sees to them whenever it takes something in.

        Lowest scores first, never a pinned one; fewer than needed when nothing else is idle. Nothing while the
        view of this worker is incomplete: what is not known to be idle is not evicted.
        """
        if not worker.is_complete:
            return []
        orders: list[Evict] = []
        for tier in _TIERS:
            use = _use_of(worker, tier)
            high_bytes = HIGH_WATER * use.budget_bytes
            # What is used bounds what is nearest, and is there without adding up.
            is_full = use.used_bytes > high_bytes and worker.nearest_bytes(tier) > high_bytes
            if is_full or worker.last.is_snapshot:
                self._follow(worker_id, worker, tier, now_ms)
            if is_full:
                excess_bytes = worker.nearest_bytes(tier) - int(LOW_WATER * use.budget_bytes)
                pinned = {key for key, placed in worker.placed.items() if placed.num_pins > 0}
                chosen = self._policy(worker_id, tier).choose(excess_bytes, pinned)
                orders += [Evict(adapter_id, digest, _BELOW[tier]) for adapter_id, digest in chosen]
        return orders

    def ordered_to(self, key: PackKey, now_ms: float) -> list[WorkerId]:
        """Return workers that were ordered to load ``key`` lately; their heartbeats may not show it yet."""
        return [
            worker_id
            for (worker_id, ordered), at_ms in self._ordered.items()
            if ordered == key and now_ms - at_ms < _ORDERED_MS
        ]

    def commanded(self, worker_id: WorkerId, order: Evict, now_ms: float) -> None:
        """The worker dropped an adapter on somebody's command: the next demand for it must order it again."""
        place = (worker_id, order.pack_key)
        self._ordered.pop(place, None)
        _remember(self._evicted, place, now_ms)

    def evicted(self, worker_id: WorkerId, order: Evict) -> None:
        """The worker obeyed: what it still holds in the tier above ages by the score of what left."""
        for tier, below in _BELOW.items():
            if below is order.tier:
                self._policy(worker_id, tier).evicted(order.pack_key)

    def forget(self, worker_id: WorkerId) -> None:
        """Drop what is remembered of a worker that is gone."""
        self._policies.pop(worker_id, None)

    def _policy(self, worker_id: WorkerId, tier: Tier) -> EvictionPolicy[PackKey]:
        return self._policies.setdefault(worker_id, {}).setdefault(tier, EvictionPolicy[PackKey]())

    def _follow(self, worker_id: WorkerId, worker: WorkerView, tier: Tier, now_ms: float) -> None:
        policy = self._policy(worker_id, tier)
        held = {placed.pack_key: placed for placed in worker.in_tier(tier)}
        for key in [key for key in policy.keys() if key not in held]:  # noqa: SIM118 - not a dict
            policy.dropped(key)
        for key, placed in held.items():
            if key not in policy:
                self._use(policy, placed, now_ms)

    def _use(self, policy: EvictionPolicy[PackKey], placed: Placed, now_ms: float) -> None:
        constant_ms, ms_per_mib = _RELOAD_MS[placed.tier]
        policy.used(
            placed.pack_key,
            placed.size_bytes,
            cost_ms=constant_ms + ms_per_mib * placed.size_bytes / 2**20,
            # At least one use: it was loaded for somebody, if before this manager's time.
            frequency=max(1.0, self._popularity.frequency(placed.adapter_id, now_ms)),
        )


def _remember(
    times_ms: OrderedDict[tuple[WorkerId, PackKey], float], place: tuple[WorkerId, PackKey], now_ms: float
) -> None:
    times_ms[place] = now_ms
    times_ms.move_to_end(place)
    if len(times_ms) > _NUM_ORDERS_REMEMBERED:
        times_ms.popitem(last=False)


def _use_of(worker: WorkerView, tier: Tier) -> TierUse:
    last = worker.last
    return {Tier.RESIDENT: last.resident, Tier.WARM: last.warm, Tier.LOCAL: last.local}[tier]
