"""Which workers there are, as far as their heartbeats were heard here."""

import asyncio

import msgspec

from octavo_shared.clock import now_ms
from octavo_shared.messages.fleet import HEARTBEAT_INTERVAL_MS
from octavo_shared.messages.privacy import LEASE_MS
from octavo_shared.references import WorkerId

_HEARD_ALL_MS = 3 * HEARTBEAT_INTERVAL_MS


class Heard(msgspec.Struct, frozen=True):
    """What counts here of a heartbeat."""

    worker_id: WorkerId


class Fleet:
    """A worker is known for as long as it may hold what it held when it was last heard."""

    def __init__(self) -> None:
        self._heard_ms: dict[WorkerId, float] = {}
        self._begun_ms = now_ms()

    async def heard(self, heartbeat: Heard) -> None:
        """A worker lives."""
        self._heard_ms[heartbeat.worker_id] = now_ms()

    async def known(self) -> list[WorkerId]:
        """Return the workers that were heard within ``LEASE_MS``; waits until every live one must have been."""
        await asyncio.sleep(max(0.0, self._begun_ms + _HEARD_ALL_MS - now_ms()) / 1e3)
        horizon_ms = now_ms() - LEASE_MS
        self._heard_ms = {worker_id: at_ms for worker_id, at_ms in self._heard_ms.items() if at_ms >= horizon_ms}
        return sorted(self._heard_ms)
