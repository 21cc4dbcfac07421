"""Data keys: handed out for identity's own tickets only, and never to be had again once they are destroyed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider, KeyUnusable
from octavo_identity.tickets import TICKET_AGE_MS_MAX, Tickets
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterErased, AdapterUnavailable, InvalidRequest, NotPermitted
from octavo_shared.key_transport import KeyNotReadable, Question
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.privacy import ERASURES_MAX, DataKey, Unwrap
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId
from octavo_shared.seal import SealBroken, open_sealed
from support.identity_rig import Client, own_identity, own_nats, parts


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def unwrap(client: Client, handle: AdapterHandle) -> bytes:
    return await client.unwrap(handle)


async def handle(client: Client, reference: str) -> AdapterHandle:
    adapter = (await client.resolve(reference)).adapter
    assert adapter is not None
    return adapter


async def test_what_is_stored_is_sealed_and_opens_with_the_adapters_key_alone(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await alice.push("home/poems", 1)
    first, second, poems = [await handle(alice, name) for name in ("home/diary@1", "home/diary@2", "home/poems")]
    assert first.digest == poems.digest
    assert await unwrap(alice, first) == await unwrap(alice, second) != await unwrap(alice, poems)
    for adapter in (first, second, poems):
        assert len(await alice.pack_of(adapter)) == adapter.pack_bytes
    sealed = await admin.store.read(first.object_key, 1 << 24)
    assert b"q_proj" in await alice.pack_of(first)
    assert b"q_proj" not in sealed
    # The object of one revision or adapter where another's is expected is refused.
    await admin.store.write(second.object_key, sealed)
    await admin.store.write(poems.object_key, sealed)
    for adapter in (second, poems):
        with pytest.raises(SealBroken):
            await alice.pack_of(adapter)


async def test_uploads_are_staged_under_a_key_that_goes_with_them(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    upload_id = await alice.stage("home/diary")
    key = await alice.upload_key(upload_id)
    assert await alice.upload_key(upload_id) == key
    assert key != await alice.upload_key(await alice.stage("home/diary"))
    name = "adapter_config.json"
    sealed = await admin.store.read(f"staging/{upload_id}/{name}", 1 << 24)
    # A file that was put there by somebody else, or that was another one, makes no revision.
    await admin.store.write(f"staging/{upload_id}/adapter_model.safetensors", sealed)
    fields = {"adapter": "home/diary", "upload_id": upload_id, "served_base": "sha256:" + "0" * 64}
    with pytest.raises(InvalidRequest):
        await alice.ask("commit", **fields | {"served_base": (await _base(alice))})
    assert open_sealed(sealed, key, f"staging\0{upload_id}\0{name}".encode())[:1] == b"{"
    upload_id = await alice.stage("home/diary")
    await alice.ask("commit", **fields | {"upload_id": upload_id, "served_base": await _base(alice)})
    with pytest.raises(InvalidRequest, match="committed"):
        await alice.ask("check_upload", upload_id=upload_id)


async def test_an_uploads_key_is_read_by_its_asker_only(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    upload_id = await alice.stage("home/diary")
    key = await alice.upload_key(upload_id)
    question, other = Question(), Question()
    answer = await alice.ask("check_upload", upload_id=upload_id, public_key=question.public_key)
    assert key not in msgspec.msgpack.encode(answer)
    assert question.open(answer.sealed) == key
    with pytest.raises(KeyNotReadable):
        other.open(answer.sealed)
    # Whoever only asks whether the upload is theirs is told no key; a key that is none is refused.
    assert (await alice.ask("check_upload", upload_id=upload_id)).sealed == b""
    with pytest.raises(InvalidRequest, match="public_key"):
        await alice.ask("check_upload", upload_id=upload_id, public_key=bytes(31))


async def _base(client: Client) -> str:
    await client.push("home/any")
    return (await handle(client, "home/any")).base


async def test_no_key_without_a_ticket_of_identitys_own(admin: Client, tmp_path: Path) -> None:
    alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await bob.push("away/poems")
    good, older, foreign = [
        await handle(who, name) for who, name in ((alice, "home/diary"), (alice, "home/diary@1"), (bob, "away/poems"))
    ]
    assert await unwrap(admin, good)
    tickets, replace = Tickets(Ids(load_secret(tmp_path / "identity")).ticket_key()), msgspec.structs.replace
    lately = wall_ms() - TICKET_AGE_MS_MAX
    bad = {
        "none": replace(good, ticket=b""),
        "short": replace(good, ticket=good.ticket[:-1]),
        "forged": Tickets(bytes(32)).with_ticket(good, wall_ms()),
        "expired": tickets.with_ticket(good, lately),
        "prolonged": replace(good, ticket=(2**62).to_bytes(8, "big") + good.ticket[8:]),
        "of another revision": replace(good, ticket=older.ticket),
        "of another adapter": replace(good, ticket=foreign.ticket),
        "for another adapter": replace(good, adapter_id=foreign.adapter_id),
        "for another tenant": replace(good, tenant_id=foreign.tenant_id),
        "for another object": replace(good, object_key=foreign.object_key),
        "for another digest": replace(good, digest=Digest("sha256:" + "0" * 64)),
        "for another base": replace(good, base=Fingerprint("sha256:" + "1" * 64)),
        "for another number": replace(good, revision=7),
    }
    answers = await asyncio.gather(*(unwrap(admin, asked) for asked in bad.values()), return_exceptions=True)
    assert {what: type(answer) for what, answer in zip(bad, answers, strict=True)} == dict.fromkeys(bad, NotPermitted)
    assert await unwrap(admin, tickets.with_ticket(good, lately + 60_000))
    # Whoever may only say where something is gets no ticket with the answer.
    located = (await admin.ask("locate", reference="home/diary")).adapter
    with pytest.raises(NotPermitted):
        await unwrap(admin, located)


async def test_a_key_is_readable_for_who_asked_and_for_nobody_else(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    adapter, mine, others = await handle(alice, "home/diary"), Question(), Question()
    order = Unwrap(adapter, mine.public_key)
    answer = await admin.bus.request(subjects.identity("unwrap"), order, DataKey, timeout_s=10)
    key = mine.open(answer.sealed)
    assert key == await unwrap(admin, adapter)
    assert key not in answer.sealed
    for question, sealed in (
        (others, answer.sealed), (mine, answer.sealed[:-1]), (mine, b""),
        (mine, bytes([answer.sealed[0] ^ 1]) + answer.sealed[1:]),
    ):  # fmt: skip
        with pytest.raises(KeyNotReadable):
            question.open(sealed)
    for wrong in (b"", bytes(32), bytes(33)):
        order = Unwrap(adapter, wrong)
        with pytest.raises(InvalidRequest, match="public_key"):
            await admin.bus.request(subjects.identity("unwrap"), order, DataKey, timeout_s=10)


async def test_a_destroyed_key_is_gone_from_the_files_and_never_made_again(tmp_path: Path) -> None:
    tenant, adapter_id, other = TenantId("t1"), AdapterId("a" * 32), AdapterId("b" * 32)
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        keys = one.keys
        key, kept = await keys.make(tenant, adapter_id), await keys.make(tenant, other)
        assert await keys.make(tenant, adapter_id) == await keys.read(adapter_id) == key != kept
        subject = subjects.data_key(adapter_id)
        wrapped = (await keys._stream.get(subject=subject)).data
        assert contains(tmp_path / "nats", wrapped[-40:])
        for _ in range(2):
            await keys.destroy(adapter_id)
        assert not contains(tmp_path / "nats", wrapped[-40:])
        for ask in (keys.read(adapter_id), keys.make(tenant, adapter_id)):
            with pytest.raises(AdapterErased):
                await ask
        assert await keys.read(other) == kept
        await keys.destroy(AdapterId("c" * 32))
        with pytest.raises(AdapterErased):
            await keys.make(tenant, AdapterId("c" * 32))
        with pytest.raises(AdapterUnavailable):
            await keys.read(AdapterId("d" * 32))


async def test_the_list_of_erasures_is_read_on_from_where_one_was(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        begun = await one.keys.erasures(None)
        assert (begun.adapter_ids, begun.until) == ((), 0)
        ids = [AdapterId(f"{number:032x}") for number in range(ERASURES_MAX + 3)]
        for adapter_id in ids:
            await one.keys.tell_erased(adapter_id)
        first = await one.keys.erasures(begun.until)
        rest = await one.keys.erasures(first.until)
        assert [*first.adapter_ids, *rest.adapter_ids] == ids
        assert len(first.adapter_ids) == ERASURES_MAX
        assert (await one.keys.erasures(rest.until)).adapter_ids == ()
        assert (await one.keys.erasures(None)).until == rest.until


async def test_keys_of_uploads_that_nobody_committed_are_swept(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        for number in range(5):
            await one.keys.make_for_upload(TenantId("t1"), AdapterId("a" * 32), f"upload{number}")
        await one.keys.make(TenantId("t1"), AdapterId("a" * 32))
        assert await one.keys.destroy_old_uploads(60, 10) == 0
        assert await one.keys.destroy_old_uploads(-1, 3) == 3
        assert await one.keys.destroy_old_uploads(-1, 10) == 2
        assert await one.keys.read_for_upload("upload4") is None
        assert await one.keys.read(AdapterId("a" * 32))


async def test_a_wrapped_key_opens_for_its_tenant_and_its_place_alone() -> None:
    provider, key = FileKeyProvider(bytes(32)), bytes(range(32))
    wrapped = await provider.wrap("file/t1", key, b"place")
    assert await provider.unwrap("file/t1", wrapped, b"place") == key
    assert key not in wrapped
    tampered = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    for other, key_id, what, place in [
        (provider, "file/t2", wrapped, b"place"), (provider, "file/t1", wrapped, b"elsewhere"),
        (provider, "file/t1", tampered, b"place"), (provider, "file/t1", b"", b"place"),
        (FileKeyProvider(bytes(31) + b"1"), "file/t1", wrapped, b"place"),
    ]:  # fmt: skip
        with pytest.raises(KeyUnusable):
            await other.unwrap(key_id, what, place)


def contains(folder: Path, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in folder.rglob("*") if path.is_file())
