"""What a client makes of signed statements. Pure: signatures are verified here, not taken from a server's word."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from octavo_shared import dsse, evaluation_statement, provenance
from octavo_shared.dsse import Envelope, PublicKey
from octavo_shared.errors import InvalidRequest, ProvenanceRefused
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.messages.provenance import StatementSigner
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL

Differs = Callable[[bytes], str]
"""Returns how a statement differs from what it came with, or nothing; raises ``InvalidRequest`` when it is none."""


@dataclass(frozen=True)
class SignatureSeen:
    """One signature of an envelope; ``problem`` says why it does not verify, and is empty when it does."""

    key_id: str
    problem: str


def look_at(envelope: Envelope, keys: Iterable[PublicKey]) -> tuple[SignatureSeen, ...]:
    """Verify each signature for itself, each against the key of ``keys`` whose id it names."""
    known = tuple(keys)
    seen = []
    for place, signature in enumerate(envelope.signatures):
        try:
            dsse.verify(msgspec.structs.replace(envelope, signatures=(signature,)), known)
            problem = "" if envelope.key_ids.index(signature.keyid) == place else "is there twice"
        except InvalidRequest as error:
            problem = error.message
        seen.append(SignatureSeen(signature.keyid, problem))
    return tuple(seen)


def problems_of(envelope: Envelope, signers: tuple[StatementSigner, ...], actor: str, differs: Differs) -> list[str]:
    """Return what does not hold of a statement by ``actor``, as far as its signatures can tell.

    That a key was somebody's at that time is the registry's word here; ``octavo verify`` proves it.
    """
    whose = {one.key_id: one for one in signers}
    problems = [f"the signature of key {seen.key_id} does not verify: {seen.problem}"
                for seen in look_at(envelope, keys_of(signers)) if seen.problem]  # fmt: skip
    signed_by = {whose[key_id].principal for key_id in envelope.key_ids if key_id in whose}
    problems += [f"key {one.key_id} was not a signing key of {one.principal} then"
                 for one in signers if not one.is_valid]  # fmt: skip
    if REGISTRY_PRINCIPAL not in signed_by:
        problems.append("the registry has not signed it")
    if strange := signed_by - {REGISTRY_PRINCIPAL, actor}:
        problems.append(f"{', '.join(sorted(strange))} has signed it, and it is {actor}'s")
    if envelope.payload_type != dsse.STATEMENT_TYPE:
        problems.append(f"it is no statement, but {envelope.payload_type!r}")
    try:
        difference = differs(envelope.data)
    except InvalidRequest as error:
        difference = error.message
    return [*problems, f"the statement is of something else: {difference}"] if difference else problems


def keys_of(signers: Iterable[StatementSigner]) -> list[PublicKey]:
    return [PublicKey.parse(one.public_key) for one in signers]


def evaluation_difference(payload: bytes, adapter: str, evaluation: Evaluation) -> str:
    """Return how a statement differs from the evaluation that it came with, or nothing."""
    try:
        evaluation_statement.check_made(evaluation_statement.parse(payload), adapter, evaluation)
    except ProvenanceRefused as error:
        return error.message
    return ""


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
