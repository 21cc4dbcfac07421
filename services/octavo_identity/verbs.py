"""Verbs on adapters that exist: resolve, roll back, grant, revoke, list, history."""

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference, info
from octavo_identity.records import AdapterHead, StoredRevision
from octavo_identity.registry import Change
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages import identity as messages
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.identity import AdapterInfo
from octavo_shared.references import PRINCIPAL_PATTERN, Reference, check_name, parse_reference

_GRANTS_MAX = 256
_ALIASES_MAX = 32
_LIST_MAX = 1_000
_OWNERS_EVENTS = frozenset({"granted", "revoked"})


class Verbs:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._registry = desk.registry

    async def resolve(self, request: messages.Resolve) -> messages.Resolution:
        """Say who asks and which revision the reference names for them, now. Reads only."""
        key = await self._desk.authenticate(request.credential)
        tenant_id = self._desk.ids.tenant(key.tenant)
        handle = None
        if request.reference is not None:
            reference = parse_reference(request.reference)
            head = access.check_use(key, await self._registry.head(reference))
            handle = _handle(head, await self._registry.select(head, reference))
        return messages.Resolution(key.principal, key.tenant, tenant_id, key.role, handle)

    async def rollback(self, request: messages.Rollback) -> AdapterInfo:
        """Move an alias to the named revision, or back to what was served when the one it names was pushed."""
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        alias = check_name(request.alias, "alias")
        head = access.check_own(key, await self._registry.head(reference))
        number = request.number or await self._number_before(head, reference, alias)
        target = await self._registry.select(head, Reference(reference.tenant, reference.adapter, number=number))

        def move(now: AdapterHead | None) -> Change:
            owned = access.check_own(key, now)
            aliases = owned.aliases | {alias: target.revision.number}
            if len(aliases) > _ALIASES_MAX:
                raise InvalidRequest("alias", f"would be more than the {_ALIASES_MAX} that an adapter may have")
            revisions = owned.revisions if target in owned.revisions else (target, *owned.revisions)
            moved = msgspec.structs.replace(owned, aliases=aliases, revisions=revisions)
            detail = f"{alias}: {owned.aliases.get(alias)} -> {target.revision.number}"
            return Change("alias_moved", moved, detail)

        return info(await self._desk.change(reference, key, request.idempotency_key, move), key)

    async def _number_before(self, head: AdapterHead, reference: Reference, alias: str) -> int:
        if alias in head.aliases:
            named = Reference(reference.tenant, reference.adapter, alias=alias)
            parent = (await self._registry.select(head, named)).parent_number
            if parent is not None:
                return parent
        raise InvalidRequest("revision", "must be given: the alias names no revision that has one before it")

    async def grant(self, request: messages.Grant) -> AdapterInfo:
        """Let a principal, or with ``*@tenant`` a whole tenant, use the adapter."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        def add(now: AdapterHead | None) -> Change:
            owned = access.check_own(key, now)
            grants = tuple(sorted({*owned.grants, principal}))
            if len(grants) > _GRANTS_MAX:
                raise InvalidRequest("principal", f"would be more than the {_GRANTS_MAX} that an adapter may have")
            return Change("granted", msgspec.structs.replace(owned, grants=grants), principal)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, add), key)

    async def revoke(self, request: messages.Revoke) -> AdapterInfo:
        """Take a grant back; effective with the next request. Revoking what was not granted changes no rights."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        def remove(now: AdapterHead | None) -> Change:
            owned = access.check_own(key, now)
            grants = tuple(who for who in owned.grants if who != principal)
            return Change("revoked", msgspec.structs.replace(owned, grants=grants), principal)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, remove), key)

    async def list(self, request: messages.ListAdapters) -> messages.AdapterList:
        """Return what the caller owns or was granted, by name; sees the writes that went through this replica."""
        key = await self._desk.authenticate(request.credential)
        _check_limit(request.num_max)
        await self._desk.projection.read_own_writes()
        heads = self._desk.projection.usable_by(key, request.after, request.num_max)
        return messages.AdapterList(tuple(info(head, key) for head in heads))

    async def history(self, request: messages.History) -> messages.HistoryList:
        """Return what happened to an adapter, newest first; only its owner sees who was let in and shut out."""
        key = await self._desk.authenticate(request.credential)
        _check_limit(request.num_max)
        reference = adapter_reference(request.adapter)
        head = access.check_use(key, await self._registry.head(reference))
        entries = [
            messages.HistoryEntry(
                event.kind,
                event.actor,
                event.at_ms,
                sequence,
                event.detail,
                event.revision.revision if event.revision else None,
            )
            async for event, sequence in self._registry.ledger(reference, request.num_max)
            if key.principal == head.owner or event.kind not in _OWNERS_EVENTS
        ]
        return messages.HistoryList(tuple(entries))


def _check_limit(num_max: int) -> None:
    if not 1 <= num_max <= _LIST_MAX:
        raise InvalidRequest("limit", f"must be 1 to {_LIST_MAX}")


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
