"""The verb ``erase``, and what holds for a worker that did not hear it: it asks what was erased, or lets go of all."""

import asyncio

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.errors import AdapterErased, AdapterUnavailable, DependencyUnavailable, OctavoError
from octavo_shared.messages.privacy import ERASURES_MAX, EraseDone, EraseOrder, Erasures, ErasuresSince
from octavo_shared.references import AdapterId, WorkerId
from octavo_shared.telemetry import log
from octavo_worker.adapters.data_keys import DataKeys
from octavo_worker.adapters.loader import Loader
from octavo_worker.generation_server import GenerationServer
from octavo_worker.settings import Cadence

_ASK_TIMEOUT_S = 5.0


class Eraser:
    """Destroys what this worker has of erased adapters. Belongs to the event loop.

    Orders may be lost, so every ``cadence.erasures_ms`` identity is asked for the list of what was erased. Memory that
    was opened from sealed packs is a lease on that list: a worker that has not got it for ``cadence.key_lease_ms``
    forgets all data keys and all that they opened. What stays is sealed.
    """

    def __init__(
        self, bus: Bus, worker_id: WorkerId, loader: Loader, server: GenerationServer, keys: DataKeys, cadence: Cadence
    ) -> None:
        self._bus = bus
        self._worker_id = worker_id
        self._loader = loader
        self._server = server
        self._keys = keys
        self._cadence = cadence
        self._after: int | None = None
        self._heard_ms = now_ms()
        self._is_fenced = False

    async def subscribe(self) -> None:
        """Begin to take orders."""
        await self._bus.serve(subjects.worker(self._worker_id, "erase"), EraseOrder, self.erase)

    async def erase(self, order: EraseOrder) -> EraseDone:
        """End the adapter's requests and destroy all of it that is here; answers when nothing is left. Idempotent."""
        await self._erase(order.adapter_id)
        return EraseDone(self._worker_id)

    async def watch(self) -> None:
        """Ask what was erased, until cancelled."""
        while True:
            try:
                while not await self._catch_up():
                    pass
            except DependencyUnavailable:
                await self._check_lease()
            except OctavoError as error:
                log.error("erasures_not_heard", code=error.code, detail=error.message)
                await self._check_lease()
            await asyncio.sleep(self._cadence.erasures_ms / 1e3)

    async def _catch_up(self) -> bool:
        """Do what the list says behind where it was read to; tells whether that was all."""
        asked_ms = now_ms()
        subject = subjects.identity("erasures")
        found = await self._bus.request(subject, ErasuresSince(self._after), Erasures, _ASK_TIMEOUT_S, who="identity")
        for adapter_id in found.adapter_ids:
            await self._erase(adapter_id)
        if self._after is None and len(self._keys):
            # Whatever was opened before the list was begun may have been erased between.
            await self._fence()
        self._after = found.until
        self._heard_ms, self._is_fenced = asked_ms, False
        return len(found.adapter_ids) < ERASURES_MAX

    async def _check_lease(self) -> None:
        if not self._is_fenced and now_ms() - self._heard_ms > self._cadence.key_lease_ms:
            log.warning("lease_expired", silent_ms=round(now_ms() - self._heard_ms))
            self._is_fenced = True
            await self._fence()

    async def _erase(self, adapter_id: AdapterId) -> None:
        self._loader.refuse(adapter_id)
        self._keys.forget(adapter_id)
        num_ended = await self._server.end_requests(AdapterErased(), adapter_id)
        await self._loader.erase(adapter_id)
        # One that was on its way may have come meanwhile.
        self._keys.forget(adapter_id)
        log.info("adapter_erased", num_ended=num_ended)

    async def _fence(self) -> None:
        self._keys.forget_all()
        await self._server.end_requests(AdapterUnavailable("its lease on data keys has expired"))
        await self._loader.erase_memory()
        self._keys.forget_all()
