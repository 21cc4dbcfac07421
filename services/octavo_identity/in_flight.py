"""Requests that this process is answering, for work that can wait for a moment without any."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_SETTLE_S = 0.0003
"""Until an answer that was returned is on its way, too."""

Pause = Callable[[], Awaitable[None]]
"""Returns when less urgent work may take the loop, for half a millisecond or so."""


class InFlight:
    """Counts them. Belongs to the event loop."""

    def __init__(self, wait_max_s: float = 0.01) -> None:
        self._num = 0
        self._none = asyncio.Event()
        self._none.set()
        self._wait_max_s = wait_max_s

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more while the block runs."""
        self._num += 1
        self._none.clear()
        try:
            yield
        finally:
            self._num -= 1
            if not self._num:
                self._none.set()

    async def gap(self) -> None:
        """Return when none is in flight, or, where there always is one, after ``wait_max_s``: all work goes on."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._wait_max_s
        while True:
            try:
                async with asyncio.timeout_at(until_s):
                    await self._none.wait()
                    await asyncio.sleep(_SETTLE_S)
            except TimeoutError:
                return
            if not self._num:
                return


async def no_pause() -> None:
    """Let the loop do what is ready, and wait for nothing."""
    await asyncio.sleep(0)
