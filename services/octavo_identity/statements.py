"""Signed statements on their way into the ledger: checked against what was made or found, then countersigned."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo_identity.signers import Signers
from octavo_shared import dsse, evaluation_statement, provenance
from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.provenance import Made

S = TypeVar("S")


@dataclass(frozen=True)
class Offered(Generic[S]):
    """A statement that a caller signed; whether it is true is not known yet."""

    envelope: Envelope
    statement: S


OfferedProvenance = Offered[provenance.Statement]
OfferedEvaluation = Offered[evaluation_statement.Statement]


class Statements:
    """Every revision and every evaluation gets one: the caller's, countersigned, or one that the registry makes and
    signs alone.
    """

    def __init__(self, signers: Signers) -> None:
        self._signers = signers

    async def open(self, envelope: Envelope | None, principal: str) -> OfferedProvenance | None:
        """Return what ``principal`` offers; all that can be wrong with it before anything is built raises here.

        Raises ``InvalidRequest`` that names the field.
        """
        if envelope is None:
            return None
        statement = provenance.parse(_payload(envelope))
        await self._signers.check(envelope, principal)
        return Offered(envelope, statement)

    async def open_evaluation(self, envelope: Envelope | None, principal: str) -> OfferedEvaluation | None:
        """Return what the evaluator ``principal`` offers; as ``open``."""
        if envelope is None:
            return None
        statement = evaluation_statement.parse(_payload(envelope))
        await self._signers.check(envelope, principal)
        return Offered(envelope, statement)

    def close(self, offered: OfferedProvenance | None, made: Made) -> bytes:
        """Return the envelope that goes into the ledger.

        Raises ``ProvenanceRefused`` when what is offered says otherwise than ``made``, and ``ParentMoved``.
        """
        if offered is None:
            return dsse.encode(self._signers.sign(provenance.build(made, wall_ms())))
        provenance.check_made(offered.statement, made)
        return dsse.encode(self._signers.countersign(offered.envelope))

    def close_evaluation(self, offered: OfferedEvaluation | None, adapter: str, made: Evaluation) -> bytes:
        """Return the envelope that goes into the ledger.

        Raises ``ProvenanceRefused`` when what is offered says otherwise than ``made``.
        """
        if offered is None:
            return dsse.encode(self._signers.sign(evaluation_statement.build(adapter, made)))
        evaluation_statement.check_made(offered.statement, adapter, made)
        return dsse.encode(self._signers.countersign(offered.envelope))


def _payload(envelope: Envelope) -> bytes:
    dsse.encode(envelope)
    if envelope.payload_type != dsse.STATEMENT_TYPE:
        raise InvalidRequest("envelope.payloadType", f"must be {dsse.STATEMENT_TYPE!r}")
    return envelope.data
