"""Runs that end in order when they are told to, so that no server outlives them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from octavo_cli.processes import STOP_SIGNALS

STOPPED = 130
"""The exit code of a run that was told to end."""

T = TypeVar("T")


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; a polite kill cancels it, and raises ``CancelledError`` once it has cleaned up."""
    return asyncio.run(_cancelled_by_signals(work))


async def _cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.create_task(work, name="run")
    for sign in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    return await task
