"""The ledger from the push to ``octavo verify``: real NATS and S3, identity, a gateway, the command line."""

import asyncio
import contextlib
import itertools
import secrets
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from octavo_cli.processes import free_port
from octavo_cli.verification import Auditor, NotProven, Trusted
from octavo_identity.checkpoints import Checkpoints
from octavo_identity.desk import Desk
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.ledger import Ledger
from octavo_identity.projection import Projection
from octavo_identity.proving import Proving
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_identity.stream import StreamState
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.checkpoint import Checkpoint, Signer
from octavo_shared.config import ConfigError, StoreSettings
from octavo_shared.errors import AdapterNotFound, DependencyUnavailable, InvalidRequest, NotPermitted
from octavo_shared.merkle import Tree, is_consistent
from octavo_shared.messages.keys import Role
from octavo_shared.messages.ledger import Audit, AuditPage, LedgerEvent, Prove
from octavo_shared.messages.requests import Credential
from support.command_world import alice_of, gateway, octavo
from support.identity_rig import CountingHeads, Parts, data_keys, identity, own_identity, own_nats, parts

SIGNER = Signer(bytes(32))
ROOT_KEY = Credential("a" * 16, bytes(32))


async def test_revisions_are_proven_and_the_whole_is_audited_on_the_command_line(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice, key = await alice_of(admin)
        first = await alice.push("home/diary", 1)
        second = await alice.push("home/diary", 2)
        admin_key = (tmp_path / "identity" / "admin_key").read_text()
        async with gateway(admin, store_settings, free_port()) as url:
            for number, info in [(1, first), (2, second)]:
                code, said = await octavo(url, key, tmp_path, "verify", f"home/diary@{number}")
                assert code == 0, said
                assert f"home/diary@{number}  {info.latest.digest}" in said
                assert "proven: " in said
                assert "revision_added by alice@home" in said
                assert "its statement is signed by the registry (key " in said
            assert "as pinned before" in said
            await alice.push("home/diary", 3)
            code, said = await octavo(url, key, tmp_path, "verify", "home/diary")
            assert code == 0, said
            assert "home/diary@3" in said
            assert "consistent with the " in said
            assert "not checked: that home/diary means revision 3 now" in said
            assert "not checked: whether any of events " in said
            code, said = await octavo(url, admin_key, tmp_path, "verify", "--all")
            assert code == 0, said
            assert "none is changed, missing or out of place" in said
            assert "statements: 0 signed by their people and the registry, 3 by the registry alone, 0 bad" in said
            for words in (["home/nothing"], ["home/diary@4"], ["--all"], [], ["home/diary", "--all"]):
                code, said = await octavo(url, key, tmp_path, "verify", *words)
                assert (code, said.count("octavo: ")) == (1, 1), said
            other = str(SIGNER.verifier)
            code, said = await octavo(url, key, tmp_path, "verify", "home/diary", "--public-key", other)
            assert code == 1
            assert "not_proven" in said


async def test_a_log_that_was_begun_again_is_noticed_by_who_has_seen_the_old_one(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    port = free_port()
    codes = []
    for number, num_pushes in enumerate([3, 1, 6]):
        async with own_nats(tmp_path / f"nats-{number}") as nats:
            settings = msgspec.structs.replace(store_settings, nats_url=nats.url)
            async with identity(settings, tmp_path / "identity") as admin:
                await admin.ask("create_tenant", tenant="home")
                alice, key = await alice_of(admin)
                for seed in range(num_pushes):
                    await alice.push("home/diary", seed)
                async with gateway(admin, settings, port) as url:
                    codes.append(await octavo(url, key, tmp_path, "verify", "home/diary@1"))
    assert [code for code, _ in codes] == [0, 1, 1], codes
    assert "shorter" in codes[1][1]
    assert "rewritten" in codes[2][1]


async def test_proofs_are_for_owners_and_admins_and_audits_for_admins(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice, bob = await admin.new_key("home", "alice"), await admin.new_key("away", "bob")
        carol = await admin.new_key("home", "carol")
        await alice.push("home/diary", 1)
        await alice.ask("grant", adapter="home/diary", principal="bob@away")
        for client in (alice, admin):
            assert (await client.ask("prove", reference="home/diary")).number == 1
        with pytest.raises(NotPermitted, match="verify this adapter"):
            await bob.ask("prove", reference="home/diary")
        with pytest.raises(AdapterNotFound):
            await carol.ask("prove", reference="home/diary")
        for client in (alice, bob, carol):
            with pytest.raises(NotPermitted, match="audit"):
                await client.ask("audit", first=1)
        for wrong in ({"first": 0}, {"first": 1, "num_max": 129}, {"first": 1, "old_size": -1}):
            with pytest.raises(InvalidRequest):
                await admin.ask("audit", **wrong)


async def test_a_proof_counts_at_once_for_what_was_just_pushed(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        for number in range(1, 4):
            await alice.push("home/diary", number)
            proof = await alice.ask("prove", reference=f"home/diary@{number}")
            assert (proof.number, proof.event.subject.split(".")[2]) == (number, "registry")


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Parts]:
    """Identity's parts with an admin's key; the view and the ledger only do what they are told to."""
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as made:
        key = KeyHead(ROOT_KEY.key_id, ROOT_KEY.secret_sha256, "root@octavo", "octavo", Role.ADMIN)
        await made.heads.append(subjects.key_head(key.key_id), RegistryEvent("key_issued", "identity", 1, 0, key))
        yield made


async def ledger_of(one: Parts, projection: Projection | None = None) -> Ledger:
    checkpoints = Checkpoints(one.heads._stream._bus, 1)
    await checkpoints.ensure_stream()
    return Ledger(one.heads, projection or one.projection, checkpoints, SIGNER)


async def newest(one: Parts) -> Checkpoint:
    found = await Checkpoints(one.heads._stream._bus, 1).newest()
    assert found is not None
    return SIGNER.verifier.open(found[0])


async def num_checkpoints(one: Parts) -> int:
    bus = one.heads._stream._bus
    return (await bus.jetstream.stream_info(subjects.CHECKPOINT_STREAM)).state.messages


async def tree_of_stream(one: Parts) -> Tree:
    """Build the tree from the stream alone."""
    tree = Tree()
    for event in await one.heads.read_range(1, (await one.heads.state()).last_sequence):
        tree.append(event.leaf_hash())
    return tree


async def test_checkpoints_follow_the_stream_and_each_other(one: Parts) -> None:
    ledger = await ledger_of(one)
    seen = []
    for _ in range(4):
        await one.add_revisions("home/diary", 3)
        await one.catch_up()
        await ledger.sign_behind()
        await ledger.sign_behind()
        seen.append(await newest(one))
    tree = await tree_of_stream(one)
    assert [checkpoint.size for checkpoint in seen] == [4, 7, 10, 13]
    for old, new in itertools.pairwise(seen):
        assert new.root == tree.root(new.size)
        proof = tree.consistency_proof(old.size, new.size)
        assert is_consistent(old.size, old.root, new.size, new.root, proof)
    assert await num_checkpoints(one) == 4


async def test_two_that_sign_at_once_never_contradict_each_other_and_never_go_back(one: Parts, tmp_path: Path) -> None:
    behind = Projection(tmp_path / "behind.sqlite")
    other = replace(one, projection=behind)
    ledgers = [await ledger_of(one), await ledger_of(one, behind)]
    size = 0
    for number in range(6):
        await one.add_revisions("home/diary", 1)
        await one.catch_up()
        if number % 2:
            await other.catch_up()
        await asyncio.gather(*(ledger.sign_behind() for ledger in ledgers))
        now = await newest(one)
        assert now.size > size
        assert now.root == (await tree_of_stream(one)).root(now.size)
        size = now.size
    assert await num_checkpoints(one) == 6
    behind.close()


@pytest.mark.parametrize("is_begun", [True, False])
async def test_the_tree_survives_a_restart_without_the_stream(is_begun: bool, one: Parts, tmp_path: Path) -> None:
    await one.add_revisions("home/diary", 40)
    await one.catch_up()
    (path,) = (tmp_path / "identity").glob("*.sqlite")
    one.projection.close()
    one.projection = Projection(path)
    assert one.projection.sequence == 41
    if is_begun:
        # Before there is a stream to follow.
        one.projection.begin()
        async with asyncio.timeout(10):
            while one.projection.tree.size < 41:
                await asyncio.sleep(0.01)

    class Closed(HeadStore):
        async def copy_range(self, first: int, last: int) -> list[LedgerEvent]:
            raise AssertionError("everything is in the file")

    heads, one.heads = one.heads, Closed(one.heads._stream._bus, 1)  # type: ignore[assignment]
    await one.catch_up()
    one.heads = heads
    assert one.projection.tree.root(41) == (await tree_of_stream(one)).root(41)


@pytest.mark.parametrize(
    "damage", ["UPDATE leaves SET hash = zeroblob(32)", "UPDATE leaves SET hash = zeroblob(31)", "DELETE FROM leaves"]
)
async def test_a_tree_whose_file_was_damaged_is_read_from_the_stream_again(
    damage: str, one: Parts, tmp_path: Path
) -> None:
    await one.add_revisions("home/diary", 5)
    await one.catch_up()
    await (await ledger_of(one)).sign_behind()
    (path,) = (tmp_path / "identity").glob("*.sqlite")
    one.projection.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"{damage} WHERE sequence = 3")
    one.projection = Projection(path)
    one.projection.begin()
    ledger = await ledger_of(one)
    await one.add_revisions("home/diary", 1)
    for _ in range(2):
        await one.catch_up()
        await ledger.sign_behind()
    await one.catch_up()
    await ledger.sign_behind()
    assert await newest(one) == Checkpoint("octavo/registry", 7, (await tree_of_stream(one)).root(7))


class ReplacedHeads(HeadStore):
    """Another stream of the same name, begun since the view was made."""

    async def state(self) -> StreamState:
        return StreamState("another", 1.0, 1_000)


async def test_a_tree_of_a_stream_that_was_replaced_is_not_signed(one: Parts) -> None:
    ledger = await ledger_of(one)
    await one.catch_up()
    ledger._heads = ReplacedHeads(one.heads._stream._bus, 1)
    await ledger.sign_behind()
    assert await num_checkpoints(one) == 0


async def test_a_proof_waits_for_a_view_that_another_replicas_push_has_not_come_to(one: Parts) -> None:
    ledger = await ledger_of(one)
    await one.add_revisions("home/diary", 1)
    await one.catch_up()
    await one.add_revisions("home/diary", 1)
    request = Prove(credential=ROOT_KEY, reference="home/diary@2")
    asking = asyncio.create_task(Proving(one.desk, ledger, one.signers).prove(request))
    async with asyncio.timeout(5):
        while one.projection._wanted < 3 and not asking.done():
            await asyncio.sleep(0.01)
    await one.catch_up()
    await ledger.sign_behind()
    proof = await asking
    assert (proof.number, proof.event.sequence) == (2, 3)


async def test_a_stream_that_contradicts_what_was_signed_is_never_signed(one: Parts) -> None:
    ledger = await ledger_of(one)
    await one.add_revisions("home/diary", 2)
    note = SIGNER.sign(2, secrets.token_bytes(32))
    await Checkpoints(one.heads._stream._bus, 1).append(note, 0)
    for _ in range(3):
        await one.catch_up()
        await ledger.sign_behind()
    assert (await newest(one)).size == 2
    await one.catch_up()
    proving = Proving(one.desk, ledger, one.signers)
    page = await proving.audit(Audit(credential=ROOT_KEY, first=1))
    with pytest.raises(NotProven):
        audit_page(page)


async def test_without_a_checkpoint_of_it_an_event_is_not_proven(one: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_identity.ledger._WAIT_S", 0.1)
    ledger = await ledger_of(one)
    await one.catch_up()
    proving = Proving(one.desk, ledger, one.signers)
    with pytest.raises(DependencyUnavailable, match="the ledger"):
        await proving.audit(Audit(credential=ROOT_KEY, first=1))


def audit_page(page: AuditPage) -> Checkpoint:
    """Audit a ledger of one page."""
    auditor = Auditor(Trusted(SIGNER.verifier))
    auditor.take(page)
    assert auditor.is_done
    return auditor.finish()


class TamperedHeads(HeadStore):
    """A stream in which somebody flipped a bit in the stored bytes of one event after it was signed."""

    sequence = 0

    async def read_what_is_left(self, first: int, last: int) -> list[LedgerEvent]:
        return [
            event
            if event.sequence != self.sequence
            else msgspec.structs.replace(event, data=event.data[:-1] + bytes([event.data[-1] ^ 1]))
            for event in await super().read_what_is_left(first, last)
        ]


async def test_an_audit_names_the_event_that_was_changed_in_the_stream(one: Parts) -> None:
    await one.add_revisions("home/diary", 9)
    await one.catch_up()
    ledger = await ledger_of(one)
    await ledger.sign_behind()
    heads = TamperedHeads(one.heads._stream._bus, 1, one.keys)
    one.desk.heads = heads
    request = Audit(credential=ROOT_KEY, first=1)
    assert audit_page(await Proving(one.desk, ledger, one.signers).audit(request)).size == 10
    heads.sequence = 6
    page = await Proving(one.desk, ledger, one.signers).audit(request)
    with pytest.raises(NotProven, match="event 6 is not what it was"):
        audit_page(page)


@pytest.mark.parametrize("sequence", [1, 3, 5])
async def test_an_audit_names_the_event_that_the_stream_has_lost(sequence: int, tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus:
        # Unlike the real one, this stream allows a message to be deleted.
        await bus.jetstream.add_stream(name=subjects.REGISTRY_STREAM, subjects=list(subjects.REGISTRY_SUBJECTS))
        ids, projection = Ids(bytes(32)), Projection(tmp_path / "view.sqlite")
        keys = data_keys(bus, ids)
        await keys.ensure_stream()
        heads = CountingHeads(bus, 1, keys)
        one = Parts(heads, ids, projection, Desk(heads, ids, projection), keys)
        await one.add_revisions("home/diary", 5)
        await one.catch_up()
        ledger = await ledger_of(one)
        await ledger.sign_behind()
        key = KeyHead(ROOT_KEY.key_id, ROOT_KEY.secret_sha256, "root@octavo", "octavo", Role.ADMIN)
        await heads.append(subjects.key_head(key.key_id), RegistryEvent("key_issued", "identity", 1, 0, key))
        await bus.jetstream.delete_msg(subjects.REGISTRY_STREAM, sequence)
        page = await Proving(one.desk, ledger, one.signers).audit(Audit(credential=ROOT_KEY, first=1))
        with pytest.raises(NotProven, match=f"event {sequence} is missing"):
            audit_page(page)
        projection.close()


async def test_a_large_audit_comes_in_pages(one: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_identity.proving._PAGE_BYTES_MAX", 20_000)
    await one.add_revisions("home/diary", 40)
    await one.catch_up()
    ledger = await ledger_of(one)
    await ledger.sign_behind()
    auditor, num_pages = Auditor(Trusted(SIGNER.verifier)), 0
    while not auditor.is_done:
        request = Audit(credential=ROOT_KEY, first=auditor.next_sequence, num_max=16)
        page = await Proving(one.desk, ledger, one.signers).audit(request)
        assert sum(len(event.data) for event in page.events) < 40_000
        auditor.take(page)
        num_pages += 1
    assert auditor.finish().size == 41
    assert num_pages > 3


async def test_identity_does_not_start_with_a_damaged_ledger_key(store_settings: StoreSettings, tmp_path: Path) -> None:
    fields = msgspec.structs.asdict(store_settings)
    for text in (None, "", "ab" * 31):
        path = tmp_path / "ledger_key"
        if text is not None:
            path.write_text(text)
        settings = IdentitySettings(**fields, identity_dir=tmp_path / "identity", ledger_key_file=path)
        with pytest.raises(ConfigError, match="ledger_key does not hold a seed of the ledger's key"):
            await serve(settings, asyncio.Event())
