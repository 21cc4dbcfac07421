"""Provenance statements on their way into the ledger: checked against what was made, then countersigned."""

from dataclasses import dataclass

from octavo_identity.signers import Signers
from octavo_shared import dsse, provenance
from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.provenance import Made, Statement


@dataclass(frozen=True)
class Offered:
    """A statement that its pusher signed; whether it is true is not known yet."""

    envelope: Envelope
    statement: Statement


class Statements:
    """Every revision gets one: the pusher's, countersigned, or one that the registry makes and signs alone."""

    def __init__(self, signers: Signers) -> None:
        self._signers = signers

    async def open(self, envelope: Envelope | None, principal: str) -> Offered | None:
        """Return what ``principal`` offers; all that can be wrong with it before anything is built raises here.

        Raises ``InvalidRequest`` that names the field.
        """
        if envelope is None:
            return None
        dsse.encode(envelope)
        if envelope.payload_type != dsse.STATEMENT_TYPE:
            raise InvalidRequest("envelope.payloadType", f"must be {dsse.STATEMENT_TYPE!r}")
        statement = provenance.parse(envelope.data)
        await self._signers.check(envelope, principal)
        return Offered(envelope, statement)

    def close(self, offered: Offered | None, made: Made) -> bytes:
        """Return the envelope that goes into the ledger.

        Raises ``ProvenanceRefused`` when what is offered says otherwise than ``made``, and ``ParentMoved``.
        """
        if offered is None:
            return dsse.encode(self._signers.sign(provenance.build(made, wall_ms())))
        provenance.check_made(offered.statement, made)
        return dsse.encode(self._signers.countersign(offered.envelope))
