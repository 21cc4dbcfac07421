"""What the sweeper may delete, and what no mistake of the view beside it makes it delete."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent, object_key
from octavo_identity.stream import StreamState
from octavo_identity.sweeper import Sweeper
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.keys import Role
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.objects import ObjectStore
from octavo_shared.references import AdapterId, TenantId
from support.identity_rig import Parts, own_identity, own_nats, parts

ORPHAN = "c" * 8


async def sweep_until_gone(sweeper: Sweeper, store: ObjectStore, key: str) -> None:
    """Sweep until ``key`` is gone; written again each time, because S3 tells its age in whole seconds."""
    async with asyncio.timeout(15):
        while True:
            await store.write(key, b"half a push")
            await sweeper.sweep(min_age_s=0)
            if key not in await store.keys(key):
                return
            await asyncio.sleep(0.1)


async def store_packs(store: ObjectStore, head: AdapterHead) -> list[str]:
    """Store a pack for each revision of a head that holds all of them, and return where."""
    keys = [stored.object_key for stored in head.revisions]
    for key in keys:
        await store.write(key, b"pack")
    return keys


def lose_revisions(folder: Path) -> None:
    """Make the view forget what packs there are, as a bug in it would."""
    (file,) = folder.glob("*.sqlite")
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM revisions")
    database.close()


async def test_an_orphan_stays_while_the_view_is_behind_and_goes_when_it_is_not(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    store = ObjectStore(store_settings)
    await store.ensure_bucket()
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        head = await one.add_revisions("home/diary", 2)
        packs = await store_packs(store, head)
        await one.catch_up()
        await one.add_revisions("home/diary", 1)
        orphan = object_key(head.adapter_id, 2, ORPHAN, ORPHAN)
        sweeper = Sweeper(store, one.heads, one.projection, one.keys, clocks_apart_s=0)
        await store.write(orphan, b"half a push")
        assert await sweeper.sweep(min_age_s=0) == 0
        await one.catch_up()
        await sweep_until_gone(sweeper, store, orphan)
        # A first push that was never committed: the stream knows nothing of its adapter.
        await sweep_until_gone(sweeper, store, object_key(AdapterId("d" * 32), 1, ORPHAN, ORPHAN))
        assert await store.keys("packs/") == sorted(packs)
    store.close()


async def test_a_new_stream_deletes_no_pack(store_settings: StoreSettings, tmp_path: Path) -> None:
    store = ObjectStore(store_settings)
    await store.ensure_bucket()
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        packs = await store_packs(store, await one.add_revisions("home/diary", 2))
    async with own_nats(tmp_path / "empty") as nats, parts(nats.url, tmp_path / "identity") as one:
        await one.catch_up()
        sweeper = Sweeper(store, one.heads, one.projection, one.keys, clocks_apart_s=0)
        assert await sweeper.sweep(min_age_s=0) == 0
        assert await store.keys("packs/") == sorted(packs)
    store.close()


async def test_a_pack_that_only_the_view_does_not_know_is_kept(store_settings: StoreSettings, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    store = ObjectStore(store_settings)
    await store.ensure_bucket()
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, folder) as one:
        old = await one.add_revisions("home/diary", 2)
        new = await one.add_revisions("home/diary", 40)
        await one.catch_up()
        lose_revisions(folder)
        sweeper = Sweeper(store, one.heads, one.projection, one.keys, clocks_apart_s=0)
        # What is written after this orphan is young enough to be swept.
        await sweep_until_gone(sweeper, store, object_key(old.adapter_id, 1, ORPHAN, ORPHAN))
        packs = [*await store_packs(store, old), *await store_packs(store, new)]
        assert set(await one.projection.unnamed_packs(packs)) == set(packs)
        assert await sweeper.sweep(min_age_s=0) == 0
        assert await store.keys("packs/") == sorted(packs)
    store.close()


async def test_what_has_not_the_form_of_a_pack_is_left_alone(store_settings: StoreSettings, tmp_path: Path) -> None:
    store = ObjectStore(store_settings)
    await store.ensure_bucket()
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        await one.add_revisions("home/diary", 1)
        await one.catch_up()
        adapter_id = one.ids.adapter("home", "diary")
        foreign = [f"packs/{adapter_id}/0.{ORPHAN}", f"packs/{adapter_id}/x", "packs/readme", f"packs/{adapter_id}/1"]
        for key in foreign:
            await store.write(key, b"somebody's")
        sweeper = Sweeper(store, one.heads, one.projection, one.keys, clocks_apart_s=0)
        await sweep_until_gone(sweeper, store, object_key(adapter_id, 1, ORPHAN, ORPHAN))
        assert await store.keys("packs/") == sorted(foreign)
    store.close()


class ShrinkingHeads(HeadStore):
    """A stream that is set back to an older state, as from a backup, and keeps its date of creation."""

    def __init__(self, num_events: int) -> None:
        self._fields = None
        self.num_events = num_events

    async def state(self) -> StreamState:
        return StreamState("2026-01-01", 1.0, self.num_events)

    async def copy_range(self, first: int, last: int) -> list[LedgerEvent]:
        sequences = range(first, last + 1)
        return [LedgerEvent(number, "a.subject", msgspec.msgpack.encode(self._event(number))) for number in sequences]

    @staticmethod
    def _event(sequence: int) -> RegistryEvent:
        name = f"home/a{sequence}"
        head = AdapterHead(AdapterId(name), TenantId("t"), name, "alice@home", 0, (), {})
        return RegistryEvent("revision_added", "alice@home", 1, 0, head)


async def test_a_view_of_a_stream_that_became_shorter_begins_again(tmp_path: Path) -> None:
    heads, projection = ShrinkingHeads(9), Projection(tmp_path / "view.sqlite")
    one = Parts(heads, None, projection, None, None)  # type: ignore[arg-type]
    await one.catch_up()
    assert (projection.sequence, projection.begun_s) == (9, 0)
    heads.num_events = 4
    await one.catch_up()
    assert projection.sequence == 4
    assert projection.begun_s > 0
    projection.close()
    again = Projection(tmp_path / "view.sqlite")
    assert (again.sequence, again.begun_s) == (4, projection.begun_s)
    again.close()


async def test_a_hole_in_the_stream_is_never_read_over(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus:
        # Unlike the real one, this stream allows a message to be deleted.
        await bus.jetstream.add_stream(name=subjects.REGISTRY_STREAM, subjects=list(subjects.REGISTRY_SUBJECTS))
        heads = HeadStore(bus, 1)
        for number in range(3):
            key = KeyHead(f"{number:016x}", bytes(32), "alice@home", "home", Role.OWNER)
            event = RegistryEvent("key_issued", "identity", 1, 0, key)
            await heads.append(subjects.key_head(key.key_id), event)
        for read in (heads.read_range, heads.copy_range):
            assert [event.sequence for event in await read(1, 3)] == [1, 2, 3]
        await bus.jetstream.delete_msg(subjects.REGISTRY_STREAM, 2)
        for read in (heads.read_range, heads.copy_range):
            with pytest.raises(DependencyUnavailable):
                await read(1, 3)


async def test_the_sweeper_takes_what_nobody_committed_and_nothing_else(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        await alice.push("home/diary")
        adapter = (await alice.resolve("home/diary")).adapter
        assert adapter is not None
        await alice.stage("home/diary")
        url = admin.bus.client.connected_url
        assert url is not None
        async with parts(url.geturl(), tmp_path / "identity") as one:
            await one.catch_up()
            sweeper = Sweeper(admin.store, one.heads, one.projection, one.keys, clocks_apart_s=0)
            assert await sweeper.sweep(min_age_s=3600) == 0
            assert await sweeper.sweep(min_age_s=0) == 2
            assert await admin.store.keys("staging/") == []
            await sweep_until_gone(sweeper, admin.store, adapter.object_key + "0")
            assert await admin.store.keys("packs/") == [adapter.object_key]
            assert await admin.store.keys("packs/", after=adapter.object_key) == []


async def test_a_view_that_is_damaged_while_identity_runs_is_made_anew(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        await alice.push("home/diary")
        database = sqlite3.connect(tmp_path / "identity" / "projection.sqlite")
        database.execute("DROP TABLE users")
        database.close()
        with pytest.raises(DependencyUnavailable):
            await alice.ask("list")
        names: Sequence[str] = ()
        async with asyncio.timeout(10):
            while not names:
                try:
                    names = [info.name for info in (await alice.ask("list")).adapters]
                except DependencyUnavailable:
                    await asyncio.sleep(0.05)
        assert names == ["home/diary"]
