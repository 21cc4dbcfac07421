"""The device tier: adapters whose rows are in device pages, the pins that keep them there, and room made by policy."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from octavo_shared.clock import now_ms
from octavo_shared.errors import AdapterRefused, AdapterUnavailable
from octavo_shared.pack import PackHeader
from octavo_shared.policy import EvictionPolicy
from octavo_shared.references import AdapterId, PackKey
from octavo_worker.adapters.packs import FoundPack
from octavo_worker.adapters.pages import OutOfPages

_ROOM_TIMEOUT_S = 20.0
_LET_GO_S = 0.5

T = TypeVar("T")


class Device(Protocol):
    """What this tier asks of the engine; all of it thread-safe."""

    def install(self, key: PackKey, pack: memoryview, header: PackHeader) -> None: ...

    def evict(self, key: PackKey) -> bool: ...

    def residency(self) -> Sequence[tuple[PackKey, int, int]]: ...

    def forget(self, adapter_id: AdapterId) -> None: ...


class DeviceTier:
    """Books of what is resident. Belongs to the event loop; copying and zeroing run on threads.

    ``budget_bytes`` leaves the rest of the arena to KV, always. Keys in ``loading`` count as pinned: it is the caller's
    live view of loads under way. ``on_change`` is called when something was evicted to make room.
    """

    def __init__(
        self,
        device: Device,
        budget_bytes: int,
        threads: Executor,
        loading: AbstractSet[PackKey],
        on_change: Callable[[], None],
    ) -> None:
        self.budget_bytes = budget_bytes
        self._device = device
        self._threads = threads
        self._loading = loading
        self._on_change = on_change
        self._resident: dict[PackKey, int] = {}
        self._leaving: dict[PackKey, asyncio.Future[bool]] = {}
        self._pins: Counter[PackKey] = Counter()
        self._policy = EvictionPolicy[PackKey]()
        self._installing_bytes = 0
        self._room = asyncio.Event()

    @property
    def used_bytes(self) -> int:
        return sum(self._resident.values())

    def __contains__(self, key: PackKey) -> bool:
        return key in self._resident

    def sizes(self) -> Iterable[tuple[PackKey, int]]:
        """Return every resident key with its size in bytes."""
        return self._resident.items()

    def keys(self) -> AbstractSet[PackKey]:
        """Return the keys of all that is here or still on its way out."""
        return self._resident.keys() | self._leaving.keys()

    def num_pins(self, key: PackKey) -> int:
        return self._pins[key]

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
        self.room_changed()

    def room_changed(self) -> None:
        """Device pages may have become free: let whoever waits for room look again."""
        # A fresh event each time: whoever looked before this moment holds the one that is set now.
        room, self._room = self._room, asyncio.Event()
        room.set()

    async def install(self, key: PackKey, found: FoundPack) -> float:
        """Copy a verified pack into device pages, making room by policy; returns how long the copy took, in ms.

        Raises ``AdapterUnavailable`` when no room became free in time, or when the engine refuses the adapter.
        """
        # The device would take rows that are about to go for rows that are there already.
        await self.settled(key)
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

    async def drop(self, key: PackKey) -> bool:
        """Let go of an adapter's rows by order; False while a sequence holds them."""
        if key not in self._resident:
            return True
        if not await self._leave(key):
            return False
        self._policy.dropped(key)
        return True

    async def clear(self, key: PackKey) -> None:
        """Let go of an adapter's rows; waits until the last sequence does. No load of it may be under way."""
        while True:
            room = self._room
            await self.settled(key)
            if await self.drop(key):
                break
            # A sequence holds it for a step more.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LET_GO_S):
                    await room.wait()
        self._policy.dropped(key)

    async def forget(self, adapter_id: AdapterId) -> None:
        """Zero the pages of keys and values computed with an adapter; they may outlive rows evicted long ago."""
        await self._on_thread(lambda: self._device.forget(adapter_id))

    async def settled(self, key: PackKey) -> None:
        """Wait while the rows of ``key`` leave the device: until then it is neither here nor gone."""
        while (leaving := self._leaving.get(key)) is not None:
            await asyncio.wait([leaving])

    async def _has_room(self, size_bytes: int) -> bool:
        excess_bytes = self.used_bytes + self._installing_bytes + size_bytes - self.budget_bytes
        if excess_bytes <= 0:
            return True
        await self._evict_idle(excess_bytes)
        used_bytes = self.used_bytes + self._installing_bytes
        # One adapter alone may exceed the budget, so that a small device can serve a large one at all.
        return used_bytes == 0 or used_bytes + size_bytes <= self.budget_bytes

    async def _evict_idle(self, needed_bytes: int) -> bool:
        pinned = self._pins.keys() | self._loading
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
            self._on_change()
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

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
