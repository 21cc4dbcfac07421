"""Runs that end in order when they are told to, so that no server outlives them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from octavo_cli.stopping import until_told

STOPPED = 130
"""The exit code of a run that was told to end."""

T = TypeVar("T")


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; a polite kill cancels it, and raises ``CancelledError`` once it has cleaned up."""
    return asyncio.run(until_told(work))
