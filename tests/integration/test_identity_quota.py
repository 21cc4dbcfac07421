"""Quotas on a real registry: each refuses by its name, whatever way a revision comes, and exactly at its limit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.claims import Claims
from octavo_identity.ids import Ids, load_secret
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import RegistryEvent, TenantHead
from octavo_identity.staging import PackPlace
from octavo_shared import subjects
from octavo_shared.bus import Bus, encode
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    DailyQuotaExceeded,
    InvalidRequest,
    NotPermitted,
    OctavoError,
    QuotaExceeded,
    from_refusal,
)
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.importing import ImportItem, ImportState
from octavo_shared.messages.usage import LIMIT_MAX, Quota, Quotas, UsageRecord, UsageRow, day_of
from octavo_shared.references import AdapterId, parse_reference
from octavo_shared.tasks import end
from support.adapters import TINY_FINGERPRINT
from support.days import begin_in_one_day
from support.identity_rig import Client, Parts, own_identity, own_nats, parts, quota_keeper


@pytest.fixture(autouse=True)
def one_day() -> None:
    begin_in_one_day()


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def limit(admin: Client, tenant: str = "home", **limits: int | None) -> Quotas:
    named = {Quota(name): value for name, value in limits.items()}
    quotas = (await admin.ask("set_quota", tenant=tenant, limits=named)).quotas
    assert isinstance(quotas, Quotas)
    return quotas


async def refused(kind: type[QuotaExceeded], asked: Any) -> tuple[object, object, object]:
    """Return the name, the limit and the use that the refusal tells; of a day's quota also the time is right."""
    with pytest.raises(kind) as caught:
        await asked
    error = caught.value
    assert type(error) is kind
    assert str(error.fields["quota"]) in error.message
    if kind is DailyQuotaExceeded:
        left_s = 86_400 - wall_ms() / 1000 % 86_400
        assert abs(int(error.fields["retry_after_s"]) - left_s) <= 60
    return error.fields["quota"], error.fields["limit"], error.fields["used"]


async def commit(who: Client, adapter: str, upload_id: str, **fields: Any) -> Any:
    return await who.ask("commit", adapter=adapter, upload_id=upload_id, served_base=TINY_FINGERPRINT, **fields)


async def test_limits_are_set_one_by_one_shown_and_taken_away(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    assert (await alice.ask("usage")).quotas is None
    assert await limit(admin, adapters=2, storage_bytes=10) == Quotas(storage_bytes=10, adapters=2)
    assert await limit(admin, storage_bytes=None, pushes_per_day=0) == Quotas(pushes_per_day=0, adapters=2)
    assert (await alice.ask("usage")).quotas == Quotas(pushes_per_day=0, adapters=2)
    assert (await admin.ask("usage", target="away")).quotas is None
    # The gate of a tenant and its quotas are in one record.
    await admin.ask("set_gate", target="home", gate=None)
    assert (await alice.ask("usage")).quotas == Quotas(pushes_per_day=0, adapters=2)
    for tenant, limits, field in (
        ("home", {}, "limits"), ("home", {Quota.ADAPTERS: -1}, "adapters"),
        ("home", {Quota.ADAPTERS: LIMIT_MAX + 1}, "adapters"), ("nowhere", {Quota.ADAPTERS: 1}, "tenant"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match=f"'{field}'"):
            await admin.ask("set_quota", tenant=tenant, limits=limits)
    with pytest.raises(NotPermitted):
        await limit(alice, adapters=5)


async def test_a_limit_that_is_set_again_by_the_same_key_changes_nothing(admin: Client) -> None:
    fields = {"tenant": "home", "limits": {Quota.ADAPTERS: 1}, "idempotency_key": "once"}
    await admin.ask("set_quota", **fields)
    await limit(admin, adapters=3)
    assert (await admin.ask("set_quota", **fields)).quotas == Quotas(adapters=3)


async def test_adapters_are_limited_in_number_and_an_erased_one_makes_room(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/a", 1)
    waiting = await alice.stage("home/b")
    await limit(admin, adapters=1)
    told = ("adapters", 1, 1)
    # Before its bytes travel, and when they have.
    assert await refused(QuotaExceeded, alice.ask("begin_upload", adapter="home/c")) == told
    assert await refused(QuotaExceeded, commit(alice, "home/b", waiting)) == told
    assert await refused(QuotaExceeded, alice.ask("branch", source="home/a", adapter="home/d")) == told
    await alice.push("home/a", 2)
    await alice.ask("erase", adapter="home/a")
    assert (await commit(alice, "home/b", waiting)).name == "home/b"
    assert await refused(QuotaExceeded, alice.ask("begin_upload", adapter="home/a")) == told


async def test_storage_is_limited_to_the_byte_in_every_way_in(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    one = (await alice.push("home/a", 1)).latest.pack_bytes
    other = (await alice.push("home/b", 2)).latest.pack_bytes
    waiting = await alice.stage("home/a", 3)
    await limit(admin, storage_bytes=one + other + one - 1)
    told = ("storage_bytes", one + other + one - 1, one + other)
    assert await refused(QuotaExceeded, commit(alice, "home/a", waiting)) == told
    assert await refused(QuotaExceeded, alice.ask("branch", source="home/a", adapter="home/c")) == told
    await limit(admin, storage_bytes=one + other + one)
    made = await commit(alice, "home/a", waiting, idempotency_key="once")
    assert made.latest.number == 2
    told = ("storage_bytes", 2 * one + other, 2 * one + other)
    assert await refused(QuotaExceeded, alice.ask("begin_upload", adapter="home/a")) == told
    # What was done gets its first answer, however full it is now.
    assert await commit(alice, "home/a", waiting, idempotency_key="once") == made
    # A retired revision's pack stays, an erased one's does not.
    await alice.ask("retire", adapter="home/a", number=1)
    assert (await alice.ask("usage")).pack_bytes == 2 * one + other
    await alice.ask("erase", adapter="home/b")
    assert (await alice.ask("usage")).pack_bytes == 2 * one
    await alice.ask("begin_upload", adapter="home/a")


async def test_pushes_are_limited_by_the_day_and_others_are_not(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await limit(admin, pushes_per_day=2)
    await alice.push("home/a", 1)
    await alice.ask("branch", source="home/a", adapter="home/b")
    told = ("pushes_per_day", 2, 2)
    assert await refused(DailyQuotaExceeded, alice.ask("begin_upload", adapter="home/a")) == told
    assert await refused(DailyQuotaExceeded, alice.ask("branch", source="home/a", adapter="home/c")) == told
    # The tenant that the adapter is in counts, whoever pushes.
    await alice.ask("grant", adapter="home/a", principal="bob@away", role=GrantRole.EDITOR)
    assert await refused(DailyQuotaExceeded, bob.ask("begin_upload", adapter="home/a")) == told
    await bob.ask("branch", source="home/a", adapter="away/a")
    await alice.ask("promote", reference="home/a@1", alias="stable")


async def imported(who: Client, names: list[str], uploads: dict[str, str]) -> list[Any]:
    items = tuple(ImportItem(name, f"once-{name}", TINY_FINGERPRINT, upload_id=uploads.get(name, "")) for name in names)
    return list((await who.ask("register", items=items)).outcomes)


async def test_an_import_takes_what_fits_and_refuses_the_rest_by_name(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    names = [f"home/a{number}" for number in range(8)]
    uploads = {name: await alice.stage(name, number) for number, name in enumerate(names)}
    await limit(admin, pushes_per_day=5)
    outcomes = await imported(alice, names, uploads)
    added = [one.adapter for one in outcomes if one.state is ImportState.ADDED]
    assert len(added) == 5
    for one in outcomes:
        if one.adapter not in added:
            error = from_refusal(one.refusal)
            assert (type(error), error.fields["quota"]) == (DailyQuotaExceeded, "pushes_per_day")
    # Those that are wanted are told before they are uploaded that there is no room.
    again = await imported(alice, names, {})
    assert [one.state for one in again if one.adapter in added] == [ImportState.PRESENT] * 5
    assert {one.refusal.code for one in again if one.adapter not in added} == {"daily_quota_exceeded"}
    await limit(admin, pushes_per_day=None, adapters=6)
    left = [name for name in names if name not in added]
    outcomes = await imported(alice, left, uploads)
    assert sorted(one.state for one in outcomes) == [ImportState.ADDED, ImportState.REFUSED, ImportState.REFUSED]
    assert (await alice.ask("usage")).num_adapters == 6


async def test_pushes_at_the_same_time_do_not_pass_a_limit_together_nor_fall_short_of_it(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    uploads = {f"home/a{number}": await alice.stage(f"home/a{number}", number) for number in range(8)}
    await limit(admin, adapters=3)
    tries = [commit(alice, name, upload) for name, upload in uploads.items()]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, AdapterInfo) for one in done) == 3
    assert {type(one) for one in done if isinstance(one, BaseException)} == {QuotaExceeded}
    # What failed for another reason takes no room.
    await limit(admin, adapters=4)
    left = [name for name, one in zip(uploads, done, strict=True) if isinstance(one, QuotaExceeded)]
    with pytest.raises(OctavoError) as caught:
        await commit(alice, left[0], "0" * 76)
    assert not isinstance(caught.value, QuotaExceeded)
    for erased in range(3):
        made = await commit(alice, left[erased], uploads[left[erased]])
        await alice.ask("erase", adapter=made.name)
    assert (await alice.ask("usage")).num_adapters == 3


async def test_a_push_that_is_sent_twice_at_once_takes_room_once(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await limit(admin, pushes_per_day=4)
    for number in (1, 2):
        upload = await alice.stage("home/a", number)
        tries = [commit(alice, "home/a", upload, idempotency_key=f"once-{number}") for _ in range(2)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        # The second one may come when the upload was taken already.
        assert any(isinstance(one, AdapterInfo) for one in done)
        assert not any(isinstance(one, QuotaExceeded) for one in done)
    for number in (3, 4):
        await alice.push("home/a", number)
    assert await refused(DailyQuotaExceeded, alice.ask("begin_upload", adapter="home/a")) == ("pushes_per_day", 4, 4)


async def test_a_tenant_that_has_used_its_tokens_is_told_of_and_the_limit_may_be_raised(
    admin: Client, tmp_path: Path
) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    home, day = Ids(load_secret(tmp_path / "identity")).tenant("home"), day_of(wall_ms())

    async def exhausted(who: Client) -> Any:
        return (await who.ask("resolve")).exhausted

    async def until(who: Client, expected: Any) -> None:
        async with asyncio.timeout(10):
            while (found := await exhausted(who)) is None or expected is None:
                if found is expected:
                    return
                await asyncio.sleep(0.02)
        assert (found.quota, found.limit, found.used) == expected

    await limit(admin, tokens_per_day=100)
    yesterday = UsageRow(home, AdapterId(""), day - 1, 1, 1_000, 1_000)
    for number, rows in enumerate(((yesterday,), (UsageRow(home, AdapterId(""), day, 1, 40, 59),)), 1):
        record = UsageRecord("gw-1", number, rows)
        await admin.bus.jetstream.publish(subjects.usage("gw-1"), encode(record))
    assert (await alice.ask("usage", num_days=1)).days[0].num_completion_tokens == 59
    assert await exhausted(alice) is None
    record = UsageRecord("gw-1", 3, (UsageRow(home, AdapterId(""), day, 1, 1, 0),))
    await admin.bus.jetstream.publish(subjects.usage("gw-1"), encode(record))
    await until(alice, ("tokens_per_day", 100, 100))
    assert await exhausted(bob) is None
    await limit(admin, tokens_per_day=101)
    await until(alice, None)
    await limit(admin, "away", tokens_per_day=0)
    await until(bob, ("tokens_per_day", 0, 0))
    await limit(admin, "away", tokens_per_day=None)
    await until(bob, None)


async def test_room_is_kept_while_a_revision_is_made_and_given_back_when_it_is_not(tmp_path: Path) -> None:
    reference, other = parse_reference("home/a"), parse_reference("home/b")
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one, Bus(nats.url, "test") as bus:
        tenant_id = one.ids.tenant("home")
        head = TenantHead(tenant_id, "home", quotas=Quotas(adapters=1, storage_bytes=10))
        await one.heads.append(one.desk.tenant_subject("home"), RegistryEvent("quota_set", "admin", 1, 0, head))
        following = asyncio.create_task(one.projection.follow(one.heads))
        await Claims(bus, 1).ensure_stream()
        keeper = quota_keeper(one.desk, bus)

        def place(name: str) -> PackPlace:
            adapter_id = one.ids.adapter("home", name)
            return PackPlace(f"packs/{adapter_id}/1.aa.bb", tenant_id, adapter_id, 1, TINY_FINGERPRINT)

        try:
            for _ in range(3):
                with contextlib.suppress(KeyError):
                    async with keeper.room(reference, place("a"), 10):
                        with pytest.raises(QuotaExceeded, match="'adapters' is 1, of which 1 are used"):
                            await keeper.check(other, is_new=True)
                        with pytest.raises(QuotaExceeded, match="'storage_bytes' is 10, of which 10 are used"):
                            await keeper.check(other, is_new=False)
                        # Two pushes to be one revision take its room once: only one of them can become it.
                        twin = msgspec.structs.replace(place("a"), object_key="packs/other")
                        with contextlib.suppress(KeyError):
                            async with keeper.room(reference, twin, 5):
                                raise KeyError
                        raise KeyError
            async with keeper.room(other, place("b"), 10):
                pass
        finally:
            await end(following)


@asynccontextmanager
async def two_keepers(folder: Path, quotas: Quotas) -> AsyncIterator[tuple[Parts, list[QuotaKeeper]]]:
    """Yield what two replicas of identity hold pushes to the tenant home against; each has a view of its own."""
    async with own_nats(folder / "nats") as nats, AsyncExitStack() as stack:
        both = [await stack.enter_async_context(parts(nats.url, folder)) for _ in range(2)]
        bus = await stack.enter_async_context(Bus(nats.url, "test"))
        await Claims(bus, 1).ensure_stream()
        head = TenantHead(both[0].ids.tenant("home"), "home", quotas=quotas)
        event = RegistryEvent("quota_set", "admin", 1, 0, head)
        await both[0].heads.append(both[0].desk.tenant_subject("home"), event)
        following = [asyncio.create_task(one.projection.follow(one.heads)) for one in both]
        try:
            yield both[0], [quota_keeper(one.desk, bus) for one in both]
        finally:
            await end(*following)


def new_place(one: Parts, name: str) -> PackPlace:
    adapter_id = one.ids.adapter("home", name)
    return PackPlace(f"packs/{adapter_id}/1.aa.bb", one.ids.tenant("home"), adapter_id, 1, TINY_FINGERPRINT)


async def test_replicas_that_push_at_once_do_not_pass_a_limit_together(tmp_path: Path) -> None:
    async with two_keepers(tmp_path, Quotas(adapters=5)) as (one, keepers):
        is_over = asyncio.Event()
        num_in_flight = num_refused = 0

        async def push(number: int) -> None:
            nonlocal num_in_flight, num_refused
            name = f"a{number}"
            try:
                async with keepers[number % 2].room(parse_reference(f"home/{name}"), new_place(one, name), 10):
                    num_in_flight += 1
                    await is_over.wait()
                    await one.add_revisions(f"home/{name}", 1)
            except QuotaExceeded:
                num_refused += 1

        pushing = [asyncio.create_task(push(number)) for number in range(16)]
        async with asyncio.timeout(30):
            while num_in_flight + num_refused < 16:
                await asyncio.sleep(0.01)
        assert (num_in_flight, num_refused) == (5, 11)
        is_over.set()
        await asyncio.gather(*pushing)
        # What was in flight is in the registry now, and is counted there and no more as a claim.
        for keeper in keepers:
            with pytest.raises(QuotaExceeded, match="'adapters' is 5, of which 5 are used"):
                await keeper.check(parse_reference("home/b"), is_new=True)


async def test_what_a_replica_that_was_killed_had_in_flight_takes_room_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_keepers(tmp_path, Quotas(adapters=1)) as (one, (killed, other)):
        lost = killed.room(parse_reference("home/a"), new_place(one, "a"), 10)
        await lost.__aenter__()
        with pytest.raises(QuotaExceeded):
            await other.check(parse_reference("home/b"), is_new=True)
        monkeypatch.setattr("octavo_identity.claims.LIVE_MS", 0)
        async with other.room(parse_reference("home/b"), new_place(one, "b"), 10):
            pass
        await lost.__aexit__(None, None, None)


async def test_a_tenant_without_quotas_writes_no_claims(tmp_path: Path) -> None:
    async with two_keepers(tmp_path, Quotas(tokens_per_day=1)) as (one, (keeper, _)):
        jetstream = one.heads._stream._bus.jetstream
        room = keeper.room(parse_reference("home/a"), new_place(one, "a"), 10)
        await room.__aenter__()
        assert (await jetstream.stream_info(subjects.CLAIM_STREAM)).state.last_seq == 0
        await room.__aexit__(None, None, None)
