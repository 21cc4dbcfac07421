"""Heads in one JetStream stream: leader reads and compare-and-set. The only durable truth."""

import hashlib
from collections.abc import Sequence

import msgspec
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity.batching import Entry, append_batch
from octavo_identity.copying import copy_run
from octavo_identity.records import RegistryEvent
from octavo_identity.stream import Stream, StreamState
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.subjects import REGISTRY_STREAM, REGISTRY_SUBJECTS
from octavo_shared.telemetry import log

_ID_LENGTH = 32
_READS_MAX = 128
"""Of single events at the same time."""
_decoder = msgspec.msgpack.Decoder(RegistryEvent)


class HeadStore:
    """The registry stream as events. Every method raises ``DependencyUnavailable``; see ``Stream``."""

    def __init__(self, bus: Bus, num_replicas: int) -> None:
        self._bus = bus
        self._stream = Stream(bus, REGISTRY_STREAM)
        self._num_replicas = num_replicas

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there; nothing in it can be deleted."""
        config = StreamConfig(
            name=REGISTRY_STREAM,
            subjects=list(REGISTRY_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            deny_delete=True,
            deny_purge=True,
            allow_atomic=True,
            allow_direct=True,
        )
        await self._stream.ensure(config)

    async def read(self, subject: str) -> tuple[RegistryEvent, int] | None:
        """Return the last event on ``subject``, which may hold wildcards, and its sequence, or None."""
        found = await self._stream.get(subject=subject)
        return (event_of(found), found.sequence) if found else None

    async def read_at(self, sequence: int) -> RegistryEvent | None:
        """Return the event at ``sequence``."""
        found = await self._stream.get(sequence=sequence)
        return event_of(found) if found else None

    async def read_range(self, first: int, last: int) -> list[LedgerEvent]:
        """Return the events from sequence ``first`` to ``last``, both included, of all subjects, in order, as stored.

        Reads go out together, so the caller bounds the range. Nothing is ever deleted from the stream, so a hole is
        damage, which raises ``DependencyUnavailable``: whoever went on behind it would not know what is missing.
        """
        found = await self._stream.get_range(first, last)
        complete = [one for one in found if one is not None]
        if len(complete) < len(found):
            raise DependencyUnavailable("a part of the registry stream")
        return complete

    async def read_what_is_left(self, first: int, last: int) -> list[LedgerEvent]:
        """Return as ``read_range`` does, but read over holes: for an audit, which is there to find them."""
        return [one for one in await self._stream.get_range(first, last) if one is not None]

    async def next_sequence(self, first: int) -> int | None:
        """Return the sequence of the first event that is left at ``first`` or behind it."""
        found = await self._stream.get_next(first, ">")
        return found.sequence if found else None

    async def copy_range(self, first: int, last: int) -> list[LedgerEvent]:
        """Return what ``read_range`` does, ``COPIED_MAX`` events at most, for copies that no decision is made from.

        It is ten times as fast: any replica may answer, in one go. Only what its answer lacks is asked of the leader.
        """
        found = await copy_run(self._bus, REGISTRY_STREAM, first, last)
        for begin in range(first, last + 1, _READS_MAX):
            end = min(begin + _READS_MAX - 1, last)
            if any(sequence not in found for sequence in range(begin, end + 1)):
                found |= {event.sequence: event for event in await self.read_range(begin, end)}
        return [found[sequence] for sequence in range(first, last + 1)]

    async def state(self) -> StreamState:
        """Return what the leader says of the stream."""
        return await self._stream.state()

    async def append(self, subject: str, event: RegistryEvent, mark: str = "") -> int:
        """Append ``event`` if the last one on ``subject`` still is ``event.previous_sequence``.

        Raises ``RevisionConflict`` when somebody else was first, and ``DependencyUnavailable`` when it is unknown
        whether the event was stored; the writer's idempotency key makes trying again safe. With a ``mark``, which no
        other write on this subject has, raises ``AlreadyAppended`` when the last minutes had one with it.
        """
        # The server knows ids of the whole stream; the same key may be used for several adapters.
        message_id = hashlib.sha256(f"{subject}\0{mark}".encode()).hexdigest()[:_ID_LENGTH] if mark else ""
        return await self._stream.append(subject, msgspec.msgpack.encode(event), event.previous_sequence, message_id)

    async def append_all(self, events: Sequence[tuple[str, RegistryEvent]]) -> list[int]:
        """Append events with their subjects as ``append`` does, in one atomic batch; see ``append_batch``."""
        encode = msgspec.msgpack.encode
        entries = [Entry(subject, encode(event), event.previous_sequence) for subject, event in events]
        return await append_batch(self._bus, entries)


def event_of(stored: LedgerEvent) -> RegistryEvent:
    """Return what the bytes in the stream say; raises ``DependencyUnavailable`` when somebody damaged them."""
    try:
        return _decoder.decode(stored.data)
    except msgspec.MsgspecError as error:
        log.error("event_damaged", sequence=stored.sequence, detail=str(error))
        raise DependencyUnavailable("a part of the registry stream") from error
