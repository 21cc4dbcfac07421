"""Counts what requests used, and tells the stream of usage about once a second: each record once, in order."""

import asyncio
from dataclasses import dataclass
from itertools import islice

from nats.errors import Error as NatsError

from octavo_gateway import metrics
from octavo_shared import subjects
from octavo_shared.bus import Bus, encode
from octavo_shared.clock import wall_ms
from octavo_shared.messages.usage import ROWS_MAX, UsageRecord, UsageRow, day_of
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.tasks import cancellable
from octavo_shared.telemetry import log

_GATHER_S = 1.0
_PUBLISH_TIMEOUT_S = 2.0
_CLOSE_S = 3.0
_ROWS_WAITING_MAX = 65_536
"""Kept while NATS is away. Requests to the same adapters share rows, so this is no bound on requests."""

_Key = tuple[TenantId, AdapterId, int]


@dataclass
class _Used:
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0


class Meter:
    """``count`` takes in what a request used when it has ended, ``run`` publishes it, ``close`` publishes the rest.

    A record that was not acknowledged is sent again as it was, under its number, before any other: whoever counts
    knows by the number what is counted already.
    """

    def __init__(self, bus: Bus, gateway_id: str, num_rows_max: int = _ROWS_WAITING_MAX) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._num_rows_max = num_rows_max
        self._used: dict[_Key, _Used] = {}
        self._sealed: UsageRecord | None = None
        self._number = 0
        self._num_lost = 0

    def count(
        self, tenant_id: TenantId, adapter_id: AdapterId | None, num_prompt_tokens: int, num_completion_tokens: int
    ) -> None:
        """Take in a request that has ended. Where there is no room for it, that is counted and said."""
        key = (tenant_id, adapter_id or AdapterId(""), day_of(wall_ms()))
        used = self._used.get(key)
        if used is None:
            if len(self._used) >= self._num_rows_max:
                self._lose(1)
                return
            used = self._used[key] = _Used()
        used.num_requests += 1
        used.num_prompt_tokens += num_prompt_tokens
        used.num_completion_tokens += num_completion_tokens

    async def run(self) -> None:
        """Publish for ever."""
        while True:
            await asyncio.sleep(_GATHER_S)
            await self._publish_all()
            self._tell_lost()

    async def close(self) -> None:
        """Publish what is left, or say how much of it is lost."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._publish_all()
        except TimeoutError:
            pass
        rows = self._sealed.rows if self._sealed else ()
        num_left = sum(used.num_requests for used in self._used.values()) + sum(row.num_requests for row in rows)
        self._lose(num_left)
        self._tell_lost()

    async def _publish_all(self) -> None:
        while self._used or self._sealed:
            if self._sealed is None:
                self._sealed = self._seal()
            if not await self._publish(self._sealed):
                return
            self._sealed = None

    def _seal(self) -> UsageRecord:
        keys = list(islice(self._used, ROWS_MAX))
        self._number += 1
        rows = tuple(UsageRow(*key, *_numbers(self._used.pop(key))) for key in keys)
        return UsageRecord(self._gateway_id, self._number, rows)

    async def _publish(self, record: UsageRecord) -> bool:
        """Tell whether the record is stored."""
        if not self._bus.is_connected:
            # The client would buffer it and say nothing of what becomes of it.
            return False
        # The server knows the id for some minutes, which keeps the stream small; it need not for the count.
        headers = {"Nats-Msg-Id": f"{record.gateway_id}-{record.number}"}
        jetstream = self._bus.client.jetstream(timeout=_PUBLISH_TIMEOUT_S)
        try:
            with cancellable():
                await jetstream.publish(
                    subjects.usage(record.gateway_id), encode(record), headers=headers, stream=subjects.USAGE_STREAM
                )
        except (NatsError, OSError, TimeoutError) as error:
            log.warning("usage_waits", num_rows=len(self._used), detail=str(error))
            return False
        return True

    def _lose(self, num_requests: int) -> None:
        metrics.USAGE_LOST.inc(num_requests)
        self._num_lost += num_requests

    def _tell_lost(self) -> None:
        if self._num_lost:
            log.error("usage_lost", num_requests=self._num_lost)
            self._num_lost = 0


def _numbers(used: _Used) -> tuple[int, int, int]:
    return used.num_requests, used.num_prompt_tokens, used.num_completion_tokens
