"""Which gateways live: one from which nothing was heard for too long has nobody left to generate for."""

import asyncio
from collections.abc import Callable

from octavo_shared.clock import now_ms
from octavo_shared.messages.generation import Lease


class GatewayLeases:
    """When each gateway that sent a request was last heard. Belongs to the event loop."""

    def __init__(self, timeout_ms: float) -> None:
        self._timeout_ms = timeout_ms
        self._heard_ms: dict[str, float] = {}

    def heard(self, gateway_id: str) -> None:
        """A request of this gateway came."""
        self._heard_ms[gateway_id] = now_ms()

    async def renew(self, lease: Lease) -> None:
        """A gateway lives. Those that never sent a request here are not remembered."""
        if lease.gateway_id in self._heard_ms:
            self._heard_ms[lease.gateway_id] = now_ms()

    async def watch(self, on_silent: Callable[[set[str]], None]) -> None:
        """Hand over the gateways that have gone silent, each once; runs until cancelled."""
        while True:
            await asyncio.sleep(self._timeout_ms / 10_000)
            horizon_ms = now_ms() - self._timeout_ms
            silent = {gateway_id for gateway_id, heard_ms in self._heard_ms.items() if heard_ms < horizon_ms}
            if silent:
                on_silent(silent)
            for gateway_id in silent:
                del self._heard_ms[gateway_id]
