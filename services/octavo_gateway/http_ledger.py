"""The ledger over HTTP: what proves a revision, all events for an audit, and what audits found. Bytes are in base64."""

from typing import Any

from litestar import get
from litestar.params import FromPath, FromQuery

from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import AnyRequest, caller_of, revision_reference
from octavo_gateway.identity_client import IdentityClient
from octavo_shared.messages.auditing import AuditReport, GetAuditState
from octavo_shared.messages.ledger import AUDIT_EVENTS_MAX, Audit, AuditPage, Prove, RevisionProof


class LedgerRoutes:
    """Routes that only show; whoever asks verifies. ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        @get("/v1/adapters/{tenant:str}/{name:str}/proof")
        async def prove(
            request: AnyRequest,
            tenant: FromPath[str],
            name: FromPath[str],
            revision: FromQuery[str | None] = None,
            old_size: Count = 0,
        ) -> RevisionProof:
            """Show the event that made a revision, and what proves that it is in the ledger."""
            reference = revision_reference(tenant, name, revision)
            order = Prove(credential=caller_of(request), reference=reference, old_size=old_size)
            return await self._identity.call(order, RevisionProof)

        @get("/v1/ledger/events")
        async def audit(
            request: AnyRequest,
            first: Count = 1,
            limit: Count = AUDIT_EVENTS_MAX,
            old_size: Count = 0,
        ) -> AuditPage:
            """Show all events from sequence ``first`` on as they are stored (admin, auditor)."""
            order = Audit(credential=caller_of(request), first=first, num_max=limit, old_size=old_size)
            return await self._identity.call(order, AuditPage)

        @get("/v1/ledger/audit")
        async def audit_state(request: AnyRequest) -> AuditReport:
            """Show what the background audits of the ledger have found (admin, auditor)."""
            return await self._identity.call(GetAuditState(credential=caller_of(request)), AuditReport)

        return [prove, audit, audit_state]
