"""Branches: a new adapter from a revision of another one, and neither needs the other afterwards."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo_identity.branching import Branching
from octavo_identity.desk import Desk
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.projection import Projection
from octavo_identity.staging import PackPlace, Staging
from octavo_identity.sweeper import Sweeper
from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    AdapterNotFound,
    AdapterUnavailable,
    InvalidRequest,
    NameTaken,
    NotPermitted,
    RevisionRetired,
)
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.keys import Role
from octavo_shared.messages.lifecycle import Branch
from octavo_shared.pack import digest_of
from support.identity_rig import Client, admission, data_keys, own_identity, parts, quota_keeper, statements


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def handle(who: Client, reference: str) -> AdapterHandle:
    adapter = (await who.resolve(reference)).adapter
    assert adapter is not None
    return adapter


async def test_a_branch_has_the_digest_of_its_source_and_a_pack_of_its_own(admin: Client, tmp_path: Path) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    one = await alice.push("home/diary", 1, note="private words")
    await alice.push("home/diary", 2)
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    made = await bob.ask("branch", source="home/diary@1", adapter="away/poems")
    assert (made.name, made.owner, made.aliases, made.num_revisions) == ("away/poems", "bob@away", {"serving": 1}, 1)
    assert (made.latest.digest, made.latest.parent, made.latest.created_by) == (
        one.latest.digest, one.latest.digest, "bob@away",
    )  # fmt: skip
    assert made.latest.note == ""
    source, branch = await handle(alice, "home/diary@1"), await handle(bob, "away/poems")
    assert branch.adapter_id == made.adapter_id
    assert branch.object_key.startswith(f"packs/{made.adapter_id}/1.")
    with pytest.raises(AdapterNotFound):
        await alice.resolve("away/poems")
    # The sweeper knows it, and it outlives its source.
    url = admin.bus.client.connected_url
    assert url is not None
    async with parts(url.geturl(), tmp_path / "identity") as one_:
        await one_.catch_up()
        assert await one_.projection.unnamed_packs([branch.object_key]) == []
        sweeper = Sweeper(admin.store, one_.heads, one_.projection, one_.keys, clocks_apart_s=0)
        assert await sweeper.sweep(min_age_s=0) == 0
    await admin.store.delete(source.object_key)
    assert digest_of(await alice.pack_of(branch)) == branch.digest
    # It is an adapter like any other: it grows, and rolls back to where it began and no further.
    await bob.push("away/poems", 5)
    assert (await bob.ask("rollback", adapter="away/poems")).aliases == {"serving": 1}
    with pytest.raises(InvalidRequest):
        await bob.ask("rollback", adapter="away/poems")


async def test_who_may_use_a_branch_does_not_learn_where_it_came_from(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    await alice.push("home/diary")
    await alice.ask("branch", source="home/diary", adapter="home/poems")
    await alice.ask("grant", adapter="home/poems", principal="carol@home")
    details = [
        [(entry.kind, entry.detail) for entry in (await who.ask("history", adapter="home/poems")).entries]
        for who in (alice, carol)
    ]
    assert details == [[("granted", "carol@home as user"), ("branched", "from home/diary@1")], [("branched", "")]]


async def test_a_branch_needs_the_right_to_use_its_source_and_to_push_where_it_goes(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    carol, dave = await admin.new_key("home", "carol"), await admin.new_key("home", "dave", Role.USER)
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await carol.push("home/letters")
    await bob.push("away/mine")
    for who, source, adapter in [
        (bob, "home/diary", "away/poems"),
        (bob, "home/nothing", "away/poems"),
        (carol, "home/diary@1", "home/poems"),
        (admin, "home/diary", "home/poems"),
        (alice, "home/diary@3", "home/poems"),
        (alice, "home/diary", "away/poems"),
        (alice, "home/diary", "home/letters"),
        (alice, "home/diary", "away/mine"),
    ]:
        with pytest.raises(AdapterNotFound):
            await who.ask("branch", source=source, adapter=adapter)
    await alice.ask("grant", adapter="home/diary", principal="dave@home")
    with pytest.raises(NotPermitted, match="push adapters"):
        await dave.ask("branch", source="home/diary", adapter="home/poems")
    with pytest.raises(NameTaken):
        await alice.ask("branch", source="home/diary", adapter="home/diary")
    await alice.ask("retire", adapter="home/diary", number=1)
    with pytest.raises(RevisionRetired):
        await alice.ask("branch", source="home/diary@1", adapter="home/poems")
    for source, adapter in [("diary", "home/poems"), ("home/diary", "home/poems@1"), ("home/diary", "Poems")]:
        with pytest.raises(InvalidRequest):
            await alice.ask("branch", source=source, adapter=adapter)
    names = [info.name for info in (await alice.ask("list")).adapters]
    assert names == ["home/diary"]


async def test_a_damaged_pack_is_not_branched(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    source = await handle(alice, "home/diary")
    pack = await admin.store.read(source.object_key, 1 << 24)
    await admin.store.write(source.object_key, pack[:-1] + bytes([pack[-1] ^ 1]))
    with pytest.raises(AdapterUnavailable):
        await alice.ask("branch", source="home/diary", adapter="home/poems")
    await admin.store.delete(source.object_key)
    with pytest.raises(AdapterUnavailable):
        await alice.ask("branch", source="home/diary", adapter="home/poems")
    with pytest.raises(AdapterNotFound):
        await alice.resolve("home/poems")


class RevokingStaging(Staging):
    """Takes the right to the source back while the pack is copied."""

    owner: Client

    async def copy_pack(self, source: PackPlace, revision: Revision, target: PackPlace) -> None:
        await super().copy_pack(source, revision, target)
        await self.owner.ask("revoke", adapter="home/diary", principal="bob@away")


async def test_a_right_that_is_taken_back_while_a_pack_is_copied_makes_no_branch(admin: Client, tmp_path: Path) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await alice.push("home/diary")
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    ids = Ids(load_secret(tmp_path / "identity"))
    keys = data_keys(admin.bus, ids)
    heads = HeadStore(admin.bus, 1, keys)
    projection, staging = Projection(tmp_path / "view.sqlite"), RevokingStaging(admin.store, keys)
    staging.owner = alice
    order = Branch(credential=bob.credential, idempotency_key="1", source="home/diary", adapter="away/poems")
    desk, admitting = Desk(heads, ids, projection), admission(admin.store, heads)
    branching = Branching(desk, staging, statements(heads, ids), admitting, quota_keeper(desk, admin.bus))
    with pytest.raises(AdapterNotFound):
        await branching.branch(order)
    with pytest.raises(AdapterNotFound):
        await bob.resolve("away/poems")
    staging.close()
    projection.close()


async def test_of_two_branches_to_one_name_one_wins(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    tries = [alice.ask("branch", source=f"home/diary@{number}", adapter="home/poems") for number in (1, 2)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AdapterInfo", "NameTaken"]
    same = [alice.ask("branch", source="home/diary@1", adapter="home/songs", idempotency_key="once") for _ in range(3)]
    first, *others = await asyncio.gather(*same)
    assert others == [first, first]
    assert len((await alice.ask("history", adapter="home/songs")).entries) == 1
