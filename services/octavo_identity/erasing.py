"""The verb that destroys an adapter: keys, packs, uploads, and the copies on every worker; and what finishes it."""

import asyncio
import contextlib
import hmac

import msgspec

from octavo_identity import access
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk, adapter_reference
from octavo_identity.fleet import Fleet
from octavo_identity.records import AdapterHead, ErasedHead, KeyHead, RegistryEvent
from octavo_identity.registry import write_mark
from octavo_shared import dsse, subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DependencyUnavailable, OctavoError, RevisionConflict
from octavo_shared.messages import privacy as messages
from octavo_shared.messages.keys import Role
from octavo_shared.messages.privacy import LEASE_MS, RECEIPT_TYPE, EraseDone, EraseOrder, Receipt
from octavo_shared.objects import ObjectStore
from octavo_shared.references import AdapterId, Reference, WorkerId
from octavo_shared.telemetry import log

_ATTEMPTS_MAX = 8
_ORDER_TIMEOUT_S = 8.0
_KEYS_MAX = 1_000
_ROUNDS_MAX = 1_000
_FINISH_EVERY_S = 2.0
_PATIENCE_MS = 120_000
"""Longer than the verb may take: what is older was left behind by an identity that is gone, or by a lost connection."""


class Erasing:
    """One method of the verb's name, and ``run``, which finishes what somebody else began."""

    def __init__(
        self,
        desk: Desk,
        bus: Bus,
        store: ObjectStore,
        keys: DataKeys,
        fleet: Fleet,
        signer: dsse.Signer,
        patience_ms: int = _PATIENCE_MS,
    ) -> None:
        self._desk = desk
        self._bus = bus
        self._store = store
        self._keys = keys
        self._fleet = fleet
        self._signer = signer
        self._patience_ms = patience_ms

    async def erase(self, request: messages.Erase) -> messages.Erased:
        """Destroy an adapter with all its revisions; for its owner, and for admins. There is no way back.

        The intent is an event: from it on nobody gets the adapter, its name is free, and whatever goes wrong, some
        identity ends what was begun. Returns when everything is destroyed. Idempotent by key; and where nothing has the
        name now, a further request gets the receipt of whatever had it. Raises ``DependencyUnavailable`` when something
        could not be destroyed yet: it will be, and asking again tells.
        """
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        mark = write_mark(key.principal, request.idempotency_key)
        for _ in range(_ATTEMPTS_MAX):
            try:
                head, sequence = await self._begin(key, reference, mark)
            except RevisionConflict:
                continue
            if not head.receipt:
                try:
                    head = await self._finish(head, sequence)
                except RevisionConflict:
                    # Somebody else finished it a moment earlier.
                    continue
            return messages.Erased(head.adapter_id, head.receipt, self._signer.public_key.pem)
        raise RevisionConflict

    async def _begin(self, key: KeyHead, reference: Reference, mark: str) -> tuple[ErasedHead, int]:
        places = self._desk.registry.places
        found = await places.read(reference)
        before = await places.read_erased(reference)
        if before is not None and (found is None or before[0].write == mark) and self._may_see(key, before[0]):
            return before
        head = found[0].head if found else None
        assert head is None or isinstance(head, AdapterHead)
        live = access.check_erase(key, head)
        assert found is not None
        owner_mark = self._desk.ids.owner_mark(live.adapter_id, live.owner)
        erased = ErasedHead(
            live.adapter_id, live.tenant_id, places.incarnation(reference) + 1, owner_mark, mark, wall_ms()
        )
        event = RegistryEvent("erasing", _actor(key), wall_ms(), found[1], erased)
        return erased, await self._append(event)

    def _may_see(self, key: KeyHead, head: ErasedHead) -> bool:
        """Tell whether ``key`` may have the receipt: the owner and admins may, which no name in it says."""
        own_mark = self._desk.ids.owner_mark(head.adapter_id, key.principal)
        return access.is_admin(key) or hmac.compare_digest(head.owner_mark, own_mark)

    async def run(self) -> None:
        """Finish for ever what has been under way for longer than whoever began it would take."""
        while True:
            await asyncio.sleep(_FINISH_EVERY_S)
            try:
                await self.finish_all()
            except DependencyUnavailable as error:
                log.debug("erasures_wait", detail=error.message)

    async def finish_all(self) -> None:
        """Finish what the view of the registry shows as begun and not finished, if it is old enough."""
        for tenant_id, adapter_id in await self._desk.projection.open_erasures():
            subject = subjects.adapter_head(self._desk.ids.shard(tenant_id), tenant_id, adapter_id)
            found = await self._desk.heads.read(subject)
            head = found[0].head if found else None
            # The view may be behind, or begin again.
            if found is None or not isinstance(head, ErasedHead) or head.receipt:
                continue
            if head.begun_at_ms <= wall_ms() - self._patience_ms:
                with contextlib.suppress(RevisionConflict):
                    await self._finish(head, found[1])

    async def _finish(self, head: ErasedHead, sequence: int) -> ErasedHead:
        """Destroy all that there is, in an order in which nothing can come back, and sign that it is done."""
        adapter_id = head.adapter_id
        # From here on no pack of it can be opened any more by who has not got the key yet ...
        await self._keys.destroy(adapter_id)
        # ... and no worker that can hear of it keeps what it has.
        await self._keys.tell_erased(adapter_id)
        told_at_ms = wall_ms()
        workers = await self._fleet.known()
        answers = await asyncio.gather(*(self._order(worker_id, adapter_id) for worker_id in workers))
        num_uploads = await self._delete_uploads(adapter_id)
        num_packs = await self._delete_packs(adapter_id)
        receipt = Receipt(
            adapter_id=adapter_id,
            tenant_id=head.tenant_id,
            begun_at_ms=head.begun_at_ms,
            erased_at_ms=wall_ms(),
            num_packs=num_packs,
            num_uploads=num_uploads,
            acknowledged=tuple(worker for worker, answer in zip(workers, answers, strict=True) if answer),
            fenced=tuple(worker for worker, answer in zip(workers, answers, strict=True) if not answer),
            fenced_until_ms=told_at_ms + LEASE_MS,
        )
        envelope = dsse.encode(dsse.sign(RECEIPT_TYPE, dsse.encode_json(receipt), self._signer))
        done = msgspec.structs.replace(head, receipt=envelope)
        await self._append(RegistryEvent("erased", "identity", wall_ms(), sequence, done))
        log.info(
            "adapter_erased",
            num_packs=num_packs,
            num_acknowledged=len(receipt.acknowledged),
            num_fenced=len(receipt.fenced),
        )
        return done

    async def _append(self, event: RegistryEvent) -> int:
        head = event.head
        assert isinstance(head, ErasedHead)
        subject = subjects.adapter_head(self._desk.ids.shard(head.tenant_id), head.tenant_id, head.adapter_id)
        sequence = await self._desk.heads.append(subject, event)
        self._desk.projection.expect(sequence)
        return sequence

    async def _order(self, worker_id: WorkerId, adapter_id: AdapterId) -> bool:
        subject = subjects.worker(worker_id, "erase")
        try:
            await self._bus.request(subject, EraseOrder(adapter_id), EraseDone, _ORDER_TIMEOUT_S, who="worker")
        except OctavoError as error:
            log.warning("erase_unanswered", worker_id=worker_id, code=error.code)
            return False
        return True

    async def _delete_packs(self, adapter_id: AdapterId) -> int:
        """Delete every object of the adapter, also what no revision names; returns how many there were."""
        num_deleted = 0
        for _ in range(_ROUNDS_MAX):
            keys = await self._store.keys(f"packs/{adapter_id}/", num_max=_KEYS_MAX)
            if not keys:
                return num_deleted
            for object_key in keys:
                await self._store.delete(object_key)
            num_deleted += len(keys)
        raise DependencyUnavailable("object storage")

    async def _delete_uploads(self, adapter_id: AdapterId) -> int:
        """Delete what was staged for the adapter, the keys last: they are what tells of the rest."""
        num_deleted = 0
        while (upload_id := await self._keys.next_upload_of(adapter_id)) is not None:
            for object_key in await self._store.keys(f"staging/{upload_id}/"):
                await self._store.delete(object_key)
            await self._keys.destroy_upload(upload_id)
            num_deleted += 1
        return num_deleted


def _actor(key: KeyHead) -> str:
    """Return who erases: the event outlives all names."""
    return "admin" if key.role is Role.ADMIN else "owner"
