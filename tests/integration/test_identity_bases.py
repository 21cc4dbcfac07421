"""Bases in a real registry: how they become known, what became of them, and what sits on which."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.admission import Admission
from octavo_identity.bases import Bases
from octavo_identity.fleet import Fleet
from octavo_identity.heads import HeadStore
from octavo_identity.registry import walk
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    BaseMismatch,
    BaseRetired,
    BaseUnknown,
    DependencyUnavailable,
    InvalidRequest,
    NotPermitted,
)
from octavo_shared.manifest import publish_base
from octavo_shared.messages.bases import BaseInfo, BaseState, OutdatedRevision
from octavo_shared.messages.importing import ImportItem, ImportState
from octavo_shared.messages.keys import Role
from octavo_shared.references import Fingerprint
from support.adapters import TINY_BASE, TINY_FINGERPRINT
from support.fakes import FakeWorker
from support.identity_rig import Client, own_identity

OLD = TINY_FINGERPRINT
NEW, NEWER = (Fingerprint(f"sha256:{mark * 64}") for mark in "cd")
OLD_LABEL, NEW_LABEL, NEWER_LABEL = "tiny@abababababab", "tiny@cccccccccccc", "tiny@dddddddddddd"


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as made:
        for fingerprint in (NEW, NEWER):
            await publish(made, fingerprint)
        yield made


async def publish(client: Client, fingerprint: Fingerprint) -> None:
    await publish_base(client.store, msgspec.structs.replace(TINY_BASE, fingerprint=fingerprint), b"{}")


async def bases(client: Client, **fields: Any) -> dict[str, BaseInfo]:
    return {info.fingerprint: info for info in (await client.ask("bases", **fields)).bases}


async def outdated(client: Client, **fields: Any) -> list[OutdatedRevision]:
    return list((await client.ask("outdated", **fields)).revisions)


async def events(client: Client) -> list[tuple[str, str, str]]:
    """Return kind, actor and detail of all events of bases, the oldest first."""
    found = [event async for event, _ in walk(HeadStore(client.bus, 1), subjects.BASES, 100)]
    return [(event.kind, event.actor, event.detail) for event in reversed(found)]


async def audited(client: Client) -> int:
    """Return how many events of bases are under a signed root."""
    try:
        page = await client.ask("audit", first=1)
    except DependencyUnavailable:
        return 0
    return len([event for event in page.events if event.subject == subjects.BASES])


async def silent(_: object) -> None:
    """A worker that is asked nothing."""


async def test_a_base_registers_itself_once_when_a_worker_has_it(admin: Client) -> None:
    unpublished = Fingerprint("sha256:" + "e" * 64)
    first, second, third = (FakeWorker(admin.bus, name, silent) for name in ("w1", "w2", "w3"))
    first.base, second.base, third.base = NEW, NEW, unpublished
    async with first, second, third, asyncio.timeout(20):
        while NEW not in (known := await bases(admin)) or known[NEW].is_served is None:
            await asyncio.sleep(0.05)
        assert unpublished not in known, "what is not published may be anything"
        assert known[NEW].is_served
        assert (known[NEW].label, known[NEW].state) == (NEW_LABEL, BaseState.CURRENT)
        await publish(admin, unpublished)
        while unpublished not in await bases(admin):
            await asyncio.sleep(0.05)
    assert await events(admin) == [
        ("base_registered", "identity", NEW_LABEL),
        ("base_registered", "identity", "tiny@eeeeeeeeeeee"),
    ]


async def test_replicas_that_see_a_base_at_the_same_time_register_it_once(admin: Client) -> None:
    replicas = [Admission(Bases(HeadStore(admin.bus, 1)), admin.store, Fleet()) for _ in range(4)]
    await asyncio.gather(*(one.known(base) for one in replicas for base in (NEW, NEWER, NEW)))
    assert sorted(await events(admin)) == [
        ("base_registered", "identity", NEW_LABEL),
        ("base_registered", "identity", NEWER_LABEL),
    ]


async def test_a_base_that_says_it_is_another_is_not_registered(admin: Client) -> None:
    wrong = Fingerprint("sha256:" + "f" * 64)
    await admin.store.write(f"bases/{'f' * 64}/manifest.json", msgspec.json.encode(TINY_BASE))
    admission = Admission(Bases(HeadStore(admin.bus, 1)), admin.store, Fleet())
    for content in (None, b"not a manifest"):
        if content is not None:
            await admin.store.write(f"bases/{'f' * 64}/manifest.json", content)
        with pytest.raises(BaseUnknown):
            await admission.known(wrong)
    assert await events(admin) == []


async def test_admins_say_what_becomes_of_a_base_and_the_ledger_tells_it(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    told = await admin.ask("supersede_base", base="tiny", by=NEW, idempotency_key="once")
    assert (told.label, told.state, told.superseded_by, told.successor) == (
        OLD_LABEL, BaseState.SUPERSEDED, NEW, NEW_LABEL,
    )  # fmt: skip
    again = await admin.ask("supersede_base", base=OLD_LABEL, by=NEW_LABEL)
    assert again == told
    await admin.ask("supersede_base", base=NEW_LABEL, by=NEWER)
    known = await bases(alice)
    assert [known[one].successor for one in (OLD, NEW, NEWER)] == [NEWER_LABEL, NEWER_LABEL, ""]
    assert (await admin.ask("retire_base", base=OLD)).state is BaseState.RETIRED
    await admin.ask("retire_base", base=OLD)
    assert (await admin.ask("restore_base", base=OLD)).state is BaseState.CURRENT
    await admin.ask("restore_base", base=OLD)
    # What was sent once and is repeated changes nothing, though all is otherwise now.
    assert (await admin.ask("supersede_base", base=OLD, by=NEW, idempotency_key="once")).state is BaseState.CURRENT
    assert await events(admin) == [
        ("base_registered", "identity", OLD_LABEL),
        ("base_registered", "identity", NEW_LABEL),
        ("base_superseded", "admin@octavo", f"{OLD_LABEL} -> {NEW_LABEL}"),
        ("base_registered", "identity", NEWER_LABEL),
        ("base_superseded", "admin@octavo", f"{NEW_LABEL} -> {NEWER_LABEL}"),
        ("base_retired", "admin@octavo", f"{OLD_LABEL} -> {NEW_LABEL}"),
        ("base_restored", "admin@octavo", OLD_LABEL),
    ]
    async with asyncio.timeout(20):
        # The ledger covers it, once the next root is signed.
        while await audited(admin) < 7:
            await asyncio.sleep(0.1)


async def test_what_would_make_no_sense_of_bases_is_refused(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    unknown = Fingerprint("sha256:" + "e" * 64)
    await admin.ask("supersede_base", base=NEW, by=NEWER)
    for base, by, error in (
        (OLD, OLD, InvalidRequest),
        (OLD, NEW, InvalidRequest),
        (NEWER, NEW, InvalidRequest),
        (OLD, unknown, BaseUnknown),
        (unknown, OLD, BaseUnknown),
        ("nothing", OLD, BaseUnknown),
        ("tiny", NEWER, InvalidRequest),
    ):
        with pytest.raises(error):
            await admin.ask("supersede_base", base=base, by=by)
    for verb, fields in (("supersede_base", {"base": OLD, "by": NEWER}), ("retire_base", {"base": OLD}),
                         ("restore_base", {"base": NEW})):  # fmt: skip
        with pytest.raises(NotPermitted):
            await alice.ask(verb, **fields)
    assert [kind for kind, _, _ in await events(admin)].count("base_superseded") == 1


async def test_pushing_onto_a_superseded_base_works_and_warns(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    assert (await alice.push("home/diary", 1)).warnings == ()
    await admin.ask("supersede_base", base=OLD, by=NEW)
    wanted = f"base {OLD_LABEL} is superseded by {NEW_LABEL}: train the next revision for that"
    assert (await alice.push("home/diary", 2)).warnings == (wanted,)
    assert (await alice.ask("promote", reference="home/diary@1")).warnings == (wanted,)
    assert (await alice.ask("rollback", adapter="home/diary")).warnings == (wanted,)
    assert (await alice.ask("branch", source="home/diary@1", adapter="home/poems")).warnings == (wanted,)
    upload_id = await alice.stage("home/songs")
    item = ImportItem("home/songs", "once", OLD, upload_id)
    (outcome,) = (await alice.ask("register", items=(item,))).outcomes
    assert (outcome.state, outcome.warnings) == (ImportState.ADDED, (wanted,))
    assert (await alice.push("home/letters", 3, served_base=NEW)).warnings == ()
    assert (await alice.ask("list")).adapters[0].warnings == (), "only whoever writes is warned"


async def test_nothing_new_is_put_on_a_retired_or_an_unknown_base(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, idempotency_key="second")
    await alice.push("home/diary", 3, served_base=NEW)
    await admin.ask("supersede_base", base=OLD, by=NEW)
    await admin.ask("retire_base", base=OLD)
    named = rf"base {OLD_LABEL} is retired and takes nothing new; train for {NEW_LABEL}"
    for fields in ({}, {"alias": None}, {"served_base": NEW, "declared_base": OLD}):
        with pytest.raises(BaseRetired, match=named):
            await alice.push("home/diary", 4, **fields)
    for verb, asked in (
        ("promote", {"reference": "home/diary@2"}),
        ("promote", {"reference": "home/diary@1", "alias": "canary", "share_percent": 5}),
        ("rollback", {"adapter": "home/diary"}),
        ("branch", {"source": "home/diary@1", "adapter": "home/poems"}),
        ("branch", {"source": "home/diary@1", "adapter": "home/poems", "alias": None}),
    ):
        with pytest.raises(BaseRetired, match=named):
            await alice.ask(verb, **asked)
    upload_id = await alice.stage("home/songs")
    (outcome,) = (await alice.ask("register", items=(ImportItem("home/songs", "once", OLD, upload_id),))).outcomes
    assert outcome.refusal is not None
    assert outcome.refusal.code == "base_retired"
    unknown = Fingerprint("sha256:" + "e" * 64)
    with pytest.raises(BaseUnknown, match=unknown):
        await alice.push("home/diary", 4, served_base=unknown)
    with pytest.raises(BaseMismatch):
        await alice.push("home/diary", 4, served_base=NEW, declared_base=NEWER)
    (head,) = (await alice.ask("list")).adapters
    assert (head.num_revisions, head.aliases) == (3, {"serving": 3})
    # A push that was done before is answered as it was then.
    upload_id = await alice.stage("home/diary")
    same = await alice.ask(
        "commit", adapter="home/diary", upload_id=upload_id, served_base=OLD, idempotency_key="second"
    )  # fmt: skip
    assert same.latest.number == 2
    await admin.ask("restore_base", base=OLD)
    assert (await alice.ask("promote", reference="home/diary@2")).warnings == ()


async def test_counts_are_of_ones_own_tenant_and_of_all_to_an_admin(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, served_base=NEW, alias="canary")
    await alice.push("home/poems", 1)
    await alice.push("home/draft", 1, alias=None)
    await bob.push("away/songs", 1)

    async def counts(client: Client, **fields: Any) -> dict[str, tuple[int | None, int | None]]:
        return {base: (one.num_adapters, one.num_serving) for base, one in (await bases(client, **fields)).items()}

    assert await counts(alice) == {OLD: (2, 2), NEW: (1, 1)}
    assert await counts(bob) == {OLD: (1, 1), NEW: (0, 0)}
    assert await counts(admin) == {OLD: (3, 3), NEW: (1, 1)}
    assert await counts(admin, tenant="away") == await counts(bob)
    assert await counts(alice, tenant="home") == await counts(alice)
    with pytest.raises(NotPermitted):
        await alice.ask("bases", tenant="away")
    narrow = await alice.new_key("home", "alice", adapters="home/diary")
    assert await counts(narrow) == {OLD: (None, None), NEW: (None, None)}

    await alice.ask("promote", reference="home/diary@2")
    assert await counts(alice) == {OLD: (2, 1), NEW: (1, 1)}
    await alice.ask("unalias", adapter="home/diary", alias="canary")
    await alice.ask("retire", adapter="home/diary", number=1)
    assert await counts(alice) == {OLD: (2, 1), NEW: (1, 1)}
    await alice.ask("erase", adapter="home/diary")
    assert await counts(alice) == {OLD: (2, 1), NEW: (0, 0)}
    (info,) = (await alice.ask("list", base=OLD_LABEL, prefix="home/p")).adapters
    assert info.name == "home/poems"
    with pytest.raises(BaseUnknown):
        await alice.ask("list", base="nothing")


async def test_what_must_be_trained_again_is_listed_to_whoever_sees_it(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    auditor = await admin.new_key("home", "tess", Role.AUDITOR)
    names = [f"home/a{number}" for number in range(5)]
    for name in names:
        await alice.push(name, 1)
    await alice.push("home/new", 1, served_base=NEW)
    await alice.push("home/draft", 1, alias=None)
    await bob.push("away/songs", 1)
    await alice.ask("promote", reference="home/a0@1", alias="stable")
    await alice.push("home/a1", 2, served_base=NEW, alias=None)
    await alice.ask("grant", adapter="home/a2", principal="bob@away")
    assert await outdated(admin) == []
    await admin.ask("supersede_base", base=OLD, by=NEW)

    assert [one.adapter for one in await outdated(alice)] == names
    first, second = (await outdated(alice))[:2]
    assert first == OutdatedRevision(
        "home/a0", "alice@home", 1, ("serving", "stable"), OLD_LABEL, BaseState.SUPERSEDED, NEW_LABEL, 1, OLD_LABEL,
        is_retrained=False,
    )  # fmt: skip
    assert (second.number, second.latest, second.latest_base, second.is_retrained) == (1, 2, NEW_LABEL, True)
    assert [one.adapter for one in await outdated(bob)] == ["away/songs", "home/a2"]
    assert [one.adapter for one in await outdated(auditor)] == names
    assert [one.adapter for one in await outdated(admin)] == ["away/songs", *names]
    assert [one.adapter for one in await outdated(admin, tenant="away")] == ["away/songs"]
    assert await outdated(alice, base=NEW_LABEL) == []
    narrow = await alice.new_key("home", "alice", adapters="home/a3")
    assert [one.adapter for one in await outdated(narrow)] == ["home/a3"]

    seen, after = [], ""
    while True:
        page = await admin.ask("outdated", num_max=2, after=after)
        assert len(page.revisions) <= 2
        seen += [one.adapter for one in page.revisions]
        if not (after := page.next_after):
            break
    assert seen == ["away/songs", *names]

    await alice.ask("promote", reference="home/a1@2")
    await alice.ask("revoke", adapter="home/a2", principal="bob@away")
    assert [one.adapter for one in await outdated(alice)] == [name for name in names if name != "home/a1"]
    assert [one.adapter for one in await outdated(bob)] == ["away/songs"]
    for fields in ({"num_max": 0}, {"num_max": 1_001}, {"after": "x" * 201}, {"tenant": "No"}):
        with pytest.raises(InvalidRequest):
            await alice.ask("outdated", **fields)
