"""Brings adapters to the device and takes them away: single flight per pack, pins, room made by policy.

Belongs to the event loop; reading, hashing and copying run on threads. No load waits for another one, except
for its turn at a bounded resource: threads, S3 reads, packs held in memory at once, device pages.
"""

import asyncio
import contextlib
import functools
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from opentelemetry.trace import SpanKind, Status, StatusCode

from octavo_shared.clock import now_ms
from octavo_shared.errors import (
    AdapterErased,
    AdapterRefused,
    AdapterUnavailable,
    BaseMismatch,
    OctavoError,
    Overloaded,
)
from octavo_shared.messages.fleet import OrderDone, Placed
from octavo_shared.messages.generation import AdapterHandle, Tier, Timings
from octavo_shared.pack import PackHeader
from octavo_shared.policy import EvictionPolicy
from octavo_shared.references import AdapterId, Fingerprint
from octavo_shared.telemetry import log, tracer
from octavo_worker import metrics
from octavo_worker.adapters.host_cache import PackKey
from octavo_worker.adapters.packs import FoundPack, PackTiers
from octavo_worker.adapters.pages import OutOfPages

_FLIGHTS_MAX = 1_024
_INSTALLS_MAX = 16
"""Packs that are in memory on their way to the device at once; the rest of the flights wait before reading."""
_ROOM_TIMEOUT_S = 20.0
_LET_GO_S = 0.5
_ERASED_KEPT_MAX = 65_536

_NO_TIME = Timings()

T = TypeVar("T")


class Device(Protocol):
    """What the loader asks of the engine; all of it thread-safe."""

    def install(self, key: PackKey, pack: memoryview, header: PackHeader) -> None: ...

    def evict(self, key: PackKey) -> bool: ...

    def residency(self) -> Sequence[tuple[PackKey, int, int]]: ...

    def forget(self, adapter_id: AdapterId) -> None: ...


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
    """Adapters of one device. ``resident_budget_bytes`` leaves the rest of the arena to KV, always."""

    def __init__(
        self, device: Device, packs: PackTiers, base: Fingerprint, resident_budget_bytes: int, threads: Executor
    ) -> None:
        self.resident_budget_bytes = resident_budget_bytes
        self._device = device
        self._packs = packs
        self._base = base
        self._threads = threads
        self._flights: dict[PackKey, _Flight] = {}
        self._begun: dict[PackKey, asyncio.Event] = {}
        self._pins: Counter[PackKey] = Counter()
        self._resident: dict[PackKey, int] = {}
        self._leaving: dict[PackKey, asyncio.Future[bool]] = {}
        self._policy = EvictionPolicy[PackKey]()
        self._installing_bytes = 0
        self._install_slots = asyncio.Semaphore(_INSTALLS_MAX)
        self._room = asyncio.Event()
        self._erased: OrderedDict[AdapterId, None] = OrderedDict()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def resident_bytes(self) -> int:
        return sum(self._resident.values())

    def find(self, key: PackKey) -> Tier:
        """Return where ``key`` is now."""
        return Tier.RESIDENT if key in self._resident else self._packs.find(key)

    def is_loading(self, key: PackKey) -> bool:
        return key in self._flights

    def pin(self, key: PackKey) -> None:
        """Forbid eviction of ``key`` until the matching ``unpin``; also of what is still to be loaded."""
        self._pins[key] += 1
        if (size_bytes := self._resident.get(key)) is not None:
            self._policy.used(key, size_bytes, cost_ms=max(1.0, size_bytes / 2**20))

    def unpin(self, key: PackKey) -> None:
        """Take back one ``pin``."""
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]
            self._begun.pop(key, None)
        self.room_changed()
        self.on_change()

    def room_changed(self) -> None:
        """Device pages may have become free: let loads that wait for room look again."""
        # A fresh event each time: whoever looked before this moment holds the one that is set now.
        room, self._room = self._room, asyncio.Event()
        room.set()

    async def load(self, handle: AdapterHandle, target: Tier = Tier.RESIDENT) -> Loaded:
        """Bring the pack of ``handle`` up to ``target`` and say where it was; single flight per pack.

        Idempotent. Raises ``BaseMismatch``, ``AdapterErased``, ``AdapterUnavailable`` or ``Overloaded``, the same to
        everybody who waits for the same flight.
        """
        self.check_not_erased(handle.adapter_id)
        if handle.base != self._base:
            raise BaseMismatch(adapter_base=handle.base, served_base=self._base)
        key = (handle.adapter_id, handle.digest)
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
        key = (handle.adapter_id, handle.digest)
        if key not in self._flights and key not in self._resident:
            begun = self._begun.setdefault(key, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_ms / 1e3):
                    await begun.wait()
        return await self.load(handle)

    async def evict(self, key: PackKey, tier: Tier) -> OrderDone:
        """Drop the copies above ``tier``; ``is_done`` is False while the adapter is in use, queued or loading."""
        await self._left(key)
        if self._pins[key] > 0 or key in self._flights:
            return OrderDone(False, self.find(key))
        if key in self._resident and tier is not Tier.RESIDENT:
            if not await self._leave(key):
                return OrderDone(False, Tier.RESIDENT)
            self._policy.dropped(key)
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
        # Pages of keys and values may outlive rows that were evicted long ago.
        await self._on_thread(lambda: self._device.forget(adapter_id))
        self.room_changed()

    async def erase_memory(self) -> None:
        """Destroy every copy above the disk, of all adapters; waits until the last request lets go."""
        keys = self._all_keys()
        await self._purge(keys, Tier.LOCAL)
        for adapter_id in {adapter_id for adapter_id, _ in keys}:
            await self._on_thread(functools.partial(self._device.forget, adapter_id))

    def _all_keys(self) -> set[PackKey]:
        return {*self._flights, *self._resident, *self._leaving, *self._packs.keys()}

    async def _purge(self, keys: set[PackKey], tier: Tier) -> None:
        for key in keys:
            while (flight := self._flights.get(key)) is not None:
                await asyncio.wait([flight.task])
            while True:
                room = self._room
                await self._left(key)
                if key not in self._resident or await self._leave(key):
                    break
                # A sequence holds it for a step more.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LET_GO_S):
                        await room.wait()
            self._policy.dropped(key)
            await self._packs.erase(key, tier)
        self.on_change()

    def placed(self) -> dict[PackKey, Placed]:
        """Return the nearest copy of everything that is here, with its pins."""
        found: dict[PackKey, Placed] = {}
        tiers = (
            (Tier.LOCAL, self._packs.local.sizes()),
            (Tier.WARM, self._packs.warm.sizes()),
            (Tier.RESIDENT, self._resident.items()),
        )
        for tier, sizes in tiers:
            for key, size_bytes in sizes:
                num_pins = self._pins.get(key, 0) + (key in self._flights)
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
                    copy_ms = await self._install(key, found) if target is Tier.RESIDENT else 0.0
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

    async def _install(self, key: PackKey, found: FoundPack) -> float:
        # The device would take rows that are about to go for rows that are there already.
        await self._left(key)
        size_bytes = len(found.pack)
        deadline_ms = now_ms() + _ROOM_TIMEOUT_S * 1e3
        while True:
            room = self._room
            if await self._has_room(size_bytes):
                started_ms = now_ms()
                self._installing_bytes += size_bytes
                try:
                    await self._on_thread(lambda: self._device.install(key, memoryview(found.pack), found.header))
                except OutOfPages:
                    pass
                except AdapterRefused as error:
                    raise AdapterUnavailable(error.message) from error
                else:
                    self._resident[key] = {k: size for k, size, _ in self._device.residency()}[key]
                    copy_ms = now_ms() - started_ms
                    self._policy.used(key, self._resident[key], cost_ms=found.verify_ms + copy_ms)
                    return copy_ms
                finally:
                    self._installing_bytes -= size_bytes
                if await self._evict_idle(size_bytes):
                    continue
            # Everything left is in use: wait until something ends rather than spin.
            if now_ms() >= deadline_ms:
                raise AdapterUnavailable(f"no device memory became free in {_ROOM_TIMEOUT_S:.0f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((deadline_ms - now_ms()) / 1e3):
                    await room.wait()

    async def _has_room(self, size_bytes: int) -> bool:
        excess_bytes = self.resident_bytes + self._installing_bytes + size_bytes - self.resident_budget_bytes
        if excess_bytes <= 0:
            return True
        await self._evict_idle(excess_bytes)
        used_bytes = self.resident_bytes + self._installing_bytes
        # One adapter alone may exceed the budget, so that a small device can serve a large one at all.
        return used_bytes == 0 or used_bytes + size_bytes <= self.resident_budget_bytes

    async def _evict_idle(self, needed_bytes: int) -> bool:
        pinned = self._pins.keys() | self._flights.keys()
        pinned |= {key for key, _, num_pins in self._device.residency() if num_pins > 0}
        has_evicted = False
        for victim in self._policy.choose(needed_bytes, pinned):
            # Asked again: a request for the victim may have arrived while the one before it was evicted.
            # And it may have been evicted meanwhile, for another load.
            is_idle = victim in self._resident and self._pins.get(victim, 0) == 0
            if is_idle and await self._leave(victim):
                self._policy.evicted(victim)
                has_evicted = True
        if has_evicted:
            self.on_change()
        return has_evicted

    async def _leave(self, key: PackKey) -> bool:
        # Gone from the books first, so that a request that arrives meanwhile starts a load instead of waiting
        # for something that is about to vanish.
        size_bytes = self._resident.pop(key)
        leaving = asyncio.ensure_future(self._on_thread(lambda: self._device.evict(key)))

        def settled(leaving: asyncio.Future[bool]) -> None:
            del self._leaving[key]
            if leaving.cancelled() or leaving.exception() is not None or not leaving.result():
                self._resident[key] = size_bytes

        self._leaving[key] = leaving
        leaving.add_done_callback(settled)
        # Shielded: the rows go, and the books follow, whether or not somebody still waits for it.
        return await asyncio.shield(leaving)

    async def _left(self, key: PackKey) -> None:
        """Wait while the rows of ``key`` leave the device: until then it is neither here nor gone."""
        while (leaving := self._leaving.get(key)) is not None:
            await asyncio.wait([leaving])

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


_HEIGHT = {Tier.COLD: 0, Tier.LOCAL: 1, Tier.WARM: 2, Tier.RESIDENT: 3}


def _reaches(tier: Tier, target: Tier) -> bool:
    return _HEIGHT[tier] >= _HEIGHT[target]
