"""Verbs on adapters that exist: resolve, locate, roll back, grant, revoke, list, history."""

import asyncio
from collections.abc import Sequence

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference, info
from octavo_identity.records import AdapterHead, KeyHead, StoredRevision
from octavo_identity.registry import Change
from octavo_shared.errors import DependencyUnavailable, InvalidRequest
from octavo_shared.messages import identity as messages
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.identity import AdapterInfo
from octavo_shared.references import PRINCIPAL_PATTERN, Reference, check_name, parse_reference

_GRANTS_MAX = 256
_ALIASES_MAX = 32
_LIST_MAX = 1_000
_LIST_ROUNDS_MAX = 8
_CONFIRMATIONS_MAX = 16
_REVISION_NUMBER_MAX = 999_999_999
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

    async def locate(self, request: messages.Locate) -> messages.Resolution:
        """Say where an adapter's bytes are, without the right to use it: to its owner and to admins. Reads only.

        Raises ``NotPermitted`` for those who may only use it, ``AdapterNotFound`` for all others.
        """
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference)
        head = access.check_locate(key, await self._registry.head(reference))
        handle = _handle(head, await self._registry.select(head, reference))
        return messages.Resolution(key.principal, key.tenant, self._desk.ids.tenant(key.tenant), key.role, handle)

    async def rollback(self, request: messages.Rollback) -> AdapterInfo:
        """Move an alias to the named revision, or back to what was served when the one it names was pushed."""
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        alias = check_name(request.alias, "alias")
        if request.number is not None and not 1 <= request.number <= _REVISION_NUMBER_MAX:
            raise InvalidRequest("revision", f"must be 1 to {_REVISION_NUMBER_MAX}")

        async def move(now: AdapterHead | None) -> Change:
            owned = access.check_own(key, now)
            # What to go back to depends on the head that is replaced, not on one that was read before.
            number = await self._number_before(owned, reference, alias) if request.number is None else request.number
            target = await self._registry.select(owned, Reference(reference.tenant, reference.adapter, number=number))
            aliases = owned.aliases | {alias: number}
            if len(aliases) > _ALIASES_MAX:
                raise InvalidRequest("alias", f"would be more than the {_ALIASES_MAX} that an adapter may have")
            revisions = owned.revisions if target in owned.revisions else (target, *owned.revisions)
            moved = msgspec.structs.replace(owned, aliases=aliases, revisions=revisions)
            return Change("alias_moved", moved, f"{alias}: {owned.aliases.get(alias)} -> {number}")

        return info(await self._desk.change(reference, key, request.idempotency_key, move), key)

    async def _number_before(self, head: AdapterHead, reference: Reference, alias: str) -> int:
        if alias in head.aliases:
            named = Reference(reference.tenant, reference.adapter, alias=alias)
            parent = (await self._registry.select(head, named)).parent_number
            if parent is not None:
                return parent
        raise InvalidRequest("revision", "must be given: the alias names no revision that has one before it")

    async def grant(self, request: messages.Grant) -> AdapterInfo:
        """Let a principal, or with ``*@tenant`` a whole tenant, use the adapter. Who may already is no event."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        async def add(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if principal in owned.grants:
                return None
            grants = tuple(sorted({*owned.grants, principal}))
            if len(grants) > _GRANTS_MAX:
                raise InvalidRequest("principal", f"would be more than the {_GRANTS_MAX} that an adapter may have")
            return Change("granted", msgspec.structs.replace(owned, grants=grants), principal)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, add), key)

    async def revoke(self, request: messages.Revoke) -> AdapterInfo:
        """Take a grant back; effective with the next request. Revoking what was not granted is no event."""
        key = await self._desk.authenticate(request.credential)
        principal = _principal(request.principal)

        async def remove(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if principal not in owned.grants:
                return None
            grants = tuple(who for who in owned.grants if who != principal)
            return Change("revoked", msgspec.structs.replace(owned, grants=grants), principal)

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, remove), key)

    async def list(self, request: messages.ListAdapters) -> messages.AdapterList:
        """Return what the caller owns or was granted, by name; sees the writes that went through this replica.

        Raises ``DependencyUnavailable`` while the view of the registry is not whole.
        """
        key = await self._desk.authenticate(request.credential)
        _check_limit(request.num_max)
        await self._desk.projection.read_own_writes()
        found: list[AdapterHead] = []
        after = request.after
        # One round, and another one where rights were taken back that the view still holds.
        for _ in range(_LIST_ROUNDS_MAX):
            num_missing = request.num_max - len(found)
            seen = await self._desk.projection.usable_by(key, after, num_missing)
            found += await self._confirmed(key, seen)
            if len(seen) < num_missing or len(found) == request.num_max:
                return messages.AdapterList(tuple(info(head, key) for head in found))
            after = seen[-1].name
        raise DependencyUnavailable("the view of the registry")

    async def _confirmed(self, key: KeyHead, seen: Sequence[AdapterHead]) -> Sequence[AdapterHead]:
        """Return the heads that ``key`` may use; those of others as the leader has them now, if it still may."""
        slots = asyncio.Semaphore(_CONFIRMATIONS_MAX)

        async def confirm(head: AdapterHead) -> AdapterHead | None:
            if head.owner == key.principal:
                return head
            async with slots:
                now = await self._registry.head(parse_reference(head.name))
            return now if now is not None and access.may_use(key, now) else None

        confirmed = await asyncio.gather(*(confirm(head) for head in seen))
        return [head for head in confirmed if head is not None]

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
