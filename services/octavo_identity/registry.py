"""Adapters, revisions and aliases: every change is one event, appended by compare-and-set on the adapter's head."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.places import Places
from octavo_identity.projection import Projection
from octavo_identity.records import WRITES_IN_HEAD_MAX, AdapterHead, RegistryEvent, StoredRevision
from octavo_identity.repeats import Repeats, adapter_head
from octavo_identity.states import is_retired
from octavo_identity.stream import AlreadyAppended
from octavo_shared.clock import wall_ms
from octavo_shared.errors import AdapterNotFound, DependencyUnavailable, RevisionConflict, RevisionRetired
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.references import SERVING, AdapterId, Reference
from octavo_shared.telemetry import log

_ATTEMPTS_MAX = 8
_MARK_LENGTH = 32
LEDGER_WALK_MAX = 2_000
"""Leader reads, one after the other: about 0.6 s."""


class Change(msgspec.Struct, frozen=True):
    """What a writer makes of a head: the new head, and how the ledger calls it.

    Like all that every push makes one of it is a struct: a frozen dataclass takes ten times as long to make.
    """

    kind: str
    head: AdapterHead
    detail: str = ""
    revision: StoredRevision | None = None
    statement: bytes = b""
    evaluation: Evaluation | None = None


Make = Callable[[AdapterHead | None], Awaitable[Change | None]]
"""Checks permission, then makes the change, or None when all is as wanted; called again when another was first."""

Append = Callable[[str, RegistryEvent, str], Awaitable[int]]
"""Does what ``HeadStore.append`` does."""

Check = Callable[[AdapterHead], object]
"""Raises when the caller may not have what is of this adapter."""


def no_check(head: AdapterHead) -> None:
    """Let anybody have it."""


class Registry:
    """Reads and changes adapter heads. Names come in; only derived ids reach subjects."""

    def __init__(
        self, heads: HeadStore, ids: Ids, projection: Projection, ledger_walk_max: int = LEDGER_WALK_MAX,
        append: Append | None = None,
    ) -> None:  # fmt: skip
        self._heads = heads
        self.places = Places(heads, ids)
        self._append = append or heads.append
        self._projection = projection
        self._repeats = Repeats(heads, projection)
        self._ledger_walk_max = ledger_walk_max

    async def head(self, reference: Reference) -> AdapterHead | None:
        """Return the adapter's head as the leader has it."""
        found = await self.places.read(reference)
        return adapter_head(found[0]) if found else None

    async def change(
        self,
        reference: Reference,
        actor: str,
        write: str,
        make: Make,
        check_repeat: Check = no_check,
        *,
        is_deep: bool = True,
    ) -> tuple[AdapterHead, int]:
        """Append what ``make`` makes of the current head; returns the new head and its sequence.

        ``make`` checks permission and raises; it is called again when another writer was first, a bounded number
        of times. A ``write`` (idempotency key) that the head remembers changes nothing and returns the head that it
        made then, if ``check_repeat`` of the current head does not raise: rights may have been taken back since; so it
        is with one that the head has forgotten (see ``Repeats``). It is asked before anything is looked for, so that a
        stranger waits as long as for what is not there; not ``is_deep``: only what the head remembers is told. A write
        that had nothing to change left no event, so nothing remembers it.
        """
        mark = write_mark(actor, write)
        for _ in range(_ATTEMPTS_MAX):
            found = await self.places.read(reference)
            place = self.places.now(reference)
            head, sequence = (adapter_head(found[0]), found[1]) if found else (None, 0)
            if found and head is not None:
                check_repeat(head)
                if made := await self._repeats.head_of(found[0], mark, is_deep=is_deep):
                    return made, sequence
            change = await make(head)
            if change is None:
                assert head is not None, "only what is there can be as wanted"
                return head, sequence
            if change.head.adapter_id != self.places.now(reference).adapter_id:
                # It was made for an adapter that was erased meanwhile.
                raise RevisionConflict
            event = recorded(change, actor, mark, wall_ms(), sequence)
            try:
                return adapter_head(event), await self._append(place.subject, event, mark)
            except AlreadyAppended as repeated:
                made_before = await self._heads.read_at(repeated.sequence)
                if made_before is None:
                    raise DependencyUnavailable("a part of the registry stream") from None
                check_repeat(head if head is not None else adapter_head(made_before))
                return adapter_head(made_before), repeated.sequence
            except RevisionConflict:
                continue
        raise RevisionConflict

    async def repeated(self, reference: Reference, mark: str) -> AdapterHead | None:
        """Return the head that the write with ``mark`` made before, or None if there was none."""
        found = await self.places.read(reference)
        return await self._repeats.head_of(found[0], mark) if found else None

    async def select(self, head: AdapterHead, reference: Reference) -> StoredRevision:
        """Return the revision that ``reference`` names and that may be served.

        Raises ``RevisionRetired``, and what ``find`` raises.
        """
        stored = await self.find(head, reference)
        if is_retired(head, stored.revision.number):
            raise RevisionRetired(stored.revision.number)
        return stored

    async def find(self, head: AdapterHead, reference: Reference) -> StoredRevision:
        """Return the revision that ``reference`` names, retired or not; raises ``AdapterNotFound``.

        Of several with one digest it is the newest that is not retired, as far as the head remembers them.
        One that is older than the head remembers costs one leader read, where the projection says that it is. Only
        while that is behind is the ledger walked; raises ``DependencyUnavailable`` when the walk does not come to it.
        """
        number = reference.number
        if reference.digest is None and number is None:
            number = head.aliases.get(reference.alias or SERVING)
            if number is None:
                raise AdapterNotFound

        def is_wanted(stored: StoredRevision) -> bool:
            if reference.digest is not None:
                return stored.revision.digest == reference.digest
            return stored.revision.number == number

        known = [stored for stored in reversed(head.revisions) if is_wanted(stored)]
        if known:
            return min(known, key=lambda stored: is_retired(head, stored.revision.number))
        if len(head.revisions) == head.num_revisions or (number or 0) > head.num_revisions:
            raise AdapterNotFound
        hint = await self._projection.find_revision(head.adapter_id, number, reference.digest)
        if hint.sequence is None and reference.digest is not None and hint.newest >= head.num_revisions:
            # Its revisions are all known, and none is this one.
            raise AdapterNotFound
        if hint.sequence is not None:
            event = await self._heads.read_at(hint.sequence)
            found = _revision_of(event, head.adapter_id) if event else None
            if found is not None and is_wanted(found):
                return found
            log.warning("projection_misled", sequence=hint.sequence)
        event = None
        async for event, _ in self.ledger(reference, self._ledger_walk_max):
            if event.revision is not None and is_wanted(event.revision):
                return event.revision
        if event is not None and event.previous_sequence:
            raise DependencyUnavailable("the view of the registry")
        raise AdapterNotFound

    async def event_of(
        self, head: AdapterHead, reference: Reference, stored: StoredRevision
    ) -> tuple[RegistryEvent, int]:
        """Return the event that made a revision, with its sequence.

        It is where the projection says, or else the ledger is walked; raises ``DependencyUnavailable`` when the walk
        does not come to it.
        """
        number = stored.revision.number
        hint = await self._projection.find_revision(head.adapter_id, number, None)
        if hint.sequence is not None:
            event = await self._heads.read_at(hint.sequence)
            found = _revision_of(event, head.adapter_id) if event else None
            if event is not None and found is not None and found.revision.number == number:
                return event, hint.sequence
        async for event, sequence in self.ledger(reference, self._ledger_walk_max):
            if event.revision is not None and event.revision.revision.number == number:
                return event, sequence
        raise DependencyUnavailable("the view of the registry")

    def ledger(self, reference: Reference, num_max: int) -> AsyncIterator[tuple[RegistryEvent, int]]:
        """Yield the events, with their sequences, of the adapter that was last read by that name, newest first."""
        return walk(self._heads, self.places.now(reference).subject, num_max)


async def walk(heads: HeadStore, subject: str, num_max: int) -> AsyncIterator[tuple[RegistryEvent, int]]:
    """Yield up to ``num_max`` events of the last event's adapter on ``subject``, with sequences, newest first."""
    found = await heads.read(subject)
    for _ in range(num_max):
        if found is None:
            return
        event, sequence = found
        yield event, sequence
        if not event.previous_sequence:
            return
        previous = await heads.read_at(event.previous_sequence)
        if previous is None:
            raise DependencyUnavailable("a part of the registry stream")
        found = previous, event.previous_sequence


def recorded(change: Change, actor: str, mark: str, at_ms: int, previous_sequence: int) -> RegistryEvent:
    """Return the event of a change, whose head remembers the write by its ``mark``."""
    head = msgspec.structs.replace(change.head, writes=(*change.head.writes, mark)[-WRITES_IN_HEAD_MAX:])
    return RegistryEvent(
        change.kind, actor, at_ms, previous_sequence, head, change.detail, change.revision,
        statement=change.statement, evaluation=change.evaluation,
    )  # fmt: skip


def write_mark(actor: str, write: str) -> str:
    """Return how a head remembers a write: of fixed length, however long the caller's idempotency key is."""
    return hashlib.sha256(f"{actor}\0{write}".encode()).hexdigest()[:_MARK_LENGTH]


def _revision_of(event: RegistryEvent, adapter_id: AdapterId) -> StoredRevision | None:
    is_of_it = isinstance(event.head, AdapterHead) and event.head.adapter_id == adapter_id
    return event.revision if is_of_it else None
