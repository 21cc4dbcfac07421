"""Verbs on tenants and keys: create, issue, revoke."""

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.keys import is_key_id
from octavo_identity.records import KeyHead, RegistryEvent, TenantHead
from octavo_identity.registry import write_mark
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest, NameTaken, NotPermitted, RevisionConflict
from octavo_shared.messages import identity as messages
from octavo_shared.references import check_name

_SECRET_HASH_BYTES = 32


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

    async def issue_key(self, request: messages.IssueKey) -> messages.KeyIssued:
        """Record a key that the gateway made; the same key again changes nothing.

        Raises ``NotPermitted`` when one who is no admin asks for another's key or for a higher role.
        """
        key = await self._desk.authenticate(request.credential)
        principal = f"{check_name(request.user, 'user')}@{check_name(request.tenant, 'tenant')}"
        access.check_issue_key(key, principal, request.role)
        if not await self._desk.has_tenant(request.tenant):
            raise InvalidRequest("tenant", "does not exist")
        if not is_key_id(request.key_id) or len(request.secret_sha256) != _SECRET_HASH_BYTES:
            raise InvalidRequest("key_id", "is malformed")
        head = KeyHead(request.key_id, request.secret_sha256, principal, request.tenant, request.role)
        subject = subjects.key_head(request.key_id)
        try:
            await self._desk.heads.append(subject, RegistryEvent("key_issued", key.principal, wall_ms(), 0, head))
        except RevisionConflict:
            found = await self._desk.heads.read(subject)
            if found is None or found[0].head != head:
                raise
        return messages.KeyIssued(request.key_id, principal, request.role)

    async def revoke_key(self, request: messages.RevokeKey) -> messages.KeyIssued:
        """Revoke a key for ever; effective with the next request that uses it. Idempotent."""
        key = await self._desk.authenticate(request.credential)
        if not is_key_id(request.key_id):
            raise InvalidRequest("key_id", "is malformed")
        subject = subjects.key_head(request.key_id)
        found = await self._desk.heads.read(subject)
        head = found[0].head if found else None
        if found is None or not isinstance(head, KeyHead) or not access.may_revoke_key(key, head):
            raise NotPermitted("revoke this key")
        if not head.is_revoked:
            revoked = msgspec.structs.replace(head, is_revoked=True)
            event = RegistryEvent("key_revoked", key.principal, wall_ms(), found[1], revoked)
            await self._desk.heads.append(subject, event)
        return messages.KeyIssued(head.key_id, head.principal, head.role)


def _was_made_by(event: RegistryEvent, mark: str, write: str) -> bool:
    if isinstance(event.head, TenantHead) and mark in event.head.writes:
        return True
    # Tenants from before heads remembered writes.
    return event.kind == "tenant_created" and event.detail == write
