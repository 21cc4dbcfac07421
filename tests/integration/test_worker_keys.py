"""Sealed packs at a worker: opened in memory only, with keys that identity gave it."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.fleet import Evict, OrderDone
from octavo_shared.messages.generation import AdapterHandle, Tier
from octavo_shared.seal import HEADER_BYTES
from support.keys import key_for, sealed_for
from support.worker_rig import Rig, handle_of, running_worker, tiny_pack, worker_settings

SEED = 20_261_124
NUM_FLIPS = 256
AT_ONCE = 8


@pytest.fixture
async def rig(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_worker(worker_settings(store_settings, tmp_path)) as running:
        yield running


async def evict(rig: Rig, handle: AdapterHandle, tier: Tier) -> None:
    order = Evict(handle.adapter_id, handle.digest, tier)
    done = await rig.bus.request(subjects.worker("w1", "evict"), order, OrderDone, timeout_s=5)
    assert done == OrderDone(True, tier)


async def test_the_disk_holds_what_is_sealed_and_no_key(rig: Rig, tmp_path: Path) -> None:
    pack = tiny_pack()
    handle = await rig.put(pack, handle_of(pack))
    assert (await rig.caller.ask(handle)).started.tier is Tier.COLD
    await evict(rig, handle, Tier.LOCAL)
    files = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 1
    assert files[0] == await rig.store.read(handle.object_key, 1 << 24)
    assert pack[100:132] not in files[0]
    assert key_for(handle.adapter_id) not in files[0]
    assert (await rig.caller.ask(handle)).started.tier is Tier.LOCAL
    assert rig.keys.num_asked == 1


async def test_while_identity_is_away_what_is_here_is_served_and_nothing_else(rig: Rig) -> None:
    here = await rig.put_tiny("a", 1)
    other = await rig.put_tiny("b", 2)
    assert (await rig.caller.ask(here)).started.tier is Tier.COLD
    rig.keys.is_away = True
    assert (await rig.caller.ask(here)).started.tier is Tier.RESIDENT
    await evict(rig, here, Tier.WARM)
    assert (await rig.caller.ask(here)).started.tier is Tier.WARM
    await evict(rig, here, Tier.LOCAL)
    assert (await rig.caller.ask(here)).started.tier is Tier.LOCAL
    assert (await rig.caller.ask(other)).error_code == "adapter_unavailable"
    rig.keys.is_away = False
    assert (await rig.caller.ask(other)).started.tier is Tier.COLD


async def test_a_key_that_identity_refuses_ends_in_its_own_error(rig: Rig) -> None:
    handle = await rig.put_tiny()
    rig.keys.erased.append(handle.adapter_id)
    assert (await rig.caller.ask(handle)).error_code == "adapter_erased"


async def test_a_changed_copy_on_the_disk_is_dropped_and_read_again(rig: Rig, tmp_path: Path) -> None:
    handle = await rig.put_tiny()
    await rig.caller.ask(handle)
    await evict(rig, handle, Tier.LOCAL)
    (file,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    sealed = bytearray(file.read_bytes())
    sealed[HEADER_BYTES + 5] ^= 1
    file.write_bytes(sealed)
    assert (await rig.caller.ask(handle)).started.tier is Tier.COLD


async def test_no_changed_pack_is_ever_served(rig: Rig) -> None:
    pack, draw = tiny_pack(), random.Random(SEED)

    async def served(number: int) -> str:
        """Return how a request ends whose adapter has one bit of its pack flipped."""
        flipped = handle_of(pack, f"{number:04x}")
        changed = bytearray(sealed_for(flipped, pack))
        bit = draw.randrange(len(changed) * 8)
        changed[bit // 8] ^= 1 << bit % 8
        await rig.store.write(flipped.object_key, bytes(changed))
        return (await rig.caller.ask(flipped)).error_code

    for first in range(0, NUM_FLIPS, AT_ONCE):
        ends = await asyncio.gather(*(served(number) for number in range(first, first + AT_ONCE)))
        assert set(ends) == {"adapter_unavailable"}
    handle = handle_of(pack)
    sealed = sealed_for(handle, pack)
    # Neither is another's pack under this one's name, nor one that was never sealed, nor an older revision's.
    older = msgspec.structs.replace(handle, revision=2)
    for content in (sealed_for(handle_of(pack, "b"), pack), pack, sealed_for(older, pack), sealed[:-1], b""):
        await rig.store.write(handle.object_key, content)
        assert (await rig.caller.ask(handle)).error_code == "adapter_unavailable"
    await rig.store.write(handle.object_key, sealed)
    assert (await rig.caller.ask(handle)).started.digest == handle.digest
    assert rig.engine.num_installs == 1
