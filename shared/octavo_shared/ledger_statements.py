"""Statements in the ledger, held to what they came with and to the keys that were registered by then.

Pure. What counts is the order of events in the ledger, and no clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from octavo_shared import decoding, dsse, evaluation_statement, provenance
from octavo_shared.dsse import PublicKey
from octavo_shared.errors import InvalidRequest, ProvenanceRefused
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL
from octavo_shared.references import AdapterId

Differs = Callable[[bytes], str]
"""Returns how a statement differs from what it came with, or nothing; raises ``InvalidRequest`` when it is none."""


class StatementRefused(Exception):
    """A statement does not hold. The message says all; ``problem`` names nobody and no adapter, so logs may have it."""

    def __init__(self, about: str, message: str, problem: str = "") -> None:
        super().__init__(f"{about} {message}")
        self.problem = problem or message


class _Key(msgspec.Struct, frozen=True):
    public_key: bytes
    registered_at_ms: int
    revoked_at_ms: int | None = None


class _SignersHead(msgspec.Struct, frozen=True, tag="signers"):
    principal: str
    signers: tuple[_Key, ...] = ()


class _SignersEvent(msgspec.Struct, frozen=True):
    """What counts of an event that changed somebody's signing keys; the registry's record of it holds more."""

    head: _SignersHead


class _AdapterHead(msgspec.Struct, frozen=True, tag="adapter"):
    adapter_id: AdapterId
    name: str


class _Stored(msgspec.Struct, frozen=True):
    revision: Revision


class RevisionEvent(msgspec.Struct, frozen=True):
    """What counts of the event that made a revision."""

    kind: str
    actor: str
    at_ms: int
    head: _AdapterHead
    revision: _Stored
    statement: bytes = b""


class EvaluationEvent(msgspec.Struct, frozen=True):
    """What counts of the event that recorded an evaluation."""

    actor: str
    head: _AdapterHead
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
            head = decoding.from_msgpack(event.data, _SignersEvent).head
        except _UNREADABLE:
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


Made = RevisionEvent | EvaluationEvent
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)


def made_by(event: LedgerEvent) -> Made | None:
    """Return what an event that is opened made, if it is something that a statement comes with."""
    kinds: tuple[type[Made], ...] = (RevisionEvent, EvaluationEvent)
    for kind in kinds:
        try:
            return decoding.from_msgpack(event.data, kind)
        except _UNREADABLE:
            continue
    return None


def check_made(made: Made, keys: Mapping[str, KnownKeys]) -> tuple[SignedBy, ...]:
    """Return who signed the statement of what was made; as ``check_statement``."""
    return check_statement(made, keys) if isinstance(made, RevisionEvent) else check_evaluation(made, keys)


def check_statement(event: RevisionEvent, keys: Mapping[str, KnownKeys]) -> tuple[SignedBy, ...]:
    """Return who signed the statement of a revision, its pusher first; nobody, where it has no statement.

    Every signature is by a key that was its pusher's or the registry's then, and good; the registry's is among them;
    what was signed is this revision. Raises ``StatementRefused`` otherwise.
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
        message = f"is by {made.evaluator}, and {event.actor} recorded it"
        raise StatementRefused(about, message, "names another evaluator than who recorded it")

    def differs(payload: bytes) -> str:
        return evaluation_difference(payload, name, made)

    signed = _check(event.statement, event.actor, differs, keys, about)
    if made.is_signed != any(one.principal == event.actor for one in signed):
        raise StatementRefused(about, "is not signed by whom it says")
    return signed


def _check(
    data: bytes, actor: str, differs: Differs, keys: Mapping[str, KnownKeys], about: str
) -> tuple[SignedBy, ...]:
    """Hold an envelope to what it is about, and to the keys of its ``actor`` and of the registry."""
    signing = [keys[who] for who in (actor, REGISTRY_PRINCIPAL) if who in keys]
    try:
        envelope = dsse.decode(data)
        if envelope.payload_type != dsse.STATEMENT_TYPE:
            raise StatementRefused(about, f"is none: it is {envelope.payload_type!r}", "is none")
        for known in signing:
            if ended := known.revoked.intersection(envelope.key_ids):
                message = (f"is signed by key {min(ended)} of {known.principal}, which was revoked by event "
                           f"{known.sequence} or before")  # fmt: skip
                raise StatementRefused(about, message, f"is signed by a key that event {known.sequence} or one before "
                                                       "it revoked")  # fmt: skip
        key_ids = dsse.verify(envelope, [key for known in signing for key in known.good])
        difference = differs(envelope.data)
    except InvalidRequest as error:
        raise StatementRefused(about, f"does not verify: {error.message}", "does not verify") from None
    if difference:
        raise StatementRefused(about, f"is of something else: {difference}", "is of something else")
    signed = tuple(
        SignedBy(known.principal, key.key_id, known.sequence)
        for known in signing for key in known.good if key.key_id in key_ids
    )  # fmt: skip
    if not any(one.principal == REGISTRY_PRINCIPAL for one in signed):
        raise StatementRefused(about, "is not signed by the registry")
    return signed


def first_difference(payload: bytes, true: Mapping[str, str]) -> str:
    """Return how a statement differs from what is ``true`` of its revision, by field, or nothing."""
    statement = provenance.parse(payload)
    (subject,) = statement.subject
    predicate = statement.predicate
    said = {
        "subject.name": subject.name,
        "subject.digest": str(subject.digest),
        "predicate.pushedBy": predicate.pushed_by,
        "predicate.base": str(predicate.base.digest),
        "predicate.parent": str(predicate.parent.digest) if predicate.parent else "none",
    }
    return next((f"'{field}' is {said[field]!r}, and the revision has {value!r}"
                 for field, value in true.items() if said[field] != value), "")  # fmt: skip


def evaluation_difference(payload: bytes, adapter: str, evaluation: Evaluation) -> str:
    """Return how a statement differs from the evaluation that it came with, or nothing."""
    try:
        evaluation_statement.check_made(evaluation_statement.parse(payload), adapter, evaluation)
    except ProvenanceRefused as error:
        return error.message
    return ""
