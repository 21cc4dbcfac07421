"""Listing and old revisions: what the view of the registry may decide, and what its mistakes may not."""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent
from octavo_identity.registry import Change, Registry
from octavo_identity.verbs import Verbs
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterNotFound, DependencyUnavailable
from octavo_shared.messages.adapters import ListAdapters, RevisionState
from octavo_shared.messages.grants import Grant
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolve
from octavo_shared.references import Reference, parse_reference
from support.identity_rig import Parts, digest_of_number, own_identity, own_nats, parts

ALICE, BOB = Credential("a" * 16, bytes(32)), Credential("b" * 16, bytes(32))


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Parts]:
    """Identity's parts, where alice@home and bob@away have keys; the view follows only when told to."""
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as made:
        for credential, user, tenant in [(ALICE, "alice", "home"), (BOB, "bob", "away")]:
            key = KeyHead(credential.key_id, credential.secret_sha256, f"{user}@{tenant}", tenant, Role.OWNER)
            event = RegistryEvent("key_issued", "identity", 1, 0, key)
            await made.heads.append(subjects.key_head(key.key_id), event)
        yield made


def view_file(tmp_path: Path) -> sqlite3.Connection:
    (file,) = (tmp_path / "identity").glob("*.sqlite")
    return sqlite3.connect(file, isolation_level=None)


async def names_for(one: Parts, who: Credential, num_max: int = 100, after: str = "") -> list[str]:
    request = ListAdapters(credential=who, num_max=num_max, after=after)
    return [info.name for info in (await Verbs(one.desk).list(request)).adapters]


async def set_grants(one: Parts, name: str, *grants: str) -> None:
    """Change who may use an adapter as another replica would: this one's view does not wait for it."""

    async def make(now: AdapterHead | None) -> Change:
        assert now is not None
        return Change("granted", msgspec.structs.replace(now, grants=grants))

    await one.desk.registry.change(parse_reference(name), "alice@home", secrets.token_hex(8), make)


async def number_of(one: Parts, number: int | None = None, digest: str | None = None) -> int:
    """Resolve a revision of home/diary."""
    reference = f"home/diary@{number if number is not None else digest}"
    adapter = (await Verbs(one.desk).resolve(Resolve(credential=ALICE, reference=reference))).adapter
    assert adapter is not None
    assert adapter.adapter_id in adapter.object_key
    return adapter.revision


async def test_a_view_that_is_not_whole_yet_lists_nothing(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    with pytest.raises(DependencyUnavailable):
        await names_for(one, ALICE)
    await one.catch_up()
    assert await names_for(one, ALICE) == ["home/diary"]


async def test_a_view_without_the_callers_own_writes_lists_nothing(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    await one.catch_up()
    request = Grant(credential=ALICE, idempotency_key="1", adapter="home/diary", principal="bob@away")
    await Verbs(one.desk).grant(request)
    with pytest.raises(DependencyUnavailable):
        await names_for(one, ALICE)


async def test_what_was_revoked_is_not_listed_even_by_a_view_that_does_not_know(one: Parts) -> None:
    for number in range(6):
        await one.add_revisions(f"home/a{number}", 1)
        await set_grants(one, f"home/a{number}", "bob@away" if number % 2 else "*@away")
    await one.catch_up()
    for number in (0, 1, 3):
        await set_grants(one, f"home/a{number}")
    assert await names_for(one, BOB) == ["home/a2", "home/a4", "home/a5"]
    # A page is full as long as there is more: whoever reads on stops at one that is not.
    assert await names_for(one, BOB, num_max=2) == ["home/a2", "home/a4"]
    assert await names_for(one, BOB, num_max=2, after="home/a4") == ["home/a5"]


async def test_what_belongs_to_others_is_shown_as_it_is_now(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    await set_grants(one, "home/diary", "bob@away")
    await one.catch_up()
    await one.add_revisions("home/diary", 1)
    (info,) = (await Verbs(one.desk).list(ListAdapters(credential=BOB))).adapters
    assert (info.num_revisions, info.aliases) == (2, {"serving": 2})


async def test_what_belongs_to_others_is_found_by_what_it_is_now(one: Parts) -> None:
    await one.add_revisions("home/diary", 1)
    await set_grants(one, "home/diary", "bob@away")
    await one.catch_up()
    search = ListAdapters(credential=BOB, state=RevisionState.SERVING)
    assert len((await Verbs(one.desk).list(search)).adapters) == 1

    async def unname(now: AdapterHead | None) -> Change:
        assert now is not None
        return Change("alias_removed", msgspec.structs.replace(now, aliases={}))

    await one.desk.registry.change(parse_reference("home/diary"), "alice@home", "unname", unname)
    assert (await Verbs(one.desk).list(search)).adapters == ()


async def test_an_old_revision_costs_one_read(one: Parts) -> None:
    await one.add_revisions("home/diary", 80)
    await one.catch_up()
    for digest in (None, digest_of_number(3)):
        before = one.heads.num_reads
        assert await number_of(one, None if digest else 3, digest) == 3
        assert one.heads.num_reads == before + 1


async def test_a_digest_that_nobody_pushed_costs_no_walk(one: Parts) -> None:
    await one.add_revisions("home/diary", 80)
    await one.catch_up()
    with pytest.raises(AdapterNotFound):
        await number_of(one, digest=digest_of_number(81))
    assert one.heads.num_reads == 0


async def test_of_equal_digests_the_newest_revision_is_meant(one: Parts, tmp_path: Path) -> None:
    await one.add_revisions("home/diary", 80)
    await one.catch_up()
    with view_file(tmp_path) as database:
        database.execute("UPDATE revisions SET digest = ? WHERE number IN (3, 5)", (digest_of_number(5),))
    database.close()
    assert await number_of(one, digest=digest_of_number(5)) == 5


async def test_old_revisions_are_found_while_the_view_is_behind_or_wrong(one: Parts, tmp_path: Path) -> None:
    await one.add_revisions("home/diary", 40)
    await one.catch_up()
    await one.add_revisions("home/diary", 40)
    assert await number_of(one, 3) == 3
    assert await number_of(one, 45) == 45
    assert await number_of(one, digest=digest_of_number(45)) == 45
    with pytest.raises(AdapterNotFound):
        await number_of(one, digest=digest_of_number(81))
    await one.add_revisions("home/other", 5)
    await one.catch_up()
    with view_file(tmp_path) as database:
        # Of another revision, of another adapter's fifth with the same digest, of none.
        for number, sequence in [(4, 10), (5, 87), (6, 1)]:
            database.execute("UPDATE revisions SET sequence = ? WHERE number = ?", (sequence, number))
    database.close()
    for number in (4, 5, 6):
        assert await number_of(one, number) == number
        assert await number_of(one, digest=digest_of_number(number)) == number


async def test_a_walk_that_ends_too_early_does_not_say_that_there_is_no_such_revision(one: Parts) -> None:
    head = await one.add_revisions("home/diary", 80)
    registry = Registry(one.heads, one.ids, one.projection, ledger_walk_max=50)
    assert (await registry.select(head, Reference("home", "diary", number=40))).revision.number == 40
    for reference in (
        Reference("home", "diary", number=3),
        Reference("home", "diary", digest=digest_of_number(99)),
    ):
        with pytest.raises(DependencyUnavailable):
            await registry.select(head, reference)
    with pytest.raises(AdapterNotFound):
        await registry.select(head, Reference("home", "diary", number=81))


async def test_a_grant_or_revocation_that_changes_nothing_is_no_event(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        await alice.push("home/diary")
        fields = {"adapter": "home/diary", "principal": "bob@away"}
        granted = await alice.ask("grant", **fields, idempotency_key="once")
        assert await alice.ask("grant", **fields) == granted
        assert (await alice.ask("revoke", adapter="home/diary", principal="nobody@away")) == granted
        await alice.ask("revoke", **fields)
        # The first grant again, by its idempotency key: it is answered as it was then and lets nobody in again.
        assert await alice.ask("grant", **fields, idempotency_key="once") == granted
        kinds = [entry.kind for entry in (await alice.ask("history", adapter="home/diary")).entries]
        assert kinds == ["revoked", "granted", "revision_added"]


async def test_two_rollbacks_at_once_go_back_two_steps(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        for seed in range(5):
            await alice.push("home/diary", seed)
        await asyncio.gather(*(alice.ask("rollback", adapter="home/diary") for _ in range(4)))
        assert (await alice.ask("list")).adapters[0].aliases == {"serving": 1}
