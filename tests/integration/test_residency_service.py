"""The residency manager with a real worker service (fake engine), real NATS and real S3."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from octavo_residency.service import Residency
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.messages.fleet import Demand, EvictCommand, EvictReport, View, ViewCommand
from octavo_shared.messages.generation import AdapterHandle, Cancel, Started, Tier
from octavo_shared.references import WorkerId
from support.fake_engine import FakeEngine
from support.worker_rig import QUICK, Rig, running_worker, tiny_pack, worker_settings

W = WorkerId("w1")
PATIENT = msgspec.structs.replace(QUICK, order_grace_ms=15_000)
"""A worker that in the time of a test only loads when it is ordered to."""


@contextlib.asynccontextmanager
async def running_manager(url: str) -> AsyncIterator[Residency]:
    async with Bus(url, "residency", drain_timeout_s=1.0) as bus:
        residency = Residency(bus)
        async with residency.running():
            yield residency


async def view(rig: Rig) -> View:
    return await rig.caller.bus.request(subjects.residency("view"), ViewCommand(), View, timeout_s=10)


async def until(rig: Rig, holds: Callable[[View], bool]) -> View:
    """Ask for the view until ``holds``; heartbeats are what it waits for."""
    async with asyncio.timeout(20):
        while not holds(seen := await view(rig)):
            await asyncio.sleep(0.02)
        return seen


def tier_in(seen: View, adapter: AdapterHandle) -> Tier:
    tiers = [p.tier for worker in seen.workers for p in worker.placed if p.adapter_id == adapter.adapter_id]
    return tiers[0] if tiers else Tier.COLD


async def evict(rig: Rig, adapter: AdapterHandle) -> EvictReport:
    return await rig.caller.bus.request(subjects.residency("evict"), EvictCommand(adapter), EvictReport, timeout_s=10)


async def test_without_a_manager_the_worker_loads_by_itself(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with running_worker(worker_settings(store_settings, tmp_path)) as rig:
        adapter = await rig.put_tiny()
        await rig.caller.bus.publish(subjects.DEMAND, Demand(adapter, W, "r1"))
        answer = await rig.caller.ask(adapter)
        assert answer.started.tier is Tier.COLD
        assert answer.tokens == [5, 6, 7]


async def test_demand_makes_the_manager_order_the_load(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with (
        running_manager(store_settings.nats_url),
        running_worker(worker_settings(store_settings, tmp_path), cadence=PATIENT) as rig,
    ):
        adapter = await rig.put_tiny()
        talk = await rig.caller.send(adapter)
        await rig.caller.bus.publish(subjects.DEMAND, Demand(adapter, W, "r1"))
        answer = await talk.until_end()
        assert answer.started.tier is Tier.COLD
        seen = await until(rig, lambda seen: tier_in(seen, adapter) is Tier.RESIDENT)
        assert seen.num_prefetches_ordered == 1


async def test_evict_command_reaches_the_holder_and_the_next_request_is_cold(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with (
        running_manager(store_settings.nats_url),
        running_worker(worker_settings(store_settings, tmp_path)) as rig,
    ):
        adapter = await rig.put_tiny()
        await rig.caller.ask(adapter)
        await until(rig, lambda seen: tier_in(seen, adapter) is Tier.RESIDENT)
        assert await evict(rig, adapter) == EvictReport(evicted=(W,), pinned=())
        await until(rig, lambda seen: tier_in(seen, adapter) is Tier.COLD)
        assert (await rig.caller.ask(adapter)).started.tier is Tier.COLD


async def test_evict_command_names_workers_that_use_the_adapter(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with (
        running_manager(store_settings.nats_url),
        running_worker(worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.01)) as rig,
    ):
        adapter = await rig.put_tiny()
        talk = await rig.caller.send(adapter, max_tokens=10_000_000, request_id="long")
        assert isinstance(await talk.next(), Started)
        await until(rig, lambda seen: tier_in(seen, adapter) is Tier.RESIDENT)
        assert await evict(rig, adapter) == EvictReport(evicted=(), pinned=(W,))
        await rig.caller.bus.publish(subjects.worker("w1", "cancel"), Cancel("long"))
        await talk.until_end()


async def test_manager_that_restarts_knows_all_again(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with running_worker(worker_settings(store_settings, tmp_path)) as rig:
        adapter = await rig.put_tiny()
        async with running_manager(store_settings.nats_url):
            await rig.caller.ask(adapter)
            await until(rig, lambda seen: tier_in(seen, adapter) is Tier.RESIDENT)
        async with running_manager(store_settings.nats_url):
            seen = await until(rig, lambda seen: any(worker.is_snapshot for worker in seen.workers))
            assert tier_in(seen, adapter) is Tier.RESIDENT


async def test_silent_worker_leaves_the_view(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with Bus(store_settings.nats_url, "asker") as asker, running_manager(store_settings.nats_url):
        async with running_worker(worker_settings(store_settings, tmp_path)) as rig:
            await until(rig, lambda seen: len(seen.workers) == 1)
        async with asyncio.timeout(20):
            while (await asker.request(subjects.residency("view"), ViewCommand(), View, timeout_s=10)).workers:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("tier", [Tier.RESIDENT, Tier.WARM, Tier.LOCAL])
async def test_manager_keeps_every_tier_below_its_high_water(
    tier: Tier, store_settings: StoreSettings, tmp_path: Path
) -> None:
    num_bytes = len(tiny_pack())
    room = num_bytes * 4 + num_bytes // 4  # four packs are 94 percent of it
    engine = FakeEngine(num_pages=64)
    budgets: dict[Tier, dict[str, float]] = {
        Tier.RESIDENT: {"resident_share": 4.25 * -(-num_bytes // 1024) / 64},
        Tier.WARM: {"warm_bytes": room},
        Tier.LOCAL: {"local_bytes": room},
    }
    settings = worker_settings(store_settings, tmp_path, **budgets[tier])
    async with running_manager(store_settings.nats_url), running_worker(settings, engine) as rig:
        for seed, name in enumerate("abcd"):
            adapter = await rig.put_tiny(name, seed)
            await rig.caller.ask(adapter)
            if tier is not Tier.RESIDENT:
                # A tier's nearest copies are what the manager relieves; copies of what is nearer are the worker's.
                await rig.worker.loader.evict(adapter.pack_key, tier)

        def is_relieved(seen: View) -> bool:
            if not seen.workers or seen.num_evicts_ordered == 0:
                return False
            last = seen.workers[0]
            use = {Tier.RESIDENT: last.resident, Tier.WARM: last.warm, Tier.LOCAL: last.local}[tier]
            return use.used_bytes <= 0.9 * use.budget_bytes

        await until(rig, is_relieved)
