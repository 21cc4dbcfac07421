"""The verb on tenants: create."""

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.records import RegistryEvent, TenantHead
from octavo_identity.registry import write_mark
from octavo_shared.clock import wall_ms
from octavo_shared.errors import NameTaken, RevisionConflict
from octavo_shared.messages import identity as messages
from octavo_shared.references import check_name


class Tenancy:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create_tenant(self, request: messages.CreateTenant) -> messages.TenantCreated:
        """Admins only; idempotent by key, else a second tenant of the name is ``NameTaken``."""
        key = await self._desk.authenticate(request.credential)
        access.check_admin(key, "create tenants")
        tenant = check_name(request.tenant, "tenant")
        mark = write_mark(key.principal, request.idempotency_key)
        head = TenantHead(self._desk.ids.tenant(tenant), tenant, writes=(mark,))
        event = RegistryEvent("tenant_created", key.principal, wall_ms(), 0, head, detail=request.idempotency_key)
        subject = self._desk.tenant_subject(tenant)
        try:
            await self._desk.heads.append(subject, event)
        except RevisionConflict:
            found = await self._desk.heads.read(subject)
            if found is None or not _was_made_by(found[0], mark, request.idempotency_key):
                raise NameTaken(tenant) from None
        return messages.TenantCreated(tenant)


def _was_made_by(event: RegistryEvent, mark: str, write: str) -> bool:
    if isinstance(event.head, TenantHead) and mark in event.head.writes:
        return True
    # Tenants from before heads remembered writes.
    return event.kind == "tenant_created" and event.detail == write
