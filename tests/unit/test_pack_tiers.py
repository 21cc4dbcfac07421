"""The digest is checked on the bytes that are used: whatever is swapped, where and when, is refused or never used."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo_shared.errors import AdapterUnavailable, BaseMismatch
from octavo_shared.messages.generation import AdapterHandle, Tier
from octavo_shared.objects import ObjectStore, ObjectTooLarge
from octavo_shared.pack import digest_of
from octavo_shared.references import Fingerprint
from octavo_worker.adapters.disk_cache import DiskCache
from octavo_worker.adapters.host_cache import HostCache
from octavo_worker.adapters.packs import PackTiers
from support.adapters import TINY_FINGERPRINT
from support.hostile import hostile_packs
from support.keys import key_for, sealed_for
from support.worker_rig import handle_of, tiny_pack

GOOD, EVIL = tiny_pack(seed=1), tiny_pack(seed=2)


class SwappingStore(ObjectStore):
    """Gives what is next in line; the last one for ever."""

    def __init__(self, *packs: bytes) -> None:
        self._packs = list(packs)

    async def read(self, key: str, bytes_max: int) -> bytes:
        pack = self._packs.pop(0) if len(self._packs) > 1 else self._packs[0]
        if len(pack) > bytes_max:
            raise ObjectTooLarge(key, bytes_max)
        return pack


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class KnownKeys:
    """What is swapped here was sealed under the right key: the digest alone can tell."""

    async def key_of(self, handle: AdapterHandle) -> bytes:
        return key_for(handle.adapter_id)


def tiers_of(folder: Path, threads: ThreadPoolExecutor, handle: AdapterHandle, *packs: bytes) -> PackTiers:
    local = DiskCache(folder, 1 << 20, threads)
    store = SwappingStore(*(sealed_for(handle, pack) for pack in packs))
    return PackTiers(HostCache(1 << 20), local, store, KnownKeys(), TINY_FINGERPRINT, threads)


async def test_a_pack_that_is_not_what_its_digest_says_is_refused_and_kept_nowhere(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    handle = handle_of(GOOD)
    for stored in (EVIL, GOOD[:-1], GOOD + b"\x00", b"", GOOD[:-1] + bytes([GOOD[-1] ^ 1])):
        tiers = tiers_of(tmp_path, threads, handle, stored)
        with pytest.raises(AdapterUnavailable, match="was changed"):
            await tiers.fetch(handle)
        await tiers.settle()
        assert tiers.find(handle.pack_key) is Tier.COLD


async def test_what_was_swapped_behind_the_check_is_never_used(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    handle = handle_of(GOOD)
    key = handle.pack_key
    tiers = tiers_of(tmp_path, threads, handle, GOOD, EVIL)
    found = await tiers.fetch(handle)
    assert (digest_of(found.pack), found.tier) == (handle.digest, Tier.COLD)
    await tiers.settle()
    # In memory it cannot change. The file can, and object storage now has something else.
    path = tiers.local.path_of(key)
    await asyncio.to_thread(path.write_bytes, sealed_for(handle, EVIL))
    assert (await tiers.fetch(handle)).pack == GOOD
    tiers.warm.drop(key)
    with pytest.raises(AdapterUnavailable, match="was changed"):
        await tiers.fetch(handle)
    await tiers.settle()
    assert tiers.find(key) is Tier.COLD
    assert not path.exists()


async def test_a_swapped_copy_nearby_is_dropped_and_the_next_tier_asked(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    handle = handle_of(GOOD)
    key = handle.pack_key
    tiers = tiers_of(tmp_path, threads, handle, GOOD)
    tiers.warm.put(key, EVIL, 1.0)
    await tiers.local.write(key, sealed_for(handle, EVIL), 1.0)
    found = await tiers.fetch(handle)
    assert (found.pack, found.tier) == (GOOD, Tier.COLD)
    await tiers.settle()
    assert tiers.warm.get(key) == GOOD
    tiers.warm.drop(key)
    found = await tiers.fetch(handle)
    assert (found.pack, found.tier) == (GOOD, Tier.LOCAL)


async def test_a_hostile_pack_with_the_right_digest_is_refused_by_name(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """What got past the gate, or was made by somebody who could sign for it."""
    for name, (make, rule) in hostile_packs().items():
        pack = make()
        handle = handle_of(pack)
        with pytest.raises(AdapterUnavailable, match=f"malformed \\({rule}") as refused:
            await tiers_of(tmp_path, threads, handle, pack).fetch(handle)
        assert len(refused.value.message) < 1_000, name


async def test_a_pack_for_another_base_is_refused_though_its_digest_is_right(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    other = Fingerprint("sha256:" + "cd" * 32)
    pack = tiny_pack(base=other)
    handle = handle_of(pack, base=TINY_FINGERPRINT)
    with pytest.raises(BaseMismatch):
        await tiers_of(tmp_path, threads, handle, pack).fetch(handle)
