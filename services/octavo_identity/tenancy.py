"""The verb on tenants, create, and how what belongs to a tenant is changed."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.records import WRITES_IN_HEAD_MAX, KeyHead, RegistryEvent, TenantHead
from octavo_identity.registry import write_mark
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest, NameTaken, RevisionConflict
from octavo_shared.messages import tenants as messages
from octavo_shared.references import check_name

_ATTEMPTS_MAX = 8


@dataclass(frozen=True)
class TenantChange:
    """What a writer makes of a tenant's head: the new head, and how the ledger calls it."""

    kind: str
    head: TenantHead
    detail: str = ""


async def change_tenant(
    desk: Desk, key: KeyHead, tenant: str, write: str, make: Callable[[TenantHead], TenantChange | None]
) -> TenantHead:
    """Append what ``make`` makes of the tenant's head, or nothing where it returns None; returns the head.

    Idempotent by ``write``. The caller has checked who may. Raises ``InvalidRequest`` when there is no such tenant.
    """
    subject, mark = desk.tenant_subject(tenant), write_mark(key.principal, write)
    for _ in range(_ATTEMPTS_MAX):
        found = await desk.heads.read(subject)
        head = found[0].head if found else None
        if found is None or not isinstance(head, TenantHead):
            raise InvalidRequest("tenant", "does not exist")
        change = None if mark in head.writes else make(head)
        if change is None:
            return head
        new = msgspec.structs.replace(change.head, writes=(*head.writes, mark)[-WRITES_IN_HEAD_MAX:])
        event = RegistryEvent(change.kind, key.principal, wall_ms(), found[1], new, change.detail)
        try:
            desk.projection.expect(await desk.heads.append(subject, event))
        except RevisionConflict:
            continue
        return new
    raise RevisionConflict("the tenant changed at the same time; look again and retry")


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
