"""Verbs that say which revisions are served: promote, roll back, unalias, retire."""

import msgspec

from octavo_identity import access
from octavo_identity.admission import Admission
from octavo_identity.aliases import moved, moved_back, without
from octavo_identity.desk import Desk, adapter_reference, info, with_warnings
from octavo_identity.gating import RELEASED_BY, was_released
from octavo_identity.records import AdapterHead, KeyHead
from octavo_identity.registry import Change
from octavo_identity.states import is_retired, with_retired
from octavo_shared.errors import AdapterNotFound, AliasMoved, InvalidRequest, RevisionInUse
from octavo_shared.messages import lifecycle as messages
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.references import CANARY, SERVING, Reference, check_name, parse_reference

_REVISION_NUMBER_MAX = 999_999_999


class Promoting:
    """One method per verb, of the same name, idempotent by key.

    All are for the owner and editors, but for ``retire``, which has no way back and is the owner's.
    """

    def __init__(self, desk: Desk, admission: Admission) -> None:
        self._desk = desk
        self._admission = admission
        self._registry = desk.registry

    async def promote(self, request: messages.Promote) -> AdapterInfo:
        """Let an alias name a revision; the next request that is resolved gets it.

        Raises ``AliasMoved`` when the alias does not name what was expected, ``RevisionRetired`` and ``GateRefused``,
        ``BaseRetired`` and ``BaseNotServed``. Warns of a base that is superseded.
        """
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference, "revision")
        alias = check_name(request.alias, "alias")
        if not reference.names_revision:
            raise InvalidRequest("revision", "must be named: by number, digest or alias")
        if request.share_percent is not None and (alias != CANARY or not 0 <= request.share_percent <= 100):
            raise InvalidRequest("share", f"is a percentage from 0 to 100 that only '{CANARY}' has")

        async def move(now: AdapterHead | None) -> Change:
            owned = access.check_edit(key, now)
            before = owned.aliases.get(alias)
            if request.expected is not None and request.expected != (before or 0):
                raise AliasMoved(alias, expected=request.expected, actual=before or 0)
            target = await self._registry.select(owned, reference)
            await self._admission.check_alias(owned, alias, target.revision.base)
            percent = owned.canary_percent if request.share_percent is None else request.share_percent
            await self._desk.gatekeeper.check(reference, owned, target.revision, alias, percent)
            new = moved(owned, alias, target)
            detail = f"{alias}: {before} -> {target.revision.number}"
            if request.share_percent is not None:
                new = msgspec.structs.replace(new, canary_percent=request.share_percent)
                detail += f" at {request.share_percent}%"
            return Change("promoted", new, detail)

        return await self._told(await self._desk.change(reference, key, request.idempotency_key, move), key, alias)

    async def _told(self, head: AdapterHead, key: KeyHead, alias: str) -> AdapterInfo:
        """Return the head as ``key`` may see it, with what is to be said of the base that ``alias`` is on."""
        number = head.aliases.get(alias)
        named = [stored.revision.base for stored in head.revisions if stored.revision.number == number]
        return with_warnings(info(head, key), [one for base in named for one in await self._admission.warnings(base)])

    async def rollback(self, request: messages.Rollback) -> AdapterInfo:
        """Move an alias to the named revision, or back to the latest one it named before that is not retired.

        What it named is remembered for some moves. Before those, it is what was served when the revision was pushed.
        What was served before comes back at once; only a named revision that never was has to pass the gate.
        """
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        alias = check_name(request.alias, "alias")
        if request.number is not None:
            _check_number(request.number)

        async def move(now: AdapterHead | None) -> Change:
            owned = access.check_edit(key, now)
            # What to go back to depends on the head that is replaced, not on one that was read before.
            number = await self._number_before(owned, reference, alias) if request.number is None else request.number
            target = await self._registry.select(owned, Reference(reference.tenant, reference.adapter, number=number))
            await self._admission.check_alias(owned, alias, target.revision.base)
            # A canary's trail may hold what was only ever tried, by fewer people than would get it now.
            is_back = was_released(owned, number) or (request.number is None and alias in RELEASED_BY)
            if not is_back:
                percent = owned.canary_percent
                await self._desk.gatekeeper.check(reference, owned, target.revision, alias, percent)
            detail = f"{alias}: {owned.aliases.get(alias)} -> {number}"
            return Change("alias_moved", moved_back(owned, alias, target), detail)

        return await self._told(await self._desk.change(reference, key, request.idempotency_key, move), key, alias)

    async def _number_before(self, head: AdapterHead, reference: Reference, alias: str) -> int:
        live = [number for number in head.trails.get(alias, ()) if not is_retired(head, number)]
        if live:
            return live[-1]
        if alias in head.aliases:
            named = Reference(reference.tenant, reference.adapter, alias=alias)
            parent = (await self._registry.select(head, named)).parent_number
            if parent is not None:
                return parent
        raise InvalidRequest("revision", "must be given: the alias names no revision that has one before it")

    async def unalias(self, request: messages.Unalias) -> AdapterInfo:
        """Remove an alias. One that is not there raises ``AdapterNotFound``."""
        key = await self._desk.authenticate(request.credential)
        alias = check_name(request.alias, "alias")
        if alias == SERVING:
            raise InvalidRequest("alias", f"must be another one: '{SERVING}' moves and is never removed")

        async def remove(now: AdapterHead | None) -> Change:
            owned = access.check_edit(key, now)
            if alias not in owned.aliases:
                raise AdapterNotFound
            return Change("alias_removed", without(owned, alias), f"{alias}: {owned.aliases[alias]} -> None")

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, remove), key)

    async def retire(self, request: messages.Retire) -> AdapterInfo:
        """Never serve a revision again; requests that run with it end with it. What is retired already is no event.

        Raises ``RevisionInUse`` while an alias names it.
        """
        key = await self._desk.authenticate(request.credential)
        number = _check_number(request.number)

        async def end(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if number > owned.num_revisions:
                raise AdapterNotFound
            if is_retired(owned, number):
                return None
            if naming := [alias for alias, named in owned.aliases.items() if named == number]:
                raise RevisionInUse(number, naming[0])
            return Change("retired", with_retired(owned, number), f"revision {number}")

        reference = adapter_reference(request.adapter)
        return info(await self._desk.change(reference, key, request.idempotency_key, end), key)


def _check_number(number: int) -> int:
    if not 1 <= number <= _REVISION_NUMBER_MAX:
        raise InvalidRequest("revision", f"must be 1 to {_REVISION_NUMBER_MAX}")
    return number
