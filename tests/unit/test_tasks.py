"""Tasks end though a library swallows their cancellation."""

import asyncio
import contextlib

import pytest

from octavo_shared.tasks import cancellable, end


async def test_a_task_ends_also_when_a_library_swallows_its_first_cancellation() -> None:
    num_swallowed = 0

    async def follow() -> None:
        nonlocal num_swallowed
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        num_swallowed += 1
        await asyncio.sleep(60)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(task)
    assert num_swallowed == 1
    assert task.cancelled()


async def test_a_swallowed_cancellation_is_noticed_and_a_timeout_stays_one() -> None:
    async def swallowing() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async def call() -> None:
        with cancellable():
            await swallowing()
        await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await call()


async def test_what_is_cleaned_up_after_a_cancellation_may_still_call() -> None:
    async def clean_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            with cancellable():
                await asyncio.sleep(0)
            cleaned.set()

    cleaned = asyncio.Event()
    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert cleaned.is_set()
