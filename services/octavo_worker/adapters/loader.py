"""Brings adapters to a tier and takes them away: single flight per pack, orders to evict and to erase.

Belongs to the event loop; reading, hashing and copying run on threads. No load waits for another one, except
for its turn at a bounded resource: threads, S3 reads, packs held in memory at once, device pages.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from opentelemetry.trace import SpanKind, Status, StatusCode

from octavo_shared.clock import now_ms
from octavo_shared.errors import (
    AdapterErased,
    BaseMismatch,
    OctavoError,
    Overloaded,
)
from octavo_shared.messages.fleet import OrderDone, Placed
from octavo_shared.messages.generation import AdapterHandle, Tier, Timings
from octavo_shared.references import AdapterId, Fingerprint, PackKey
from octavo_shared.telemetry import log, tracer
from octavo_worker import metrics
from octavo_worker.adapters.device_tier import Device, DeviceTier
from octavo_worker.adapters.packs import PackTiers

_FLIGHTS_MAX = 1_024
_INSTALLS_MAX = 16
"""Packs that are in memory on their way to the device at once; the rest of the flights wait before reading."""
_ERASED_KEPT_MAX = 65_536

_NO_TIME = Timings()


@dataclass(frozen=True)
class Loaded:
    """How a load went: the tier that the pack was found in and where the time went."""

    tier: Tier
    timings: Timings = _NO_TIME


@dataclass(frozen=True)
class _Flight:
    target: Tier
    task: asyncio.Task[Loaded]


class Loader:
    """Adapters of one worker. ``resident_budget_bytes`` bounds what they take of the device (see ``DeviceTier``)."""

    def __init__(
        self, device: Device, packs: PackTiers, base: Fingerprint, resident_budget_bytes: int, threads: Executor
    ) -> None:
        self._packs = packs
        self._base = base
        self._flights: dict[PackKey, _Flight] = {}
        self._begun: dict[PackKey, asyncio.Event] = {}
        self._install_slots = asyncio.Semaphore(_INSTALLS_MAX)
        self._erased: OrderedDict[AdapterId, None] = OrderedDict()
        self.on_change: Callable[[], None] = lambda: None
        self._device = DeviceTier(
            device, resident_budget_bytes, threads, self._flights.keys(), on_change=lambda: self.on_change()
        )

    @property
    def resident_bytes(self) -> int:
        return self._device.used_bytes

    @property
    def resident_budget_bytes(self) -> int:
        return self._device.budget_bytes

    def find(self, key: PackKey) -> Tier:
        """Return where ``key`` is now."""
        return Tier.RESIDENT if key in self._device else self._packs.find(key)

    def is_loading(self, key: PackKey) -> bool:
        return key in self._flights

    def pin(self, key: PackKey) -> None:
        """Forbid eviction of ``key`` until the matching ``unpin``; also of what is still to be loaded."""
        self._device.pin(key)

    def unpin(self, key: PackKey) -> None:
        """Take back one ``pin``."""
        self._device.unpin(key)
        if not self._device.num_pins(key):
            self._begun.pop(key, None)
        self.on_change()

    def room_changed(self) -> None:
        """Device pages may have become free: let loads that wait for room look again."""
        self._device.room_changed()

    async def load(self, handle: AdapterHandle, target: Tier = Tier.RESIDENT) -> Loaded:
        """Bring the pack of ``handle`` up to ``target`` and say where it was; single flight per pack.

        Idempotent. Raises ``BaseMismatch``, ``AdapterErased``, ``AdapterUnavailable`` or ``Overloaded``, the same to
        everybody who waits for the same flight.
        """
        self.check_not_erased(handle.adapter_id)
        if handle.base != self._base:
            raise BaseMismatch(adapter_base=handle.base, served_base=self._base)
        key = handle.pack_key
        flight = self._flights.get(key)
        if flight is not None and flight.target is not Tier.RESIDENT and target is Tier.RESIDENT:
            # A prefetch to the host is under way and more is wanted: it is warm when that ends, however it ends.
            await asyncio.wait([flight.task])
            flight = self._flights.get(key)
        if flight is None:
            if _reaches(found := self.find(key), target):
                return Loaded(found)
            flight = self._start(key, handle, target)
        return await asyncio.shield(flight.task)

    async def load_when_ordered(self, handle: AdapterHandle, grace_ms: float) -> Loaded:
        """As ``load`` to the device, but leave it to somebody else's order to begin for ``grace_ms``."""
        key = handle.pack_key
        if key not in self._flights and key not in self._device:
            begun = self._begun.setdefault(key, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_ms / 1e3):
                    await begun.wait()
        return await self.load(handle)

    async def evict(self, key: PackKey, tier: Tier) -> OrderDone:
        """Drop the copies above ``tier``; ``is_done`` is False while the adapter is in use, queued or loading."""
        await self._device.settled(key)
        if self._device.num_pins(key) or key in self._flights:
            return OrderDone(False, self.find(key))
        if tier is not Tier.RESIDENT and not await self._device.drop(key):
            return OrderDone(False, Tier.RESIDENT)
        await self._packs.drop(key, below=tier)
        self.room_changed()
        self.on_change()
        log.info("adapter_evicted", to=tier.value, now=self.find(key).value)
        return OrderDone(_reaches(tier, self.find(key)), self.find(key))

    def check_not_erased(self, adapter_id: AdapterId) -> None:
        """Raise ``AdapterErased`` when that is known here."""
        if adapter_id in self._erased:
            raise AdapterErased

    def refuse(self, adapter_id: AdapterId) -> None:
        """Take an adapter in no more; whoever waits for a load of it gets ``AdapterErased``."""
        self._erased[adapter_id] = None
        if len(self._erased) > _ERASED_KEPT_MAX:
            self._erased.popitem(last=False)

    async def erase(self, adapter_id: AdapterId) -> None:
        """Destroy every copy of an adapter that was refused here; waits until its last request lets go. Idempotent."""
        await self._purge({key for key in self._all_keys() if key[0] == adapter_id}, Tier.COLD)
        await self._device.forget(adapter_id)
        self.room_changed()

    async def erase_memory(self) -> None:
        """Destroy every copy above the disk, of all adapters; waits until the last request lets go."""
        keys = self._all_keys()
        await self._purge(keys, Tier.LOCAL)
        for adapter_id in {adapter_id for adapter_id, _ in keys}:
            await self._device.forget(adapter_id)

    def _all_keys(self) -> set[PackKey]:
        return {*self._flights, *self._device.keys(), *self._packs.keys()}

    async def _purge(self, keys: set[PackKey], tier: Tier) -> None:
        for key in keys:
            while (flight := self._flights.get(key)) is not None:
                await asyncio.wait([flight.task])
            await self._device.clear(key)
            await self._packs.erase(key, tier)
        self.on_change()

    def placed(self) -> dict[PackKey, Placed]:
        """Return the nearest copy of everything that is here, with its pins."""
        found: dict[PackKey, Placed] = {}
        tiers = (
            (Tier.LOCAL, self._packs.local.sizes()),
            (Tier.WARM, self._packs.warm.sizes()),
            (Tier.RESIDENT, self._device.sizes()),
        )
        for tier, sizes in tiers:
            for key, size_bytes in sizes:
                num_pins = self._device.num_pins(key) + (key in self._flights)
                found[key] = Placed(key[0], key[1], tier, size_bytes, num_pins)
        return found

    async def close(self) -> None:
        """Cancel the loads in flight and wait for the file writes in the background."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._packs.settle()

    def _start(self, key: PackKey, handle: AdapterHandle, target: Tier) -> _Flight:
        if len(self._flights) >= _FLIGHTS_MAX:
            raise Overloaded(retry_after_s=1)

        def landed(task: asyncio.Task[Loaded]) -> None:
            del self._flights[key]
            if not task.cancelled():
                task.exception()  # Somebody who only prefetched does not ask; that is no unseen exception.
            self.room_changed()
            self.on_change()

        # The task inherits the context, so its spans belong to the trace that triggered the load.
        task = asyncio.create_task(self._fly(key, handle, target), name="load adapter")
        flight = self._flights[key] = _Flight(target, task)
        task.add_done_callback(landed)
        if (begun := self._begun.pop(key, None)) is not None:
            begun.set()
        return flight

    async def _fly(self, key: PackKey, handle: AdapterHandle, target: Tier) -> Loaded:
        with tracer.start_as_current_span("worker.load_adapter", kind=SpanKind.INTERNAL) as span:
            started_ms = now_ms()
            try:
                async with self._install_slots:
                    found = await self._packs.fetch(handle)
                    self.check_not_erased(handle.adapter_id)
                    copy_ms = await self._device.install(key, found) if target is Tier.RESIDENT else 0.0
            except OctavoError as error:
                metrics.LOAD_FAILURES.labels(error.code).inc()
                span.set_status(Status(StatusCode.ERROR, error.message))
                log.warning("adapter_load_failed", revision=handle.revision, code=error.code, detail=error.message)
                raise
            load_ms = now_ms() - started_ms
            span.set_attributes({"octavo.tier": found.tier.value, "octavo.pack_bytes": len(found.pack)})
            metrics.LOADS.labels(found.tier.value).inc()
            metrics.LOAD_SECONDS.labels(found.tier.value).observe(load_ms / 1e3)
            log.info(
                "adapter_loaded",
                revision=handle.revision,
                tier=found.tier.value,
                to=target.value,
                load_ms=round(load_ms, 1),
            )
            return Loaded(
                found.tier,
                Timings(load_ms=load_ms, fetch_ms=found.fetch_ms, verify_ms=found.verify_ms, copy_ms=copy_ms),
            )


_HEIGHT = {Tier.COLD: 0, Tier.LOCAL: 1, Tier.WARM: 2, Tier.RESIDENT: 3}


def _reaches(tier: Tier, target: Tier) -> bool:
    return _HEIGHT[tier] >= _HEIGHT[target]
