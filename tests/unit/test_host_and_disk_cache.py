"""Claims about the warm and the local tier, without servers."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_shared.pack import digest_of
from octavo_shared.references import AdapterId, Digest, PackKey
from octavo_worker.adapters import disk_cache
from octavo_worker.adapters.disk_cache import DiskCache
from octavo_worker.adapters.host_cache import HostCache


def key_of(name: str, pack: bytes = b"pack") -> PackKey:
    return AdapterId(name), digest_of(pack)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60), st.booleans()), max_size=60))
def test_warm_tier_never_exceeds_its_budget(operations: list[tuple[str, int, bool]]) -> None:
    cache = HostCache(budget_bytes=100)
    for name, size, is_put in operations:
        if is_put:
            cache.put(key_of(name), bytes(size), cost_ms=1.0)
        else:
            cache.drop(key_of(name))
        assert cache.used_bytes == sum(size for _, size in cache.sizes()) <= 100


def test_what_is_kept_counts_and_not_what_was_offered_under_the_same_key() -> None:
    cache = HostCache(budget_bytes=10)
    # The second is used twice, too, and smaller than the first claims to be, so the first has to go.
    for name, pack in (("a", b"123"), ("a", b"1234567"), ("b", b"12345"), ("b", b"12345"), ("c", b"123456")):
        cache.put(key_of(name), pack, 1.0)
    assert cache.used_bytes == sum(size for _, size in cache.sizes()) <= 10


def test_warm_pack_larger_than_the_budget_is_not_kept_and_evicts_nobody() -> None:
    cache = HostCache(budget_bytes=10)
    assert cache.put(key_of("a"), b"12345678", 1.0)
    assert not cache.put(key_of("b"), b"12345678901", 1.0)
    assert cache.get(key_of("a")) == b"12345678"


def test_same_bytes_of_two_adapters_are_two_packs() -> None:
    cache = HostCache(budget_bytes=10)
    cache.put(key_of("a"), b"1234", 1.0)
    assert cache.get(key_of("b")) is None


async def test_local_pack_is_read_back_and_dropped(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    cache = DiskCache(tmp_path, 100, threads)
    await cache.scan()
    assert await cache.write(key_of("a"), b"pack", 1.0)
    assert await cache.read(key_of("a")) == b"pack"
    assert cache.path_of(key_of("a")).is_file()
    assert await cache.drop(key_of("a"))
    assert await cache.read(key_of("a")) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_scan_finds_earlier_packs_and_drops_leftovers(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    before = DiskCache(tmp_path, 100, threads)
    await before.scan()
    await before.write(key_of("a"), b"pack", 1.0)
    (tmp_path / ".partial" / "torn").write_bytes(b"half")
    (tmp_path / "stranger").write_bytes(b"not ours")
    after = DiskCache(tmp_path, 100, threads)
    await after.scan()
    assert dict(after.sizes()) == {key_of("a"): 4}
    assert not (tmp_path / ".partial" / "torn").exists()
    assert (tmp_path / "stranger").exists()


async def test_scan_shrinks_to_a_smaller_budget(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    before = DiskCache(tmp_path, 100, threads)
    await before.scan()
    for name in "abc":
        await before.write(key_of(name), b"12345678", 1.0)
    after = DiskCache(tmp_path, 16, threads)
    await after.scan()
    assert after.used_bytes == 16
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


async def test_local_tier_evicts_files_to_stay_within_its_budget(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    cache = DiskCache(tmp_path, 16, threads)
    await cache.scan()
    for name in "abcd":
        assert await cache.write(key_of(name), b"12345678", 1.0)
    assert {name for (name, _), _ in cache.sizes()} == {"c", "d"}
    assert not await cache.write(key_of("e"), bytes(17), 1.0)


def files_of(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file of a cache, also of those that are being written."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


async def test_writers_at_the_same_time_stay_within_the_budget_on_disk_too(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, 40, threads)
    await cache.scan()
    seen_bytes: list[int] = []
    store, unlink = DiskCache._store, disk_cache._unlink
    # Nothing may change while the files are counted: one that is removed meanwhile would count beside its successor.
    counting = threading.Lock()

    def watched(self: DiskCache, path: Path, pack: bytes) -> None:
        with counting:
            store(self, path, pack)
            seen_bytes.append(sum(files_of(tmp_path).values()))

    def unlinked(path: Path) -> None:
        with counting:
            unlink(path)

    monkeypatch.setattr(DiskCache, "_store", watched)
    monkeypatch.setattr(disk_cache, "_unlink", unlinked)

    async def write(number: int) -> None:
        await cache.write(key_of(f"k{number}"), bytes(5 + number % 4), 1.0)
        assert cache.used_bytes == sum(size for _, size in cache.sizes()) <= 40

    for _ in range(5):
        await asyncio.gather(*(write(number) for number in range(40)))
    assert max(seen_bytes) <= 40
    assert files_of(tmp_path) == {str(cache.path_of(key).relative_to(tmp_path)): size for key, size in cache.sizes()}


async def test_what_is_written_evicted_dropped_and_read_at_the_same_time_ends_as_the_index_says(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    cache = DiskCache(tmp_path, 24, threads)
    await cache.scan()
    random = Random(5)

    async def use() -> None:
        name = random.choice("abcde")
        if random.random() < 0.6:
            await cache.write(key_of(name), name.encode() * 8, 1.0)
        elif random.random() < 0.5:
            await cache.drop(key_of(name))
        elif (pack := await cache.read(key_of(name))) is not None:
            assert pack == name.encode() * 8

    await asyncio.gather(*(use() for _ in range(400)))
    held = {str(cache.path_of(key).relative_to(tmp_path)): size for key, size in cache.sizes()}
    assert files_of(tmp_path) == held
    assert cache.used_bytes == sum(held.values())


async def test_a_pack_that_is_just_being_evicted_is_gone_when_the_order_to_drop_it_returns(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    cache = DiskCache(tmp_path, 8, threads)
    await cache.scan()
    await cache.write(key_of("a"), b"12345678", 1.0)
    writing = asyncio.create_task(cache.write(key_of("b"), b"12345678", 1.0))
    await asyncio.sleep(0)
    assert key_of("a") not in cache
    await cache.drop(key_of("a"))
    assert not cache.path_of(key_of("a")).exists()
    assert await writing


async def test_vanished_file_is_a_miss_and_no_longer_counted(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    cache = DiskCache(tmp_path, 16, threads)
    await cache.scan()
    await cache.write(key_of("a"), b"pack", 1.0)
    cache.path_of(key_of("a")).unlink()
    assert await cache.read(key_of("a")) is None
    assert cache.used_bytes == 0


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".partial"])
async def test_unsafe_names_reach_no_path(name: str, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    cache = DiskCache(tmp_path / "cache", 16, threads)
    await cache.scan()
    assert not await cache.write((AdapterId(name), Digest("sha256:" + "0" * 64)), b"pack", 1.0)
    assert not await cache.write((AdapterId("a"), Digest("sha256:../../x")), b"pack", 1.0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
