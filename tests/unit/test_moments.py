"""Reads that many share: each asks once in a moment, and nobody gets an older answer."""

import asyncio

import pytest

from octavo_identity import moments
from octavo_identity.moments import MOMENT_S, Moment, shared_reads


class Leader:
    def __init__(self) -> None:
        self.num_asked = 0

    async def read(self, subject: str) -> str:
        self.num_asked += 1
        number = self.num_asked
        await asyncio.sleep(0)
        if subject == "broken":
            raise ValueError(subject)
        return f"{subject} {number}"


async def test_what_is_asked_in_a_moment_is_asked_once_and_no_longer_than_that() -> None:
    leader, now_s = Leader(), [0.0]
    moment = Moment[str](lambda: now_s[0])
    assert await asyncio.gather(*(moment.read("key", leader.read) for _ in range(9))) == ["key 1"] * 9
    assert await moment.read("tenant", leader.read) == "tenant 2"
    now_s[0] = MOMENT_S
    assert await moment.read("key", leader.read) == "key 1"
    now_s[0] = MOMENT_S * 1.01
    assert await moment.read("key", leader.read) == "key 3"
    assert MOMENT_S < 1, "revocations are effective within a second"


async def test_what_was_written_to_is_asked_again() -> None:
    leader = Leader()
    with shared_reads():
        assert await moments.read("bases", leader.read) == "bases 1"
        moments.forget("bases")
        assert await moments.read("bases", leader.read) == "bases 2"
    moments.forget("bases")


async def test_an_error_is_everybodys_and_a_cancellation_is_ones_own() -> None:
    leader = Leader()
    moment = Moment[str]()
    told = await asyncio.gather(*(moment.read("broken", leader.read) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [ValueError] * 3
    impatient = asyncio.create_task(moment.read("key", leader.read))
    patient = asyncio.create_task(moment.read("key", leader.read))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient, leader.num_asked) == ("key 2", 2)
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_only_tasks_of_the_block_share() -> None:
    leader = Leader()
    with shared_reads():
        assert await asyncio.gather(*(moments.read("key", leader.read) for _ in range(3))) == ["key 1"] * 3
    assert [await moments.read("key", leader.read) for _ in range(2)] == ["key 2", "key 3"]
    with shared_reads():
        assert await moments.read("key", leader.read) == "key 4"
