"""Aliases and states of revisions: what is served, to whom, and what never is again."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo_identity.promoting import Promoting
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_identity.verbs import Verbs
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterNotFound, AliasMoved, InvalidRequest, RevisionInUse, RevisionRetired
from octavo_shared.messages.adapters import AdapterInfo, RevisionState
from octavo_shared.messages.keys import Role
from octavo_shared.messages.lifecycle import Promote, Retire
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolve
from octavo_shared.objects import ObjectStore
from octavo_shared.pack import digest_of
from octavo_shared.references import Reference
from support.identity_rig import Client, admission, digest_of_number, own_identity, own_nats, parts


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def number(who: Client, reference: str = "home/diary") -> int:
    adapter = (await who.resolve(reference)).adapter
    assert adapter is not None
    return adapter.revision


async def test_a_promotion_is_seen_by_the_next_request(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    two = await alice.push("home/diary", 2, alias=None)
    assert (two.aliases, two.state, two.latest.number) == ({"serving": 1}, RevisionState.DRAFT, 2)
    assert await number(alice) == 1
    assert await number(alice, "home/diary@2") == 2
    began = time.monotonic()
    promoted = await alice.ask("promote", reference="home/diary@2")
    assert await number(alice) == 2
    assert time.monotonic() - began < 1
    assert (promoted.aliases, promoted.state) == ({"serving": 2}, RevisionState.SERVING)
    assert (await alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 1}
    assert await number(alice) == 1


async def test_a_pack_that_a_request_was_resolved_to_stays_when_its_alias_moves(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    started = (await alice.resolve("home/diary")).adapter
    await alice.push("home/diary", 2)
    await alice.ask("retire", adapter="home/diary", number=1)
    assert started is not None
    assert digest_of(await alice.pack_of(started)) == started.digest


async def test_an_adapter_whose_first_push_is_a_draft_is_not_served_until_it_is_promoted(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", alias=None)
    with pytest.raises(AdapterNotFound):
        await alice.resolve("home/diary")
    await alice.ask("promote", reference="home/diary@1")
    assert await number(alice) == 1


async def test_a_canary_is_served_to_its_share_of_principals_and_sticks(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias="canary")
    await alice.ask("grant", adapter="home/diary", principal="*@away")
    users = [await admin.new_key("away", f"user{one}", Role.USER) for one in range(24)]

    async def served() -> list[int]:
        return list(await asyncio.gather(*(number(user) for user in users)))

    assert set(await served()) == {1}, "without a share only those who ask for the canary get it"
    assert await number(users[0], "home/diary:canary") == 2
    shared = await alice.ask("promote", reference="home/diary:canary", alias="canary", share_percent=50)
    assert (shared.aliases, shared.canary_percent) == ({"serving": 1, "canary": 2}, 50)
    half = await served()
    assert set(half) == {1, 2}
    assert await served() == half
    for user in users[:4]:
        assert await number(user, "home/diary:serving") == 1
        assert await number(user, "home/diary@1") == 1
    await alice.ask("promote", reference="home/diary:canary", alias="canary", share_percent=100)
    assert set(await served()) == {2}
    # The share stays when another revision becomes the canary, and goes with the alias.
    await alice.push("home/diary", 3, alias="canary")
    assert set(await served()) == {3}
    gone = await alice.ask("unalias", adapter="home/diary", alias="canary")
    assert (gone.aliases, gone.canary_percent) == ({"serving": 1}, 0)
    assert set(await served()) == {1}


async def test_shares_and_aliases_that_make_no_sense_are_refused_by_name(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    for fields, field in [
        ({"alias": "canary", "share_percent": 101}, "share"),
        ({"alias": "canary", "share_percent": -1}, "share"),
        ({"alias": "stable", "share_percent": 10}, "share"),
        ({"alias": "No Name"}, "alias"),
        ({"reference": "home/diary"}, "revision"),
        ({"reference": "diary"}, "revision"),
    ]:
        with pytest.raises(InvalidRequest, match=field):
            await alice.ask("promote", **{"reference": "home/diary@1"} | fields)
    for reference in ("home/diary@2", "home/diary:nothing"):
        with pytest.raises(AdapterNotFound):
            await alice.ask("promote", reference=reference)
    with pytest.raises(InvalidRequest, match="alias"):
        await alice.ask("unalias", adapter="home/diary", alias="serving")
    with pytest.raises(AdapterNotFound):
        await alice.ask("unalias", adapter="home/diary", alias="stable")
    with pytest.raises(InvalidRequest, match="alias"):
        await alice.push("home/diary", alias="No Name")


async def test_an_alias_moves_only_from_what_was_expected(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for seed in range(3):
        await alice.push("home/diary", seed)
    with pytest.raises(AliasMoved, match="'serving' names revision 3, not revision 2"):
        await alice.ask("promote", reference="home/diary@1", expected=2)
    with pytest.raises(AliasMoved, match="'stable' names no revision, not revision 1"):
        await alice.ask("promote", reference="home/diary@1", alias="stable", expected=1)
    await alice.ask("promote", reference="home/diary@1", alias="stable", expected=0)
    with pytest.raises(AliasMoved):
        await alice.ask("promote", reference="home/diary@2", alias="stable", expected=0)
    # Of many at once that expect the same, one wins.
    tries = [alice.ask("promote", reference=f"home/diary@{1 + one % 2}", expected=3) for one in range(6)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(result) for result in results].count(AdapterInfo) == 1
    assert sum(isinstance(result, AliasMoved) for result in results) == 5


async def test_a_rollback_returns_to_what_was_served_before_the_promotion(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for seed in range(4):
        await alice.push("home/diary", seed)
    await alice.ask("promote", reference="home/diary@2")
    assert (await alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 4}
    await alice.ask("promote", reference="home/diary@1")
    await alice.ask("promote", reference="home/diary@2")
    await alice.ask("retire", adapter="home/diary", number=1)
    # What was retired meanwhile is passed over.
    assert (await alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 4}


async def test_a_retired_revision_is_never_served_or_promoted_again(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    carol = await admin.new_key("home", "carol")
    one = await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await alice.push("home/diary", 3)
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    await alice.ask("promote", reference="home/diary@1", alias="stable")
    for taken, alias in ((1, "stable"), (3, "serving")):
        with pytest.raises(RevisionInUse, match=alias):
            await alice.ask("retire", adapter="home/diary", number=taken)
    await alice.ask("unalias", adapter="home/diary", alias="stable")
    retired = await alice.ask("retire", adapter="home/diary", number=1)
    assert retired.retired == ((1, 1),)
    assert await alice.ask("retire", adapter="home/diary", number=1) == retired
    for who in (alice, bob):
        for reference in ("home/diary@1", f"home/diary@{one.latest.digest}"):
            with pytest.raises(RevisionRetired, match="revision 1 is retired"):
                await who.resolve(reference)
    with pytest.raises(AdapterNotFound):
        await carol.resolve("home/diary@1")
    with pytest.raises(RevisionRetired):
        await alice.ask("promote", reference="home/diary@1")
    with pytest.raises(RevisionRetired):
        await alice.ask("rollback", adapter="home/diary", number=1)
    # Copies of it on workers can still be evicted.
    assert (await alice.ask("locate", reference="home/diary@1")).adapter.revision == 1
    for absent in (4, 10**9, 0, -1):
        with pytest.raises((AdapterNotFound, InvalidRequest)):
            await alice.ask("retire", adapter="home/diary", number=absent)
    # The same bytes pushed again are another revision, and the digest means that one.
    await alice.push("home/diary", 1)
    assert await number(alice, f"home/diary@{one.latest.digest}") == 4
    entries = (await alice.ask("history", adapter="home/diary")).entries
    assert {entry.revision.number: entry.state for entry in entries if entry.revision} == {
        1: "retired", 2: "draft", 3: "draft", 4: "serving",
    }  # fmt: skip


async def test_of_a_promotion_and_a_retirement_at_once_only_one_happens(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for seed in range(2):
        await alice.push("home/diary", seed)
    for _ in range(4):
        latest = (await alice.push("home/diary", 9, alias=None)).latest.number
        promoting = alice.ask("promote", reference=f"home/diary@{latest}", alias="stable")
        results = await asyncio.gather(
            promoting, alice.ask("retire", adapter="home/diary", number=latest), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Exception)]
        assert len(refused) == 1
        assert isinstance(refused[0], RevisionRetired | RevisionInUse)
        (info,) = (await alice.ask("list")).adapters
        assert not [number for number in info.aliases.values() if any(a <= number <= b for a, b in info.retired)]


async def test_what_was_retired_stays_so_when_the_head_and_the_view_have_forgotten_it(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        await one.add_revisions("home/diary", 5)
        await one.catch_up()
        key = Credential("a" * 16, bytes(32))
        owner = KeyHead(key.key_id, key.secret_sha256, "alice@home", "home", Role.OWNER)
        await one.heads.append(subjects.key_head(key.key_id), RegistryEvent("key_issued", "identity", 1, 0, owner))
        # Nothing here comes to object storage.
        promoting, verbs = Promoting(one.desk, admission(ObjectStore(StoreSettings()), one.heads)), Verbs(one.desk)
        await promoting.retire(Retire(credential=key, idempotency_key="1", adapter="home/diary", number=3))
        head = await one.add_revisions("home/diary", 80)
        assert 3 not in [stored.revision.number for stored in head.revisions]
        for is_caught_up in (False, True):
            for reference in ("home/diary@3", f"home/diary@{digest_of_number(3)}"):
                with pytest.raises(RevisionRetired):
                    await verbs.resolve(Resolve(credential=key, reference=reference))
            promote = Promote(credential=key, idempotency_key="2", reference="home/diary@3")
            with pytest.raises(RevisionRetired):
                await promoting.promote(promote)
            assert (await one.desk.registry.select(head, Reference("home", "diary", 2))).revision.number == 2
            if not is_caught_up:
                await one.catch_up()


async def test_a_retried_write_changes_nothing_and_gets_the_first_answer(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for seed in range(3):
        await alice.push("home/diary", seed)
    writes = [
        ("promote", {"reference": "home/diary@1", "expected": 3}),
        ("promote", {"reference": "home/diary@1", "alias": "stable"}),
        ("unalias", {"adapter": "home/diary", "alias": "stable"}),
        ("retire", {"adapter": "home/diary", "number": 2}),
        ("tag", {"adapter": "home/diary", "add": ("work",)}),
        ("branch", {"source": "home/diary@1", "adapter": "home/poems"}),
    ]
    answers = [
        await alice.ask(verb, **fields, idempotency_key=f"key {one}") for one, (verb, fields) in enumerate(writes)
    ]
    await alice.ask("promote", reference="home/diary@3")
    await alice.ask("tag", adapter="home/diary", remove=("work",))
    await alice.push("home/poems", 7)
    packs = await admin.store.keys("packs/")
    entries = (await alice.ask("history", adapter="home/diary")).entries
    for one, (verb, fields) in enumerate(writes):
        assert await alice.ask(verb, **fields, idempotency_key=f"key {one}") == answers[one], verb
    assert (await alice.ask("history", adapter="home/diary")).entries == entries
    assert len((await alice.ask("history", adapter="home/poems")).entries) == 2
    assert await admin.store.keys("packs/") == packs


async def test_the_history_tells_who_did_what_from_what_to_what(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.ask("promote", reference="home/diary@2", alias="canary", share_percent=10)
    await alice.ask("promote", reference="home/diary:canary")
    await alice.ask("unalias", adapter="home/diary", alias="canary")
    await alice.ask("rollback", adapter="home/diary")
    await alice.ask("retire", adapter="home/diary", number=2)
    await alice.ask("tag", adapter="home/diary", add=("work",), remove=("old",))
    entries = (await alice.ask("history", adapter="home/diary")).entries[::-1]
    assert [(entry.kind, entry.detail) for entry in entries] == [
        ("revision_added", ""),
        ("revision_added", ""),
        ("promoted", "canary: None -> 2 at 10%"),
        ("promoted", "serving: 1 -> 2"),
        ("alias_removed", "canary: 2 -> None"),
        ("alias_moved", "serving: 2 -> 1"),
        ("retired", "revision 2"),
        ("tagged", "+work -old"),
    ]
    assert {entry.actor for entry in entries} == {"alice@home"}
    assert [entry.at_ms for entry in entries] == sorted(entry.at_ms for entry in entries)
