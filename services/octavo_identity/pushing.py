"""Verbs of a push: begin an upload, commit it as the adapter's next revision."""

import copy
import secrets
from typing import Self

from octavo_identity import access
from octavo_identity.admission import Admission
from octavo_identity.building import Built
from octavo_identity.committing import (
    Committed,
    check_commit,
    check_upload,
    made_of,
    next_revision,
    revision_added,
)
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk, adapter_reference, info, with_warnings
from octavo_identity.gatekeeper import served
from octavo_identity.ids import upload_begun_at_ms
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import AdapterHead, KeyHead, object_key
from octavo_identity.registry import Change, write_mark
from octavo_identity.staging import UPLOAD_GONE, PackPlace, Staging
from octavo_identity.statements import OfferedProvenance, Statements
from octavo_identity.states import is_retired
from octavo_identity.unwrapping import for_asker
from octavo_shared.clock import wall_ms
from octavo_shared.errors import AdapterErased, InvalidRequest, RevisionConflict
from octavo_shared.messages.adapters import AdapterInfo, Revision
from octavo_shared.messages.pushing import BeginUpload, CheckUpload, Commit, UploadBegun, UploadChecked
from octavo_shared.references import Digest, Reference

_COMMIT_ATTEMPTS_MAX = 16


class Pushing:
    """One method per verb, of the same name."""

    def __init__(
        self, desk: Desk, staging: Staging, keys: DataKeys, statements: Statements, admission: Admission,
        quotas: QuotaKeeper, upload_bytes_max: int,
    ) -> None:  # fmt: skip
        self._desk = desk
        self._staging = staging
        self._keys = keys
        self._statements = statements
        self._admission = admission
        self._quotas = quotas
        self._upload_bytes_max = upload_bytes_max

    async def begin_upload(self, request: BeginUpload) -> UploadBegun:
        """Name a staging place that only this principal can commit, to this adapter, for a while.

        Raises ``QuotaExceeded`` or ``DailyQuotaExceeded`` when nothing more fits into the tenant's quotas already.
        """
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        found = await self._desk.head_to_push(key, reference)
        await self._quotas.check(reference, is_new=found is None)
        head, parent = found or self._desk.new_head(reference, key), served(found)
        upload_id = self._desk.ids.upload(key.principal, reference.name, wall_ms())
        await self._keys.make_for_upload(head.tenant_id, head.adapter_id, upload_id)
        return UploadBegun(upload_id, self._upload_bytes_max, key.principal, parent.digest if parent else None)

    async def check_upload(self, request: CheckUpload) -> UploadChecked:
        """Say that an upload is the caller's and young enough to stage bytes for, and what seals them. Reads only."""
        key = await self._desk.authenticate(request.credential)
        access.check_stage(key)
        check_upload(request.upload_id, self._desk.ids, key, None, wall_ms())
        data_key = await self._keys.read_for_upload(request.upload_id)
        if data_key is None:
            raise InvalidRequest("upload_id", UPLOAD_GONE)
        sealed = for_asker(request.public_key, data_key) if request.public_key else b""
        return UploadChecked(request.upload_id, sealed)

    def through(self, desk: Desk) -> Self:
        """Return the same that works with another desk."""
        other = copy.copy(self)
        other._desk = desk
        return other

    async def commit(self, request: Commit) -> AdapterInfo:
        """Make what was staged the next revision; see ``commit_once``."""
        committed = await self.commit_once(request)
        return with_warnings(info(committed.head, committed.key), await self.warnings(committed))

    async def warnings(self, committed: Committed) -> tuple[str, ...]:
        """Return what the pusher should know of the base that the revision is on."""
        return await self._admission.warnings(committed.revision.base)

    async def commit_once(self, request: Commit) -> Committed:
        """Make what was staged the next revision. The pack is stored first: visible means complete.

        Idempotent by key. Raises ``AdapterRefused`` with its rule, ``BaseMismatch``, ``BaseRetired``, ``BaseUnknown``,
        ``InvalidRequest`` when the upload is not there, not the caller's or too old, ``GateRefused`` when the alias is
        behind a gate, which a new revision cannot have passed yet, and ``RevisionConflict`` when too many others push.
        A statement that says otherwise than what was built raises ``ProvenanceRefused`` or ``ParentMoved``, and what
        does not fit into the tenant's quotas ``QuotaExceeded`` or ``DailyQuotaExceeded``.
        """
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        head = await self._desk.head_to_push(key, reference)
        check_commit(request, self._desk.ids, key, reference, wall_ms())
        mark = write_mark(key.principal, request.idempotency_key)
        if head is not None and (made := await self._desk.registry.repeated(reference, mark)):
            return Committed(made, key)
        await self._admission.check_push(request.served_base, request.declared_base)
        offered = await self._statements.open(request.statement, key.principal)
        await self._check_gate(reference, head, _unbuilt(head, request), request.alias)
        try:
            built = await self._staging.build(request)
        except InvalidRequest:
            # Another replica may have been given the same request, and what was staged goes once it is committed.
            if made := await self._desk.registry.repeated(reference, mark):
                return Committed(made, key)
            if await self._is_erased_since(reference, upload_begun_at_ms(request.upload_id)):
                raise AdapterErased from None
            raise
        # Another commit of this upload may be in flight, and its pack may differ: no two calls share an object.
        nonce = secrets.token_hex(8)
        for _ in range(_COMMIT_ATTEMPTS_MAX):
            if request.is_import and head is not None and (same := _of_digest(head, built.digest)) is not None:
                await self._staging.discard(request.upload_id)
                return Committed(head, key, same)
            number = (head.num_revisions if head else 0) + 1
            at = head or self._desk.registry.places.now(reference)
            place = object_key(at.adapter_id, number, request.upload_id, nonce)
            pack_place = PackPlace(place, at.tenant_id, at.adapter_id, number, built.header.base)
            try:
                async with self._quotas.room(reference, pack_place, len(built.pack)):
                    await self._staging.store_pack(pack_place, built.pack)
                    head = await self._add(request, key, reference, built, offered, number, place)
            except _Overtaken as overtaken:
                head = overtaken.head
                continue
            await self._staging.discard(request.upload_id)
            return Committed(head, key, is_new=True)
        raise RevisionConflict

    async def _add(
        self, request: Commit, key: KeyHead, reference: Reference, built: Built,
        offered: OfferedProvenance | None, number: int, place: str,
    ) -> AdapterHead:  # fmt: skip
        at_ms = wall_ms()

        async def add(now: AdapterHead | None) -> Change:
            access.check_push(key, reference.name, now)
            own = now or self._desk.new_head(reference, key)
            if own.num_revisions + 1 != number or not place.startswith(f"packs/{own.adapter_id}/"):
                # Somebody pushed meanwhile, or erased the adapter.
                raise _Overtaken(now)
            await self._admission.check_push(built.header.base, None)
            stored = next_revision(own, request, key.principal, built, place, at_ms)
            statement = self._statements.close(offered, made_of(own, stored.revision, built))
            await self._check_gate(reference, now, stored.revision, request.alias)
            return revision_added(own, request, stored, statement)

        return await self._desk.change(reference, key, request.idempotency_key, add)

    async def _is_erased_since(self, reference: Reference, at_ms: int) -> bool:
        """Tell whether the adapter that had the name then was erased, and all uploads to it with it."""
        places = self._desk.registry.places
        await places.read(reference)
        erased = await places.read_erased(reference)
        return erased is not None and erased[0].begun_at_ms >= at_ms

    async def _check_gate(
        self, reference: Reference, head: AdapterHead | None, revision: Revision, alias: str | None
    ) -> None:
        percent = head.canary_percent if head else 0
        await self._desk.gatekeeper.check(reference, head, revision, alias, percent)


class _Overtaken(Exception):
    """Another push took the revision number; ``head`` is what it made."""

    def __init__(self, head: AdapterHead | None) -> None:
        super().__init__()
        self.head = head


def _unbuilt(head: AdapterHead | None, request: Commit) -> Revision:
    """Return what a gate needs to know of the next revision before it is made: nobody has evaluated it."""
    number = head.num_revisions + 1 if head else 1
    return Revision(number, Digest(""), request.served_base, 0, 0, 0, "", "", 0)


def _of_digest(head: AdapterHead, digest: Digest) -> Revision | None:
    """Return the newest revision of ``digest`` that the head remembers and that is not retired."""
    found = [stored.revision for stored in head.revisions if stored.revision.digest == digest]
    kept = [revision for revision in found if not is_retired(head, revision.number)]
    return max(kept, key=lambda revision: revision.number, default=None)
