"""One run: register, resolve at each size, kill and restart, make the view anew."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

from bench.million import sampling
from bench.million.client import Client, WrongAnswer
from bench.million.floor import Floor, measure_floor
from bench.million.population import Population
from bench.million.processor import each_us, used_s
from bench.million.registrar import shared_pack
from bench.million.registrars import Registrars, registrars
from bench.million.rig import Rig
from bench.million.sampling import Times, Warmed
from octavo_identity.heads import HeadStore
from octavo_shared.errors import DependencyUnavailable

_SIZES = (1_000, 100_000)
_CLAIMED_MIN = 100_000
_NUM_CHECKED = 20
_FOLLOWED_S = 900.0
_BUSY_EVERY_S = 0.01
_SERVING_S = 60.0
_POLL_S = 0.05

Report = Callable[[str, int, int], None]
"""(what is done, how much of it, of how much); of 0: not known."""


@dataclass(frozen=True)
class Plan:
    """Sizes grow; the last one is that of the whole registry. ``idle_s`` is longer than the server keeps a block."""

    sizes: tuple[int, ...]
    seed: int
    num_tenants: int = 100
    num_registrars: int = 2
    warm_s: float = 10.0
    num_cold_rounds: int = 3
    idle_s: float = 16.0
    num_bare: int = 50_000

    @classmethod
    def of(cls, num_adapters: int, seed: int, warm_s: float) -> Self:
        """Return the plan for so many adapters; one that makes no claim is short."""
        sizes = (*(size for size in _SIZES if size < num_adapters), num_adapters)
        if num_adapters < _CLAIMED_MIN:
            return cls(sizes, seed, 4, warm_s=min(warm_s, 1.0), num_cold_rounds=1, idle_s=1.0, num_bare=2_000)
        return cls(sizes, seed, warm_s=warm_s)

    @property
    def is_short(self) -> bool:
        """Whether it shows that everything runs, and nothing else."""
        return self.sizes[-1] < _CLAIMED_MIN


@dataclass(frozen=True)
class Sized:
    """What was measured with so many adapters. ``register_s`` and ``num_registered`` are of the step to this size.

    ``followed_s`` is how long identity's view took to have all, once the last one was acknowledged.
    ``idle_bytes`` is what nats-server had in use before anything was read, ``warm_bytes`` with all blocks cached.
    ``used_us`` is the processor time that each part took for one of them meanwhile, in microseconds.
    """

    num_adapters: int
    num_registered: int
    register_s: float
    followed_s: float
    warm: Times
    cold: Times
    idle_bytes: int
    warm_bytes: int
    disk_bytes: int
    used_us: Mapping[str, float] = field(default_factory=dict)

    @property
    def register_per_s(self) -> float:
        return self.num_registered / self.register_s

    def __str__(self) -> str:
        warm_ms, cold_ms = self.warm.quantile_ms(0.99), self.cold.quantile_ms(0.99)
        return (
            f"{self.num_adapters:,} adapters: {self.register_per_s:,.0f}/s, view {self.followed_s:.0f} s behind, "
            f"p99 {warm_ms:.2f} ms tight, {cold_ms:.2f} ms sparse"
        )


@dataclass(frozen=True)
class Result:
    """Of a whole run.

    ``few`` and ``many`` are tight resolves in registries of the smallest and of the largest size, in turns. ``busy``
    are resolves, and ``busy_writes`` writes, while the view was made anew.
    """

    sizes: tuple[Sized, ...]
    few: Times
    many: Times
    empty_bytes: int
    identity_bytes: int
    view_bytes: int
    restart_s: float
    first_resolve_s: float
    rebuild_s: float
    busy: Times
    busy_writes: Times
    floor: Floor | None = None

    @property
    def register_per_s(self) -> float:
        """Over all steps."""
        return sum(one.num_registered for one in self.sizes) / sum(one.register_s for one in self.sizes)


async def run(plan: Plan, folder: Path, report: Report) -> Result:
    """Carry out ``plan`` with all data in ``folder``; nothing runs any more when this returns.

    Raises ``WrongAnswer`` when identity says anything else than what was registered.
    """
    population, random = Population(plan.seed, plan.num_tenants), Random(plan.seed)
    report("taking what is registered to a bare server", 0, 0)
    floor = await measure_floor(plan.num_bare, folder / "bare")
    report("starting the servers", 0, 0)
    async with Rig(folder) as rig:
        empty_bytes = rig.server_bytes()
        async with rig.gateway_bus() as bus, rig.heads() as heads:
            client = Client(bus, population, shared_pack().digest)
            await client.set_up(rig.admin_key_file.read_text())
            stage = _Stage(plan, rig, population, client, heads, random, report)
            async with registrars(rig, population, plan.num_registrars, folder) as processes:
                sizes = [await stage.grow(processes, size) for size in plan.sizes]
            few, many = await stage.in_turns(folder / "few")
            last = (await heads.state()).last_sequence
        report("killing nats-server and identity", 0, 0)
        restart_s = await rig.kill_and_restart()
        async with rig.gateway_bus() as bus:
            client = Client(bus, population, shared_pack().digest)
            begun_s = time.perf_counter()
            await client.resolve(random.randrange(plan.sizes[-1]))
            first_resolve_s = time.perf_counter() - begun_s
            busy, busy_writes, rebuild_s = await _rebuild(plan, rig, client, last, random, report)
            if rig.num_listed() != plan.sizes[-1]:
                raise WrongAnswer(f"the view lists {rig.num_listed():,} adapters")
            identity_bytes, view_bytes = rig.identity_bytes(), rig.view_bytes()
    return Result(
        tuple(sizes), few, many, empty_bytes, identity_bytes, view_bytes, restart_s, first_resolve_s, rebuild_s,
        busy, busy_writes, floor,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    """What every size needs."""

    plan: Plan
    rig: Rig
    population: Population
    client: Client
    heads: HeadStore
    random: Random
    report: Report

    async def grow(self, processes: Registrars, size: int) -> Sized:
        """Register adapters up to ``size``, check some, and measure."""
        before = [one for one in self.plan.sizes if one < size]
        first = before[-1] if before else 0
        events_before = (await self.heads.state()).last_sequence
        parts = {**processes.pids(), **self.rig.pids()}
        used_before = used_s(parts)
        register_s = await processes.register(
            first, size, lambda done: self.report("registering", first + done, self.plan.sizes[-1])
        )
        used_us = each_us(used_before, used_s(parts), size - first)
        last = (await self.heads.state()).last_sequence
        if last - events_before != size - first:
            raise WrongAnswer(f"{last - events_before:,} events were made of {size - first:,} registrations")
        followed_s = await self.rig.until_viewed(
            last, _FOLLOWED_S, lambda viewed: self.report("waiting for the view", viewed, last)
        )
        self.report(f"checking some of {size:,} adapters", 0, 0)
        for _ in range(_NUM_CHECKED):
            await self.client.check_ledger(self.random.randrange(first, size))
        idle_bytes, disk_bytes = self.rig.server_bytes(), self.rig.disk_bytes()
        rounds = await sampling.pick_by_block(
            self.rig, self.heads, self.population, self.plan.num_cold_rounds, self.random
        )
        self.report(f"resolving among {size:,} adapters, tight", 0, 0)
        (warm,) = await sampling.warm([Warmed(self.client, rounds[0], size)], self.plan.warm_s, self.random)
        warm_bytes = self.rig.server_bytes()
        self.report(f"resolving among {size:,} adapters, sparse", 0, 0)
        cold = await sampling.cold(self.client, rounds, self.plan.idle_s)
        found = Sized(
            size, size - first, register_s, followed_s, warm, cold, idle_bytes, warm_bytes, disk_bytes, used_us
        )  # fmt: skip
        self.report(str(found), 0, 0)
        return found

    async def in_turns(self, folder: Path) -> tuple[Times, Times]:
        """Resolve in a registry of the smallest size, which is made for this, and in the whole one, in turns."""
        few, many = self.plan.sizes[0], self.plan.sizes[-1]
        self.report(f"making another registry of {few:,} adapters", 0, 0)
        async with Rig(folder) as rig, rig.gateway_bus() as bus, rig.heads() as heads:
            client = Client(bus, self.population, shared_pack().digest)
            await client.set_up(rig.admin_key_file.read_text())
            async with registrars(rig, self.population, 1, folder) as processes:
                await processes.register(0, few, lambda done: None)
            await rig.until_viewed((await heads.state()).last_sequence, _FOLLOWED_S, lambda viewed: None)
            registries = [
                Warmed(one, (await sampling.pick_by_block(at, stream, self.population, 1, self.random))[0], num)
                for one, at, stream, num in ((client, rig, heads, few), (self.client, self.rig, self.heads, many))
            ]
            self.report(f"resolving among {few:,} and {many:,} adapters in turns, tight", 0, 0)
            found = await sampling.warm(registries, self.plan.warm_s, self.random)
        return found[0], found[1]


async def _rebuild(
    plan: Plan, rig: Rig, client: Client, last: int, random: Random, report: Report
) -> tuple[Times, Times, float]:
    """Make the view anew while adapters are resolved and written to; returns reads, writes and the seconds it took."""
    await rig.stop_identity()
    rig.delete_view()
    begun_s = time.perf_counter()

    def report_viewed(viewed: int) -> None:
        report("making the view anew", viewed, last)

    await rig.start_identity()
    await _until_serving(client, random.randrange(plan.sizes[-1]))
    done = asyncio.create_task(rig.until_viewed(last, _FOLLOWED_S, report_viewed), name="view")
    busy, writes = await sampling.while_busy(client, plan.sizes[-1], _BUSY_EVERY_S, done.done, random)
    await done
    return busy, writes, time.perf_counter() - begun_s


async def _until_serving(client: Client, number: int) -> None:
    """Return once identity answers."""
    async with asyncio.timeout(_SERVING_S):
        while True:
            try:
                return await client.resolve(number)
            except DependencyUnavailable:
                await asyncio.sleep(_POLL_S)
