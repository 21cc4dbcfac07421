"""Work in a terminal that ends in order when its process is told to end."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from octavo_shared.tasks import end

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends it: Ctrl-C, a polite kill, and a terminal that was closed."""
_CANCEL_AGAIN_S = 5.0
"""Once may not be enough. What cleans up and could be disturbed takes less."""

T = TypeVar("T")


async def until_told(work: Coroutine[Any, Any, T], on_told: Callable[[], None] = lambda: None) -> T:
    """Run ``work`` to its end; whoever ends the process cancels it until it has cleaned up, after ``on_told``.

    Raises ``CancelledError`` then.
    """
    task, told = asyncio.create_task(work, name="work"), asyncio.Event()
    for kind in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(kind, told.set)
    waiting = asyncio.create_task(told.wait(), name="wait for a signal")
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if told.is_set():
        on_told()
        await end(task, again_s=_CANCEL_AGAIN_S)
    return await task
