"""The background audit of statements against a real stream: what was signed as a leaf need not be true."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from octavo_identity.aliases import with_revision
from octavo_identity.auditor import Auditor
from octavo_identity.checkpoints import Checkpoints
from octavo_identity.evaluations import with_evaluation
from octavo_identity.ledger import Ledger
from octavo_identity.records import AdapterHead, StoredRevision, object_key
from octavo_identity.registry import Change
from octavo_shared import dsse, evaluation_statement, provenance
from octavo_shared.dsse import Signer
from octavo_shared.lora_config import LoraConfig
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.auditing import AuditFinding
from octavo_shared.messages.evaluation import Evaluation, Metric, Score
from octavo_shared.provenance import Made
from octavo_shared.references import parse_reference
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Parts, digest_of_number, own_nats, parts
from support.ledgers import SIGNER

NAME, ALICE = "home/diary", "alice@home"
PUSHER, STRANGER = Signer(bytes([1]) * 32), Signer(bytes([2]) * 32)


class Writing:
    """A registry that takes whatever statement it is given, as a broken one would, and the audit of it."""

    def __init__(self, one: Parts, checkpoints: Checkpoints) -> None:
        self.one = one
        self.registry = Signer(one.ids.provenance_seed())
        self._ledger = Ledger(one.heads, one.projection, checkpoints, SIGNER)
        self.num_pauses = 0
        self.auditor = Auditor(one.heads, one.projection, checkpoints, SIGNER.verifier, one.signers, 1_000, self._pause)

    async def _pause(self) -> None:
        self.num_pauses += 1

    async def push(self, *signers: Signer, number_said: int = 0) -> int:
        """Add a revision whose statement is signed by ``signers``, and return the sequence of its event."""
        reference = parse_reference(NAME)
        adapter_id = self.one.ids.adapter(reference.tenant, reference.adapter)

        async def add(now: AdapterHead | None) -> Change:
            head = now or AdapterHead(adapter_id, self.one.ids.tenant(reference.tenant), NAME, ALICE, 0, (), {})
            number = head.num_revisions + 1
            digest = digest_of_number(number)
            revision = Revision(number, digest, TINY_FINGERPRINT, 1, 4, 2, "F32", ALICE, 1)
            stored = StoredRevision(revision, object_key(adapter_id, number, "a" * 8, "b" * 8))
            said = digest_of_number(number_said or number)
            payload = provenance.build(Made(NAME, said, TINY_FINGERPRINT, None, ALICE, LoraConfig(r=4)), 0)
            statement = signed(payload, *signers) if signers else b""
            return Change("revision_added", with_revision(head, stored), "", stored, statement=statement)

        return await self._change(add)

    async def evaluate(self, score: float, score_said: float) -> int:
        """Add an evaluation by alice, and return the sequence of its event."""

        async def add(now: AdapterHead | None) -> Change:
            assert now is not None
            made = Evaluation(
                1, digest_of_number(1), TINY_FINGERPRINT, "facts", digest_of_number(9),
                (Score(Metric.EXACT, score, 8),), ALICE, 1_700_000_000_000, True,
            )  # fmt: skip
            said = msgspec.structs.replace(made, scores=(Score(Metric.EXACT, score_said, 8),))
            statement = signed(evaluation_statement.build(NAME, said), PUSHER, self.registry)
            return Change("evaluated", with_evaluation(now, made), "", statement=statement, evaluation=made)

        return await self._change(add)

    async def _change(self, change: object) -> int:
        await self.one.desk.registry.change(parse_reference(NAME), ALICE, secrets.token_hex(8), change)  # type: ignore[arg-type]
        return (await self.one.heads.state()).last_sequence

    async def found(self) -> list[AuditFinding]:
        """Sign what there is, finish a round and return what it found."""
        await self.one.catch_up()
        await self._ledger.sign_behind()
        async with asyncio.timeout(20):
            assert await self.auditor.finish_round()
        return list(self.auditor.state.findings)


def signed(payload: bytes, *signers: Signer) -> bytes:
    envelope = dsse.sign(dsse.STATEMENT_TYPE, payload, signers[0])
    for signer in signers[1:]:
        envelope = dsse.countersign(envelope, signer)
    return dsse.encode(envelope)


@pytest.fixture
async def writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Writing]:
    monkeypatch.setattr("octavo_identity.auditor._CONFIRM_S", 0.05)
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        checkpoints = Checkpoints(one.heads._stream._bus, 1)
        await checkpoints.ensure_stream()
        await one.signers.ensure_registry()
        await one.signers.register(ALICE, PUSHER.public_key, ALICE)
        yield Writing(one, checkpoints)


async def test_each_statement_waits_for_a_moment_without_requests(writing: Writing) -> None:
    await writing.push()
    await writing.found()
    without, writing.num_pauses = writing.num_pauses, 0
    for _ in range(3):
        await writing.push(PUSHER, writing.registry)
    assert await writing.found() == []
    assert writing.num_pauses == without + 3, "all fit into the same group"


async def test_statements_that_hold_are_no_finding_also_when_their_key_was_revoked_later(writing: Writing) -> None:
    await writing.push(PUSHER, writing.registry)
    await writing.push(writing.registry)
    await writing.push()
    await writing.evaluate(0.5, 0.5)
    await writing.one.signers.revoke(ALICE, PUSHER.key_id, ALICE)
    await writing.push(writing.registry)
    assert await writing.found() == []
    await writing.one.signers.register(ALICE, STRANGER.public_key, ALICE)
    await writing.push(STRANGER, writing.registry)
    assert await writing.found() == []


async def test_statements_that_do_not_hold_are_named_by_their_event_and_by_nothing_personal(writing: Writing) -> None:
    await writing.push(PUSHER, writing.registry)
    bad = {
        await writing.push(PUSHER): "is not signed by the registry",
        await writing.push(STRANGER, writing.registry): "does not verify",
        await writing.push(PUSHER, writing.registry, number_said=7): "is of something else",
        await writing.evaluate(0.9, 0.5): "is of something else",
    }
    revoked = await writing.one.signers.revoke(ALICE, PUSHER.key_id, ALICE)
    assert revoked.signers
    (at,) = {(await writing.one.heads.state()).last_sequence}
    late = await writing.push(PUSHER, writing.registry)
    bad[late] = f"is signed by a key that event {at} or one before it revoked"
    await writing.push(writing.registry)
    with capture_logs() as logs:
        found = await writing.found()
    assert [(one.kind, one.first, one.last) for one in found] == [("statement_bad", one, one) for one in bad]
    assert [one.detail for one in found] == [f"the statement in event {at} {why}" for at, why in bad.items()]
    told = [one for one in logs if one["event"] == "ledger_contradicted"]
    assert [one["sequence"] for one in told] == list(bad)
    assert not any(word in str(one) for one in (*found, *told) for word in (NAME, ALICE, PUSHER.key_id))


async def test_a_leader_that_was_deposed_and_lacks_the_newest_keys_is_asked_again(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.push(PUSHER, writing.registry)
    num_asked, next_on = 0, writing.one.heads.next_on

    async def behind(subject: str, first: int) -> object:
        nonlocal num_asked
        num_asked += 1
        return await next_on(subject, first) if num_asked > 2 else None

    monkeypatch.setattr(writing.one.heads, "next_on", behind)
    assert await writing.found() == []
    assert num_asked > 2


async def test_a_statement_is_not_judged_by_keys_that_are_not_what_they_were(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.push(PUSHER, writing.registry)
    next_on = writing.one.heads.next_on

    async def damaged(subject: str, first: int) -> object:
        found = await next_on(subject, first)
        is_of_alice = found is not None and subject == writing.one.signers.subject(ALICE)
        return msgspec.structs.replace(found, data=found.data.replace(PUSHER.public_key.raw, bytes(32))) if (
            is_of_alice and found is not None) else found  # fmt: skip

    monkeypatch.setattr(writing.one.heads, "next_on", damaged)
    assert await writing.found() == []


async def test_what_an_audit_reads_for_statements_counts_for_its_rate(writing: Writing) -> None:
    for _ in range(10):
        await writing.push(writing.registry)
    await writing.found()
    slow = writing.auditor._events_per_s = 50
    writing.auditor._group = 1
    began_s = asyncio.get_running_loop().time()
    await writing.auditor.finish_round()
    # 12 events, 10 adapters' keys that open them, and where the signing keys are.
    assert asyncio.get_running_loop().time() - began_s > (12 + 10) / slow
