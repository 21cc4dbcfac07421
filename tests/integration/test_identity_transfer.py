"""An adapter gets another owner: what each of the two may do then, and who may not be made one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterNotFound, InvalidRequest, NotPermitted, OctavoError
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import Role
from support.identity_rig import Client, own_identity

DIARY = "home/diary"


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as made:
        yield made


@pytest.fixture
async def alice(admin: Client) -> Client:
    client = await admin.new_key("home", "alice")
    await client.push(DIARY, 1)
    return client


@pytest.fixture
async def bob(admin: Client, alice: Client) -> Client:
    return await admin.new_key("home", "bob")


async def names(client: Client) -> list[str]:
    return [info.name for info in (await client.ask("list")).adapters]


async def kinds(client: Client) -> list[tuple[str, str, str]]:
    entries = (await client.ask("history", adapter=DIARY)).entries
    return [(entry.kind, entry.actor, entry.detail) for entry in entries[::-1]]


async def test_the_new_owner_has_all_of_it_and_the_old_one_nothing(alice: Client, bob: Client) -> None:
    await alice.ask("grant", adapter=DIARY, principal="bob@home")
    info = await alice.ask("transfer", adapter=DIARY, owner="bob@home")
    assert (info.owner, info.grants) == ("bob@home", ())
    writes: list[tuple[str, dict[str, Any]]] = [
        ("resolve", {"reference": DIARY}),
        ("history", {"adapter": DIARY}),
        ("tag", {"adapter": DIARY, "add": ("work",)}),
        ("grant", {"adapter": DIARY, "principal": "eve@away"}),
        ("transfer", {"adapter": DIARY, "owner": "alice@home"}),
        ("erase", {"adapter": DIARY}),
    ]
    for verb, fields in writes:
        with pytest.raises(AdapterNotFound):
            await alice.ask(verb, **fields)
    with pytest.raises(AdapterNotFound):
        await alice.push(DIARY, 2)
    assert (await names(alice), await names(bob)) == ([], [DIARY])
    await bob.push(DIARY, 2)
    assert (await bob.ask("grant", adapter=DIARY, principal="eve@away")).grants == ("eve@away",)
    assert await kinds(bob) == [
        ("revision_added", "alice@home", ""),
        ("granted", "alice@home", "bob@home as user"),
        ("transferred", "alice@home", "alice@home -> bob@home"),
        ("revision_added", "bob@home", ""),
        ("granted", "bob@home", "eve@away as user"),
    ]
    # It goes back the same way, and the new owner is no exception.
    assert (await bob.ask("transfer", adapter=DIARY, owner="alice@home")).owner == "alice@home"
    with pytest.raises(AdapterNotFound):
        await bob.resolve(DIARY)
    await alice.ask("erase", adapter=DIARY)


@pytest.mark.parametrize("principal", ["alice@home", "*@home"])
async def test_the_old_owner_keeps_what_was_granted(alice: Client, bob: Client, principal: str) -> None:
    await alice.ask("grant", adapter=DIARY, principal=principal, role=GrantRole.EDITOR)
    await alice.ask("transfer", adapter=DIARY, owner="bob@home")
    await alice.push(DIARY, 2)
    for verb, fields in (("retire", {"number": 1}), ("grant", {"principal": "eve@away"}), ("erase", {}),
                         ("transfer", {"owner": "alice@home"}), ("transfer", {"owner": "carol@home"})):  # fmt: skip
        with pytest.raises(NotPermitted):
            await alice.ask(verb, adapter=DIARY, **fields)
    assert ("transferred", "alice@home", "alice@home -> bob@home") in await kinds(alice)
    await bob.ask("revoke", adapter=DIARY, principal=principal)
    with pytest.raises(AdapterNotFound):
        await alice.resolve(DIARY)


async def test_only_somebody_of_the_tenant_who_can_act_is_made_owner(admin: Client, alice: Client) -> None:
    await admin.new_key("away", "bob")
    await admin.new_key("home", "tess", Role.AUDITOR)
    gone = await admin.new_key("home", "gone")
    await admin.ask("revoke_key", key_id=gone.credential.key_id)
    await admin.new_key("home", "late", lifetime_s=1)
    await asyncio.sleep(1.1)
    for owner, problem in (
        ("bob@away", "must be of the adapter's tenant: user@home"),
        ("nobody@home", "has no key"),
        ("tess@home", "has no key"),
        ("gone@home", "has no key"),
        ("late@home", "has no key"),
        ("*@home", "must have the form"),
        ("bob", "must have the form"),
        ("", "must have the form"),
    ):
        with pytest.raises(InvalidRequest, match=f"'owner' {problem}".replace("*", r"\*")):
            await alice.ask("transfer", adapter=DIARY, owner=owner)
    assert (await alice.ask("transfer", adapter=DIARY, owner="alice@home")).owner == "alice@home"
    assert [kind for kind, _, _ in await kinds(alice)] == ["revision_added"], "what is so already is no event"
    # One that can act is enough, whatever became of the others.
    await admin.new_key("home", "gone", Role.USER)
    assert (await alice.ask("transfer", adapter=DIARY, owner="gone@home")).owner == "gone@home"


async def test_an_admin_gives_it_to_others_and_takes_it_for_nobody(admin: Client, alice: Client, bob: Client) -> None:
    root = await admin.new_key("home", "root", Role.ADMIN)
    with pytest.raises(NotPermitted, match="take over"):
        await root.ask("transfer", adapter=DIARY, owner="root@home")
    told = await root.ask("transfer", adapter=DIARY, owner="bob@home", idempotency_key="once")
    assert told.owner == "bob@home"
    assert await root.ask("transfer", adapter=DIARY, owner="bob@home", idempotency_key="once") == told
    with pytest.raises(AdapterNotFound):
        await root.resolve(DIARY)
    with pytest.raises(AdapterNotFound):
        await root.ask("transfer", adapter="home/nothing", owner="bob@home")
    assert await kinds(bob) == [
        ("revision_added", "alice@home", ""),
        ("transferred", "root@home", "alice@home -> bob@home"),
    ]


async def test_a_repeated_transfer_is_answered_though_its_writer_sees_nothing_any_more(
    alice: Client, bob: Client
) -> None:
    told = await alice.ask("transfer", adapter=DIARY, owner="bob@home", idempotency_key="once")
    await bob.push(DIARY, 2)
    assert await alice.ask("transfer", adapter=DIARY, owner="bob@home", idempotency_key="once") == told
    assert told.num_revisions == 1, "and it shows nothing that came later"
    with pytest.raises(AdapterNotFound):
        await alice.ask("transfer", adapter=DIARY, owner="bob@home", idempotency_key="another")


async def test_of_what_is_done_at_the_same_moment_nothing_is_half_done(alice: Client, bob: Client) -> None:
    for seed in range(4):
        results = await asyncio.gather(
            alice.ask("transfer", adapter=DIARY, owner="bob@home"),
            alice.ask("tag", adapter=DIARY, add=(f"t{seed}",)),
            alice.ask("grant", adapter=DIARY, principal=f"eve{seed}@away"),
            return_exceptions=True,
        )
        assert not [one for one in results if isinstance(one, Exception) and not isinstance(one, OctavoError)]
        (info,) = (await bob.ask("list")).adapters
        tagged, granted = (not isinstance(one, Exception) for one in results[1:])
        assert (info.owner, f"t{seed}" in info.tags, f"eve{seed}@away" in info.grants) == ("bob@home", tagged, granted)
        assert all(isinstance(one, AdapterNotFound) for one in results if isinstance(one, Exception))
        await bob.ask("transfer", adapter=DIARY, owner="alice@home")
