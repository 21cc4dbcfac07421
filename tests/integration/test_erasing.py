"""Erasing an adapter: who may, what is left, what the receipt says, and that a broken-off one is finished."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from octavo_cli.verification import Auditor, Trusted
from octavo_identity.erasing import Erasing
from octavo_identity.fleet import Fleet
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.records import AdapterHead, ErasedHead
from octavo_identity.registry import Change
from octavo_shared import dsse, subjects
from octavo_shared.checkpoint import Verifier
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    AdapterErased,
    AdapterNotFound,
    DependencyUnavailable,
    InvalidRequest,
    NotPermitted,
    RevisionConflict,
)
from octavo_shared.messages.evaluation import Metric, Score
from octavo_shared.messages.generation import Started
from octavo_shared.messages.keys import Role
from octavo_shared.messages.privacy import LEASE_MS, Erase
from octavo_shared.objects import ObjectStore
from octavo_shared.references import Digest, WorkerId, parse_reference
from octavo_shared.sealed_event import field_key
from support.adapters import TINY_FINGERPRINT, config_json
from support.erasure_world import ErasureWorld, erasure_world, own_s3, said
from support.identity_rig import Client, Parts, parts

NOTE = "remember-the-seagulls"


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[ErasureWorld]:
    async with erasure_world(store_settings, tmp_path) as made:
        yield made


async def test_erasing_leaves_nothing_and_frees_the_name(world: ErasureWorld) -> None:
    alice, store = world.alice, world.admin.store
    for seed in (1, 2):
        await alice.push("home/diary", seed)
    await alice.push("home/poems", 1)
    old, poems = await world.handle("home/diary"), await world.handle("home/poems")
    await alice.stage("home/diary")
    unfinished = await store.keys("staging/")
    assert len(unfinished) == 2
    receipt = said(await alice.ask("erase", adapter="home/diary"))
    assert (receipt.adapter_id, receipt.tenant_id) == (old.adapter_id, old.tenant_id)
    assert (receipt.num_packs, receipt.num_uploads, receipt.acknowledged, receipt.fenced) == (2, 1, (), ())
    assert receipt.begun_at_ms <= receipt.erased_at_ms <= wall_ms()
    for reference in ("home/diary", "home/diary@1", f"home/diary@{old.digest}"):
        with pytest.raises(AdapterNotFound):
            await alice.resolve(reference)
    with pytest.raises(AdapterNotFound):
        await alice.ask("history", adapter="home/diary")
    assert [info.name for info in (await alice.ask("list")).adapters] == ["home/poems"]
    assert await store.keys("staging/") == []
    assert await store.keys("packs/") == [poems.object_key]
    with pytest.raises(AdapterErased):
        await alice.unwrap(old)
    # The name again: another adapter, with nothing of the old one.
    info = await alice.push("home/diary", 3, note="again")
    new = await world.handle("home/diary")
    assert (info.num_revisions, info.aliases) == (1, {"serving": 1})
    assert new.adapter_id not in (old.adapter_id, poems.adapter_id)
    assert [entry.kind for entry in (await alice.ask("history", adapter="home/diary")).entries] == ["revision_added"]
    assert len(await alice.pack_of(new)) == new.pack_bytes
    # And once more, into a third one.
    assert said(await alice.ask("erase", adapter="home/diary")).adapter_id == new.adapter_id
    assert (await alice.push("home/diary", 3)).adapter_id not in (old.adapter_id, new.adapter_id)


async def test_a_repeated_erase_returns_the_same_receipt(world: ErasureWorld) -> None:
    alice = world.alice
    await alice.push("home/diary")
    same = [alice.ask("erase", adapter="home/diary", idempotency_key="once") for _ in range(4)]
    first, *others = await asyncio.gather(*same)
    assert others == [first] * 3
    assert await alice.ask("erase", adapter="home/diary") == first
    assert await world.admin.ask("erase", adapter="home/diary") == first
    # Also when the name has been taken again meanwhile: that request has been answered.
    await alice.push("home/diary", 2)
    assert await alice.ask("erase", adapter="home/diary", idempotency_key="once") == first
    assert (await world.handle("home/diary")).revision == 1


async def test_only_the_owner_and_admins_erase_and_see_the_receipt(world: ErasureWorld) -> None:
    alice = world.alice
    carol, bob = await world.admin.new_key("home", "carol"), await world.admin.new_key("away", "bob")
    await alice.push("home/diary")
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    with pytest.raises(NotPermitted, match="erase this adapter"):
        await bob.ask("erase", adapter="home/diary")
    for who, name in ((carol, "home/diary"), (carol, "home/nothing"), (alice, "home/nothing"), (bob, "away/nothing")):
        with pytest.raises(AdapterNotFound):
            await who.ask("erase", adapter=name)
    erased = await world.admin.ask("erase", adapter="home/diary")
    for who in (carol, bob):
        with pytest.raises(AdapterNotFound):
            await who.ask("erase", adapter="home/diary")
    assert await alice.ask("erase", adapter="home/diary") == erased


async def test_workers_that_answer_are_named_and_those_that_do_not_are_fenced(world: ErasureWorld) -> None:
    await world.alice.push("home/diary", 1)
    await world.alice.push("home/poems", 2)
    diary, poems = await world.handle("home/diary"), await world.handle("home/poems")
    async with world.worker("w1", step_s=0.02) as one, world.worker("w2") as two:
        running = await one.caller.send(diary, max_tokens=90)
        assert isinstance(await running.next(), Started)
        for handle in (diary, poems):
            assert (await two.caller.ask(handle)).finished
        assert one.worker.loader.placed()
        # One that is heard and does not answer.
        await two.bus.publish(subjects.HEARTBEAT, msgspec.structs.replace(two.worker._observe(), worker_id="w3"))
        erasing = asyncio.create_task(world.alice.ask("erase", adapter="home/diary"))
        assert (await running.until_end()).error_code == "adapter_erased"
        receipt = said(await erasing)
        assert (receipt.acknowledged, receipt.fenced) == (("w1", "w2"), ("w3",))
        assert 0 <= receipt.fenced_until_ms - receipt.begun_at_ms - LEASE_MS < 60_000
        assert one.worker.loader.placed() == {}
        assert {key[0] for key in two.worker.loader.placed()} == {poems.adapter_id}
        # Whoever still has a handle gets nothing with it, wherever it goes.
        for rig in (one, two):
            assert (await rig.caller.ask(diary)).error_code == "adapter_erased"
    async with world.worker("w4") as late:
        assert (await late.caller.ask(diary)).error_code in ("adapter_erased", "adapter_unavailable")
        assert (await late.caller.ask(poems)).finished


async def test_the_ledger_still_verifies(world: ErasureWorld) -> None:
    await world.alice.push("home/diary")
    await world.alice.push("home/poems")
    await world.alice.ask("erase", adapter="home/diary")
    # A checkpoint comes each second at most: this waits for one that has all of it.
    page = await world.admin.ask("audit", first=(await HeadStore(world.admin.bus, 1).state()).last_sequence)
    auditor = Auditor(Trusted(Verifier.parse(page.signed.public_key)))
    while not auditor.is_done:
        auditor.take(await world.admin.ask("audit", first=auditor.next_sequence))
    assert auditor.finish().size >= 5
    assert auditor.num_sealed == 1, "the push of what was erased"
    assert (await world.alice.ask("prove", reference="home/poems")).number == 1
    with pytest.raises(AdapterNotFound):
        await world.alice.ask("prove", reference="home/diary@1")


async def begin(one: Parts, admin: Client, folder: Path, **changes: object) -> Erasing:
    """Return an identity's eraser that the test runs by hand."""
    signer = dsse.Signer(Ids(load_secret(folder)).receipt_seed())
    return Erasing(one.desk, admin.bus, admin.store, one.keys, Fleet(), signer, **changes)  # type: ignore[arg-type]


class BrokenStore(ObjectStore):
    """Deletes nothing any more."""

    def __init__(self) -> None:
        """Connect to nothing."""

    async def keys(self, *_: object, **__: object) -> list[str]:
        raise DependencyUnavailable("object storage")


async def test_an_erasure_that_broke_off_is_finished_by_the_next_identity(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with erasure_world(store_settings, tmp_path) as world:
        await world.alice.push("home/diary")
        old = await world.handle("home/diary")
        async with parts(world.settings.nats_url, tmp_path / "identity") as one:
            broken = await begin(
                one, Client(world.admin.bus, BrokenStore(), world.admin.credential), tmp_path / "identity"
            )
            request = {"credential": world.alice.credential, "idempotency_key": "once", "adapter": "home/diary"}
            with pytest.raises(DependencyUnavailable):
                await broken.erase(Erase(**request))
            # From the intent on nobody gets it, and its key is gone.
            with pytest.raises(AdapterNotFound):
                await world.alice.resolve("home/diary")
            with pytest.raises(AdapterErased):
                await one.keys.read(old.adapter_id)
            assert await world.admin.store.keys("packs/") == [old.object_key]
            await one.catch_up()
            assert await one.projection.open_erasures() == [(old.tenant_id, old.adapter_id)]
            # Whoever began it may still be at it.
            await (await begin(one, world.admin, tmp_path / "identity")).finish_all()
            assert await world.admin.store.keys("packs/") == [old.object_key]
            finisher = await begin(one, world.admin, tmp_path / "identity", patience_ms=0)
            await finisher.finish_all()
            assert await world.admin.store.keys("packs/") == []
            await one.catch_up()
            assert await one.projection.open_erasures() == []
            await finisher.finish_all()
            head = await one.heads.read(subjects.adapter_head("*", "*", old.adapter_id))
            assert head is not None
            assert isinstance(head[0].head, ErasedHead)
        again = await world.alice.ask("erase", adapter="home/diary", idempotency_key="once")
        assert again.receipt == head[0].head.receipt
        assert said(again).num_packs == 1


async def test_a_push_that_an_erasure_overtakes_makes_a_new_adapter_or_none(world: ErasureWorld) -> None:
    alice = world.alice
    await alice.push("home/diary", 1)
    old = await world.handle("home/diary")
    pushes = [alice.push("home/diary", seed) for seed in range(2, 6)]
    results = await asyncio.gather(*pushes, alice.ask("erase", adapter="home/diary"), return_exceptions=True)
    refused = [one for one in results if isinstance(one, Exception)]
    assert all(isinstance(one, AdapterErased) or "whose adapter was erased" in str(one) for one in refused), results
    infos = (await alice.ask("list")).adapters
    for info in infos:
        assert info.adapter_id != old.adapter_id
        for number in range(1, info.num_revisions + 1):
            handle = await world.handle(f"home/diary@{number}")
            assert len(await alice.pack_of(handle)) == handle.pack_bytes


async def test_an_upload_to_an_adapter_that_was_erased_says_so(world: ErasureWorld) -> None:
    alice = world.alice
    await alice.push("home/diary", 1)
    upload_id = await alice.stage("home/diary", 2)
    await alice.ask("erase", adapter="home/diary")
    # Whoever stages bytes does not say for which adapter.
    with pytest.raises(InvalidRequest, match="or whose adapter was erased"):
        await alice.upload_key(upload_id)
    order = {"adapter": "home/diary", "upload_id": upload_id, "served_base": TINY_FINGERPRINT}
    with pytest.raises(AdapterErased):
        await alice.ask("commit", **order)
    # What is begun under the name now is not taken for what was erased.
    later = await alice.stage("home/diary", 3)
    assert (await alice.ask("commit", **order | {"upload_id": later})).num_revisions == 1
    with pytest.raises(InvalidRequest, match="committed or swept"):
        await alice.ask("commit", **order | {"upload_id": later, "idempotency_key": "another"})
    with pytest.raises(AdapterErased):
        await alice.ask("commit", **order)


async def test_nothing_is_written_for_an_adapter_that_was_erased_meanwhile(world: ErasureWorld) -> None:
    alice, reference = world.alice, parse_reference("home/diary")
    await alice.push("home/diary", 1)
    async with parts(world.settings.nats_url, world.folder / "identity") as one:
        old = await one.desk.registry.head(reference)
        assert old is not None

        async def late(now: AdapterHead | None) -> Change:
            if now is not None:
                await alice.ask("erase", adapter="home/diary")
            return Change("tagged", old)

        with pytest.raises(RevisionConflict):
            await one.desk.registry.change(reference, "alice@home", "1", late)
        assert await one.desk.registry.head(reference) is None


async def test_no_byte_of_it_is_left_anywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    canary = b"the-lighthouse-keeper-of-number-nine"
    config = config_json()[:-1] + b', "revision": "' + canary + b'"}'
    async with own_s3(tmp_path / "s3") as settings, erasure_world(settings, tmp_path) as world:
        # What its key says of the owner is there before, and stays.
        owner = await world.admin.new_key("home", "winifred", Role.OWNER)
        await owner.ask("list")
        of_key = world.num_in("nats", b"winifred")
        assert of_key
        upload_id = await owner.stage("home/gull-notebook", 1, config=config)
        base = (await world.alice.push("home/other", 2)).latest.base
        order = {"adapter": "home/gull-notebook", "upload_id": upload_id, "served_base": base, "note": NOTE}
        await owner.ask("commit", **order, tags=("stormy",))
        await owner.ask("grant", adapter="home/gull-notebook", principal="ambrose@away")
        scores = (Score(Metric.EXACT, 0.75, 10),)
        suite_digest = Digest(f"sha256:{'5a17' * 16}")
        await owner.ask(
            "evaluate", reference="home/gull-notebook@1", suite="seaworthy", suite_digest=suite_digest, scores=scores,
            base=base,
        )  # fmt: skip
        statement = (await owner.ask("provenance", reference="home/gull-notebook@1")).envelope.data
        handle = (await owner.resolve("home/gull-notebook")).adapter
        other = await world.handle("home/other")
        pack = await owner.pack_of(handle)
        key = await owner.unwrap(handle)
        needles = {
            # Weights are a canary of their own: 48 bytes in the middle.
            "weights": pack[len(pack) // 2 :][:48],
            "configuration": canary,
            "data key": key,
            "field key": field_key(key),
            "name": b"gull-notebook",
            "grantee": b"ambrose",
            "note": NOTE.encode(),
            "tag": b"stormy",
            "suite": b"seaworthy",
            "suite's digest": suite_digest.encode(),
            "digest": handle.digest.encode(),
            "digest's bytes": bytes.fromhex(handle.digest.removeprefix("sha256:")),
            "statement": statement,
            # It is stored as base64: at least one of three alignments of its middle.
            "statement in base64": base64.b64encode(statement)[64:160],
        }
        async with world.worker("w1") as rig:
            for one in (handle, other):
                assert (await rig.caller.ask(one)).finished
            await rig.worker.loader._packs.settle()
            sealed = (await world.admin.store.read(handle.object_key, 1 << 24))[64:128]
            assert world.holding(sealed), "what is looked for below can be found"
            proof = await owner.ask("prove", reference="home/gull-notebook@1")
            event = proof.event.data[-64:]
            assert world.holding(event), "so can what is stored of its events"
            receipt = said(await owner.ask("erase", adapter="home/gull-notebook"))
            assert receipt.acknowledged == (WorkerId("w1"),)
            # The view has seen it by then.
            await owner.ask("list")
            written = "".join(capfd.readouterr())
            for name, needle in needles.items():
                assert world.holding(needle) == [], name
                assert needle.hex() not in written, name
                assert needle.decode(errors="replace") not in written, name
            assert world.num_in("nats", b"winifred") == of_key
            assert world.num_in("identity", b"winifred") == 1, "whose key it is"
            assert {name.split("/")[0] for name in world.holding(b"winifred")} == {"nats", "identity"}
            # What was sealed is still in a volume of the object store until it is compacted, and nowhere else.
            assert {name.split("/")[0] for name in world.holding(sealed)} <= {"s3"}
            # So are its events, which prove what they proved, and say nothing.
            assert {name.split("/")[0] for name in world.holding(event)} == {"nats"}
            audited = (await world.admin.ask("audit", first=proof.event.sequence, num_max=1)).events[0]
            assert audited == proof.event
            assert (await rig.caller.ask(other)).finished
