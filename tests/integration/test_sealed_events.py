"""Events of adapters in the stream: sealed there, open to identity, and to nobody once the key is gone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.js.api import StreamConfig

from octavo_identity.data_keys import DataKeys
from octavo_identity.event_form import Opener
from octavo_identity.field_cache import FieldCache
from octavo_identity.field_keys import FieldKeys
from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_identity.records import AdapterHead, ErasedHead, RegistryEvent
from octavo_identity.search import Search
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterErased, DependencyUnavailable, RevisionConflict
from octavo_shared.messages.adapters import ListAdapters
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.references import AdapterId, parse_reference
from octavo_shared.sealed_event import EventNotOpened, StoredEvent, event_key, open_event
from support.identity_rig import Parts, data_keys, own_nats, parts

DIARY = parse_reference("home/diary")


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Parts]:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as made:
        yield made


def subject_of(one: Parts, name: str = "diary") -> str:
    tenant_id = one.ids.tenant("home")
    return subjects.adapter_head(one.ids.shard(tenant_id), tenant_id, one.ids.adapter("home", name))


def event_of(one: Parts, name: str, previous_sequence: int = 0, owner: str = "alice@home") -> RegistryEvent:
    head = AdapterHead(one.ids.adapter("home", name), one.ids.tenant("home"), f"home/{name}", owner, 0, (), {})
    return RegistryEvent("tagged", owner, 1, previous_sequence, head, "a detail")


async def erase(one: Parts) -> None:
    """Do to home/diary what erasing does to the registry, as another replica."""
    (found, sequence) = await one.heads.read(subject_of(one)) or (None, 0)
    assert found is not None
    head = found.head
    assert isinstance(head, AdapterHead)
    erased = ErasedHead(head.adapter_id, head.tenant_id, 1, "", "", 1)
    await one.heads.append(subject_of(one), RegistryEvent("erasing", "owner", 1, sequence, erased))
    await data_keys(one.heads._bus, one.ids).destroy(head.adapter_id)


async def test_only_what_finds_and_orders_an_event_is_stored_in_the_clear(one: Parts) -> None:
    await one.add_revisions("home/diary", 2)
    (stored,) = await one.heads.read_range(2, 2)
    fields = msgspec.msgpack.decode(stored.data)
    assert set(fields) == {"kind", "at_ms", "previous_sequence", "sealed"}
    assert (fields["kind"], fields["previous_sequence"]) == ("revision_added", 1)
    event = await one.heads.read_at(2)
    assert event is not None
    assert (event.kind, event.actor, event.at_ms) == ("revision_added", "alice@home", fields["at_ms"])
    assert await one.heads.read(subject_of(one)) == (event, 2)


async def test_events_from_before_they_were_sealed_are_still_read(one: Parts) -> None:
    old = event_of(one, "old")
    await one.heads._stream.append(subject_of(one, "old"), msgspec.msgpack.encode(old), 0)
    assert await one.heads.read(subject_of(one, "old")) == (old, 1)
    assert await one.heads.read_at(1) == old
    await one.catch_up()
    assert [head.name for head in (await one.projection.find(everything(), None, "", 9)).heads] == ["home/old"]


async def test_the_key_in_a_proof_opens_one_event(one: Parts) -> None:
    await one.add_revisions("home/diary", 2)
    first, second = await one.heads.read_range(1, 2)
    key = (await one.heads.opener([second])).key_of(second)
    assert msgspec.msgpack.decode(open_event(second, key), type=RegistryEvent) == await one.heads.read_at(2)
    with pytest.raises(EventNotOpened):
        open_event(first, key)


async def test_an_erased_adapters_events_stay_and_open_no_more(one: Parts) -> None:
    await one.add_revisions("home/diary", 3)
    before = await one.heads.read_range(1, 3)
    await erase(one)
    assert await one.heads.read_range(1, 3) == before
    # Whatever is not told of the erasure finds the key gone.
    fresh = HeadStore(one.heads._bus, 1, data_keys(one.heads._bus, one.ids))
    for sequence in (1, 2, 3):
        with pytest.raises(DependencyUnavailable):
            await fresh.read_at(sequence)
        opener = await fresh.opener(before)
        assert (opener.key_of(before[sequence - 1]), opener.open(before[sequence - 1])) == (b"", None)
    found = await fresh.read(subject_of(one))
    assert found is not None
    assert isinstance(found[0].head, ErasedHead)


async def test_every_replica_forgets_the_key_when_it_sees_the_erasure(one: Parts) -> None:
    adapter_id = one.ids.adapter("home", "diary")
    await one.add_revisions("home/diary", 1)
    await one.catch_up()
    assert one.keys.fields.get(adapter_id) is not None
    await erase(one)
    assert one.keys.fields.get(adapter_id) is not None, "it was another replica that erased it"
    await one.catch_up()
    assert one.keys.fields.get(adapter_id) is None
    # And by reading the head.
    one.keys.fields.keep(adapter_id, bytes(32))
    await one.heads.read(subject_of(one))
    assert one.keys.fields.get(adapter_id) is None
    # The one that destroys the key forgets it first.
    one.keys.fields.keep(adapter_id, bytes(32))
    await one.keys.destroy(adapter_id)
    assert one.keys.fields.get(adapter_id) is None


async def test_a_replica_that_hears_nothing_for_long_forgets_all_keys(
    one: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(HeadStore):
        num_asked = 0

        async def state(self) -> object:  # type: ignore[override]
            self.num_asked += 1
            raise DependencyUnavailable("JetStream")

    monkeypatch.setattr("octavo_identity.projection._FORGET_AFTER_S", -1)
    await one.add_revisions("home/diary", 1)
    assert len(one.keys.fields) == 1
    heads = Deaf(one.heads._bus, 1, one.keys)
    following = asyncio.create_task(one.projection.follow(heads))
    async with asyncio.timeout(5):
        while len(one.keys.fields):
            await asyncio.sleep(0.01)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


class RacingKeys(DataKeys):
    """Keys of which one is destroyed between the reads of a head and of its key."""

    one: Parts

    async def read(self, adapter_id: AdapterId) -> bytes:
        if (await self.one.heads._stream.state()).last_sequence == 1:
            await erase(self.one)
        return await super().read(adapter_id)


async def test_a_head_whose_key_goes_while_it_is_read_is_read_as_erased(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    keys = RacingKeys(one.heads._bus, 1, one.keys._provider)
    keys.one = one
    found = await HeadStore(one.heads._bus, 1, keys).read(subject_of(one))
    assert found is not None
    assert isinstance(found[0].head, ErasedHead)


async def test_a_head_is_not_taken_for_absent_because_its_key_is(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    adapter_id = one.ids.adapter("home", "diary")
    stored = await one.keys._stream.get(subject=subjects.data_key(adapter_id))
    assert stored is not None
    await one.keys._stream.delete(stored.sequence)
    with pytest.raises(DependencyUnavailable):
        await HeadStore(one.heads._bus, 1, data_keys(one.heads._bus, one.ids)).read(subject_of(one))


async def test_a_view_made_anew_knows_nothing_of_what_was_erased(one: Parts, tmp_path: Path) -> None:
    await one.add_revisions("home/diary", 2)
    await one.add_revisions("home/poems", 2)
    await erase(one)
    # Another replica, which was never told a key.
    one.keys.fields.forget_all()
    for _ in range(2):
        await one.catch_up()
        known = [one.keys.fields.get(one.ids.adapter("home", name)) is not None for name in ("diary", "poems")]
        assert known == [False, True]
        assert [head.name for head in (await one.projection.find(everything(), None, "", 9)).heads] == ["home/poems"]
        assert one.projection.tree.size == 5
        one.projection.close()
        one.projection = Projection(tmp_path / "again.sqlite")
    assert b"home/diary" not in (tmp_path / "again.sqlite").read_bytes()


async def test_a_key_that_a_replica_still_had_is_forgotten_with_the_erasure(
    one: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.add_revisions("home/diary", 1)
    adapter_id = one.ids.adapter("home", "diary")
    late = await one.heads.opener(await one.heads.read_range(1, 1))
    await erase(one)

    async def opener(events: object) -> Opener:
        return late

    monkeypatch.setattr(one.heads, "opener", opener)
    assert late.keys[adapter_id] is not None
    await one.catch_up()
    assert one.keys.fields.get(adapter_id) is None


def everything() -> Search:
    return Search.of(ListAdapters(credential=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_old", [False, True], ids=["", "without direct reads and batches"])
async def test_adapters_that_begin_together_get_their_keys_together(is_old: bool, tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats:
        if is_old:
            async with Bus(nats.url, "test") as bus:
                config = StreamConfig(name=subjects.KEY_STREAM, subjects=list(subjects.KEY_SUBJECTS))
                await bus.jetstream.add_stream(config)
        async with parts(nats.url, tmp_path / "identity") as one:
            tenant_id = one.ids.tenant("home")
            # One of them has a key already, as after a push whose last step failed.
            await one.keys.make(tenant_id, one.ids.adapter("home", "a1"))
            one.keys.fields.forget_all()
            names = [f"a{number}" for number in range(5)]
            events = [(subject_of(one, name), event_of(one, name)) for name in names]
            assert await one.heads.append_all(events) == [1, 2, 3, 4, 5]
            more = [(subject_of(one, name), event_of(one, name)) for name in ("b0", "b1")]
            assert await one.heads.append_all(more) == [6, 7]
            one.keys.fields.forget_all()
            again = [(subject_of(one, f"a{number}"), event_of(one, f"a{number}", number + 1)) for number in range(3)]
            assert await one.heads.append_all(again) == [8, 9, 10]
            one.keys.fields.forget_all()
            await one.catch_up()
            found = (await one.projection.find(everything(), None, "", 9)).heads
            assert [head.name for head in found] == [f"home/{name}" for name in (*names, "b0", "b1")]
            opener = await one.heads.opener(await one.heads.read_range(1, 10))
            assert len(opener.keys) == 7


async def test_nothing_is_appended_to_what_was_erased(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    await erase(one)
    batch = [(subject_of(one, name), event_of(one, name)) for name in ("poems", "diary")]
    for keys in (one.keys, data_keys(one.heads._bus, one.ids)):
        heads = HeadStore(one.heads._bus, 1, keys)
        for previous_sequence in (0, 1):
            with pytest.raises(RevisionConflict):
                await heads.append(subject_of(one), event_of(one, "diary", previous_sequence))
        with pytest.raises(RevisionConflict):
            await heads.append_all(batch)
    with pytest.raises(AdapterErased):
        await FieldKeys(data_keys(one.heads._bus, one.ids)).to_write([], [one.ids.adapter("home", "diary")])


async def test_an_event_of_which_a_bit_was_changed_is_read_by_nobody(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    (stored,) = await one.heads.read_range(1, 1)
    fields = await FieldKeys(one.keys).read(one.ids.adapter("home", "diary"))
    outer = msgspec.msgpack.decode(stored.data, type=StoredEvent)
    later = msgspec.msgpack.encode(msgspec.structs.replace(outer, at_ms=outer.at_ms + 1))
    for data in (stored.data[:-1] + bytes([stored.data[-1] ^ 1]), later):
        changed = LedgerEvent(1, stored.subject, data)
        with pytest.raises(EventNotOpened):
            open_event(changed, event_key(changed, fields))
        with pytest.raises(DependencyUnavailable):
            (await one.heads.opener([changed])).open(changed)


def test_no_more_keys_are_kept_than_there_may_be() -> None:
    keys = FieldCache(num_max=2)
    ids = [AdapterId(text) for text in "abc"]
    for adapter_id in ids[:2]:
        keys.keep(adapter_id, bytes(32))
    keys.get(ids[0])
    keys.keep(ids[2], bytes(32))
    assert [keys.get(adapter_id) is not None for adapter_id in ids] == [True, False, True]
    keys.keep(ids[0], bytes(32))
    assert len(keys) == 2
