"""Statements in the ledger, held to the revisions that they came with and to the keys that were registered by then.

Pure. What counts is the order of events in the ledger, and no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from octavo_cli.statement_checks import Differs, evaluation_difference, first_difference
from octavo_cli.verification import NotProven, RevisionEvent
from octavo_shared import dsse
from octavo_shared.checkpoint import Checkpoint
from octavo_shared.dsse import PublicKey
from octavo_shared.errors import InvalidRequest
from octavo_shared.merkle import is_included
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.messages.ledger import LedgerEvent, SignerProof
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL

_PROBLEMS_MAX = 20


class _Key(msgspec.Struct, frozen=True):
    public_key: bytes
    registered_at_ms: int
    revoked_at_ms: int | None = None


class _Head(msgspec.Struct, frozen=True, tag="signers"):
    principal: str
    signers: tuple[_Key, ...] = ()


class _SignersEvent(msgspec.Struct, frozen=True):
    """What counts of an event that changed somebody's signing keys; the registry's record of it holds more."""

    head: _Head


class _Adapter(msgspec.Struct, frozen=True, tag="adapter"):
    name: str


class EvaluationEvent(msgspec.Struct, frozen=True):
    """What counts of the event that recorded an evaluation."""

    actor: str
    head: _Adapter
    evaluation: Evaluation
    statement: bytes = b""


@dataclass(frozen=True)
class KnownKeys:
    """A principal's signing keys as the event at ``sequence`` left them."""

    principal: str
    sequence: int
    good: tuple[PublicKey, ...]
    revoked: frozenset[str]

    @classmethod
    def of(cls, event: LedgerEvent) -> "KnownKeys | None":
        """Return what ``event`` says of signing keys, or None when it is about something else."""
        try:
            head = msgspec.msgpack.decode(event.data, type=_SignersEvent).head
        except msgspec.MsgspecError:
            return None
        keys = [(PublicKey(one.public_key), one.revoked_at_ms is not None) for one in head.signers]
        return cls(
            head.principal, event.sequence, tuple(key for key, is_revoked in keys if not is_revoked),
            frozenset(key.key_id for key, is_revoked in keys if is_revoked),
        )  # fmt: skip


@dataclass(frozen=True)
class SignedBy:
    """Whose key signed, and the event that says that it was theirs."""

    principal: str
    key_id: str
    sequence: int


def proven_keys(proofs: Sequence[SignerProof], before: int, checkpoint: Checkpoint) -> dict[str, KnownKeys]:
    """Return whose signing keys were registered before the event ``before``, if that is proven.

    Raises ``NotProven``.
    """
    found: dict[str, KnownKeys] = {}
    for proof in proofs:
        event = proof.event
        is_in = is_included(
            event.leaf_hash(), event.sequence - 1, checkpoint.size, proof.inclusion, checkpoint.root
        )  # fmt: skip
        if not is_in:
            raise NotProven(f"event {event.sequence}, of signing keys, does not lead to the signed root")
        known = KnownKeys.of(event)
        if known is None or known.principal != proof.principal:
            raise NotProven(f"event {event.sequence} is in the ledger, but not of {proof.principal}'s signing keys")
        if event.sequence >= before:
            raise NotProven(f"event {event.sequence}, of signing keys, came only after event {before}")
        found[known.principal] = known
    return found


def check_statement(event: RevisionEvent, keys: Mapping[str, KnownKeys]) -> tuple[SignedBy, ...]:
    """Return who signed the statement of a revision, its pusher first; nobody, where it has no statement.

    Every signature is by a key that was its pusher's or the registry's then, and good; the registry's is among them;
    what was signed is this revision. Raises ``NotProven`` otherwise.
    """
    if not event.statement:
        return ()
    revision = event.revision.revision
    about = f"the statement of {event.head.name}@{revision.number}"
    true = {
        "subject.name": event.head.name,
        "subject.digest": str(revision.digest),
        "predicate.pushedBy": event.actor,
        "predicate.base": str(revision.base),
        "predicate.parent": revision.parent or "none",
    }
    return _check(event.statement, event.actor, lambda payload: first_difference(payload, true), keys, about)


def check_evaluation(event: EvaluationEvent, keys: Mapping[str, KnownKeys]) -> tuple[SignedBy, ...]:
    """Return who signed the statement of an evaluation; as ``check_statement``."""
    if not event.statement:
        return ()
    made, name = event.evaluation, event.head.name
    about = f"the evaluation of {name}@{made.number} with {made.suite}"
    if made.evaluator != event.actor:
        raise NotProven(f"{about} is by {made.evaluator}, and {event.actor} recorded it")

    def differs(payload: bytes) -> str:
        return evaluation_difference(payload, name, made)

    signed = _check(event.statement, event.actor, differs, keys, about)
    if made.is_signed != any(one.principal == event.actor for one in signed):
        raise NotProven(f"{about} is not signed by whom it says")
    return signed


def _check(
    data: bytes, actor: str, differs: Differs, keys: Mapping[str, KnownKeys], about: str
) -> tuple[SignedBy, ...]:
    """Hold an envelope to what it is about, and to the keys of its ``actor`` and of the registry."""
    signing = [keys[who] for who in (actor, REGISTRY_PRINCIPAL) if who in keys]
    try:
        envelope = dsse.decode(data)
        if envelope.payload_type != dsse.STATEMENT_TYPE:
            raise NotProven(f"{about} is none: it is {envelope.payload_type!r}")
        for known in signing:
            if ended := known.revoked.intersection(envelope.key_ids):
                raise NotProven(f"{about} is signed by key {min(ended)} of {known.principal}, which was revoked by "
                                f"event {known.sequence} or before")  # fmt: skip
        key_ids = dsse.verify(envelope, [key for known in signing for key in known.good])
        difference = differs(envelope.data)
    except InvalidRequest as error:
        raise NotProven(f"{about} does not verify: {error.message}") from None
    if difference:
        raise NotProven(f"{about} is of something else: {difference}")
    signed = tuple(
        SignedBy(known.principal, key.key_id, known.sequence)
        for known in signing for key in known.good if key.key_id in key_ids
    )  # fmt: skip
    if not any(one.principal == REGISTRY_PRINCIPAL for one in signed):
        raise NotProven(f"{about} is not signed by the registry")
    return signed


class StatementAuditor:
    """Looks at all events in their order, and at each statement with the keys as they were when it came."""

    def __init__(self) -> None:
        self._keys: dict[str, KnownKeys] = {}
        self.num_by_pusher = 0
        self.num_by_registry = 0
        self.num_without = 0
        self.num_unknown = 0
        """Statements by somebody whose keys are not for this reader."""
        self.num_bad = 0
        self.problems: list[str] = []
        """Of the first bad ones."""

    def take(self, event: LedgerEvent, is_all_shown: bool) -> None:
        """Take the next event. ``is_all_shown``: none before it was withheld."""
        if (known := KnownKeys.of(event)) is not None:
            self._keys[known.principal] = known
            return
        made = _made(event)
        if made is None:
            return
        if not is_all_shown and not {made.actor, REGISTRY_PRINCIPAL} <= self._keys.keys():
            self.num_unknown += 1
            return
        try:
            if isinstance(made, RevisionEvent):
                signed = check_statement(made, self._keys)
            else:
                signed = check_evaluation(made, self._keys)
        except NotProven as error:
            self.num_bad += 1
            if len(self.problems) < _PROBLEMS_MAX:
                self.problems.append(f"event {event.sequence}: {error.message}")
            return
        if not signed:
            self.num_without += 1
        elif any(one.principal == made.actor for one in signed):
            self.num_by_pusher += 1
        else:
            self.num_by_registry += 1


def _made(event: LedgerEvent) -> RevisionEvent | EvaluationEvent | None:
    """Return an event that a statement comes with."""
    kinds: tuple[type[RevisionEvent | EvaluationEvent], ...] = (RevisionEvent, EvaluationEvent)
    for kind in kinds:
        try:
            return msgspec.msgpack.decode(event.data, type=kind)
        except msgspec.MsgspecError:
            continue
    return None
