"""Erasing at a worker: nothing is left on any tier, running requests end by name, and a lost order does not help."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.fleet import Evict, OrderDone, Prefetch
from octavo_shared.messages.generation import AdapterHandle, Started, Tier
from octavo_shared.messages.privacy import EraseDone, EraseOrder
from support.fake_engine import FakeEngine
from support.worker_rig import QUICK, Rig, running_worker, worker_settings

OFTEN = msgspec.structs.replace(QUICK, erasures_ms=50.0)
EVERY_TIER = (Tier.RESIDENT, Tier.WARM, Tier.LOCAL)


@pytest.fixture
async def rig(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_worker(worker_settings(store_settings, tmp_path)) as running:
        yield running


async def erase(rig: Rig, handle: AdapterHandle) -> None:
    order = EraseOrder(handle.adapter_id)
    done = await rig.caller.bus.request(subjects.worker("w1", "erase"), order, EraseDone, timeout_s=10)
    assert done == EraseDone(rig.worker.loader and "w1")


async def bring(rig: Rig, handle: AdapterHandle, tier: Tier) -> None:
    """Leave the adapter on ``tier`` and on no tier above."""
    assert (await rig.caller.ask(handle)).started.digest == handle.digest
    # No request waits for the disk, so the file may come after the answer.
    await rig.worker.loader._packs.settle()
    if tier is not Tier.RESIDENT:
        order = Evict(handle.adapter_id, handle.digest, tier)
        done = await rig.caller.bus.request(subjects.worker("w1", "evict"), order, OrderDone, timeout_s=5)
        assert done == OrderDone(True, tier)


def files(rig: Rig) -> list[Path]:
    return [path for path in Path(rig.settings.cache_dir).rglob("*") if path.is_file()]


def is_gone(rig: Rig, handle: AdapterHandle) -> bool:
    return not any(key[0] == handle.adapter_id for key in rig.worker.loader.placed())


async def until_gone(rig: Rig, handle: AdapterHandle) -> None:
    async with asyncio.timeout(10):
        while not is_gone(rig, handle):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("tier", EVERY_TIER)
async def test_nothing_is_left_on_any_tier_and_the_neighbour_stays(rig: Rig, tier: Tier) -> None:
    handle, other = await rig.put_tiny("a", 1), await rig.put_tiny("b", 2)
    await bring(rig, other, Tier.RESIDENT)
    await bring(rig, handle, tier)
    warm = rig.worker._parts.warm
    pack = warm._packs.get(handle.pack_key)
    assert (pack is None) == (tier is Tier.LOCAL)
    assert len(files(rig)) == 2
    for _ in range(2):
        await erase(rig, handle)
        assert is_gone(rig, handle)
    assert rig.engine.forgotten == [handle.adapter_id] * 2
    assert [key for key, _, _ in rig.engine.residency()] == [other.pack_key]
    assert len(files(rig)) == 1
    if pack is not None:
        assert not any(pack), "its memory was overwritten"
    # The pack and its key could still be had here; the worker takes it in no more.
    assert (await rig.caller.ask(handle)).error_code == "adapter_erased"
    assert (await rig.caller.ask(other)).started.tier is Tier.RESIDENT


async def test_running_and_waiting_requests_end_by_name(store_settings: StoreSettings, tmp_path: Path) -> None:
    settings = worker_settings(store_settings, tmp_path, num_running_max=4)
    async with running_worker(settings, FakeEngine(step_s=0.02)) as rig:
        handle, other = await rig.put_tiny("a", 1), await rig.put_tiny("b", 2)
        running = [await rig.caller.send(handle, max_tokens=90) for _ in range(3)]
        neighbour = await rig.caller.send(other, max_tokens=40)
        for talk in (*running, neighbour):
            assert isinstance(await talk.next(), Started)
        await erase(rig, handle)
        assert {(await talk.until_end()).error_code for talk in running} == {"adapter_erased"}
        assert len((await neighbour.until_end()).tokens) == 40
        assert is_gone(rig, handle)
        assert rig.worker.loader._device.num_pins(handle.pack_key) == 0


async def test_a_load_that_is_under_way_ends_by_name_and_leaves_nothing(rig: Rig) -> None:
    handle = await rig.put_tiny()
    talk = await rig.caller.send(handle)
    await rig.caller.bus.publish(subjects.worker("w1", "prefetch"), Prefetch(handle))
    await erase(rig, handle)
    answer = await talk.until_end()
    # It may have been a moment faster, but then nothing of it is left either.
    assert not isinstance(answer.events[0], Started) or answer.finished
    if not isinstance(answer.events[0], Started):
        assert answer.error_code == "adapter_erased"
    assert is_gone(rig, handle)
    assert files(rig) == []


async def test_a_worker_that_heard_no_order_finds_out_by_itself(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with running_worker(worker_settings(store_settings, tmp_path), cadence=OFTEN) as rig:
        handle, other = await rig.put_tiny("a", 1), await rig.put_tiny("b", 2)
        await bring(rig, handle, Tier.RESIDENT)
        await bring(rig, other, Tier.RESIDENT)
        rig.keys.erased.append(handle.adapter_id)
        await until_gone(rig, handle)
        assert (await rig.caller.ask(other)).started.tier is Tier.RESIDENT


async def test_a_worker_that_hears_nothing_lets_go_of_all_that_was_opened(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    cadence = msgspec.structs.replace(OFTEN, key_lease_ms=600.0)
    async with running_worker(
        worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.02), cadence=cadence
    ) as rig:
        handle = await rig.put_tiny()
        await bring(rig, handle, Tier.RESIDENT)
        talk = await rig.caller.send(handle, max_tokens=90)
        assert isinstance(await talk.next(), Started)
        rig.keys.is_away = True
        assert (await talk.until_end()).error_code == "adapter_unavailable"
        async with asyncio.timeout(10):
            while rig.worker.loader.find(handle.pack_key) is not Tier.LOCAL:
                await asyncio.sleep(0.02)
        # What is on the disk does not open without a key; the base needs none.
        assert (await rig.caller.ask(handle)).error_code == "adapter_unavailable"
        assert (await rig.caller.ask()).finished
        rig.keys.is_away = False
        assert (await rig.caller.ask(handle)).started.tier is Tier.LOCAL
