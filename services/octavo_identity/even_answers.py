"""That something is not there, or not the caller's, is said at even times, so that how long it took tells neither.

The same is read for both, but not by the same means: the server may have to fetch a block for a head that is there, and
its key may be in memory here because its owner uses it.
"""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

from octavo_shared.errors import AdapterNotFound
from octavo_shared.messages.importing import ImportReport

EVEN_S = 0.025
"""More than what either takes; what takes longer is told at the next multiple of it."""

T = TypeVar("T")


async def even(answer: Awaitable[T]) -> T:
    """Return or raise what ``answer`` does; that an adapter is not found, at a multiple of ``EVEN_S`` from now."""
    began_s = asyncio.get_running_loop().time()
    try:
        told = await answer
    except AdapterNotFound:
        await _wait(began_s)
        raise
    refusals = [one.refusal for one in told.outcomes] if isinstance(told, ImportReport) else []
    if any(refusal is not None and refusal.code == AdapterNotFound.code for refusal in refusals):
        await _wait(began_s)
    return told


async def _wait(began_s: float) -> None:
    took_s = asyncio.get_running_loop().time() - began_s
    await asyncio.sleep(math.ceil(took_s / EVEN_S) * EVEN_S - took_s)
