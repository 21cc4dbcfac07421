"""Which workers there are, as far as their heartbeats were heard here."""

import asyncio

import msgspec

from octavo_shared.clock import now_ms
from octavo_shared.messages.fleet import HEARTBEAT_INTERVAL_MS
from octavo_shared.messages.privacy import LEASE_MS
from octavo_shared.references import Fingerprint, WorkerId

_HEARD_ALL_MS = 3 * HEARTBEAT_INTERVAL_MS
_SERVED_MS = 30_000
"""A base is served for so long after its last worker was heard: longer than to start one again."""
_BASES_MAX = 1_024


class Heard(msgspec.Struct, frozen=True):
    """What counts here of a heartbeat."""

    worker_id: WorkerId
    base: Fingerprint = Fingerprint("")


class Fleet:
    """A worker is known for as long as it may hold what it held when it was last heard."""

    def __init__(self) -> None:
        self._heard_ms: dict[WorkerId, float] = {}
        self._bases_heard_ms: dict[Fingerprint, float] = {}
        self._begun_ms = now_ms()

    async def heard(self, heartbeat: Heard) -> None:
        """A worker lives."""
        self._heard_ms[heartbeat.worker_id] = now_ms()
        if heartbeat.base and (heartbeat.base in self._bases_heard_ms or len(self._bases_heard_ms) < _BASES_MAX):
            self._bases_heard_ms[heartbeat.base] = now_ms()

    def bases(self) -> frozenset[Fingerprint]:
        """Return the bases that workers were heard with a while ago; none when no worker was, or not yet."""
        if now_ms() < self._begun_ms + _HEARD_ALL_MS:
            return frozenset()
        horizon_ms = now_ms() - _SERVED_MS
        self._bases_heard_ms = {base: at_ms for base, at_ms in self._bases_heard_ms.items() if at_ms >= horizon_ms}
        return frozenset(self._bases_heard_ms)

    def bases_so_far(self) -> frozenset[Fingerprint]:
        """Return the bases heard of, also while live workers may not have been heard yet."""
        return frozenset(self._bases_heard_ms)

    async def known(self) -> list[WorkerId]:
        """Return the workers that were heard within ``LEASE_MS``; waits until every live one must have been."""
        await asyncio.sleep(max(0.0, self._begun_ms + _HEARD_ALL_MS - now_ms()) / 1e3)
        horizon_ms = now_ms() - LEASE_MS
        self._heard_ms = {worker_id: at_ms for worker_id, at_ms in self._heard_ms.items() if at_ms >= horizon_ms}
        return sorted(self._heard_ms)
