"""Orders to a worker: prefetch and evict. The worker obeys, reports, and loads by itself when none come."""

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import OctavoError
from octavo_shared.messages.fleet import Evict, OrderDone, Prefetch
from octavo_shared.messages.generation import Tier
from octavo_shared.references import WorkerId
from octavo_worker.adapters.loader import Loader


class Orders:
    """Handlers of the verbs ``prefetch`` (no answer) and ``evict`` (answers ``OrderDone``); both idempotent."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    async def subscribe(self, bus: Bus, worker_id: WorkerId) -> None:
        """Begin to take orders."""
        await bus.serve(subjects.worker(worker_id, "prefetch"), Prefetch, self.prefetch)
        await bus.serve(subjects.worker(worker_id, "evict"), Evict, self.evict)

    async def prefetch(self, order: Prefetch) -> None:
        """Bring the adapter up to the ordered tier. A failure is heard by the requests that wait for it."""
        if order.tier in (Tier.COLD, Tier.BASE):
            return
        try:
            await self._loader.load(order.adapter, order.tier)
        except OctavoError:
            # Logged and counted where it happened; an order that fails is only a cache that stays cold.
            return

    async def evict(self, order: Evict) -> OrderDone:
        """Drop the copies above the ordered tier, or say that the adapter is in use."""
        return await self._loader.evict(order.pack_key, order.tier)
