"""Adapters that begin, many at once: their first revisions are made in one pass and appended in one atomic batch.

What is asked of the stream's leader is asked once for all, and nothing runs as a task of its own but what waits for
object storage or a build. Only what is plain begins so: whatever anybody might object to, and all that is more than a
first revision, is left to ``Pushing.commit_once``, which says what is wrong with it. So there is one place that
refuses, and this one can only be too careful.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from octavo_identity import access
from octavo_identity.admission import Admission
from octavo_identity.building import Built
from octavo_identity.committing import Committed, check_commit, made_of, next_revision, revision_added
from octavo_identity.desk import Desk, adapter_reference, check_idempotency_key, head_at
from octavo_identity.grouping import append_each
from octavo_identity.places import Place
from octavo_identity.quota_keeper import bounds_pushes
from octavo_identity.records import KeyHead, RegistryEvent, object_key
from octavo_identity.registry import recorded, write_mark
from octavo_identity.repeats import adapter_head
from octavo_identity.staging import PackPlace, Staging
from octavo_identity.statements import Statements
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest, OctavoError, RevisionConflict
from octavo_shared.messages.keys import Role
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.requests import Credential
from octavo_shared.references import Fingerprint, Reference

_FIRST = 1


class _Begun(msgspec.Struct, frozen=True, eq=False):
    """An adapter that may begin, as the ``number``-th of the requests."""

    number: int
    request: Commit
    key: KeyHead
    reference: Reference
    place: Place


class _Stored(msgspec.Struct, frozen=True, eq=False):
    begun: _Begun
    built: Built
    pack_place: PackPlace


class Beginning:
    """See ``commit_all``."""

    def __init__(self, desk: Desk, staging: Staging, statements: Statements, admission: Admission) -> None:
        self._desk = desk
        self._staging = staging
        self._statements = statements
        self._admission = admission

    async def commit_all(self, requests: Sequence[Commit]) -> list[Committed | OctavoError | None]:
        """Commit to adapters that are not there yet, each named once, ``BATCH_MAX`` at most; returns what came of each.

        That is what was made, or why its files or the stores refused it, or None: then nothing was done about this one,
        and it is to be committed by itself.
        """
        answers: list[Committed | OctavoError | None] = [None] * len(requests)
        stored = await self._store(await self._begun(requests), answers)
        at_ms = wall_ms()
        made = [(one, event) for one in stored if (event := self._event(one, at_ms)) is not None]
        results = await append_each(self._desk.heads, [(one.begun.place.subject, event) for one, event in made])
        uploads, newest = list[str](), 0
        for (one, event), result in zip(made, results, strict=True):
            if isinstance(result, int):
                answers[one.begun.number] = Committed(adapter_head(event), one.begun.key, is_new=True)
                uploads.append(one.begun.request.upload_id)
                newest = max(newest, result)
            elif not isinstance(result, RevisionConflict):
                answers[one.begun.number] = result
        # Whoever lists next waits for the last of them.
        self._desk.projection.expect(newest)
        await self._staging.discard_all(uploads)
        return answers

    async def _begun(self, requests: Sequence[Commit]) -> list[_Begun]:
        """Return what may begin, as far as can be told before anything is built."""
        try:
            keys = {one: await self._desk.authenticate(one) for one in {request.credential for request in requests}}
            bases = {(request.served_base, request.declared_base) for request in requests}
            plain_bases = {pair for pair in bases if await self._is_plain_base(*pair)}
            now_ms = wall_ms()
            found = [
                begun
                for number, request in enumerate(requests)
                if (request.served_base, request.declared_base) in plain_bases
                and (begun := self._begin(number, request, keys, now_ms)) is not None
            ]
            plain = await self._plain_tenants(found)
            taken = await self._desk.heads.taken([one.place.subject for one in found])
        except OctavoError:
            return []
        return [one for one in found if one.reference.tenant in plain and one.place.subject not in taken]

    def _begin(self, number: int, request: Commit, keys: Mapping[Credential, KeyHead], now_ms: int) -> _Begun | None:
        key = keys[request.credential]
        # A statement is opened with its pusher's keys, and an admin may begin adapters where no tenant is.
        if request.statement is not None or key.role is Role.ADMIN:
            return None
        try:
            reference = adapter_reference(request.adapter)
            access.check_push(key, reference.name, None)
            check_commit(request, self._desk.ids, key, reference, now_ms)
            check_idempotency_key(request.idempotency_key)
        except OctavoError:
            return None
        return _Begun(number, request, key, reference, self._desk.registry.places.now(reference))

    async def _is_plain_base(self, served: Fingerprint, declared: Fingerprint | None) -> bool:
        try:
            await self._admission.check_push(served, declared)
        except OctavoError:
            return False
        return True

    async def _plain_tenants(self, found: Iterable[_Begun]) -> set[str]:
        """Return the tenants among them that have neither a gate nor a quota that a push could be too much for."""
        plain = set()
        for name in {one.reference.tenant for one in found}:
            tenant = await self._desk.tenant(name)
            if tenant is None or (tenant.gate is None and (tenant.quotas is None or not bounds_pushes(tenant.quotas))):
                plain.add(name)
        return plain

    async def _store(self, begun: Sequence[_Begun], answers: list[Committed | OctavoError | None]) -> list[_Stored]:
        """Build and store what was staged; returns what may still begin afterwards. ``answers`` gets what is refused.

        The packs are stored first: visible means complete.
        """
        builds = await self._staging.build_all([one.request for one in begun])
        built: list[tuple[_Begun, Built]] = []
        for one, result in zip(begun, builds, strict=True):
            if isinstance(result, Built):
                built.append((one, result))
            elif not isinstance(result, InvalidRequest):
                # An upload that is not there may be one that another replica has just committed.
                answers[one.number] = result
        try:
            # A build may take seconds.
            plain = await self._plain_tenants(one for one, _ in built)
            bases = {result.header.base for _, result in built}
            plain_bases = {base for base in bases if await self._is_plain_base(base, None)}
        except OctavoError:
            return []
        placed = [
            _Stored(one, result, _pack_place(one, result))
            for one, result in built
            if one.reference.tenant in plain and result.header.base in plain_bases
        ]
        refusals = await self._staging.store_packs([(one.pack_place, one.built.pack) for one in placed])
        refused = {
            one.begun.number: refusal for one, refusal in zip(placed, refusals, strict=True) if refusal is not None
        }
        for number, refusal in refused.items():
            answers[number] = refusal
        return [one for one in placed if one.begun.number not in refused]

    def _event(self, one: _Stored, at_ms: int) -> RegistryEvent | None:
        """Return what goes into the ledger, or None when there is something against it, such as too many tags."""
        request, key = one.begun.request, one.begun.key
        head = head_at(one.begun.place, one.begun.reference, key)
        stored = next_revision(head, request, key.principal, one.built, one.pack_place.object_key, at_ms)
        try:
            statement = self._statements.close(None, made_of(head, stored.revision, one.built))
            change = revision_added(head, request, stored, statement)
        except OctavoError:
            return None
        return recorded(change, key.principal, write_mark(key.principal, request.idempotency_key), at_ms, 0)


def _pack_place(one: _Begun, built: Built) -> PackPlace:
    place = one.place
    # Another commit of this upload may be in flight, and its pack may differ: no two share an object.
    where = object_key(place.adapter_id, _FIRST, one.request.upload_id, secrets.token_hex(8))
    return PackPlace(where, place.tenant_id, place.adapter_id, _FIRST, built.header.base)
