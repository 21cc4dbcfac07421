"""What a client makes of signed statements. Pure: signatures are verified here, not taken from a server's word."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from octavo_shared import dsse
from octavo_shared.dsse import Envelope, PublicKey
from octavo_shared.errors import InvalidRequest
from octavo_shared.ledger_statements import Differs
from octavo_shared.messages.provenance import StatementSigner
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL


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
