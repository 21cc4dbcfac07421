"""Statements in the ledger: what a client takes for signed, by whom, at which point, and what it never does."""

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from octavo_cli.ledger_statements import StatementAuditor, proven_keys
from octavo_cli.verification import NotProven
from octavo_identity.records import AdapterHead, RegisteredSigner, RegistryEvent, SignersHead, StoredRevision
from octavo_shared import dsse, evaluation_statement, provenance, subjects
from octavo_shared.checkpoint import Checkpoint
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.ledger_statements import (
    EvaluationEvent,
    KnownKeys,
    RevisionEvent,
    SignedBy,
    StatementRefused,
    check_evaluation,
    check_statement,
)
from octavo_shared.lora_config import LoraConfig
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Evaluation, Metric, Score
from octavo_shared.messages.ledger import LedgerEvent, SignerProof
from octavo_shared.provenance import Made
from octavo_shared.references import AdapterId, Digest, TenantId
from support.adapters import TINY_FINGERPRINT
from support.ledgers import key_issued, tree_of

PUSHER, REGISTRY, STRANGER = (Signer(bytes([n]) * 32) for n in (1, 2, 3))
NAME, ALICE = "home/diary", "alice@home"
MADE = Made(
    NAME, Digest("sha256:" + "1" * 64), TINY_FINGERPRINT, Digest("sha256:" + "3" * 64), ALICE, LoraConfig(r=4)
)  # fmt: skip
FOUND = Evaluation(
    2, MADE.digest, TINY_FINGERPRINT, "facts", Digest("sha256:" + "5" * 64),
    (Score(Metric.EXACT, 0.75, 8), Score(Metric.PASSED, 0.5, 12)), ALICE, 1_700_000_000_000, True,
)  # fmt: skip


@dataclass
class Writing:
    """A ledger that is written event by event, as the registry writes it."""

    events: list[LedgerEvent] = field(default_factory=list)
    keys: dict[str, tuple[RegisteredSigner, ...]] = field(default_factory=dict)

    def add(self, subject: str, event: RegistryEvent) -> LedgerEvent:
        stored = LedgerEvent(len(self.events) + 1, subject, msgspec.msgpack.encode(event))
        self.events.append(stored)
        return stored

    def sign(self, principal: str, *signers: RegisteredSigner) -> LedgerEvent:
        """Say which keys are a principal's from now on."""
        head = SignersHead(principal, signers)
        return self.add(subjects.signers_head(principal), RegistryEvent("signer_registered", principal, 1, 0, head))

    def push(self, statement: bytes, actor: str = ALICE, **changed: Any) -> LedgerEvent:
        revision = Revision(2, MADE.digest, TINY_FINGERPRINT, 1, 4, 2, "F32", actor, 1, MADE.parent)
        stored = StoredRevision(msgspec.structs.replace(revision, **changed), "packs/x")
        event = RegistryEvent("revision_added", actor, 1, 0, head_of(NAME), "", stored, statement)
        return self.add("octavo.v1.registry.s0.t.a", event)

    def evaluate(self, statement: bytes, made: Evaluation = FOUND, actor: str = ALICE) -> LedgerEvent:
        event = RegistryEvent("evaluated", actor, 1, 0, head_of(NAME), statement=statement, evaluation=made)
        return self.add("octavo.v1.registry.s0.t.a", event)

    def audit(self, withheld: frozenset[int] = frozenset()) -> StatementAuditor:
        auditor = StatementAuditor()
        for event in self.events:
            if event.sequence not in withheld:
                auditor.take(event, not any(one < event.sequence for one in withheld))
        return auditor


def head_of(name: str) -> AdapterHead:
    return AdapterHead(AdapterId("a"), TenantId("t"), name, ALICE, 1, (), {})


def registered(signer: Signer, revoked_at_ms: int | None = None) -> RegisteredSigner:
    return RegisteredSigner(signer.public_key.raw, 1, revoked_at_ms)


def signed(payload: bytes, *signers: Signer) -> bytes:
    envelope: Envelope = dsse.sign(dsse.STATEMENT_TYPE, payload, signers[0])
    for signer in signers[1:]:
        envelope = dsse.countersign(envelope, signer)
    return dsse.encode(envelope)


PUSHED = provenance.build(MADE, 0)
EVALUATED = evaluation_statement.build(NAME, FOUND)
BOTH = signed(PUSHED, PUSHER, REGISTRY)
EVALUATED_BOTH = signed(EVALUATED, PUSHER, REGISTRY)


@pytest.fixture
def writing() -> Writing:
    """The keys of the registry and of alice are registered, as events 1 and 2."""
    made = Writing()
    made.sign("registry", registered(REGISTRY))
    made.sign(ALICE, registered(PUSHER))
    return made


def test_an_audit_counts_who_signed(writing: Writing) -> None:
    writing.events.append(key_issued(3))
    writing.push(BOTH)
    writing.push(signed(PUSHED, REGISTRY))
    writing.push(b"")
    writing.evaluate(EVALUATED_BOTH)
    writing.evaluate(signed(EVALUATED, REGISTRY), msgspec.structs.replace(FOUND, is_signed=False))
    found = writing.audit()
    counts = (found.num_by_pusher, found.num_by_registry, found.num_without, found.num_unknown, found.num_bad)
    assert counts == (2, 2, 1, 0, 0)


def problem_of(writing: Writing) -> str:
    """Return the one problem that an audit finds."""
    found = writing.audit()
    assert found.num_bad == 1
    return found.problems[0]


def test_a_key_that_was_revoked_before_is_named_and_one_that_was_revoked_later_is_good(writing: Writing) -> None:
    writing.push(BOTH)
    writing.sign(ALICE, registered(PUSHER, 5))
    assert writing.audit().num_by_pusher == 1
    writing.push(BOTH)
    assert (
        f"event 5: the statement of home/diary@2 is signed by key {PUSHER.key_id} of {ALICE}, which was revoked by"
        in (problem_of(writing))
    )


def test_a_key_that_was_registered_only_later_signs_nothing() -> None:
    writing = Writing()
    writing.sign("registry", registered(REGISTRY))
    writing.push(BOTH)
    writing.sign(ALICE, registered(PUSHER))
    assert "no key that is trusted here" in problem_of(writing)


@pytest.mark.parametrize(
    ("statement", "changed", "words"),
    [
        (signed(PUSHED, PUSHER), {}, "not signed by the registry"),
        (signed(PUSHED, STRANGER, REGISTRY), {}, "no key that is trusted here"),
        (BOTH, {"digest": Digest("sha256:" + "9" * 64)}, "'subject.digest'"),
        (BOTH, {"base": "sha256:" + "9" * 64}, "'predicate.base'"),
        (BOTH, {"parent": None}, "'predicate.parent'"),
        (EVALUATED_BOTH, {}, "statement.predicate"),
        (b"{}", {}, "envelope"),
    ],
)
def test_a_statement_that_is_not_of_its_revision_or_not_signed_is_a_problem(
    writing: Writing, statement: bytes, changed: dict[str, Any], words: str
) -> None:
    writing.push(statement, **changed)
    assert words in problem_of(writing)


def test_nobody_signs_for_another(writing: Writing) -> None:
    writing.sign("bob@home", registered(STRANGER))
    writing.push(signed(PUSHED, STRANGER, REGISTRY))
    assert "no key that is trusted here" in problem_of(writing)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (msgspec.structs.replace(FOUND, scores=(Score(Metric.EXACT, 0.76, 8),)), "predicate.scores"),
        (msgspec.structs.replace(FOUND, suite_digest=Digest("sha256:" + "6" * 64)), "predicate.suite"),
        (msgspec.structs.replace(FOUND, digest=Digest("sha256:" + "6" * 64)), "subject.digest"),
        (msgspec.structs.replace(FOUND, evaluator="bob@home"), "alice@home recorded it"),
        (msgspec.structs.replace(FOUND, is_signed=False), "not signed by whom it says"),
    ],
)
def test_an_evaluation_that_says_otherwise_than_was_signed_is_a_problem(
    writing: Writing, made: Evaluation, words: str
) -> None:
    writing.evaluate(EVALUATED_BOTH, made)
    assert words in problem_of(writing)


def test_an_evaluation_that_the_registry_alone_signed_is_not_the_evaluators(writing: Writing) -> None:
    writing.evaluate(signed(EVALUATED, REGISTRY))
    assert "not signed by whom it says" in problem_of(writing)


def test_whose_keys_are_withheld_is_not_judged_and_all_others_are(writing: Writing) -> None:
    writing.push(BOTH)
    found = writing.audit(frozenset({2}))
    assert (found.num_unknown, found.num_bad) == (1, 0)
    writing.sign(ALICE, registered(STRANGER))
    writing.push(BOTH)
    found = writing.audit(frozenset({2}))
    assert (found.num_unknown, found.num_bad) == (1, 1)


@pytest.mark.parametrize("is_evaluation", [False, True])
def test_of_300_flipped_bits_in_a_statement_all_are_detected(writing: Writing, is_evaluation: bool) -> None:
    keys = {known.principal: known for known in map(KnownKeys.of, writing.events) if known is not None}
    pushed = msgspec.msgpack.decode(writing.push(BOTH).data, type=RevisionEvent)
    evaluated = msgspec.msgpack.decode(writing.evaluate(EVALUATED_BOTH).data, type=EvaluationEvent)

    def check(statement: bytes) -> tuple[SignedBy, ...]:
        if is_evaluation:
            return check_evaluation(msgspec.structs.replace(evaluated, statement=statement), keys)
        return check_statement(msgspec.structs.replace(pushed, statement=statement), keys)

    data = EVALUATED_BOTH if is_evaluation else BOTH
    assert [one.principal for one in check(data)] == [ALICE, "registry"]
    for bit in random.Random(20_261_128).sample(range(8 * len(data)), 300):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        print(f"bit {bit}")
        with pytest.raises(StatementRefused):
            check(bytes(damaged))


def proofs_of(writing: Writing, *places: tuple[str, int]) -> tuple[list[SignerProof], Checkpoint]:
    tree, size = tree_of(writing.events), len(writing.events)
    proofs = [
        SignerProof(principal, writing.events[sequence - 1], tree.inclusion_proof(sequence - 1, size))
        for principal, sequence in places
    ]
    return proofs, Checkpoint("octavo/registry", size, tree.root(size))


def test_keys_are_proven_by_their_events(writing: Writing) -> None:
    writing.push(BOTH)
    proofs, checkpoint = proofs_of(writing, (ALICE, 2), ("registry", 1))
    keys = proven_keys(proofs, 3, checkpoint)
    pushed = msgspec.msgpack.decode(writing.events[2].data, type=RevisionEvent)
    assert [(one.principal, one.sequence) for one in check_statement(pushed, keys)] == [(ALICE, 2), ("registry", 1)]
    with pytest.raises(StatementRefused, match="no key that is trusted here"):
        check_statement(pushed, proven_keys(proofs[1:], 3, checkpoint))


def test_what_proves_no_key_by_then_is_refused(writing: Writing) -> None:
    writing.push(BOTH)
    writing.sign("bob@home", registered(STRANGER))
    proofs, checkpoint = proofs_of(writing, (ALICE, 2), ("bob@home", 4), (ALICE, 1), (ALICE, 3))
    for proof, before, words in (
        (proofs[1], 3, "only after event 3"),
        (proofs[2], 3, "not of alice@home's signing keys"),
        (proofs[3], 4, "not of alice@home's signing keys"),
        (msgspec.structs.replace(proofs[0], inclusion=proofs[2].inclusion), 3, "does not lead to the signed root"),
    ):
        with pytest.raises(NotProven, match=words):
            proven_keys([proof], before, checkpoint)
