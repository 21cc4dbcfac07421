"""Many adapters for one request: one atomic batch, each answered for itself. Real NATS and S3."""

import asyncio
import json
import secrets
from collections import Counter
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from octavo_identity.batching import BatchRefused, Entry, append_batch
from octavo_identity.grouping import Group
from octavo_identity.heads import HeadStore
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import InvalidRequest, NotPermitted, RevisionConflict
from octavo_shared.messages.importing import IMPORT_ITEMS_MAX, ImportItem, ImportOutcome, ImportState
from octavo_shared.messages.keys import Role
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, own_identity, own_nats, parts

ADDED, PRESENT, WANTED, REFUSED = ImportState.ADDED, ImportState.PRESENT, ImportState.WANTED, ImportState.REFUSED


async def staged(client: Client, adapter: str, seed: int, key: str = "", config: bytes | None = None) -> ImportItem:
    upload_id = await client.stage(adapter, seed, config)
    return ImportItem(adapter, key or f"import-{adapter}-{seed}", TINY_FINGERPRINT, upload_id)


async def register(client: Client, *items: ImportItem) -> list[ImportOutcome]:
    return list((await client.ask("register", items=items)).outcomes)


def states(outcomes: list[ImportOutcome]) -> list[ImportState]:
    return [outcome.state for outcome in outcomes]


async def last_sequence(client: Client) -> int:
    return (await HeadStore(client.bus, 1).state()).last_sequence


async def test_what_is_imported_together_is_one_atomic_batch(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        # So that the base is registered already.
        await alice.push("home/first", 99)
        before = await last_sequence(admin)
        items = [await staged(alice, f"home/a{number}", number) for number in range(6)]
        outcomes = await register(alice, *items)
        assert states(outcomes) == [ADDED] * 6
        assert [outcome.revision for outcome in outcomes] == [1] * 6
        assert await last_sequence(admin) == before + 6
        batches = set()
        for sequence in range(before + 1, before + 7):
            message = await admin.bus.jetstream.get_msg(subjects.REGISTRY_STREAM, seq=sequence)
            assert message.headers is not None
            batches.add(message.headers["Nats-Batch-Id"])
        assert len(batches) == 1
        for number, outcome in enumerate(outcomes):
            found = (await alice.resolve(f"home/a{number}")).adapter
            assert found is not None
            assert found.digest == outcome.digest
            assert (await alice.ask("prove", reference=f"home/a{number}")).digest == outcome.digest


async def test_what_is_the_same_for_all_of_an_import_is_read_a_few_times(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        await alice.push("home/first", 99)
        items = [await staged(alice, f"home/a{number}", number) for number in range(12)]
        asked: Counter[str] = Counter()

        async def note(message: Msg) -> None:
            asked[json.loads(message.data).get("last_by_subj", "")] += 1

        listening = await admin.bus.subscribe(f"$JS.API.STREAM.MSG.GET.{subjects.REGISTRY_STREAM}", note)
        assert states(await register(alice, *items)) == [ADDED] * 12
        await admin.bus.leave(listening)
        key = subjects.key_head(alice.credential.key_id)
        # Which of the twelve are there was asked at once, and compare-and-set decides.
        assert not [subject for subject in asked if subjects.adapter_of(subject) is not None]
        # Each of them would be read once or more for each of the twelve.
        assert {subjects.BASES, key} <= asked.keys()
        assert all(count < 12 for subject, count in asked.items() if subject), asked


async def test_an_import_that_is_repeated_changes_nothing(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        first = await register(alice, *[await staged(alice, f"home/a{number}", number) for number in range(3)])
        last = await last_sequence(admin)
        asked = [
            ImportItem(f"home/a{number}", f"import-home/a{number}-{number}", TINY_FINGERPRINT) for number in range(4)
        ]
        outcomes = await register(alice, *asked)
        assert states(outcomes) == [PRESENT] * 3 + [WANTED]
        assert [outcome.digest for outcome in outcomes[:3]] == [outcome.digest for outcome in first]
        # The same bytes under another key, as when the head has forgotten the first one.
        again = [await staged(alice, f"home/a{number}", number, secrets.token_hex(8)) for number in range(3)]
        assert states(await register(alice, *again)) == [PRESENT] * 3
        assert await last_sequence(admin) == last
        changed = await register(alice, await staged(alice, "home/a0", 9))
        assert (states(changed), changed[0].revision) == ([ADDED], 2)


async def test_what_is_refused_holds_up_none_of_the_others(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice, bob = await admin.new_key("home", "alice"), await admin.new_key("home", "bob")
        await bob.push("home/bobs")
        items = [
            await staged(alice, "home/good", 1),
            await staged(alice, "home/bad", 2, config=b'{"peft_type": "LORA", "use_dora": true}'),
            ImportItem("home/bobs", "k1", TINY_FINGERPRINT, await alice.stage("home/mine")),
            ImportItem("home/unstaged", "k2", TINY_FINGERPRINT, "0" * 76),
            ImportItem("away/other", "k3", TINY_FINGERPRINT),
            ImportItem("home/two", "k4", TINY_FINGERPRINT, await alice.stage("home/two"), tags=("work", "x")),
            ImportItem("home/note", "k5", TINY_FINGERPRINT, await alice.stage("home/note"), note="n" * 5_000),
            ImportItem("home/tags", "k6", TINY_FINGERPRINT, await alice.stage("home/tags"), tags=("Not A Tag",)),
        ]
        outcomes = await register(alice, *items)
        assert states(outcomes) == [ADDED, *[REFUSED] * 4, ADDED, REFUSED, REFUSED]
        codes = [outcome.refusal.code for outcome in outcomes if outcome.refusal is not None]
        expected = ["adapter_refused", "adapter_not_found", "invalid_request", "adapter_not_found"]
        assert codes == [*expected, "invalid_request", "invalid_request"]
        (found,) = (await alice.ask("list", tag="work")).adapters
        assert (found.name, found.tags) == ("home/two", ("work", "x"))


async def test_two_imports_of_the_same_at_once_make_one_revision_each(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        names = [f"home/a{number}" for number in range(8)]
        twice = [[await staged(alice, name, 1, f"{run}-{name}") for name in names] for run in range(2)]
        one, other = await asyncio.gather(*(register(alice, *items) for items in twice))
        assert all(sorted(pair) == [ADDED, PRESENT] for pair in zip(states(one), states(other), strict=True))
        found = (await alice.ask("list")).adapters
        assert [(info.name, info.num_revisions) for info in found] == [(name, 1) for name in names]


async def test_an_import_is_bounded_and_for_keys_that_push(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        many = [ImportItem(f"home/a{number}", "k", TINY_FINGERPRINT) for number in range(IMPORT_ITEMS_MAX + 1)]
        for wrong in ([], many, [many[0], many[0]]):
            with pytest.raises(InvalidRequest, match="items"):
                await register(alice, *wrong)
        reader = await admin.new_key("home", "reader", Role.AUDITOR)
        with pytest.raises(NotPermitted):
            await register(reader, many[0])


KEY = KeyHead("a" * 16, bytes(32), "root@octavo", "octavo", Role.ADMIN)


def event(previous_sequence: int = 0) -> RegistryEvent:
    return RegistryEvent("key_issued", "identity", 1, previous_sequence, KEY)


async def test_of_a_batch_with_a_conflict_nothing_is_stored(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        keys = [subjects.key_head(f"{number:016x}") for number in range(4)]
        assert await one.heads.append_all([(key, event()) for key in keys]) == [1, 2, 3, 4]
        fresh = subjects.key_head("f" * 16)
        with pytest.raises(RevisionConflict):
            await one.heads.append_all([(fresh, event()), (keys[1], event(1)), (keys[2], event(3))])
        assert (await one.heads.state()).last_sequence == 4
        assert await one.heads.append_all([(fresh, event()), (keys[1], event(2)), (keys[2], event(3))]) == [5, 6, 7]


async def test_of_a_group_each_writer_is_told_for_itself(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        keys = [subjects.key_head(f"{number:016x}") for number in range(5)]
        await one.heads.append(keys[2], event())
        group = Group(one.heads, len(keys) + 1)

        async def write(subject: str) -> int | type[Exception]:
            with group.writer():
                try:
                    return await group.append(subject, event())
                except RevisionConflict as error:
                    return type(error)

        async def give_up() -> None:
            with group.writer():
                await asyncio.sleep(0)

        told = await asyncio.gather(*(write(key) for key in keys), give_up())
        assert [one for one in told if isinstance(one, int)] == [2, 3, 4, 5]
        assert told[2] is RevisionConflict


async def test_a_stream_that_takes_no_batches_gets_the_events_one_by_one(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus:
        await bus.jetstream.add_stream(name=subjects.REGISTRY_STREAM, subjects=list(subjects.REGISTRY_SUBJECTS))
        heads = HeadStore(bus, 1)
        # It was made before there were batches, and stays as it is.
        await heads.ensure_stream()
        keys = [subjects.key_head(f"{number:016x}") for number in range(3)]
        with pytest.raises(BatchRefused):
            await append_batch(bus, [Entry(key, b"", 0) for key in keys])
        group = Group(heads, len(keys))

        async def write(subject: str) -> int:
            with group.writer():
                return await group.append(subject, event())

        assert sorted(await asyncio.gather(*(write(key) for key in keys))) == [1, 2, 3]
        assert [one.sequence for one in await heads.copy_range(1, 3)] == [1, 2, 3]
