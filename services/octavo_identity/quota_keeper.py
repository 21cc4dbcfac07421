"""Holds what is pushed against its tenant's quotas."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from octavo_identity.desk import Desk
from octavo_identity.metering import Metering
from octavo_identity.staging import PackPlace
from octavo_identity.usage_tables import Held, held_by, is_counted
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DailyQuotaExceeded, QuotaExceeded
from octavo_shared.messages.usage import Quota, Quotas, day_of, left_of_day_s
from octavo_shared.references import AdapterId, Reference, TenantId


@dataclass(frozen=True)
class _Claim:
    """Revision ``number``, which is being made of a pack of so many bytes."""

    adapter_id: AdapterId
    number: int
    pack_bytes: int


class QuotaKeeper:
    """Counts what is in the registry and what this process is about to add.

    A tenant without quotas costs one leader read. What several replicas add at the same moment may all fit for each of
    them, so a limit can be passed by what the others have on their way.
    """

    def __init__(self, desk: Desk, metering: Metering) -> None:
        self._desk = desk
        self._metering = metering
        self._claims: dict[TenantId, dict[str, _Claim]] = {}
        """By the object key of the pack, of tenants with quotas: what runs, and what ran since the last check."""
        self._deciding = asyncio.Lock()

    async def check(self, reference: Reference, *, is_new: bool) -> None:
        """Raise what ``room`` would raise for any pack, before its bytes travel; ``is_new``: it begins an adapter."""
        quotas = await self._desk.quotas_of(reference.tenant)
        if quotas is not None and _bounds_pushes(quotas):
            await self._metering.reach_registry()
            async with self._deciding:
                held = await self._held(self._desk.ids.tenant(reference.tenant))
            _check(quotas, held, 1, is_new=is_new)

    @asynccontextmanager
    async def room(self, reference: Reference, place: PackPlace, pack_bytes: int) -> AsyncIterator[None]:
        """Keep room for a pack of the adapter while the block makes it a revision.

        Raises ``QuotaExceeded`` or ``DailyQuotaExceeded``, and ``DependencyUnavailable`` while it is not known here
        what there is.
        """
        quotas = await self._desk.quotas_of(reference.tenant)
        if quotas is None or not _bounds_pushes(quotas):
            yield
            return
        await self._metering.reach_registry()
        claim = _Claim(place.adapter_id, place.revision, pack_bytes)
        async with self._deciding:
            held = await self._held(place.tenant_id, claim)
            _check(quotas, held, pack_bytes, is_new=claim.number == 1)
            self._claims.setdefault(place.tenant_id, {})[place.object_key] = claim
        try:
            yield
        except BaseException:
            self._forget(place.tenant_id, [place.object_key])
            raise
        # Else it stays until a revision of its number is seen among what is counted: this one, or whose turn it was.

    async def _held(self, tenant_id: TenantId, own: _Claim | None = None) -> Held:
        """Return what the tenant has, with what is on its way; the caller lets nobody else decide meanwhile."""
        claims, day = dict(self._claims.get(tenant_id, {})), day_of(wall_ms())

        def look(file: sqlite3.Connection) -> tuple[Held, list[str]]:
            counted = [place for place, one in claims.items() if is_counted(file, one.adapter_id, one.number)]
            return held_by(file, tenant_id, day), counted

        held, counted = await self._metering.look(look)
        self._forget(tenant_id, counted)
        # Of all that would be one revision, one can become it; whoever is late comes again with the next number.
        waiting: dict[tuple[AdapterId, int], int] = {}
        for one in self._claims.get(tenant_id, {}).values():
            if own is None or (one.adapter_id, one.number) != (own.adapter_id, own.number):
                place = one.adapter_id, one.number
                waiting[place] = max(waiting.get(place, 0), one.pack_bytes)
        return Held(
            held.num_adapters + sum(number == 1 for _, number in waiting),
            held.pack_bytes + sum(waiting.values()),
            held.num_pushes + len(waiting),
        )

    def _forget(self, tenant_id: TenantId, places: Iterable[str]) -> None:
        claims = self._claims.get(tenant_id, {})
        for place in places:
            claims.pop(place, None)
        if not claims:
            self._claims.pop(tenant_id, None)


def _bounds_pushes(quotas: Quotas) -> bool:
    return any(limit is not None for limit in (quotas.adapters, quotas.storage_bytes, quotas.pushes_per_day))


def _check(quotas: Quotas, held: Held, pack_bytes: int, *, is_new: bool) -> None:
    if quotas.adapters is not None and is_new and held.num_adapters + 1 > quotas.adapters:
        raise QuotaExceeded(Quota.ADAPTERS, limit=quotas.adapters, used=held.num_adapters)
    if quotas.storage_bytes is not None and held.pack_bytes + pack_bytes > quotas.storage_bytes:
        raise QuotaExceeded(Quota.STORAGE_BYTES, limit=quotas.storage_bytes, used=held.pack_bytes)
    if quotas.pushes_per_day is not None and held.num_pushes + 1 > quotas.pushes_per_day:
        raise DailyQuotaExceeded(
            Quota.PUSHES_PER_DAY, limit=quotas.pushes_per_day, used=held.num_pushes,
            retry_after_s=left_of_day_s(wall_ms()),
        )  # fmt: skip
