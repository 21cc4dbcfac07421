"""How long resolving takes: one after the other, of adapters that are drawn at random."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from bench.million.blocks import block_starts
from bench.million.client import Client
from bench.million.population import Population
from bench.million.rig import Rig
from octavo_identity.heads import HeadStore
from octavo_identity.records import AdapterHead
from octavo_shared.errors import OctavoError
from octavo_shared.subjects import REGISTRY_STREAM

_NUM_WARM_UPS = 300
_KEPT_S = 9.0
"""The server drops a block that nobody read for 10 s."""
_TURN_S = 0.5
_PICKS_TRIES_MAX = 32
_MANY_BLOCKS = 100


@dataclass(frozen=True)
class Times:
    """Milliseconds of each answer; ``num_failed`` others were errors."""

    ms: Sequence[float]
    num_failed: int = 0

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.ms, share)) if len(self.ms) else float("nan")


@dataclass(frozen=True)
class Pick:
    """An adapter whose head lies in a block of the stream: ``block`` counts from 0."""

    block: int
    number: int


async def timed_ms(work: Awaitable[object]) -> float:
    """Return how long ``work`` takes."""
    begun_s = time.perf_counter()
    await work
    return (time.perf_counter() - begun_s) * 1e3


async def pick_by_block(
    rig: Rig, heads: HeadStore, population: Population, num_rounds: int, random: Random
) -> list[list[Pick]]:
    """Return so many rounds of picks, one for each block in each, every round in the same order.

    Where there are few blocks there is one round: nothing is claimed of it.
    This reads the blocks, so they are in the server's cache afterwards.
    """
    last = (await heads.state()).last_sequence
    starts = block_starts(rig.store_dir, REGISTRY_STREAM)
    ends = [*starts[1:], last + 1]
    order = random.sample(range(len(starts)), len(starts))
    return [
        [
            Pick(block, number)
            for block in order
            if (number := await _pick(heads, population, random, starts[block], ends[block])) is not None
        ]
        for _ in range(num_rounds if len(starts) >= _MANY_BLOCKS else 1)
    ]


async def _pick(heads: HeadStore, population: Population, random: Random, first: int, end: int) -> int | None:
    """Return an adapter with an event at sequence ``first`` to ``end - 1``, or None where none is met with."""
    for _ in range(_PICKS_TRIES_MAX):
        event = await heads.read_at(random.randrange(first, end))
        if event is not None and event.kind == "revision_added" and isinstance(event.head, AdapterHead):
            return population.number(event.head.name)
    return None


@dataclass(frozen=True)
class Warmed:
    """A registry of so many adapters whose blocks are all in the server's cache once ``picks`` were read."""

    client: Client
    picks: Sequence[Pick]
    num_adapters: int


async def warm(registries: Sequence[Warmed], seconds: float, random: Random) -> list[Times]:
    """Resolve adapters at random for so many seconds in each registry, back to back and in turns.

    Turns, because how fast this machine is may change from one second to the next. What was picked is read first, and
    again, untimed, whenever the server may have dropped a block.
    """
    found = [list[float]() for _ in registries]
    for one in registries:
        for _ in range(_NUM_WARM_UPS):
            await one.client.resolve(random.randrange(one.num_adapters))
    measured_s, kept_until_s = 0.0, float("-inf")
    while measured_s < seconds:
        if time.perf_counter() > kept_until_s:
            kept_until_s = time.perf_counter() + _KEPT_S
            for one in registries:
                for pick in one.picks:
                    await one.client.resolve(pick.number)
        turn_s = min(_TURN_S, seconds - measured_s)
        for times, one in zip(found, registries, strict=True):
            end_s = time.perf_counter() + turn_s
            while time.perf_counter() < end_s:
                times.append(await timed_ms(one.client.resolve(random.randrange(one.num_adapters))))
        measured_s += turn_s
    return [Times(times) for times in found]


async def cold(client: Client, rounds: Sequence[Sequence[Pick]], idle_s: float) -> Times:
    """Resolve the picks, each block no sooner than ``idle_s`` after it was read the last time.

    Nothing is read for so long at first. Then a round takes as long, with its blocks at equal distances, and every
    round has the same order.
    """
    found = []
    await asyncio.sleep(idle_s)
    loop = asyncio.get_running_loop()
    for picks in rounds:
        begun_s = loop.time()
        for place, pick in enumerate(picks):
            await asyncio.sleep(max(0.0, begun_s + idle_s * place / len(picks) - loop.time()))
            found.append(await timed_ms(client.resolve(pick.number)))
        # The next round's first block was read when this round began.
        await asyncio.sleep(max(0.0, begun_s + idle_s - loop.time()))
    return Times(found)


async def while_busy(
    client: Client, num_adapters: int, every_s: float, until: Callable[[], bool], random: Random
) -> tuple[Times, Times]:
    """Resolve an adapter every so often, and write to one every hundredth time, until ``until()``; reads, writes."""
    reads, writes = list[float](), list[float]()
    num_failed = [0, 0]
    loop = asyncio.get_running_loop()
    next_s, turn = loop.time(), 0
    while not until():
        turn += 1
        is_write = turn % 100 == 0
        work = client.tag if is_write else client.resolve
        try:
            (writes if is_write else reads).append(await timed_ms(work(random.randrange(num_adapters))))
        except OctavoError:
            num_failed[is_write] += 1
        next_s = max(next_s + every_s, loop.time())
        await asyncio.sleep(max(0.0, next_s - loop.time()))
    return Times(reads, num_failed[0]), Times(writes, num_failed[1])
