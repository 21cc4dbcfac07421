"""Holds what is pushed against its tenant's quotas."""

import asyncio
import contextlib
import sqlite3
from types import TracebackType
from weakref import WeakValueDictionary

from octavo_identity.claims import Claim, Claims
from octavo_identity.desk import Desk
from octavo_identity.metering import Metering
from octavo_identity.staging import PackPlace
from octavo_identity.usage_tables import Held, held_by, is_counted
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DailyQuotaExceeded, DependencyUnavailable, QuotaExceeded, RevisionConflict
from octavo_shared.messages.usage import Quota, Quotas, day_of, left_of_day_s
from octavo_shared.references import AdapterId, Reference, TenantId

_ATTEMPTS_MAX = 16
_GIVE_BACK_S = 3.0


class QuotaKeeper:
    """Counts what is in the registry and what any replica is about to add, which each writes down first.

    A tenant without quotas costs one leader read; a push of one that has quotas costs three more, and a write. Whoever
    writes down a claim has seen all others, and after them all that is in the registry: what is no claim any more is
    there. So pushes do not pass a limit together, whichever replicas make them.
    """

    def __init__(self, desk: Desk, metering: Metering, claims: Claims) -> None:
        self._desk = desk
        self._metering = metering
        self._claims = claims
        self._turns: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()
        """Within this process, pushes of one tenant wait for each other instead of getting in each other's way."""

    async def check(self, reference: Reference, *, is_new: bool) -> None:
        """Raise what ``room`` would raise for any pack, before its bytes travel; ``is_new``: it begins an adapter."""
        quotas = await self._desk.quotas_of(reference.tenant)
        if quotas is not None and bounds_pushes(quotas):
            tenant_id = self._desk.ids.tenant(reference.tenant)
            claims, _ = await self._claims.read(tenant_id, wall_ms())
            held, _ = await self._held(tenant_id, claims)
            _check(quotas, held, 1, is_new=is_new)

    def room(self, reference: Reference, place: PackPlace, pack_bytes: int) -> "_Room":
        """Keep room for a pack of the adapter while the block makes it a revision.

        Raises ``QuotaExceeded`` or ``DailyQuotaExceeded``, ``DependencyUnavailable`` while it is not known here what
        there is, and ``RevisionConflict`` when too many others push.
        """
        return _Room(self, reference.tenant, place, pack_bytes)

    async def claim(self, tenant: str, place: PackPlace, pack_bytes: int) -> Claim | None:
        """Write down that a pack is on its way, if the tenant has quotas that bound it; raises as ``room``."""
        quotas = await self._desk.quotas_of(tenant)
        if quotas is None or not bounds_pushes(quotas):
            return None
        claim = Claim(place.object_key, place.adapter_id, place.revision, pack_bytes, wall_ms())
        await self._claim(quotas, place.tenant_id, claim)
        return claim

    async def _claim(self, quotas: Quotas, tenant_id: TenantId, claim: Claim) -> None:
        turn = self._turns.get(tenant_id) or asyncio.Lock()
        self._turns[tenant_id] = turn
        async with turn:
            for _ in range(_ATTEMPTS_MAX):
                claims, sequence = await self._claims.read(tenant_id, wall_ms())
                held, waiting = await self._held(tenant_id, claims, claim)
                _check(quotas, held, claim.pack_bytes, is_new=claim.number == 1)
                with contextlib.suppress(RevisionConflict):
                    await self._claims.write(tenant_id, (*waiting, claim), sequence)
                    return
        raise RevisionConflict

    async def give_back(self, tenant_id: TenantId, claim: Claim) -> None:
        """Take back a claim that came to nothing. One that cannot be now takes room until it is over."""
        with contextlib.suppress(DependencyUnavailable, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_S):
                for _ in range(_ATTEMPTS_MAX):
                    claims, sequence = await self._claims.read(tenant_id, wall_ms())
                    left = tuple(one for one in claims if one.place != claim.place)
                    with contextlib.suppress(RevisionConflict):
                        await self._claims.write(tenant_id, left, sequence)
                        return

    async def _held(
        self, tenant_id: TenantId, claims: tuple[Claim, ...], own: Claim | None = None
    ) -> tuple[Held, tuple[Claim, ...]]:
        """Return what the tenant has, with what is on its way beside ``own``, and those of ``claims`` that still wait.

        The registry is asked after the claims were: what was taken off them in between would be in neither.
        """
        await self._metering.reach_registry()
        day = day_of(wall_ms())

        def look(file: sqlite3.Connection) -> tuple[Held, tuple[Claim, ...]]:
            waiting = tuple(one for one in claims if not is_counted(file, one.adapter_id, one.number))
            return held_by(file, tenant_id, day), waiting

        held, waiting = await self._metering.look(look)
        # Of all that would be one revision, one can become it; whoever is late comes again with the next number.
        places: dict[tuple[AdapterId, int], int] = {}
        for one in waiting:
            if own is None or (one.adapter_id, one.number) != (own.adapter_id, own.number):
                place = one.adapter_id, one.number
                places[place] = max(places.get(place, 0), one.pack_bytes)
        total = Held(
            held.num_adapters + sum(number == 1 for _, number in places),
            held.pack_bytes + sum(places.values()),
            held.num_pushes + len(places),
        )
        return total, waiting


class _Room:
    """A class and no generator: every push comes through it, and this is a few microseconds less."""

    def __init__(self, keeper: QuotaKeeper, tenant: str, place: PackPlace, pack_bytes: int) -> None:
        self._keeper = keeper
        self._tenant = tenant
        self._place = place
        self._pack_bytes = pack_bytes
        self._claim: Claim | None = None

    async def __aenter__(self) -> None:
        self._claim = await self._keeper.claim(self._tenant, self._place, self._pack_bytes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without an error it stays until a revision of its number is seen among what is counted: this one, or whose
        # turn it was.
        if error is not None and self._claim is not None:
            await self._keeper.give_back(self._place.tenant_id, self._claim)


def bounds_pushes(quotas: Quotas) -> bool:
    """Tell whether a push can be one too many."""
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
