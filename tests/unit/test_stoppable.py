"""Runs that are told to end, also when what they wait for takes no notice at first."""

import asyncio
import contextlib
import os
import signal

import pytest

from bench import stoppable
from bench.stoppable import run_stoppable


async def told_to_end(num_swallowed: int, cleaned: list[str]) -> None:
    asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
    try:
        for _ in range(num_swallowed):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        await asyncio.sleep(60)
    finally:
        cleaned.append("all")


@pytest.mark.parametrize("num_swallowed", [0, 1, 2])
def test_a_run_ends_however_often_a_cancellation_was_swallowed(
    num_swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stoppable, "_CANCEL_AGAIN_S", 0.01)
    cleaned: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        run_stoppable(told_to_end(num_swallowed, cleaned))
    assert cleaned == ["all"]


def test_a_run_that_nobody_ends_returns_what_it_made_or_raises_what_it_met() -> None:
    async def three() -> int:
        return 3

    async def wrong() -> int:
        raise ValueError("wrong")

    assert run_stoppable(three()) == 3
    with pytest.raises(ValueError, match="wrong"):
        run_stoppable(wrong())
