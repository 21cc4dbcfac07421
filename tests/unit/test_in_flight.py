"""Work that can wait waits for requests, and is never kept from going on."""

import asyncio

from octavo_identity.in_flight import InFlight
from octavo_identity.service import _bounded
from octavo_shared.messages.identity import VERBS


async def test_a_gap_comes_when_the_last_request_ends() -> None:
    in_flight = InFlight(wait_max_s=10)
    await asyncio.wait_for(in_flight.gap(), 1)
    with in_flight.one():
        with in_flight.one():
            waiting = asyncio.create_task(in_flight.gap())
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


async def test_a_request_that_comes_at_once_is_waited_for_too() -> None:
    in_flight = InFlight(wait_max_s=10)
    waiting = asyncio.create_task(in_flight.gap())
    await asyncio.sleep(0)
    with in_flight.one():
        await asyncio.sleep(0.02)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


async def test_who_asks_one_thing_after_the_other_leaves_no_gap_between() -> None:
    in_flight = InFlight(wait_max_s=10, settle_s=0.3)
    waiting = asyncio.create_task(in_flight.gap())
    for _ in range(20):
        with in_flight.one():
            await asyncio.sleep(0)
        await asyncio.sleep(0.03)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


async def test_where_there_always_is_a_request_the_work_goes_on() -> None:
    in_flight = InFlight(wait_max_s=0.02)
    loop = asyncio.get_running_loop()
    with in_flight.one():
        began_s = loop.time()
        for _ in range(3):
            await in_flight.gap()
        # A timer may be a little early.
        assert 0.055 <= loop.time() - began_s < 5


async def test_a_request_that_fails_is_no_longer_in_flight() -> None:
    in_flight = InFlight(wait_max_s=10)
    try:
        with in_flight.one():
            raise ValueError
    except ValueError:
        pass
    await asyncio.wait_for(in_flight.gap(), 1)


async def test_every_verb_is_in_flight_while_it_is_handled() -> None:
    for verb in VERBS:
        in_flight, goes_on = InFlight(wait_max_s=10), asyncio.Event()

        async def handle(request: object, goes_on: asyncio.Event = goes_on) -> object:
            await goes_on.wait()
            return request

        asked = asyncio.create_task(_bounded(verb, handle, in_flight)(verb))
        await asyncio.sleep(0.001)
        waiting = asyncio.create_task(in_flight.gap())
        await asyncio.sleep(0.001)
        assert not waiting.done()
        goes_on.set()
        assert await asked == verb
        await asyncio.wait_for(waiting, 1)
