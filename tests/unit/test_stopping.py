"""Work that is told to end, also when what it waits for takes no notice at first."""

import asyncio
import contextlib
import os
import signal

import pytest

from octavo_cli import stopping
from octavo_cli.stopping import STOP_SIGNALS, until_told


async def told_to_end(sign: signal.Signals, num_swallowed: int, cleaned: list[str]) -> None:
    asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), sign)
    try:
        for _ in range(num_swallowed):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        await asyncio.sleep(60)
    finally:
        cleaned.append("all")


@pytest.mark.parametrize("sign", STOP_SIGNALS)
@pytest.mark.parametrize("num_swallowed", [0, 1, 2])
def test_work_ends_however_often_a_cancellation_was_swallowed(
    sign: signal.Signals, num_swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_CANCEL_AGAIN_S", 0.01)
    cleaned: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(until_told(told_to_end(sign, num_swallowed, cleaned), lambda: cleaned.append("told")))
    assert cleaned == ["told", "all"]


def test_work_that_nobody_ends_returns_what_it_made_or_raises_what_it_met() -> None:
    async def three() -> int:
        return 3

    async def wrong() -> int:
        raise ValueError("wrong")

    assert asyncio.run(until_told(three())) == 3
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(until_told(wrong()))
