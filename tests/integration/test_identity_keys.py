"""Keys that are narrowed, expire, are rotated and listed."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.heads import HeadStore
from octavo_identity.keyring import Keyring
from octavo_identity.keys import authenticate
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.dsse import Signer
from octavo_shared.errors import InvalidRequest, NotPermitted, OctavoError, Unauthenticated
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import KeyIssued, RevokeKey, Role, Scope
from octavo_shared.messages.requests import Credential
from support.access_world import KeyText
from support.identity_rig import Client, own_identity, parts

HOUR_S = 3_600


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def issued(by: Client, user: str = "alice", **fields: Any) -> tuple[Client, KeyIssued]:
    """Return a key of ``home`` that ``by`` issues, and what was said of it."""
    key = KeyText.fresh()
    asked = {"tenant": "home", "user": user, "role": Role.OWNER} | fields
    said = await by.ask("issue_key", key_id=key.key_id, secret_sha256=key.credential.secret_sha256, **asked)
    return Client(by.bus, by.store, key.credential), said


async def rotated(by: Client, key_id: str, new: KeyText, **fields: Any) -> tuple[Client, KeyIssued]:
    said = await by.ask(
        "rotate_key", key_id=key_id, new_key_id=new.key_id, secret_sha256=new.credential.secret_sha256, **fields
    )
    return Client(by.bus, by.store, new.credential), said


async def head_of(client: Client) -> tuple[KeyHead, int]:
    found = await HeadStore(client.bus, 1).read(subjects.key_head(client.credential.key_id))
    assert found is not None
    assert isinstance(found[0].head, KeyHead)
    return found[0].head, found[1]


async def let_time_pass(client: Client, num_ms: int) -> None:
    """Write the key's record as it would be if it had been issued so much earlier."""
    head, sequence = await head_of(client)
    earlier = msgspec.structs.replace(head, expires_at_ms=head.expires_at_ms - num_ms)
    event = RegistryEvent("key_issued", "test", wall_ms(), sequence, earlier)
    await HeadStore(client.bus, 1).append(subjects.key_head(head.key_id), event)


async def refusal(who: Client) -> dict[str, Any]:
    with pytest.raises(OctavoError) as error:
        await who.ask("whoami")
    return msgspec.to_builtins(error.value.refusal())


async def test_a_key_ends_when_its_time_is_over(admin: Client) -> None:
    alice, said = await issued(admin, lifetime_s=HOUR_S)
    assert abs(said.expires_at_ms - wall_ms() - HOUR_S * 1000) < 60_000
    assert (await alice.ask("whoami")).expires_at_ms == said.expires_at_ms
    await let_time_pass(alice, HOUR_S * 1000 - 60_000)
    await alice.ask("whoami")
    await let_time_pass(alice, 60_000)
    forged = Client(admin.bus, admin.store, msgspec.structs.replace(alice.credential, secret_sha256=bytes(32)))
    assert await refusal(alice) == await refusal(forged)
    assert (await refusal(alice))["code"] == "unauthenticated"


async def test_every_bad_key_costs_one_read(admin: Client, tmp_path: Path) -> None:
    class CountingHeads(HeadStore):
        num_reads = 0

        async def read(self, subject: str) -> tuple[RegistryEvent, int] | None:
            self.num_reads += 1
            return await super().read(subject)

    heads = CountingHeads(admin.bus, 1)
    (expired, _), (revoked, _), (good, _) = [await issued(admin, lifetime_s=HOUR_S) for _ in range(3)]
    await let_time_pass(expired, HOUR_S * 1000)
    await admin.ask("revoke_key", key_id=revoked.credential.key_id)
    wrong = msgspec.structs.replace(good.credential, secret_sha256=bytes(32))
    short = msgspec.structs.replace(good.credential, secret_sha256=b"")
    bad = (expired.credential, revoked.credential, wrong, short, KeyText.fresh().credential, Credential("../x", b""))
    for number, credential in enumerate(bad, 1):
        with pytest.raises(Unauthenticated):
            await authenticate(heads, credential)
        assert heads.num_reads == number
    assert (await authenticate(heads, good.credential)).principal == "alice@home"


async def test_no_key_outlives_the_one_that_makes_it(admin: Client) -> None:
    alice, said = await issued(admin, lifetime_s=HOUR_S)
    _, other = await issued(alice)
    assert other.expires_at_ms == said.expires_at_ms
    _, shorter = await issued(alice, lifetime_s=60)
    assert shorter.expires_at_ms < said.expires_at_ms
    for attempt in (issued(alice, lifetime_s=2 * HOUR_S), rotated(alice, alice.credential.key_id, KeyText.fresh(),
                                                                  lifetime_s=2 * HOUR_S)):  # fmt: skip
        with pytest.raises(InvalidRequest, match="outlive"):
            await attempt
    for lifetime_s in (0, -1, 10**12):
        with pytest.raises(InvalidRequest, match="lifetime_s"):
            await issued(admin, lifetime_s=lifetime_s)


async def test_no_key_makes_one_that_does_more(admin: Client) -> None:
    narrow, said = await issued(admin, scopes=(Scope.USE, Scope.MANAGE), adapters="home/d*")
    assert (set(said.scopes), said.adapters) == ({Scope.USE, Scope.MANAGE}, "home/d*")
    for fields in (
        {}, {"scopes": (Scope.USE, Scope.PUSH), "adapters": "home/d*"}, {"scopes": (Scope.USE,)},
        {"scopes": (Scope.USE,), "adapters": "home/*"}, {"scopes": (Scope.USE,), "adapters": "home/e"},
    ):  # fmt: skip
        with pytest.raises(NotPermitted):
            await issued(narrow, **fields)
    user, _ = await issued(narrow, scopes=(Scope.USE,), adapters="home/diary")
    with pytest.raises(NotPermitted):
        await issued(user, scopes=(Scope.USE,), adapters="home/diary")
    for adapters in ("*", "home", "home/*d", "home/a/b"):
        with pytest.raises(InvalidRequest, match="adapters"):
            await issued(admin, adapters=adapters)


async def test_a_rotated_key_lives_for_the_overlap_and_its_successor_is_its_like(admin: Client) -> None:
    alice, said = await issued(
        admin, scopes=(Scope.USE, Scope.PUSH), adapters="home/d*", label="laptop", lifetime_s=HOUR_S
    )
    old_id, fresh = alice.credential.key_id, KeyText.fresh()
    successor, told = await rotated(alice, old_id, fresh, overlap_s=600)
    assert (told.scopes, told.adapters, told.label) == (said.scopes, said.adapters, said.label)
    assert told.expires_at_ms == said.expires_at_ms
    old, new = await alice.ask("whoami"), await successor.ask("whoami")
    assert (old.successor, new.issuer) == (new.key_id, old_id)
    assert abs(old.expires_at_ms - wall_ms() - 600_000) < 60_000
    # The same successor again is the same answer; another one is not to be had.
    assert (await rotated(alice, old_id, fresh, overlap_s=600))[1] == told
    with pytest.raises(InvalidRequest, match="rotated already"):
        await rotated(alice, old_id, KeyText.fresh())
    await let_time_pass(alice, 600_000)
    assert (await refusal(alice))["code"] == "unauthenticated"
    assert (await successor.ask("whoami")).key_id == fresh.key_id
    with pytest.raises(InvalidRequest, match="ended"):
        await rotated(admin, old_id, KeyText.fresh())


async def test_an_overlap_never_makes_a_key_live_longer(admin: Client) -> None:
    alice, said = await issued(admin, lifetime_s=60)
    await rotated(alice, alice.credential.key_id, KeyText.fresh(), overlap_s=HOUR_S)
    assert (await alice.ask("whoami")).expires_at_ms == said.expires_at_ms
    carol, _ = await issued(admin, "carol")
    await rotated(carol, carol.credential.key_id, KeyText.fresh(), overlap_s=0)
    assert (await refusal(carol))["code"] == "unauthenticated"
    dave, _ = await issued(admin, "dave")
    for overlap_s in (-1, 8 * 24 * HOUR_S):
        with pytest.raises(InvalidRequest, match="overlap_s"):
            await rotated(dave, dave.credential.key_id, KeyText.fresh(), overlap_s=overlap_s)


async def test_whoever_rotates_a_key_holds_it_so_nobody_rotates_one_of_others(admin: Client) -> None:
    alice, _ = await issued(admin)
    carol, _ = await issued(admin, "carol")
    narrow, _ = await issued(admin, scopes=(Scope.MANAGE,))
    admin_key = admin.credential.key_id
    refusals = []
    for who, key_id in ((alice, carol.credential.key_id), (alice, admin_key), (alice, secrets.token_hex(8)),
                        (narrow, alice.credential.key_id)):  # fmt: skip
        with pytest.raises(NotPermitted) as error:
            await rotated(who, key_id, KeyText.fresh())
        refusals.append(error.value.refusal())
    assert len({one.message for one in refusals}) == 1
    _, told = await rotated(admin, carol.credential.key_id, KeyText.fresh(), lifetime_s=HOUR_S)
    assert (told.principal, told.role) == ("carol@home", Role.OWNER)


async def test_a_revocation_is_not_lost_to_a_rotation_at_the_same_time(admin: Client, tmp_path: Path) -> None:
    alice, _ = await issued(admin)
    async with parts(str(admin.bus.client.connected_url.geturl()), tmp_path / "identity") as made:  # type: ignore[union-attr]
        is_raced = False

        class Racing(HeadStore):
            """Has another write go first, once, between the read and the write of the key."""

            async def append(self, subject: str, event: RegistryEvent) -> int:
                nonlocal is_raced
                if event.kind == "key_revoked" and not is_raced:
                    is_raced = True
                    await rotated(alice, alice.credential.key_id, KeyText.fresh(), overlap_s=HOUR_S)
                return await super().append(subject, event)

        made.desk.heads = Racing(admin.bus, 1)
        order = RevokeKey(credential=admin.credential, idempotency_key="1", key_id=alice.credential.key_id)
        await Keyring(made.desk).revoke_key(order)
    assert is_raced
    assert (await head_of(alice))[0].is_revoked
    assert (await refusal(alice))["code"] == "unauthenticated"


async def test_a_list_of_keys_is_of_ones_own_and_tells_no_secret(admin: Client) -> None:
    alice, _ = await issued(admin, label="laptop")
    phone, _ = await issued(alice, scopes=(Scope.USE,), label="phone")
    carol, _ = await issued(admin, "carol")
    await alice.ask("revoke_key", key_id=phone.credential.key_id)
    mine = (await alice.ask("list_keys")).keys
    assert {(one.label, one.is_revoked, one.issuer) for one in mine} == {
        ("laptop", False, admin.credential.key_id), ("phone", True, alice.credential.key_id)
    }  # fmt: skip
    assert {one.key_id for one in (await carol.ask("list_keys")).keys} == {carol.credential.key_id}
    everybody = (await admin.ask("list_keys", principal="*@home")).keys
    assert {one.principal for one in everybody} == {"alice@home", "carol@home"}
    paged = []
    after = ""
    for _ in range(4):
        page = await admin.ask("list_keys", principal="*@home", after=after, num_max=1)
        paged += page.keys
        if not (after := page.next_after):
            break
    assert tuple(paged) == everybody
    encoded = msgspec.msgpack.encode(everybody)
    assert alice.credential.secret_sha256 not in encoded
    for principal in ("carol@home", "*@home", "*@away"):
        with pytest.raises(NotPermitted):
            await alice.ask("list_keys", principal=principal)


async def test_a_tenants_auditor_reads_its_tenants_events_and_proves_the_rest(admin: Client) -> None:
    alice, tess = await admin.new_key("home", "alice"), await admin.new_key("home", "tess", Role.AUDITOR)
    bob = await admin.new_key("away", "bob")
    await alice.push("home/diary")
    await bob.push("away/poems")
    for number, who in enumerate((alice, bob)):
        await who.ask("register_signer", public_key=Signer(bytes([number]) * 32).public_key.pem)
    last = (await HeadStore(admin.bus, 1).state()).last_sequence
    async with asyncio.timeout(10):
        while (page := await admin.ask("audit", first=1)).events[-1].sequence < last:
            await asyncio.sleep(0.05)
    seen = await tess.ask("audit", first=1)
    handle = (await alice.resolve("home/diary")).adapter
    assert handle is not None
    keys = [event for event in page.events if event.subject.startswith(subjects.signers_head(""))]
    assert len(keys) == 3
    # Of signing keys those of its own people and the registry's, which public statements are verified with.
    mine = [event for event in page.events if event.subject.endswith(handle.adapter_id) or event in keys[:2]]
    assert mine == list(seen.events)
    assert seen.leaf_hashes[: len(page.leaf_hashes)] == page.leaf_hashes
    shown = {event.sequence for event in seen.events}
    assert set(seen.withheld) == set(range(1, len(seen.leaf_hashes) + 1)) - shown
    assert not page.withheld


async def test_a_repeated_write_is_answered_only_to_who_may_still_see_the_adapter(admin: Client) -> None:
    alice, ed = await admin.new_key("home", "alice"), await admin.new_key("away", "ed")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.ask("grant", adapter="home/diary", principal="ed@away", role=GrantRole.EDITOR)
    write = {"reference": "home/diary@2", "alias": "stable", "idempotency_key": "once"}
    first = await ed.ask("promote", **write)
    assert await ed.ask("promote", **write) == first
    await alice.ask("revoke", adapter="home/diary", principal="ed@away")
    with pytest.raises(OctavoError) as error:
        await ed.ask("promote", **write)
    assert error.value.code == "adapter_not_found"
