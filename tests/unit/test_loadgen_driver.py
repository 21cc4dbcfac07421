"""The open loop with clients made by hand: nothing is delayed silently, everything ends."""

import asyncio

import pytest

from octavo_loadgen.driver import Progress, drive
from octavo_loadgen.scenario import Load, Prompt
from octavo_loadgen.timeline import CANCELLED, DEADLINE, OVERRUN, Timeline
from octavo_loadgen.workload import Arrival, Target
from octavo_shared.clock import now_ms


def arrival(index: int, at_s: float = 0.0) -> Arrival:
    return Arrival(index, at_s, Target("t/a", "k"), Prompt(text="hello"), 4, 1)


def load(in_flight_max: int = 8, warmup_s: float = 0.0, deadline_s: float = 30.0) -> Load:
    return Load(rate_per_s=1.0, duration_s=0.05, warmup_s=warmup_s, in_flight_max=in_flight_max, deadline_s=deadline_s)


class AtOnce:
    """Answers with one token at once."""

    async def send(self, arrival: Arrival, timeline: Timeline) -> None:
        timeline.sent_ms = timeline.finish_ms = now_ms()
        timeline.complete(now_ms())


class Held:
    """Answers when ``release`` is set; ``begun`` says that a request is there."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.release = asyncio.Event()

    async def send(self, arrival: Arrival, timeline: Timeline) -> None:
        self.begun.set()
        await self.release.wait()
        await AtOnce().send(arrival, timeline)


async def test_arrival_beyond_the_bound_is_an_error_and_is_not_sent_later() -> None:
    client = Held()

    def release_after_last(progress: Progress) -> None:
        if progress.num_arrived == 3:
            client.release.set()

    arrivals = [arrival(index) for index in range(3)]
    run = await drive(arrivals, client, load(in_flight_max=1), asyncio.Event(), release_after_last)
    assert [timeline.error for timeline in run.timelines] == [None, OVERRUN, OVERRUN]
    assert [timeline.sent_ms is None for timeline in run.timelines] == [False, True, True]


async def test_slow_answers_do_not_hold_back_later_arrivals() -> None:
    client = Held()
    most = 0

    def watch(progress: Progress) -> None:
        nonlocal most
        most = max(most, progress.num_in_flight)
        if progress.num_arrived == 5:
            client.release.set()

    run = await drive([arrival(index) for index in range(5)], client, load(), asyncio.Event(), watch)
    assert most == 5
    assert all(timeline.is_complete for timeline in run.timelines)


async def test_request_that_never_ends_fails_at_its_deadline() -> None:
    run = await drive([arrival(0)], Held(), load(deadline_s=0.02), asyncio.Event())
    assert [timeline.error for timeline in run.timelines] == [DEADLINE]


async def test_stop_ends_the_run_and_what_is_in_flight() -> None:
    client, stop = Held(), asyncio.Event()

    async def stop_once_begun() -> None:
        await client.begun.wait()
        stop.set()

    stopper = asyncio.create_task(stop_once_begun())
    run = await drive([arrival(0), arrival(1, at_s=3600.0)], client, load(), stop)
    await stopper
    assert run.is_interrupted
    assert [timeline.error for timeline in run.timelines] == [CANCELLED]


async def test_warm_up_is_sent_and_not_measured() -> None:
    sent = []

    class Counting(AtOnce):
        async def send(self, arrival: Arrival, timeline: Timeline) -> None:
            sent.append(arrival.index)
            await super().send(arrival, timeline)

    arrivals = [arrival(0, 0.0), arrival(1, 0.02)]
    run = await drive(arrivals, Counting(), load(warmup_s=0.01), asyncio.Event())
    assert sent == [0, 1]
    assert len(run.timelines) == 1
    assert 39.0 < run.ended_ms - run.began_ms < 10_000.0


async def test_bug_in_a_client_ends_the_run_with_its_error() -> None:
    class Broken:
        async def send(self, arrival: Arrival, timeline: Timeline) -> None:
            raise AssertionError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await drive([arrival(0), arrival(1, at_s=3600.0)], Broken(), load(), asyncio.Event())
    assert caught.group_contains(AssertionError, match="a bug")
