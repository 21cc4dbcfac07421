"""Tags and searching: what is found, page by page, and what nobody else finds."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import RevisionState
from octavo_shared.messages.keys import Role
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, own_identity


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def names(who: Client, **wanted: Any) -> list[str]:
    """Return what is found, and check that small pages find the same."""
    found = await who.ask("list", **wanted)
    assert found.next_after == ""
    whole = [info.name for info in found.adapters]
    paged, after = [], ""
    while True:
        page = await who.ask("list", num_max=1, after=after, **wanted)
        paged += [info.name for info in page.adapters]
        if not (after := page.next_after):
            break
    assert paged == whole
    return whole


async def test_adapters_are_found_by_what_they_are(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    for name in ("home/diary", "home/draft", "home/diary-2", "home/old"):
        await alice.push(name, alias=None if name == "home/draft" else "serving")
    await bob.push("away/letters")
    await bob.push("away/secret")
    await bob.ask("grant", adapter="away/letters", principal="alice@home")
    await alice.push("home/old", 2, alias=None)
    await alice.ask("retire", adapter="home/old", number=2)
    await alice.ask("tag", adapter="home/diary", add=("work", "daily"))
    await alice.ask("tag", adapter="home/draft", add=("work",))
    await bob.ask("tag", adapter="away/letters", add=("work",))
    await bob.ask("tag", adapter="away/secret", add=("work",))
    own = ["home/diary", "home/diary-2", "home/draft", "home/old"]
    assert await names(alice) == ["away/letters", *own]
    assert await names(alice, tenant="home") == await names(alice, owner="alice@home") == own
    assert await names(alice, tenant="away") == ["away/letters"]
    assert await names(alice, prefix="home/diary") == ["home/diary", "home/diary-2"]
    assert await names(alice, prefix="home/diary", tenant="away") == []
    assert await names(alice, tag="work") == ["away/letters", "home/diary", "home/draft"]
    assert await names(alice, tag="work", state=RevisionState.DRAFT) == ["home/draft"]
    assert await names(alice, state=RevisionState.RETIRED) == ["home/old"]
    assert await names(alice, base=TINY_FINGERPRINT, owner="bob@away") == ["away/letters"]
    assert await names(alice, base="sha256:" + "0" * 64) == await names(alice, tag="%") == []
    await alice.ask("tag", adapter="home/diary", remove=("work",))
    await alice.ask("promote", reference="home/draft@1")
    assert await names(alice, tag="work", tenant="home") == ["home/draft"]
    assert await names(alice, state=RevisionState.DRAFT) == []
    with pytest.raises(InvalidRequest, match="tag"):
        await names(alice, tag="t" * 300)


async def test_a_search_shows_nobody_what_they_may_not_use_and_an_admin_a_whole_tenant(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    bob, dave = await admin.new_key("away", "bob"), await admin.new_key("home", "dave", Role.USER)
    await alice.push("home/diary", note="private words")
    await alice.ask("tag", adapter="home/diary", add=("work",))
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    for wanted in ({}, {"tenant": "home"}, {"owner": "alice@home"}, {"tag": "work"}, {"prefix": "home/"}):
        assert await names(bob, **wanted) == ["home/diary"]
        assert await names(carol, **wanted) == await names(dave, **wanted) == []
        assert await names(admin, **wanted) == (["home/diary"] if "tenant" in wanted else [])
    (seen,) = (await admin.ask("list", tenant="home", tag="work")).adapters
    assert (seen.owner, seen.tags, seen.grants, seen.latest.note) == ("alice@home", ("work",), (), "")
    assert [info.latest.note for info in (await bob.ask("list")).adapters] == ["private words"]
    await alice.ask("revoke", adapter="home/diary", principal="bob@away")
    assert await names(bob, tag="work") == []


async def test_tags_are_bounded_in_number_and_form(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    tagged = await alice.ask("tag", adapter="home/diary", add=[f"tag{number:02}" for number in range(16)])
    assert tagged.tags == tuple(f"tag{number:02}" for number in range(16))
    for fields in (
        {"add": ("one-more",)},
        {"add": ("No Tag",)},
        {"add": ("t" * 64,)},
        {"remove": ("",)},
        {"remove": [f"tag{number}" for number in range(33)]},
        {},
        {"add": ("tag01",), "remove": ("tag01",)},
    ):
        with pytest.raises(InvalidRequest, match="tag"):
            await alice.ask("tag", adapter="home/diary", **fields)
    swapped = await alice.ask("tag", adapter="home/diary", add=("one-more",), remove=("tag00", "never-there"))
    assert len(swapped.tags) == 16
    assert (await alice.push("home/diary", 2)).tags == swapped.tags
