"""Ending tasks that wait for NATS, whose client swallows a cancellation that comes while it flushes a request."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

_CANCEL_AGAIN_S = 0.5


async def end(*tasks: asyncio.Task[Any], again_s: float = _CANCEL_AGAIN_S) -> None:
    """Cancel ``tasks`` until all have ended, with whatever they end with: once may not be enough."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again_s)


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Raise ``CancelledError`` at the end of the block when its task was cancelled in it and nobody took notice."""
    task = asyncio.current_task()
    assert task is not None, "only a task can be cancelled"
    num_before = task.cancelling()
    yield
    if task.cancelling() > num_before:
        raise asyncio.CancelledError
