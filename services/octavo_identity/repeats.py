"""Which head a repeated write made: a write whose idempotency key an adapter has seen before, however long ago."""

from octavo_identity.heads import HeadStore
from octavo_identity.projection import Projection
from octavo_identity.records import WRITES_IN_HEAD_MAX, AdapterHead, RegistryEvent
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.telemetry import log

_LEDGER = "a part of the registry stream"


class Repeats:
    """The latest writes are told from the head, older ones from the view of the registry, and both from the stream.

    A busy adapter's head forgets a key within seconds. While the view is made anew, what is left is the server's own
    de-duplication, which keeps a write of the last two minutes from happening again (see ``HeadStore.append``).
    """

    def __init__(self, heads: HeadStore, projection: Projection) -> None:
        self._heads = heads
        self._projection = projection

    async def head_of(self, last: RegistryEvent, mark: str, *, is_deep: bool = True) -> AdapterHead | None:
        """Return the head that the write with ``mark`` made, or None if the adapter, at ``last``, never saw it.

        Not ``is_deep``: or if its head has forgotten it.

        Raises ``DependencyUnavailable`` while the view is a little behind, as when identity has just started.
        """
        head = adapter_head(last)
        if mark in head.writes:
            return await self._made(last, mark)
        if len(head.writes) < WRITES_IN_HEAD_MAX or not is_deep:
            # It has forgotten nothing yet, or whoever asks is told of nothing else.
            return None
        # What the event before had as its oldest write is the newest one that is forgotten now.
        if not await self._projection.reach(last.previous_sequence):
            log.warning("repeats_not_looked_up", sequence=self._projection.sequence, wanted=last.previous_sequence)
        sequence = await self._projection.find_write(head.adapter_id, mark)
        event = await self._heads.read_at(sequence) if sequence is not None else None
        if event is None:
            return None
        found = event.head
        if not isinstance(found, AdapterHead) or found.adapter_id != head.adapter_id or mark not in found.writes:
            log.warning("projection_misled", sequence=sequence)
            return None
        return await self._made(event, mark)

    async def _made(self, event: RegistryEvent, mark: str) -> AdapterHead:
        """Return the head that the write with ``mark`` made, which the head of ``event`` remembers."""
        while (head := adapter_head(event)).writes[-1] != mark:
            previous = await self._heads.read_at(event.previous_sequence)
            if previous is None or mark not in adapter_head(previous).writes:
                raise DependencyUnavailable(_LEDGER)
            event = previous
        return head


def adapter_head(event: RegistryEvent) -> AdapterHead:
    """Return the head of an event on an adapter's subject."""
    assert isinstance(event.head, AdapterHead), "a subject of an adapter holds adapter heads only"
    return event.head
