"""Identity as its callers meet it: over a real NATS, with packs in a real S3."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    AdapterNotFound,
    AdapterRefused,
    BaseMismatch,
    InvalidRequest,
    NameTaken,
    NotPermitted,
    OctavoError,
)
from octavo_shared.pack import digest_of
from octavo_shared.references import Fingerprint
from support.adapters import TINY_FINGERPRINT, config_json
from support.identity_rig import Client, own_identity


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def test_a_push_becomes_a_revision_that_its_owner_can_use(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    info = await alice.push("home/diary", note="first")
    assert (info.name, info.owner, info.aliases, info.num_revisions) == ("home/diary", "alice@home", {"serving": 1}, 1)
    adapter = (await alice.resolve("home/diary")).adapter
    assert adapter is not None
    pack = await alice.pack_of(adapter)
    assert digest_of(pack) == adapter.digest == info.latest.digest
    assert len(pack) == adapter.pack_bytes
    assert await admin.store.keys("staging/") == []


async def test_revisions_are_named_by_number_digest_and_alias(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    one, two = await alice.push("home/diary", 1), await alice.push("home/diary", 2)
    assert two.latest.parent == one.latest.digest

    async def number(reference: str) -> int:
        resolution = await alice.resolve(reference)
        assert resolution.adapter is not None
        return resolution.adapter.revision

    assert await number("home/diary") == 2
    assert await number("home/diary@1") == 1
    assert await number(f"home/diary@{one.latest.digest}") == 1
    rolled = await alice.ask("rollback", adapter="home/diary")
    assert rolled.aliases == {"serving": 1}
    assert await number("home/diary:serving") == 1
    with pytest.raises(InvalidRequest, match="revision"):
        await alice.ask("rollback", adapter="home/diary")
    for absurd in (0, -1, 10**9, 2**62):
        with pytest.raises(InvalidRequest, match="revision"):
            await alice.ask("rollback", adapter="home/diary", number=absurd)
    with pytest.raises(AdapterNotFound):
        await alice.ask("rollback", adapter="home/diary", number=3)
    await alice.ask("rollback", adapter="home/diary", number=2, alias="stable")
    assert await number("home/diary:stable") == 2
    for missing in ("home/diary@3", "home/diary:canary", f"home/diary@sha256:{'0' * 64}"):
        with pytest.raises(AdapterNotFound):
            await alice.resolve(missing)
    entries = (await alice.ask("history", adapter="home/diary")).entries
    assert [entry.kind for entry in entries] == ["alias_moved", "alias_moved", "revision_added", "revision_added"]
    assert {entry.actor for entry in entries} == {"alice@home"}


async def test_rolling_back_a_bad_push_returns_to_what_was_served_before_it(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    one = await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await alice.ask("rollback", adapter="home/diary", number=1)
    three = await alice.push("home/diary", 3)
    assert three.latest.parent == one.latest.digest
    assert (await alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 1}
    # The same bytes again are another revision, whose parent has the same digest.
    assert (await alice.push("home/diary", 1)).latest.parent == one.latest.digest
    assert (await alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 1}


async def test_revisions_older_than_the_head_remembers_are_found_in_the_ledger(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for seed in range(35):
        await alice.push("home/diary", seed)
    first = await alice.resolve("home/diary@1")
    assert first.adapter is not None
    assert first.adapter.revision == 1
    assert (await alice.ask("rollback", adapter="home/diary", number=1)).aliases == {"serving": 1}


async def test_foreign_and_unknown_adapters_are_one_answer_for_every_verb(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await alice.push("home/diary")
    for verb, field, more in [
        ("resolve", "reference", {}),
        ("history", "adapter", {}),
        ("rollback", "adapter", {"number": 1}),
        ("grant", "adapter", {"principal": "bob@away"}),
        ("revoke", "adapter", {"principal": "bob@away"}),
        ("begin_upload", "adapter", {}),
    ]:
        answers = []
        for name in ("home/diary", "home/nothing", "nowhere/nothing"):
            with pytest.raises(OctavoError) as error:
                await bob.ask(verb, **{field: name}, **more)
            answers.append(error.value.refusal())
        assert answers[0] == answers[1] == answers[2], verb
        assert answers[0].code == "adapter_not_found", verb


async def test_a_grant_lets_in_and_a_revocation_shuts_out_at_once(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await alice.push("home/diary")
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    assert (await bob.resolve("home/diary")).adapter is not None
    assert [(info.name, info.grants) for info in (await bob.ask("list")).adapters] == [("home/diary", ())]
    assert [info.grants for info in (await alice.ask("list")).adapters] == [("bob@away",)]
    assert [entry.kind for entry in (await bob.ask("history", adapter="home/diary")).entries] == ["revision_added"]
    with pytest.raises(NotPermitted):
        await bob.ask("rollback", adapter="home/diary", number=1)
    await alice.ask("revoke", adapter="home/diary", principal="bob@away")
    with pytest.raises(AdapterNotFound):
        await bob.resolve("home/diary")
    assert (await bob.ask("list")).adapters == ()


async def test_only_admins_create_tenants_and_names_are_checked(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    with pytest.raises(NotPermitted):
        await alice.ask("create_tenant", tenant="mine")
    with pytest.raises(NameTaken):
        await admin.ask("create_tenant", tenant="home")
    for bad in ("", "A", "../x", "x" * 64, "a b"):
        with pytest.raises(InvalidRequest):
            await admin.ask("create_tenant", tenant=bad)
    with pytest.raises(InvalidRequest):
        await admin.new_key("nowhere", "alice")


async def test_a_retried_push_changes_nothing(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    upload_id = await alice.stage("home/diary")
    fields = {"adapter": "home/diary", "upload_id": upload_id, "served_base": TINY_FINGERPRINT,
              "idempotency_key": "once"}  # fmt: skip
    first = await alice.ask("commit", **fields)
    assert await alice.ask("commit", **fields) == first
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    await alice.push("home/diary", 2)
    assert await alice.ask("commit", **fields) == first
    kinds = [entry.kind for entry in (await alice.ask("history", adapter="home/diary")).entries]
    assert kinds == ["revision_added", "granted", "revision_added"]


async def test_an_idempotency_key_of_any_length_that_is_allowed_is_remembered(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    for length in (0, 257):
        with pytest.raises(InvalidRequest, match="idempotency_key"):
            await alice.push("home/diary", idempotency_key="k" * length)
    first = await alice.push("home/diary", idempotency_key="k" * 256)
    assert await alice.push("home/diary", seed=9, idempotency_key="k" * 256) == first


async def test_concurrent_pushes_lose_none_and_share_no_number(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    infos = await asyncio.gather(*(alice.push("home/diary", seed) for seed in range(12)))
    digests = {info.latest.digest for info in infos}
    found = {}
    for number in range(1, 13):
        adapter = (await alice.resolve(f"home/diary@{number}")).adapter
        assert adapter is not None
        assert digest_of(await alice.pack_of(adapter)) == adapter.digest
        found[number] = adapter.digest
    assert set(found.values()) >= digests
    assert len(set(found.values())) == 12


async def test_an_adapter_holds_a_bounded_number_of_grants_and_aliases(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    for number in range(256):
        await alice.ask("grant", adapter="home/diary", principal=f"user{number}@away")
    with pytest.raises(InvalidRequest, match="principal"):
        await alice.ask("grant", adapter="home/diary", principal="one-more@away")
    for number in range(31):
        await alice.ask("rollback", adapter="home/diary", number=1, alias=f"alias{number}")
    with pytest.raises(InvalidRequest, match="alias"):
        await alice.ask("rollback", adapter="home/diary", number=1, alias="one-more")


async def test_admins_push_to_tenants_that_exist_and_get_no_way_into_the_adapters_of_others(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    assert (await admin.push("home/shared")).owner == "admin@octavo"
    for reference in ("home/diary", "nowhere/shared"):
        with pytest.raises(AdapterNotFound):
            await admin.push(reference)


async def test_a_refused_push_leaves_nothing_visible(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    upload_id = await alice.stage("home/diary", config=config_json(use_dora=True))
    with pytest.raises(AdapterRefused, match="dora"):
        await alice.ask("commit", adapter="home/diary", upload_id=upload_id, served_base=TINY_FINGERPRINT)
    other = Fingerprint("sha256:" + "cd" * 32)
    with pytest.raises(BaseMismatch):
        await alice.push("home/diary", declared_base=other)
    with pytest.raises(AdapterNotFound):
        await alice.resolve("home/diary")
    assert (await alice.ask("list")).adapters == ()
    assert await admin.store.keys("packs/") == []
