"""Verbs on adapters that exist: resolve, locate, grant, revoke, tag, list, history."""

import dataclasses
from collections.abc import Callable

import msgspec

from octavo_identity import access
from octavo_identity.aliases import alias_for
from octavo_identity.desk import Desk, adapter_reference, info
from octavo_identity.granting import with_grant, without_grant
from octavo_identity.listing import Listing, check_limit
from octavo_identity.records import AdapterHead, KeyHead, StoredRevision
from octavo_identity.registry import Change
from octavo_identity.rights import Right, grant_role, scopes_of
from octavo_identity.search import Search
from octavo_identity.states import state_of
from octavo_identity.tags import TAGS_MAX, check_tags, with_tags
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.grants import Grant, Revoke
from octavo_shared.messages.history import History, HistoryEntry, HistoryList
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.messages.lifecycle import Tag
from octavo_shared.messages.resolving import Locate, Resolution, Resolve
from octavo_shared.messages.usage import QuotaUse
from octavo_shared.references import DIGEST_PATTERN, PRINCIPAL_PATTERN, TenantId, parse_reference

_AUDITORS_EVENTS = frozenset({"granted", "revoked"})
_AUDITORS_DETAILS = frozenset({"branched"})
"""Others see that it happened, but not which adapter of whom it came from."""


class Verbs:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk, exhausted: Callable[[TenantId], QuotaUse | None] = lambda tenant_id: None) -> None:
        self._desk = desk
        self._exhausted = exhausted
        self._registry = desk.registry
        self._listing = Listing(desk)

    async def resolve(self, request: Resolve) -> Resolution:
        """Say who asks and which revision the reference names for them, now. Reads only."""
        key = await self._desk.authenticate(request.credential)
        tenant_id = self._desk.ids.tenant(key.tenant)
        handle = None
        if request.reference is None:
            access.check_scope(key, Scope.USE, "use the base alone")
        else:
            reference = parse_reference(request.reference)
            head = access.check_use(key, await self._registry.head(reference))
            if not reference.names_revision:
                reference = msgspec.structs.replace(reference, alias=alias_for(head, key.principal))
            handle = self._desk.tickets.with_ticket(
                _handle(head, await self._registry.select(head, reference)), wall_ms()
            )
        exhausted = self._exhausted(tenant_id)
        return Resolution(key.principal, key.tenant, tenant_id, key.role, handle, exhausted)

    async def locate(self, request: Locate) -> Resolution:
        """Say where an adapter's bytes are, without the right to use it: to its owner and to admins. Reads only.

        Raises ``NotPermitted`` for those who may only use it, ``AdapterNotFound`` for all others.
        """
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference)
        head = access.check_locate(key, await self._registry.head(reference))
        # Also a retired revision: what is left of it on workers is what one may want to be rid of.
        handle = _handle(head, await self._registry.find(head, reference))
        return Resolution(key.principal, key.tenant, self._desk.ids.tenant(key.tenant), key.role, handle)

    async def grant(self, request: Grant) -> AdapterInfo:
        """Let a principal, or with ``*@tenant`` a whole tenant, have a role on the adapter. What it has is no event."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        async def add(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if grant_role(owned, principal) is request.role:
                return None
            return Change("granted", with_grant(owned, principal, request.role), f"{principal} as {request.role}")

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, add), key)

    async def revoke(self, request: Revoke) -> AdapterInfo:
        """Take a principal's role back; effective with the next request. Revoking what was not granted is no event."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        async def remove(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if grant_role(owned, principal) is None:
                return None
            return Change("revoked", without_grant(owned, principal), principal)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, remove), key)

    async def tag(self, request: Tag) -> AdapterInfo:
        """Add and remove tags, by which adapters are found; every user of the adapter sees them."""
        key = await self._desk.authenticate(request.credential)
        changed = (*request.add, *request.remove)
        if not 1 <= len(changed) <= 2 * TAGS_MAX:
            raise InvalidRequest("tag", f"must be 1 to {2 * TAGS_MAX} tags to add or remove")
        check_tags(changed)
        if both := set(request.add) & set(request.remove):
            raise InvalidRequest("tag", f"cannot be added and removed: {', '.join(sorted(both))}")

        async def mark(now: AdapterHead | None) -> Change:
            tagged = with_tags(access.check_edit(key, now), request.add, request.remove)
            detail = " ".join([*(f"+{tag}" for tag in request.add), *(f"-{tag}" for tag in request.remove)])
            return Change("tagged", tagged, detail)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, mark), key)

    async def list(self, request: ListAdapters) -> AdapterList:
        """Return what the caller owns or has a role on and what matches, by name; see ``ListAdapters``.

        Sees the writes that went through this replica. Raises ``DependencyUnavailable`` while the view of the registry
        is not whole.
        """
        key = await self._desk.authenticate(request.credential)
        check_limit(request.num_max)
        search = Search.of(request)
        if search.base and DIGEST_PATTERN.match(search.base) is None:
            search = dataclasses.replace(search, base=(await self._desk.bases.read()).meant(search.base).fingerprint)
        heads, next_after = await self._listing.page(
            key, search, request.after, request.num_max, is_overview=_is_overview(key, request.tenant)
        )
        return AdapterList(tuple(info(head, key) for head in heads), next_after)

    async def history(self, request: History) -> HistoryList:
        """Return what happened to an adapter, newest first; its owner and auditors see who was let in and shut out."""
        key = await self._desk.authenticate(request.credential)
        check_limit(request.num_max)
        reference = adapter_reference(request.adapter)
        head = access.check_see(key, await self._registry.head(reference))
        is_auditor = access.may(key, head, Right.AUDIT)
        entries = [
            HistoryEntry(
                event.kind,
                event.actor,
                event.at_ms,
                sequence,
                event.detail if is_auditor or event.kind not in _AUDITORS_DETAILS else "",
                event.revision.revision if event.revision else None,
                state_of(head, event.revision.revision.number) if event.revision else None,
                event.evaluation,
            )
            async for event, sequence in self._registry.ledger(reference, request.num_max)
            if is_auditor or event.kind not in _AUDITORS_EVENTS
        ]
        return HistoryList(tuple(entries))


def _is_overview(key: KeyHead, tenant: str) -> bool:
    """Tell whether all of ``tenant`` is listed, to admins and to its auditors, and not what they have a role on."""
    if key.role is Role.ADMIN:
        return bool(tenant) and Scope.MANAGE in scopes_of(key)
    return key.role is Role.AUDITOR and tenant == key.tenant and Scope.AUDIT in scopes_of(key)


def _principal(text: str) -> str:
    if PRINCIPAL_PATTERN.match(text) is None:
        raise InvalidRequest("principal", "must have the form user@tenant or *@tenant")
    return text


def _handle(head: AdapterHead, stored: StoredRevision) -> AdapterHandle:
    revision = stored.revision
    return AdapterHandle(
        head.adapter_id, head.tenant_id, revision.number, revision.digest, revision.base,
        stored.object_key, revision.pack_bytes,
    )  # fmt: skip
