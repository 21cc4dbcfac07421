"""Runs that end in order when they are told to, so that no server outlives them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from octavo_cli.processes import STOP_SIGNALS
from octavo_shared.tasks import end

STOPPED = 130
"""The exit code of a run that was told to end."""

_CANCEL_AGAIN_S = 5.0
"""Once may not be enough. What cleans up and could be disturbed takes less."""

T = TypeVar("T")


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; a polite kill cancels it, and raises ``CancelledError`` once it has cleaned up."""
    return asyncio.run(_cancelled_by_signals(work))


async def _cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    task, told = asyncio.create_task(work, name="run"), asyncio.Event()
    for sign in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(sign, told.set)
    waiting = asyncio.create_task(told.wait(), name="wait for a signal")
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if told.is_set():
        await end(task, again_s=_CANCEL_AGAIN_S)
    return await task
