"""Requests that this process is answering, for work that can wait for a moment without any."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

Pause = Callable[[], Awaitable[None]]
"""Returns when less urgent work may take the loop, for half a millisecond or so."""


class InFlight:
    """Counts them. Belongs to the event loop.

    Without a request for ``settle_s``, none is about to come: who asks one thing after the other has asked again.
    """

    def __init__(self, wait_max_s: float = 0.3, settle_s: float = 0.002) -> None:
        self._num = self._num_begun = 0
        self._none = asyncio.Event()
        self._none.set()
        self._wait_max_s = wait_max_s
        self._settle_s = settle_s

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more while the block runs."""
        self._num += 1
        self._num_begun += 1
        self._none.clear()
        try:
            yield
        finally:
            self._num -= 1
            if not self._num:
                self._none.set()

    async def gap(self) -> None:
        """Return when there was none for a moment, or after ``wait_max_s``: where there always is one, work goes on."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._wait_max_s
        while True:
            try:
                async with asyncio.timeout_at(until_s):
                    await self._none.wait()
                    num_begun = self._num_begun
                    await asyncio.sleep(self._settle_s)
            except TimeoutError:
                return
            if num_begun == self._num_begun:
                return


async def no_pause() -> None:
    """Let the loop do what is ready, and wait for nothing."""
    await asyncio.sleep(0)
