"""Keys, uploads and places: who gets them from identity, and who does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_identity.committing import UPLOAD_AGE_MS_MAX
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.projection import Projection
from octavo_identity.pushing import Pushing
from octavo_identity.staging import PackPlace, Staging
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterNotFound, InvalidRequest, NotPermitted, OctavoError, Unauthenticated
from octavo_shared.messages.keys import Role
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.requests import Credential
from octavo_shared.objects import ObjectStore
from octavo_shared.pack import digest_of
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, admission, data_keys, own_identity, quota_keeper, statements


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def test_keys_are_refused_alike_when_unknown_wrong_or_revoked(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    wrong = msgspec.structs.replace(alice.credential, secret_sha256=bytes(32))
    unknown = msgspec.structs.replace(alice.credential, key_id="f" * 16)
    await admin.ask("revoke_key", key_id=alice.credential.key_id)
    for bad in (wrong, unknown, alice.credential, Credential("../x", b"")):
        with pytest.raises(Unauthenticated):
            await Client(admin.bus, admin.store, bad).ask("resolve")


async def test_nobody_gets_a_key_of_somebody_else(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    await carol.push("home/letters")
    for user in ("carol", "nobody-yet"):
        with pytest.raises(NotPermitted):
            await alice.new_key("home", user, Role.USER)
    with pytest.raises(NotPermitted):
        await alice.ask("revoke_key", key_id=carol.credential.key_id)
    assert (await carol.resolve("home/letters")).principal == "carol@home"


async def test_everybody_issues_and_revokes_keys_of_their_own_that_do_no_more(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    phone = await alice.new_key("home", "alice", Role.USER)
    assert (await phone.ask("resolve")).role is Role.USER
    with pytest.raises(NotPermitted):
        await phone.new_key("home", "alice", Role.OWNER)
    with pytest.raises(NotPermitted):
        await phone.ask("revoke_key", key_id=alice.credential.key_id)
    watch = await phone.new_key("home", "alice", Role.USER)
    await alice.ask("revoke_key", key_id=watch.credential.key_id)
    with pytest.raises(Unauthenticated):
        await watch.ask("resolve")


async def test_an_upload_belongs_to_one_principal_and_one_adapter(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    upload_id = await alice.stage("home/diary")
    for client, adapter in [(carol, "home/diary"), (alice, "home/other")]:
        with pytest.raises(InvalidRequest, match="upload_id"):
            await client.ask("commit", adapter=adapter, upload_id=upload_id, served_base=TINY_FINGERPRINT)


async def test_bytes_are_staged_only_for_an_upload_of_ones_own_that_is_young(admin: Client, tmp_path: Path) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    upload_id = (await alice.ask("begin_upload", adapter="home/diary")).upload_id
    assert (await alice.ask("check_upload", upload_id=upload_id)).upload_id == upload_id
    ids = Ids(load_secret(tmp_path / "identity"))
    old = ids.upload("alice@home", "home/diary", wall_ms() - UPLOAD_AGE_MS_MAX - 1)
    with pytest.raises(InvalidRequest, match="too old"):
        await alice.ask("check_upload", upload_id=old)
    for client, bad in [(carol, upload_id), (alice, "a" * 76), (alice, ""), (alice, upload_id[:-1] + "/")]:
        with pytest.raises(InvalidRequest, match="upload_id"):
            await client.ask("check_upload", upload_id=bad)


async def test_an_adapter_is_located_for_its_owner_and_for_admins_only(admin: Client) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    carol, dave = await admin.new_key("home", "carol"), await admin.new_key("home", "dave", Role.USER)
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    for client in (alice, admin):
        for reference, number in [("home/diary", 2), ("home/diary@1", 1)]:
            found = await client.ask("locate", reference=reference)
            used = (await alice.resolve(reference)).adapter
            assert found.adapter == msgspec.structs.replace(used, ticket=b"")
            assert found.adapter.revision == number
        for missing in ("home/nothing", "home/diary@3"):
            with pytest.raises(AdapterNotFound):
                await client.ask("locate", reference=missing)
    with pytest.raises(NotPermitted, match="evict this adapter"):
        await bob.ask("locate", reference="home/diary")
    answers = []
    for client in (carol, dave):
        for reference in ("home/diary", "home/nothing"):
            with pytest.raises(OctavoError) as error:
                await client.ask("locate", reference=reference)
            answers.append(error.value.refusal())
    assert {answer.code for answer in answers} == {"adapter_not_found"}
    assert len({answer.message for answer in answers}) == 1


class MeetingStaging(Staging):
    """Holds two commits together once both have stored their packs, as a slow network may."""

    def __init__(self, store: ObjectStore, keys: DataKeys) -> None:
        super().__init__(store, keys)
        self.places: list[str] = []
        self._both = asyncio.Barrier(2)

    async def store_pack(self, place: PackPlace, pack: bytes) -> None:
        await super().store_pack(place, pack)
        self.places.append(place.object_key)
        if len(self.places) <= 2:
            await self._both.wait()


async def test_two_commits_of_one_upload_at_once_never_share_an_object(admin: Client, tmp_path: Path) -> None:
    alice = await admin.new_key("home", "alice")
    upload_id = await alice.stage("home/diary")
    ids, projection = Ids(load_secret(tmp_path / "identity")), Projection(tmp_path / "view.sqlite")
    keys = data_keys(admin.bus, ids)
    heads = HeadStore(admin.bus, 1, keys)
    staging = MeetingStaging(admin.store, keys)
    desk, admitting = Desk(heads, ids, projection), admission(admin.store, heads)
    quotas = quota_keeper(desk, admin.bus)
    pushing = Pushing(desk, staging, keys, statements(heads, ids), admitting, quotas, 1 << 20)
    orders = [
        Commit(
            credential=alice.credential, idempotency_key=f"{dtype}", adapter="home/diary", upload_id=upload_id,
            served_base=TINY_FINGERPRINT, dtype=dtype,
        )
        for dtype in (None, "bf16")
    ]  # fmt: skip
    await asyncio.gather(*(pushing.commit(order) for order in orders))
    assert len(set(staging.places)) == len(staging.places) == 3
    digests = set()
    for number in (1, 2):
        adapter = (await alice.resolve(f"home/diary@{number}")).adapter
        assert adapter is not None
        assert digest_of(await alice.pack_of(adapter)) == adapter.digest
        digests.add(adapter.digest)
    assert len(digests) == 2
    staging.close()
    projection.close()
