"""A worker's adapters on real NATS and real S3: tiers, orders, evictions, packs that are not what they should be."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.fleet import Evict, Heartbeat, OrderDone, Prefetch
from octavo_shared.messages.generation import (
    AdapterHandle,
    Cancel,
    FinishReason,
    Started,
    Tier,
)
from octavo_shared.objects import ObjectStore
from octavo_shared.references import Fingerprint
from support.fake_engine import FakeEngine
from support.worker_rig import QUICK, HeartbeatLog, Rig, handle_of, running_worker, tiny_pack, worker_settings

ENDLESS = 10_000_000


@pytest.fixture
async def rig(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_worker(worker_settings(store_settings, tmp_path)) as rig:
        yield rig


async def evict(rig: Rig, adapter: AdapterHandle, tier: Tier) -> OrderDone:
    order = Evict(adapter.adapter_id, adapter.digest, tier)
    return await rig.caller.bus.request(subjects.worker("w1", "evict"), order, OrderDone, timeout_s=10)


async def test_tiers_are_reported_as_found(rig: Rig, store_settings: StoreSettings, tmp_path: Path) -> None:
    adapter = await rig.put_tiny()
    cold = await rig.caller.ask(adapter)
    assert cold.started.tier is Tier.COLD
    assert cold.started.digest == adapter.digest
    timings = cold.started.timings
    assert timings.load_ms >= timings.fetch_ms > 0
    assert timings.verify_ms > 0
    assert timings.copy_ms > 0
    assert (await rig.caller.ask(adapter)).started.tier is Tier.RESIDENT
    assert (await evict(rig, adapter, Tier.WARM)) == OrderDone(True, Tier.WARM)
    assert (await rig.caller.ask(adapter)).started.tier is Tier.WARM
    assert (await evict(rig, adapter, Tier.LOCAL)) == OrderDone(True, Tier.LOCAL)
    assert (await rig.caller.ask(adapter)).started.tier is Tier.LOCAL


async def test_local_tier_survives_a_restart(store_settings: StoreSettings, tmp_path: Path) -> None:
    settings = worker_settings(store_settings, tmp_path)
    async with running_worker(settings) as rig:
        adapter = await rig.put_tiny()
        await rig.caller.ask(adapter)
    async with running_worker(settings) as rig:
        assert (await rig.caller.ask(adapter)).started.tier is Tier.LOCAL


async def test_evict_to_cold_removes_the_file(rig: Rig) -> None:
    adapter = await rig.put_tiny()
    await rig.caller.ask(adapter)
    assert (await evict(rig, adapter, Tier.COLD)) == OrderDone(True, Tier.COLD)
    assert [path for path in Path(rig.settings.cache_dir).rglob("*") if path.is_file()] == []
    assert rig.engine.residency() == []
    assert (await rig.caller.ask(adapter)).started.tier is Tier.COLD


async def test_evict_of_an_adapter_in_use_is_refused(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with running_worker(worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.01)) as rig:
        adapter = await rig.put_tiny()
        talk = await rig.caller.send(adapter, max_tokens=ENDLESS, request_id="long")
        assert isinstance(await talk.next(), Started)
        assert (await evict(rig, adapter, Tier.COLD)) == OrderDone(False, Tier.RESIDENT)
        await rig.caller.bus.publish(subjects.worker("w1", "cancel"), Cancel("long"))
        assert (await talk.until_end()).finished.reason is FinishReason.CANCELLED
        assert (await evict(rig, adapter, Tier.COLD)).is_done


async def test_evict_says_gone_only_once_the_rows_have_left_the_device(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    engine, may_leave = FakeEngine(), threading.Event()
    async with running_worker(worker_settings(store_settings, tmp_path), engine) as rig:
        adapter = await rig.put_tiny()
        await rig.caller.ask(adapter)
        engine.before_evict = lambda: may_leave.wait(10)
        try:
            # The first order's rows are on their way out when the second one arrives.
            orders = [asyncio.create_task(evict(rig, adapter, Tier.COLD)) for _ in range(2)]
            done, _ = await asyncio.wait(orders, timeout=0.5)
            assert not done
            assert len(engine.residency()) == 1
        finally:
            may_leave.set()
        assert await asyncio.gather(*orders) == [OrderDone(True, Tier.COLD)] * 2
        assert engine.residency() == []


async def test_a_load_that_meets_an_eviction_brings_the_rows_back(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    engine, may_leave = FakeEngine(), threading.Event()
    async with running_worker(worker_settings(store_settings, tmp_path), engine) as rig:
        adapter = await rig.put_tiny()
        await rig.caller.ask(adapter)
        engine.before_evict = lambda: may_leave.wait(10)
        leaving = asyncio.create_task(evict(rig, adapter, Tier.WARM))
        key = adapter.pack_key
        while rig.worker.loader.find(key) is Tier.RESIDENT:
            await asyncio.sleep(0.01)
        loading = asyncio.create_task(rig.worker.loader.load(adapter))
        await asyncio.wait([loading], timeout=0.3)
        may_leave.set()
        await leaving
        assert (await loading).tier is Tier.WARM
        assert [k for k, _, _ in engine.residency()] == [key]
        assert rig.worker.loader.find(key) is Tier.RESIDENT


async def test_a_load_that_waits_for_room_begins_when_a_given_up_sequence_has_really_ended(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    num_pages = -(-len(tiny_pack()) // 1024)
    # Room for one adapter, and steps so slow that the load looks again long before the engine has let go.
    engine = FakeEngine(num_pages=num_pages, step_s=0.4)
    settings = worker_settings(store_settings, tmp_path, resident_share=0.99)
    async with running_worker(settings, engine) as rig:
        first, second = await rig.put_tiny("a", 1), await rig.put_tiny("b", 2)
        talk = await rig.caller.send(first, max_tokens=ENDLESS, budget_ms=2_500)
        assert isinstance(await talk.next(), Started)
        waiting = await rig.caller.send(second, max_tokens=1)
        assert (await talk.until_end()).error_code == "deadline_exceeded"
        async with asyncio.timeout(8):
            assert (await waiting.until_end()).tokens == [5]


async def test_many_requests_for_one_pack_read_it_once(
    store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = ObjectStore.read

    async def counted(self: ObjectStore, key: str, bytes_max: int) -> bytes:
        reads.append(key)
        return await read(self, key, bytes_max)

    monkeypatch.setattr(ObjectStore, "read", counted)
    engine = FakeEngine(num_waiting_max=64)
    async with running_worker(worker_settings(store_settings, tmp_path), engine) as rig:
        adapter = await rig.put_tiny()
        answers = await asyncio.gather(*(rig.caller.ask(adapter) for _ in range(30)))
        assert {answer.started.tier for answer in answers} <= {Tier.COLD, Tier.RESIDENT}
        assert all(answer.tokens == [5, 6, 7] for answer in answers)
        assert (len(reads), engine.num_installs) == (1, 1)


async def test_corrupt_pack_is_refused_and_nothing_is_served(rig: Rig) -> None:
    pack = tiny_pack()
    adapter = await rig.put(pack[:-1] + bytes([pack[-1] ^ 1]), handle_of(pack))
    answer = await rig.caller.ask(adapter)
    assert answer.error_code == "adapter_unavailable"
    assert answer.tokens == []
    assert rig.engine.num_installs == 0


async def test_missing_pack_is_refused(rig: Rig) -> None:
    assert (await rig.caller.ask(handle_of(tiny_pack()))).error_code == "adapter_unavailable"


async def test_corrupt_local_copy_is_replaced_from_cold(rig: Rig) -> None:
    adapter = await rig.put_tiny()
    await rig.caller.ask(adapter)
    await evict(rig, adapter, Tier.LOCAL)
    (path,) = [path for path in Path(rig.settings.cache_dir).rglob("*") if path.is_file()]
    path.write_bytes(b"torn")
    assert (await rig.caller.ask(adapter)).started.tier is Tier.COLD
    assert rig.engine.num_installs == 2


async def test_pack_for_another_base_is_refused_by_its_header(rig: Rig) -> None:
    other = Fingerprint("sha256:" + "cd" * 32)
    pack = tiny_pack(base=other)
    # Identity's record lies about the base; the bytes do not.
    assert (await rig.caller.ask(await rig.put(pack, handle_of(pack)))).error_code == "base_mismatch"
    assert (await rig.caller.ask(handle_of(pack, base=other))).error_code == "base_mismatch"
    assert (await rig.caller.ask(base=other)).error_code == "base_mismatch"
    assert rig.engine.num_installs == 0


async def test_order_to_prefetch_loads_without_a_request(rig: Rig) -> None:
    adapter = await rig.put_tiny()
    log = HeartbeatLog()
    await rig.caller.bus.serve(subjects.HEARTBEAT, Heartbeat, log.hear)
    await rig.caller.bus.publish(subjects.worker("w1", "prefetch"), Prefetch(adapter))
    while not any(p.tier is Tier.RESIDENT for beat in log.heard for p in beat.placed):
        await log.until(len(log.heard) + 1)
    assert (await rig.caller.ask(adapter)).started.tier is Tier.RESIDENT


async def test_order_in_time_is_joined_and_the_tier_stays_true(store_settings: StoreSettings, tmp_path: Path) -> None:
    patient = msgspec.structs.replace(QUICK, order_grace_ms=10_000)
    async with running_worker(worker_settings(store_settings, tmp_path), cadence=patient) as rig:
        adapter = await rig.put_tiny()
        talk = await rig.caller.send(adapter)
        await rig.caller.bus.publish(subjects.worker("w1", "prefetch"), Prefetch(adapter))
        answer = await talk.until_end()
        assert answer.started.tier is Tier.COLD
        assert answer.started.timings.load_ms < 5_000


async def test_more_adapters_than_the_device_holds_take_turns(store_settings: StoreSettings, tmp_path: Path) -> None:
    pack_pages = -(-len(tiny_pack()) // 1024)
    engine = FakeEngine(num_pages=4 * pack_pages, num_waiting_max=64)
    async with running_worker(worker_settings(store_settings, tmp_path), engine) as rig:
        adapters = [await rig.put_tiny(name, seed) for seed, name in enumerate("abcdefgh")]
        answers = await asyncio.gather(*(rig.caller.ask(adapter) for adapter in adapters * 2))
        assert all(answer.tokens == [5, 6, 7] for answer in answers)
        assert sum(size for _, size, _ in engine.residency()) <= rig.worker.loader.resident_budget_bytes
