"""Holds the gates of an adapter and of its tenant against what is to be served."""

from octavo_identity.gating import RELEASED_BY, is_gated, objections
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import AdapterHead, TenantHead
from octavo_shared import subjects
from octavo_shared.errors import GateRefused
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Gate
from octavo_shared.references import SERVING, Reference


class Gatekeeper:
    """Reads the tenant's gate from its leader, as the adapter's comes with its head."""

    def __init__(self, heads: HeadStore, ids: Ids) -> None:
        self._heads = heads
        self._ids = ids

    async def tenant_gate(self, tenant: str) -> Gate | None:
        """Return the gate of all adapters of ``tenant``; one that does not exist has none."""
        tenant_id = self._ids.tenant(tenant)
        found = await self._heads.read(subjects.tenant_head(self._ids.shard(tenant_id), tenant_id))
        return found[0].head.gate if found and isinstance(found[0].head, TenantHead) else None

    async def check(
        self, reference: Reference, head: AdapterHead | None, candidate: Revision, alias: str | None, percent: int = 0
    ) -> None:
        """Raise ``GateRefused`` when ``alias`` may not name ``candidate``; ``percent`` is the canary's share.

        ``head`` None: the adapter is new. What ``serving`` and ``stable`` name already they may go on to name.
        """
        if alias is None or not is_gated(alias, percent):
            return
        if head is not None and alias in RELEASED_BY and head.aliases.get(alias) == candidate.number:
            return
        own, of_tenant = head.gate if head else None, await self.tenant_gate(reference.tenant)
        if own is None and of_tenant is None:
            return
        gates = {reference.name: own, reference.tenant: of_tenant}
        serving, evaluations = served(head), head.evaluations if head else ()
        found = [
            objection
            for whose, gate in gates.items()
            if gate is not None
            for objection in objections(whose, gate, candidate, serving, evaluations)
        ]
        if found:
            raise GateRefused(alias, candidate.number, "; ".join(map(str, found)), **found[0].fields)


def served(head: AdapterHead | None) -> Revision | None:
    """Return the revision that ``serving`` names; the head keeps every revision that an alias names."""
    number = head.aliases.get(SERVING) if head else None
    if head is None or number is None:
        return None
    return next((one.revision for one in head.revisions if one.revision.number == number), None)
