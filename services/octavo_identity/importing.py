"""The verb that registers many adapters at once."""

import asyncio

import msgspec

from octavo_identity import access
from octavo_identity.beginning import Beginning
from octavo_identity.committing import Committed
from octavo_identity.desk import Desk, adapter_reference
from octavo_identity.grouping import Group
from octavo_identity.moments import shared_reads
from octavo_identity.pushing import Pushing
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import KeyHead
from octavo_identity.registry import write_mark
from octavo_shared.errors import InvalidRequest, OctavoError
from octavo_shared.messages.importing import (
    IMPORT_ITEMS_MAX,
    ImportItem,
    ImportOutcome,
    ImportReport,
    ImportState,
    Register,
)
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.requests import Credential


class Importing:
    """One method, of the verb's name."""

    def __init__(self, desk: Desk, beginning: Beginning, pushing: Pushing, quotas: QuotaKeeper) -> None:
        self._desk = desk
        self._beginning = beginning
        self._pushing = pushing
        self._quotas = quotas

    async def register(self, request: Register) -> ImportReport:
        """Commit every item as ``commit`` does, events of adapters that begin in one atomic batch, others in another.

        An item that is refused, or whose adapter changed at the same time, is reported and holds up none of the
        others. Idempotent by each item's key; what is there with the same digest stays as it is.
        """
        key = await self._desk.authenticate(request.credential)
        access.check_stage(key)
        names = [item.adapter for item in request.items]
        if not 1 <= len(names) <= IMPORT_ITEMS_MAX:
            raise InvalidRequest("items", f"must be 1 to {IMPORT_ITEMS_MAX}")
        if len(set(names)) < len(names):
            raise InvalidRequest("items", "must name each adapter once")
        # Key, tenant and bases are those of all, and were a read of the leader each, several times for each item.
        with shared_reads():
            commits = {item.adapter: _commit_of(request.credential, item) for item in request.items if item.upload_id}
            begun = dict(zip(commits, await self._beginning.commit_all([*commits.values()]), strict=True))
            group = Group(self._desk.heads, len(names))
            pushing = self._pushing.through(self._desk.appending_with(group.append))

            async def one(item: ImportItem) -> ImportOutcome:
                with group.writer():
                    try:
                        if not item.upload_id:
                            return await self._look(key, item)
                        answer = begun[item.adapter] or await pushing.commit_once(commits[item.adapter])
                        return await self._told(item, answer)
                    except OctavoError as error:
                        return _refused(item, error)

            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(one(item), name="import") for item in request.items]
        return ImportReport(tuple(task.result() for task in running))

    async def _look(self, key: KeyHead, item: ImportItem) -> ImportOutcome:
        reference = adapter_reference(item.adapter)
        head = await self._desk.head_to_push(key, reference)
        mark = write_mark(key.principal, item.idempotency_key)
        made = await self._desk.registry.repeated(reference, mark) if head is not None else None
        if made is None:
            await self._quotas.check(reference, is_new=head is None)
            return ImportOutcome(item.adapter, ImportState.WANTED)
        return _outcome(item, Committed(made, key))

    async def _told(self, item: ImportItem, answer: Committed | OctavoError) -> ImportOutcome:
        """Return what became of an item that was committed, with what its pusher should know of the base."""
        if isinstance(answer, OctavoError):
            return _refused(item, answer)
        return msgspec.structs.replace(_outcome(item, answer), warnings=await self._pushing.warnings(answer))


def _commit_of(credential: Credential, item: ImportItem) -> Commit:
    return Commit(
        credential=credential, idempotency_key=item.idempotency_key, adapter=item.adapter, upload_id=item.upload_id,
        served_base=item.served_base, declared_base=item.declared_base, dtype=item.dtype, note=item.note,
        alias=item.alias, tags=item.tags, is_import=True, statement=item.statement,
    )  # fmt: skip


def _refused(item: ImportItem, error: OctavoError) -> ImportOutcome:
    return ImportOutcome(item.adapter, ImportState.REFUSED, refusal=error.refusal())


def _outcome(item: ImportItem, committed: Committed) -> ImportOutcome:
    state = ImportState.ADDED if committed.is_new else ImportState.PRESENT
    return ImportOutcome(item.adapter, state, committed.revision.number, committed.revision.digest)
