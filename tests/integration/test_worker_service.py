"""The worker's service around a fake engine, on real NATS and S3: answers, refusals, cancels, heartbeats, stops."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_cli.local_servers import NatsServer, S3Server
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import InternalError
from octavo_shared.manifest import ManifestConflict, fetch_base, publish_base
from octavo_shared.messages.fleet import Heartbeat, WorkerState
from octavo_shared.messages.generation import (
    Busy,
    Cancel,
    Failed,
    Finished,
    FinishReason,
    Lease,
    Started,
    Tier,
    TokenChunk,
)
from octavo_shared.objects import ObjectStore
from octavo_shared.references import Digest
from octavo_worker.settings import Cadence
from support.adapters import TINY_BASE
from support.fake_engine import FakeEngine
from support.worker_rig import QUICK, HeartbeatLog, Rig, running_worker, worker_settings

ENDLESS = 10_000_000


@pytest.fixture
async def rig(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_worker(worker_settings(store_settings, tmp_path)) as rig:
        yield rig


async def test_base_alone_is_answered_in_order(rig: Rig) -> None:
    answer = await rig.caller.ask(max_tokens=5)
    assert [type(event) for event in answer.events] == [Started, *[TokenChunk] * 5, Finished]
    assert answer.tokens == [5, 6, 7, 5, 6]
    assert answer.started.tier is Tier.BASE
    assert answer.finished.num_completion_tokens == 5


async def test_forced_tokens_are_not_delivered_again(rig: Rig) -> None:
    answer = await rig.caller.ask(max_tokens=5, forced=(5, 6), attempt=1)
    assert answer.tokens == [7, 5, 6]
    assert next(e for e in answer.events if isinstance(e, TokenChunk)).first_index == 2


async def test_a_published_base_is_never_replaced_by_another_manifest(store_settings: StoreSettings) -> None:
    store = ObjectStore(store_settings)
    try:
        await store.ensure_bucket()
        await publish_base(store, TINY_BASE, b"{}")
        await publish_base(store, msgspec.structs.replace(TINY_BASE, name="another-directory"), b"{}")
        assert await fetch_base(store, TINY_BASE.fingerprint) == (TINY_BASE, b"{}")
        other = msgspec.structs.replace(TINY_BASE, chat_template="{{ messages }}", stop_token_ids=(1,))
        with pytest.raises(ManifestConflict, match=r"otherwise \(chat_template, stop_token_ids\)"):
            await publish_base(store, other, b"{}")
        with pytest.raises(ManifestConflict, match=r"otherwise \(tokenizer\)"):
            await publish_base(store, TINY_BASE, b"[]")
        assert await fetch_base(store, TINY_BASE.fingerprint) == (TINY_BASE, b"{}")
        await store.write(f"bases/{TINY_BASE.fingerprint.removeprefix('sha256:')}/manifest.json", b"[]")
        with pytest.raises(ManifestConflict, match="not a base manifest"):
            await publish_base(store, TINY_BASE, b"{}")
    finally:
        store.close()


async def test_full_worker_is_busy(store_settings: StoreSettings, tmp_path: Path) -> None:
    settings = worker_settings(store_settings, tmp_path, num_running_max=1, num_waiting_max=1)
    async with running_worker(settings, FakeEngine(step_s=0.01)) as rig:
        talks = [await rig.caller.send(max_tokens=ENDLESS) for _ in range(2)]
        for talk in talks:
            assert isinstance(await talk.next(), Started)
        assert isinstance((await rig.caller.ask()).last, Busy)
        for number in (1, 2):
            await rig.caller.bus.publish(subjects.worker("w1", "cancel"), Cancel(f"r{number}"))
        assert [(await talk.until_end()).finished.reason for talk in talks] == [FinishReason.CANCELLED] * 2
        assert isinstance((await rig.caller.ask()).last, Finished)


async def test_deadline_ends_a_request(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with running_worker(worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.01)) as rig:
        assert (await rig.caller.ask(max_tokens=ENDLESS, budget_ms=200)).error_code == "deadline_exceeded"


async def test_silent_gateway_loses_its_sequences_and_a_leasing_one_keeps_them(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    cadence = Cadence(heartbeat_ms=100, lease_timeout_ms=600, drain_ms=100)
    async with running_worker(worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.01), cadence) as rig:
        living = await rig.caller.send(max_tokens=ENDLESS, gateway_id="living")
        silent = await rig.caller.send(max_tokens=ENDLESS, gateway_id="silent")

        async def lease() -> None:
            while True:
                await rig.caller.bus.publish(subjects.LEASE, Lease("living"))
                await asyncio.sleep(0.1)

        task = asyncio.create_task(lease())
        try:
            assert (await silent.until_end()).finished.reason is FinishReason.CANCELLED
            assert isinstance(await living.next(), Started)
            assert isinstance(await living.next(), TokenChunk)
        finally:
            task.cancel()


async def test_repeated_message_is_served_once(rig: Rig) -> None:
    talk = await rig.caller.send(max_tokens=ENDLESS, request_id="same")
    assert isinstance(await talk.next(), Started)
    again = await rig.caller.send(max_tokens=ENDLESS, request_id="same")
    assert await again.is_silent(0.3)


async def test_heartbeats_tell_changes_between_snapshots(rig: Rig) -> None:
    log = HeartbeatLog()
    await rig.caller.bus.serve(subjects.HEARTBEAT, Heartbeat, log.hear)
    adapter = await rig.put_tiny()
    await rig.caller.ask(adapter)
    heard = await log.until(25)
    sequences = [beat.sequence for beat in heard]
    assert sequences == list(range(sequences[0], sequences[0] + len(heard)))
    assert len({beat.epoch for beat in heard}) == 1
    assert {beat.context_tokens for beat in heard} == {rig.engine.context_tokens}
    snapshots = [index for index, beat in enumerate(heard) if beat.is_snapshot]
    assert all(later - former <= 10 for former, later in itertools.pairwise(snapshots))
    placed: dict[Digest, Tier] = {}
    for beat in heard:
        if beat.is_snapshot:
            assert {p.digest: p.tier for p in beat.placed}.keys() >= placed.keys()
            placed.clear()
        placed |= {p.digest: p.tier for p in beat.placed}
    assert placed == {adapter.digest: Tier.RESIDENT}


async def test_stop_refuses_new_and_fails_what_does_not_end(store_settings: StoreSettings, tmp_path: Path) -> None:
    cadence = msgspec.structs.replace(QUICK, drain_ms=500)
    log = HeartbeatLog()
    async with running_worker(worker_settings(store_settings, tmp_path), FakeEngine(step_s=0.01), cadence) as rig:
        await rig.caller.bus.serve(subjects.HEARTBEAT, Heartbeat, log.hear)
        endless = await rig.caller.send(max_tokens=ENDLESS)
        brief = await rig.caller.send(max_tokens=20)
        assert isinstance(await brief.next(), Started)

        async def during_drain() -> list[object]:
            while not any(beat.state is WorkerState.DRAINING for beat in log.heard):
                await log.until(len(log.heard) + 1)
            refused = await rig.caller.ask()
            return [refused.last, (await brief.until_end()).last, (await endless.until_end()).error_code]

        # Leaving the block drains the worker while the task talks to it.
        task = asyncio.create_task(during_drain())
    refused, finished, code = await task
    assert isinstance(refused, Busy)
    assert isinstance(finished, Finished)
    assert code == "worker_lost"


async def test_engine_that_fails_ends_every_request_and_the_worker(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    engine = FakeEngine(step_s=0.01)

    async def scenario() -> None:
        async with running_worker(worker_settings(store_settings, tmp_path), engine) as rig:
            talk = await rig.caller.send(max_tokens=ENDLESS)
            assert isinstance(await talk.next(), Started)
            engine.raises = RuntimeError("the device is gone")
            assert (await talk.until_end()).error_code == "worker_lost"
            assert isinstance((await rig.caller.ask()).last, Busy)

    with pytest.raises(InternalError):
        await scenario()


async def test_without_s3_resident_goes_on_and_cold_recovers(nats_server: NatsServer, tmp_path: Path) -> None:
    s3 = S3Server(tmp_path / "s3")
    await s3.start()
    try:
        store = StoreSettings(
            nats_url=nats_server.url,
            s3_endpoint=s3.endpoint,
            s3_access_key=s3.access_key,
            s3_secret_key=s3.secret_key,
        )
        async with running_worker(worker_settings(store, tmp_path)) as rig:
            near, far = await rig.put_tiny("a", 1), await rig.put_tiny("b", 2)
            await rig.caller.ask(near)
            await s3.stop()
            assert (await rig.caller.ask(near)).started.tier is Tier.RESIDENT
            assert (await rig.caller.ask(far)).error_code == "adapter_unavailable"
            await s3.start()
            # A server that says it is healthy may not have found its own volumes yet.
            async with asyncio.timeout(20):
                while isinstance((answer := await rig.caller.ask(far)).last, Failed):
                    assert answer.error_code == "adapter_unavailable"
                    await asyncio.sleep(0.2)
            assert answer.started.tier is Tier.COLD
    finally:
        await s3.stop()


async def test_worker_that_loses_nats_comes_back(tmp_path: Path, s3_server: S3Server) -> None:
    nats = NatsServer(tmp_path / "nats")
    await nats.start()
    try:
        store = StoreSettings(
            nats_url=nats.url,
            s3_endpoint=s3_server.endpoint,
            s3_access_key=s3_server.access_key,
            s3_secret_key=s3_server.secret_key,
            s3_bucket="lost-nats",
        )
        async with running_worker(worker_settings(store, tmp_path), FakeEngine(step_s=0.01)) as rig:
            log = HeartbeatLog()
            await rig.caller.bus.serve(subjects.HEARTBEAT, Heartbeat, log.hear)
            talk = await rig.caller.send(max_tokens=ENDLESS)
            assert isinstance(await talk.next(), Started)
            await nats.stop()
            log.heard.clear()
            await nats.start()
            assert (await log.until(1))[0].is_snapshot
            assert (await rig.caller.ask()).tokens == [5, 6, 7]
    finally:
        await nats.stop()
