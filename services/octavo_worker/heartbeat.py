"""The worker's heartbeat: every interval and on change; whole snapshots at times, changes in between."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.fleet import Heartbeat, Placed
from octavo_shared.messages.generation import Tier
from octavo_shared.references import PackKey

_SNAPSHOT_EVERY = 10
_CHANGE_GAP_S = 0.03
"""Changes closer together than this travel in one heartbeat."""
_NUM_PLACED_MAX = 20_000
"""A snapshot must fit one message; of more than this, only the nearest copies are told."""
_NEAREST_FIRST = (Tier.RESIDENT, Tier.WARM, Tier.LOCAL)


class Heartbeats:
    """Sends heartbeats. ``observe`` returns one without sequence and residency, ``placed`` the whole residency."""

    def __init__(
        self,
        bus: Bus,
        observe: Callable[[], Heartbeat],
        placed: Callable[[], dict[PackKey, Placed]],
        interval_ms: float,
    ) -> None:
        self._bus = bus
        self._observe = observe
        self._placed = placed
        self._interval_s = interval_ms / 1e3
        # Grows with every start, also across machines whose clocks roughly agree.
        self._epoch = time.time_ns()
        self._sequence = 0
        self._told: dict[PackKey, Placed] = {}
        self._num_until_snapshot = 0
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something that heartbeats tell has changed: send one soon."""
        self._changed.set()

    async def run(self) -> None:
        """Send until cancelled; while NATS is away nothing is sent, and then a snapshot."""
        while True:
            await self.send()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._changed.wait()
                    await asyncio.sleep(_CHANGE_GAP_S)

    async def send(self) -> bool:
        """Send one heartbeat now; tells whether NATS took it."""
        self._changed.clear()
        placed = _bounded(self._placed())
        is_snapshot = self._num_until_snapshot <= 0
        told = tuple(placed.values()) if is_snapshot else _changes(self._told, placed)
        self._sequence += 1
        heartbeat = msgspec.structs.replace(
            self._observe(), epoch=self._epoch, sequence=self._sequence, placed=told, is_snapshot=is_snapshot
        )
        try:
            await self._bus.publish(subjects.HEARTBEAT, heartbeat)
        except DependencyUnavailable:
            self._num_until_snapshot = 0
            return False
        self._told = placed
        self._num_until_snapshot = _SNAPSHOT_EVERY - 1 if is_snapshot else self._num_until_snapshot - 1
        return True


def _bounded(placed: dict[PackKey, Placed]) -> dict[PackKey, Placed]:
    if len(placed) <= _NUM_PLACED_MAX:
        return placed
    nearest = sorted(placed.items(), key=lambda item: _NEAREST_FIRST.index(item[1].tier))
    return dict(nearest[:_NUM_PLACED_MAX])


def _changes(before: dict[PackKey, Placed], now: dict[PackKey, Placed]) -> tuple[Placed, ...]:
    fresh = [placed for key, placed in now.items() if before.get(key) != placed]
    gone = [Placed(adapter_id, digest, Tier.COLD, 0) for adapter_id, digest in before.keys() - now.keys()]
    return (*fresh, *gone)
