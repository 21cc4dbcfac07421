"""The open loop: requests leave when their time comes, whatever became of the ones before."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo_loadgen.client import Client, send_within
from octavo_loadgen.scenario import Load
from octavo_loadgen.timeline import CANCELLED, OVERRUN, Timeline
from octavo_loadgen.workload import Arrival
from octavo_shared.clock import now_ms


@dataclass(frozen=True)
class Run:
    """The measured requests, warm-up left out, and the time they took on the monotonic clock.

    It ends with the last answer, or with the last moment at which a request could have arrived.
    """

    timelines: list[Timeline]
    began_ms: float
    ended_ms: float
    is_interrupted: bool


@dataclass(frozen=True)
class Progress:
    elapsed_s: float
    num_arrived: int
    num_in_flight: int


def _ignore(_: Progress) -> None:
    pass


async def drive(
    arrivals: Iterable[Arrival],
    client: Client,
    load: Load,
    stop: asyncio.Event,
    on_progress: Callable[[Progress], None] = _ignore,
) -> Run:
    """Send every arrival at its time and return when all have ended, or when ``stop`` is set.

    An arrival that finds ``load.in_flight_max`` requests in flight fails with ``client_overrun`` and is not sent.
    After ``stop``, requests in flight fail with ``client_cancelled``.
    """
    start_ms = now_ms()
    measured: list[Timeline] = []
    in_flight: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            timeline = Timeline(start_ms + arrival.at_s * 1e3)
            await _wait_until(timeline.scheduled_ms, stop)
            if stop.is_set():
                break
            if arrival.at_s >= load.warmup_s:
                measured.append(timeline)
            if len(in_flight) >= load.in_flight_max:
                timeline.fail(OVERRUN, now_ms())
            else:
                sending = send_within(client, arrival, timeline, load.deadline_s)
                task = group.create_task(sending, name=f"request {arrival.index}")
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            on_progress(Progress(arrival.at_s, arrival.index + 1, len(in_flight)))
        await _wait_until(start_ms + load.duration_s * 1e3, stop)
        await _finish(in_flight, stop)
    ended_ms = now_ms()
    for timeline in measured:
        timeline.fail(CANCELLED, ended_ms)
    if not stop.is_set():
        last_ms = max((timeline.ended_ms or 0.0 for timeline in measured), default=0.0)
        ended_ms = max(last_ms, start_ms + load.duration_s * 1e3)
    began_ms = start_ms + load.warmup_s * 1e3
    return Run(measured, began_ms, max(ended_ms, began_ms), stop.is_set())


async def _wait_until(at_ms: float, stop: asyncio.Event) -> None:
    """Return at ``at_ms`` or as soon as ``stop`` is set; also one that is late lets the requests in flight go on."""
    left_s = (at_ms - now_ms()) / 1e3
    if left_s <= 0:
        await asyncio.sleep(0)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(left_s):
            await stop.wait()


async def _finish(in_flight: set[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Wait for every request, each of which has its own deadline; at ``stop`` cancel those that are left."""
    everyone = asyncio.gather(*in_flight, return_exceptions=True)
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((everyone, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        everyone.cancel()
        await asyncio.gather(everyone, stopped, return_exceptions=True)
