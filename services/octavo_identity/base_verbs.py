"""Verbs on bases: list them, say what became of one, and find the revisions that must be trained again."""

from collections.abc import Callable, Iterator

import msgspec

from octavo_identity import access
from octavo_identity.admission import Admission
from octavo_identity.bases import Book, Change, state_of, superseded
from octavo_identity.desk import Desk
from octavo_identity.fleet import Fleet
from octavo_identity.listing import Listing, check_limit
from octavo_identity.records import AdapterHead, KeyHead, RegisteredBase
from octavo_identity.registry import write_mark
from octavo_identity.rights import scopes_of
from octavo_identity.search import Search, check_length
from octavo_identity.sittings import Counts
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages import bases as messages
from octavo_shared.messages.bases import BaseInfo, BaseState, OutdatedRevision
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.messages.requests import Write
from octavo_shared.references import Fingerprint, check_name

_Change = Callable[[RegisteredBase, int], RegisteredBase | None]


class BaseVerbs:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk, admission: Admission, fleet: Fleet) -> None:
        self._desk = desk
        self._admission = admission
        self._fleet = fleet
        self._listing = Listing(desk)

    async def bases(self, request: messages.ListBases) -> messages.BaseList:
        """Return all bases to anybody, with counts of the caller's tenant; see ``ListBases``. Reads only."""
        key = await self._desk.authenticate(request.credential)
        tenant = check_name(request.tenant, "tenant") if request.tenant else ""
        if tenant:
            access.check_tenant(key, tenant, "count what sits on bases in this tenant")
        counts = await self._counts(key, tenant)
        book = await self._desk.bases.read()
        return messages.BaseList(tuple(self._info(book, one, counts) for one in book.head.bases))

    async def supersede_base(self, request: messages.SupersedeBase) -> BaseInfo:
        """Say what is to be trained for instead of a base; for admins. Idempotent by key, and what is so is no event.

        A fingerprint that is published and was not seen yet is registered by the way. Raises ``BaseUnknown``, and
        ``InvalidRequest`` when the other base is not current.
        """
        key = await self._authenticate_admin(request)
        # What is meant is told before anything is registered: a name may be of two bases afterwards.
        fingerprint = (await self._admission.known(request.base)).meant(request.base).fingerprint
        other = (await self._admission.known(request.by)).meant(request.by, "by").fingerprint

        def point(book: Book, now_ms: int) -> RegisteredBase | None:
            base = book.known(fingerprint)
            new = superseded(base, book.known(other))
            return None if new == base else new

        return await self._append(request, key, "base_superseded", fingerprint, point)

    async def retire_base(self, request: messages.RetireBase) -> BaseInfo:
        """Let nothing new be put on a base; for admins. What is retired already is no event."""

        def retire(base: RegisteredBase, now_ms: int) -> RegisteredBase | None:
            return None if base.retired_at_ms else msgspec.structs.replace(base, retired_at_ms=now_ms)

        return await self._change(request, "base_retired", retire)

    async def restore_base(self, request: messages.RestoreBase) -> BaseInfo:
        """Make a base current again; for admins. What is current already is no event."""

        def restore(base: RegisteredBase, now_ms: int) -> RegisteredBase | None:
            new = RegisteredBase(base.fingerprint, base.name, base.registered_at_ms)
            return None if new == base else new

        return await self._change(request, "base_restored", restore)

    async def outdated(self, request: messages.ListOutdated) -> messages.OutdatedList:
        """Return served revisions that must be trained again, to whoever sees them; see ``ListOutdated``. Reads only.

        Raises ``DependencyUnavailable`` while the view of the registry is not whole.
        """
        key = await self._desk.authenticate(request.credential)
        check_limit(request.num_max)
        check_length("after", request.after)
        tenant = check_name(request.tenant, "tenant") if request.tenant else ""
        is_overview = access.is_admin(key)
        if key.role is Role.AUDITOR and tenant in ("", key.tenant) and Scope.AUDIT in scopes_of(key):
            is_overview, tenant = True, key.tenant
        book = await self._desk.bases.read()
        wanted = book.outdated()
        if request.base:
            fingerprint = book.meant(request.base).fingerprint
            wanted = tuple(one for one in wanted if one == fingerprint)
        if not wanted:
            return messages.OutdatedList(())
        search = Search(tenant, named_on=wanted)
        heads, next_after = await self._listing.page(
            key, search, request.after, request.num_max, is_overview=is_overview
        )
        found = [one for head in heads for one in _outdated(book, head, frozenset(wanted))]
        return messages.OutdatedList(tuple(found), next_after)

    async def _authenticate_admin(self, request: Write) -> KeyHead:
        key = await self._desk.authenticate(request.credential)
        access.check_admin(key, "say what becomes of bases")
        return key

    async def _change(
        self, request: messages.RetireBase | messages.RestoreBase, kind: str, change: _Change
    ) -> BaseInfo:
        key = await self._authenticate_admin(request)
        fingerprint = (await self._admission.known(request.base)).meant(request.base).fingerprint
        return await self._append(
            request, key, kind, fingerprint, lambda book, now_ms: change(book.known(fingerprint), now_ms)
        )

    async def _append(
        self, request: Write, key: KeyHead, kind: str, fingerprint: Fingerprint, change: Change
    ) -> BaseInfo:
        mark = write_mark(key.principal, request.idempotency_key)
        book = await self._desk.bases.change(kind, key.principal, mark, change)
        return self._info(book, book.known(fingerprint), None)

    async def _counts(self, key: KeyHead, tenant: str) -> dict[Fingerprint, Counts] | None:
        """Return what sits on each base, in ``tenant``, else in the caller's, and to an admin everywhere."""
        if key.adapters:
            return None
        if not tenant and not access.is_admin(key):
            tenant = key.tenant
        try:
            await self._desk.projection.read_own_writes()
            return await self._desk.projection.count_bases(self._desk.ids.tenant(tenant) if tenant else None)
        except DependencyUnavailable:
            # What became of bases is told all the same.
            return None

    def _info(self, book: Book, base: RegisteredBase, counts: dict[Fingerprint, Counts] | None) -> BaseInfo:
        served = self._fleet.bases()
        count = counts.get(base.fingerprint, Counts()) if counts is not None else None
        return BaseInfo(
            base.fingerprint, book.label(base.fingerprint), state_of(base), base.registered_at_ms,
            base.superseded_by, book.successor_label(base), base.retired_at_ms,
            base.fingerprint in served if served else None,
            count.num_adapters if count else None, count.num_serving if count else None,
        )  # fmt: skip


def _outdated(book: Book, head: AdapterHead, wanted: frozenset[Fingerprint]) -> Iterator[OutdatedRevision]:
    """Yield the revisions that aliases of ``head`` name and that are on bases which are ``wanted``, by number."""
    latest = max((stored.revision for stored in head.revisions), key=lambda revision: revision.number)
    on = book.find(latest.base)
    for revision in (stored.revision for stored in head.revisions):
        aliases = tuple(sorted(alias for alias, number in head.aliases.items() if number == revision.number))
        base = book.find(revision.base)
        if aliases and base is not None and revision.base in wanted:
            yield OutdatedRevision(
                head.name, head.owner, revision.number, aliases, book.label(revision.base), state_of(base),
                book.successor_label(base), latest.number, book.label(latest.base),
                on is not None and state_of(on) is BaseState.CURRENT,
            )  # fmt: skip
