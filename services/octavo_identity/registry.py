"""Adapters, revisions and aliases: every change is one event, appended by compare-and-set on the adapter's head."""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import (
    REVISIONS_IN_HEAD_MAX,
    WRITES_IN_HEAD_MAX,
    AdapterHead,
    RegistryEvent,
    StoredRevision,
)
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.errors import AdapterNotFound, RevisionConflict
from octavo_shared.references import SERVING, Reference

_ATTEMPTS_MAX = 8
_MARK_LENGTH = 32
_LEDGER_WALK_MAX = 10_000


@dataclass(frozen=True)
class Change:
    """What a writer makes of a head: the new head, and how the ledger calls it."""

    kind: str
    head: AdapterHead
    detail: str = ""
    revision: StoredRevision | None = None


Make = Callable[[AdapterHead | None], Change]
"""Checks permission, then makes the change; called again when another writer was first."""


class Registry:
    """Reads and changes adapter heads. Names come in; only derived ids reach subjects."""

    def __init__(self, heads: HeadStore, ids: Ids) -> None:
        self._heads = heads
        self._ids = ids

    def _subject(self, tenant: str, adapter: str) -> str:
        tenant_id = self._ids.tenant(tenant)
        return subjects.adapter_head(self._ids.shard(tenant_id), tenant_id, self._ids.adapter(tenant, adapter))

    async def head(self, reference: Reference) -> AdapterHead | None:
        """Return the adapter's head as the leader has it."""
        found = await self._heads.read(self._subject(reference.tenant, reference.adapter))
        return _adapter_head(found[0]) if found else None

    async def change(self, reference: Reference, actor: str, write: str, make: Make) -> tuple[AdapterHead, int]:
        """Append what ``make`` makes of the current head; returns the new head and its sequence.

        ``make`` checks permission and raises; it is called again when another writer was first, a bounded number
        of times. A ``write`` (idempotency key) that the head remembers changes nothing and returns the head that it
        made then.
        """
        mark = write_mark(actor, write)
        subject = self._subject(reference.tenant, reference.adapter)
        for _ in range(_ATTEMPTS_MAX):
            found = await self._heads.read(subject)
            head, sequence = (_adapter_head(found[0]), found[1]) if found else (None, 0)
            if head is not None and mark in head.writes:
                return await self.head_of_write(reference, mark), sequence
            change = make(head)
            writes = (*change.head.writes, mark)[-WRITES_IN_HEAD_MAX:]
            new = msgspec.structs.replace(change.head, writes=writes)
            event = RegistryEvent(change.kind, actor, wall_ms(), sequence, new, change.detail, change.revision)
            try:
                return new, await self._heads.append(subject, event)
            except RevisionConflict:
                continue
        raise RevisionConflict

    async def head_of_write(self, reference: Reference, mark: str) -> AdapterHead:
        """Return the head that the write with ``mark`` made, which the current head remembers."""
        async for event, _ in self.ledger(reference, WRITES_IN_HEAD_MAX):
            head = _adapter_head(event)
            if head.writes[-1] == mark:
                return head
        raise RevisionConflict

    async def select(self, head: AdapterHead, reference: Reference) -> StoredRevision:
        """Return the revision that ``reference`` names; raises ``AdapterNotFound``."""
        number = reference.number
        if reference.digest is None and number is None:
            number = head.aliases.get(reference.alias or SERVING)
            if number is None:
                raise AdapterNotFound

        if number is not None and number > head.num_revisions:
            raise AdapterNotFound

        def is_wanted(stored: StoredRevision) -> bool:
            if reference.digest is not None:
                return stored.revision.digest == reference.digest
            return stored.revision.number == number

        for stored in reversed(head.revisions):
            if is_wanted(stored):
                return stored
        if len(head.revisions) < head.num_revisions:
            async for event, _ in self.ledger(reference, _LEDGER_WALK_MAX):
                if event.revision is not None and is_wanted(event.revision):
                    return event.revision
        raise AdapterNotFound

    async def ledger(self, reference: Reference, num_max: int) -> AsyncIterator[tuple[RegistryEvent, int]]:
        """Yield the adapter's events with their sequences, newest first."""
        found = await self._heads.read(self._subject(reference.tenant, reference.adapter))
        for _ in range(num_max):
            if found is None:
                return
            event, sequence = found
            yield event, sequence
            previous = await self._heads.read_at(event.previous_sequence) if event.previous_sequence else None
            found = (previous, event.previous_sequence) if previous else None


def write_mark(actor: str, write: str) -> str:
    """Return how a head remembers a write: of fixed length, however long the caller's idempotency key is."""
    return hashlib.sha256(f"{actor}\0{write}".encode()).hexdigest()[:_MARK_LENGTH]


def with_revision(head: AdapterHead, stored: StoredRevision) -> AdapterHead:
    """Return ``head`` with one more revision, which ``serving`` names; keeps the newest and the aliased ones."""
    aliases = head.aliases | {SERVING: stored.revision.number}
    revisions = (*head.revisions, stored)
    oldest_kept = stored.revision.number - REVISIONS_IN_HEAD_MAX
    kept = tuple(
        old for old in revisions if old.revision.number > oldest_kept or old.revision.number in aliases.values()
    )
    return msgspec.structs.replace(head, num_revisions=stored.revision.number, revisions=kept, aliases=aliases)


def _adapter_head(event: RegistryEvent) -> AdapterHead:
    assert isinstance(event.head, AdapterHead), "a subject of an adapter holds adapter heads only"
    return event.head
