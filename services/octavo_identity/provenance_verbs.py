"""Verbs that show how revisions came to be: the signed statement of one, the descent of all."""

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent, StoredRevision
from octavo_identity.rights import Right
from octavo_identity.signers import Signers
from octavo_identity.states import state_of
from octavo_shared import dsse, provenance
from octavo_shared.dsse import Envelope, PublicKey
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages import provenance as messages
from octavo_shared.messages.provenance import LineageNode, StatementSigner
from octavo_shared.references import Reference, parse_reference

_SOURCES_MAX = 16
"""Adapters that one drawing goes through."""
_FROM = "from "


class ProvenanceVerbs:
    """One method per verb, of the same name. All only read, and are for whoever may see the adapter."""

    def __init__(self, desk: Desk, signers: Signers) -> None:
        self._desk = desk
        self._signers = signers

    async def provenance(self, request: messages.GetProvenance) -> messages.Provenance:
        """Return the statement of a revision, and the keys that signed it as the ledger had them then."""
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference, "revision")
        head = access.check_see(key, await self._desk.registry.head(reference))
        stored = await self._desk.registry.find(head, reference)
        event, sequence = await self._desk.registry.event_of(head, reference, stored)
        envelope = dsse.decode(event.statement) if event.statement else None
        signers = await self._signers.shown(envelope, event.actor, sequence) if envelope is not None else ()
        revision = stored.revision
        return messages.Provenance(
            head.name, revision.number, revision.digest, event.actor, event.at_ms, sequence,
            state_of(head, revision.number), envelope, signers,
            envelope is not None and _is_signed_by(event.actor, envelope, signers),
        )  # fmt: skip

    async def lineage(self, request: messages.GetLineage) -> messages.Lineage:
        """Return the revisions of an adapter and of those that it was branched from, as far as the caller sees them."""
        key = await self._desk.authenticate(request.credential)
        if not 1 <= request.num_max <= messages.LINEAGE_MAX:
            raise InvalidRequest("limit", f"must be 1 to {messages.LINEAGE_MAX}")
        place = adapter_reference(request.adapter)
        head = access.check_see(key, await self._desk.registry.head(place))
        nodes: list[LineageNode] = []
        num_left = request.num_max
        for _ in range(_SOURCES_MAX):
            source: Reference | None = None
            above: AdapterHead | None = None
            async for event, _ in self._desk.registry.ledger(place, num_left):
                num_left -= 1
                if event.revision is not None:
                    source = _source_of(event)
                    above = await self._visible(key, source) if source else None
                    nodes.append(_node(head, event, event.revision, source if above else None))
            if not num_left:
                break
            if source is None or above is None:
                return messages.Lineage(tuple(nodes), is_whole=True)
            place, head = source, above
        return messages.Lineage(tuple(nodes), is_whole=False)

    async def _visible(self, key: KeyHead, reference: Reference) -> AdapterHead | None:
        head = await self._desk.registry.head(reference)
        return head if head is not None and access.may(key, head, Right.SEE) else None


def _source_of(event: RegistryEvent) -> Reference | None:
    """Return the revision of another adapter that ``event`` made its own from."""
    if event.kind != "branched":
        return None
    try:
        return parse_reference(event.detail.removeprefix(_FROM), "source")
    except InvalidRequest:
        return None


def _is_signed_by(actor: str, envelope: Envelope, signers: tuple[StatementSigner, ...]) -> bool:
    """Tell whether a key that was the actor's then signed, and all signatures are good."""
    keys = [PublicKey.parse(one.public_key) for one in signers if one.is_valid]
    try:
        dsse.verify(envelope, keys)
        pushed_by = provenance.parse(envelope.data).predicate.pushed_by
    except InvalidRequest:
        return False
    return pushed_by == actor and any(one.is_valid and one.principal == actor for one in signers)


def _node(head: AdapterHead, event: RegistryEvent, stored: StoredRevision, source: Reference | None) -> LineageNode:
    revision = stored.revision
    # Nobody else's signature is ever let in beside the registry's.
    is_by_pusher = bool(event.statement) and len(dsse.decode(event.statement).signatures) > 1
    parent = str(source) if source else f"{head.name}@{stored.parent_number}" if stored.parent_number else ""
    return LineageNode(
        head.name, revision.number, revision.digest, event.actor, event.at_ms, state_of(head, revision.number),
        tuple(sorted(alias for alias, number in head.aliases.items() if number == revision.number)),
        parent, event.kind == "branched", is_by_pusher,
    )  # fmt: skip
