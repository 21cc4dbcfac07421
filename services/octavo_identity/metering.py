"""Counts what gateways say was used into the projection's file, and tells it as all replicas tell it."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from octavo_identity.copying import COPIED_MAX
from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_identity.usage_stream import UsageStream, records_of
from octavo_identity.usage_tables import begin_usage, count_usage, exhausted, forget_days, usage_position
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.usage import KEPT_DAYS, Quota, QuotaUse, UsageRecord, day_of
from octavo_shared.references import TenantId
from octavo_shared.telemetry import log

_POLL_S = 0.25
_CATCH_UP_S = 2.0
_REPAIR_S = 1.0
_ROWS_TOGETHER = 4_096
"""Counted in one transaction: some 20 ms."""
_VIEW = "the count of what was used"

T = TypeVar("T")


class Metering:
    """``follow`` counts for ever; ``read`` waits for what was there when it was asked.

    ``exhausted`` is known at once, for every request asks: which tenants have used their tokens of today, as of the
    last second or so. While this is behind it is as it was, or nobody.
    """

    def __init__(self, heads: HeadStore, stream: UsageStream, projection: Projection) -> None:
        self._heads = heads
        self._stream = stream
        self._projection = projection
        self._nudge = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._forgotten_day = 0
        self._exhausted: dict[TenantId, tuple[int, int]] = {}
        self._exhausted_as_of: tuple[int, int, int] | None = None

    def exhausted(self, tenant_id: TenantId) -> QuotaUse | None:
        """Return the tenant's quota of tokens if it is used up, as far as is known here."""
        found = self._exhausted.get(tenant_id)
        return QuotaUse(Quota.TOKENS_PER_DAY, *found) if found else None

    async def follow(self) -> None:
        """Count for ever; an absent JetStream is waited for, a damaged file is made anew by the projection."""
        while True:
            is_behind = False
            try:
                is_behind = await self._catch_up()
            except DependencyUnavailable as error:
                log.debug("metering_waits", detail=error.message)
            except (sqlite3.DatabaseError, OSError) as error:
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                    # The registry's part of the file is being made by another process, which lets nobody in for long.
                    log.debug("metering_waits", detail=str(error))
                else:
                    self._projection.rebuild(str(error))
                await asyncio.sleep(_REPAIR_S)
            if not is_behind:
                await self._wait()

    async def _catch_up(self) -> bool:
        """Count a batch of new records; tells whether there are more."""
        state = await self._stream.state()
        created, counted = await self._projection.look(usage_position)
        if created != state.created or counted > state.last_sequence:
            if created:
                log.warning("usage_counted_anew", reason="its stream is another one, or has lost records")
            await self._projection.change(partial(begin_usage, created=state.created))
            counted = 0
        until = min(state.last_sequence, counted + COPIED_MAX)
        first = max(counted + 1, state.first_sequence)
        if until > counted:
            stored = await self._stream.read_range(first, until) if first <= until else []
            for records, end in _in_parts(records_of(stored), until):
                await self._projection.change(partial(count_usage, records=records, until=end))
        today = day_of(wall_ms())
        if today != self._forgotten_day:
            await self._projection.change(partial(forget_days, before=today - KEPT_DAYS))
            self._forgotten_day = today
        as_of = (until, self._projection.sequence, today)
        if as_of != self._exhausted_as_of and until == state.last_sequence:
            self._exhausted = await self._projection.look(partial(exhausted, day=today))
            self._exhausted_as_of = as_of
        async with self._advanced:
            self._advanced.notify_all()
        return until < state.last_sequence

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_S):
                await self._nudge.wait()
        except TimeoutError:
            return
        self._nudge.clear()

    async def reach_registry(self) -> None:
        """Return once what the registry's leader has now is counted; raises ``DependencyUnavailable``."""
        if not await self._projection.reach((await self._heads.state()).last_sequence):
            raise DependencyUnavailable(_VIEW)

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` reads of what is counted so far."""
        return await self._projection.look(work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` reads once all is counted that the leaders of both streams have now.

        So every replica tells the same. Raises ``DependencyUnavailable`` when this one does not come to it in time.
        """
        usage, _ = await asyncio.gather(self._stream.state(), self.reach_registry())
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while True:
                    position, told = await self.look(lambda file: (usage_position(file), work(file)))
                    if position[0] == usage.created and position[1] >= usage.last_sequence:
                        return told
                    async with self._advanced:
                        self._nudge.set()
                        await self._advanced.wait()
        except TimeoutError:
            raise DependencyUnavailable(_VIEW) from None


def _in_parts(
    records: list[tuple[int, UsageRecord]], until: int
) -> Iterator[tuple[list[tuple[int, UsageRecord]], int]]:
    """Yield ``records`` in parts of bounded work, each with the sequence that it goes up to; the last one to ``until``.

    Another process may wait to write to the same file.
    """
    part: list[tuple[int, UsageRecord]] = []
    num_rows = 0
    for sequence, record in records:
        part.append((sequence, record))
        num_rows += len(record.rows)
        if num_rows >= _ROWS_TOGETHER:
            yield part, sequence
            part, num_rows = [], 0
    yield part, until
