"""Heads in one JetStream stream: leader reads and compare-and-set. The only durable truth."""

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity import moments
from octavo_identity.batching import Entry, append_batch
from octavo_identity.copying import copy_last, copy_run
from octavo_identity.data_keys import DataKeys
from octavo_identity.event_form import LOST, Opener, decode_event, encode_event, owner_of
from octavo_identity.field_keys import FieldKeys
from octavo_identity.records import AdapterHead, ErasedHead, RegistryEvent
from octavo_identity.stream import SMALL_BLOCKS, Stream, StreamState
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterErased, AdapterUnavailable, DependencyUnavailable, RevisionConflict
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.subjects import REGISTRY_STREAM, REGISTRY_SUBJECTS
from octavo_shared.telemetry import log

_ID_LENGTH = 32
_READS_MAX = 128
"""Of single events at the same time."""
_READS_OF_HEAD = 3
_KEPT_TOGETHER = 256
"""Field keys: half a millisecond, between which the loop does other things."""


class HeadStore:
    """The registry stream as events. Every method raises ``DependencyUnavailable``; see ``Stream``.

    What is said of adapters is sealed on its way in and opened on its way out. Without ``keys`` only the rest, such as
    API keys and tenants, is written and read.
    """

    def __init__(self, bus: Bus, num_replicas: int, keys: DataKeys | None = None) -> None:
        self._fields = FieldKeys(keys) if keys is not None else None
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
            max_msgs_per_subject=SMALL_BLOCKS,
            deny_delete=True,
            deny_purge=True,
            allow_atomic=True,
            allow_direct=True,
        )
        await self._stream.ensure(config)

    async def read(self, subject: str) -> tuple[RegistryEvent, int] | None:
        """Return the last event on ``subject``, which may hold wildcards, and its sequence, or None.

        Where reads are shared (see ``moments``) it may have been the last one a moment ago, unless it is an adapter's.
        """
        adapter_id = subjects.adapter_of(subject)
        if adapter_id is None:
            return await moments.read(subject, self._read_clear)
        for _ in range(_READS_OF_HEAD):
            found, key = await self._get_with_key(subject, AdapterId(adapter_id))
            if found is None:
                return None
            if owner_of(found) is None:
                event = decode_event(found, None)
                if isinstance(event.head, ErasedHead):
                    self.forget(event.head.adapter_id)
                return event, found.sequence
            if key is not None:
                return decode_event(found, key), found.sequence
            # It was made since it was last looked for, or erased between the two reads: then the head will say so.
            self._of_events().cache.forget(AdapterId(adapter_id))
        log.error("event_not_opened", subject=subject)
        raise DependencyUnavailable(LOST)

    async def _read_clear(self, subject: str) -> tuple[RegistryEvent, int] | None:
        found = await self._stream.get(subject=subject)
        return (decode_event(found, None), found.sequence) if found else None

    async def _get_with_key(self, subject: str, adapter_id: AdapterId) -> tuple[LedgerEvent | None, bytes | None]:
        """Return the last message on ``subject``, and the adapter's field key if there is one.

        A key that was not seen lately is asked for at the same time.
        """
        fields = self._of_events()
        if fields.cache.knows(adapter_id):
            return await self._stream.get(subject=subject), fields.cache.get(adapter_id)

        async def read() -> bytes | None:
            with contextlib.suppress(AdapterErased, AdapterUnavailable):
                return await fields.read(adapter_id)
            return None

        return await asyncio.gather(self._stream.get(subject=subject), read())

    async def read_at(self, sequence: int) -> RegistryEvent | None:
        """Return the event at ``sequence``; raises ``DependencyUnavailable`` also when its adapter was just erased."""
        found = await self._stream.get(sequence=sequence)
        if found is None:
            return None
        owner = owner_of(found)
        return decode_event(found, await self._read_fields(owner) if owner is not None else None)

    async def opener(self, events: Iterable[LedgerEvent]) -> Opener:
        """Return what opens ``events``, with keys that any replica has; for copies, never for a decision."""
        owners = {AdapterId(one) for event in events if (one := subjects.adapter_of(event.subject)) is not None}
        return Opener(await self._of_events().copy(owners) if owners else {})

    async def keep(self, keys: Mapping[AdapterId, bytes]) -> None:
        """Keep field keys that events were opened with: whoever asks for their adapters next waits for heads only.

        They are copies, so that of an adapter that was erased meanwhile may be among them: ``forget`` it when the event
        comes that says so.
        """
        if self._fields is not None:
            for number, (adapter_id, key) in enumerate(keys.items(), 1):
                self._fields.cache.put(adapter_id, key)
                if number % _KEPT_TOGETHER == 0:
                    await asyncio.sleep(0)

    def forget(self, adapter_id: AdapterId) -> None:
        """Keep no key of an adapter that was erased."""
        if self._fields is not None:
            self._fields.cache.keep_absent(adapter_id)

    def forget_all(self) -> None:
        """Keep no key of any adapter, until it is read again."""
        if self._fields is not None:
            self._fields.cache.forget_all()

    def _of_events(self) -> FieldKeys:
        assert self._fields is not None, "without keys only what is of no adapter is read and written"
        return self._fields

    async def _read_fields(self, adapter_id: AdapterId) -> bytes:
        try:
            return await self._of_events().read(adapter_id)
        except (AdapterErased, AdapterUnavailable) as error:
            raise DependencyUnavailable(LOST) from error

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

    async def next_on(self, subject: str, first: int) -> LedgerEvent | None:
        """Return the first event on ``subject`` at sequence ``first`` or behind it, as it is stored."""
        return await self._stream.get_next(first, subject)

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

    async def taken(self, of: Sequence[str]) -> Collection[str]:
        """Return those of up to ``COPIED_MAX`` subjects that have an event, as far as some replica has seen.

        It is one request for all. For who appends to the others and is told by that if it was wrong.
        """
        return await copy_last(self._bus, REGISTRY_STREAM, of) if of else ()

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
        data = (await self._encode([(subject, event)]))[0]
        try:
            return await self._stream.append(subject, data, event.previous_sequence, message_id)
        finally:
            # Whoever was second looks again, and must not see what was there before.
            moments.forget(subject)

    async def append_all(self, events: Sequence[tuple[str, RegistryEvent]]) -> list[int]:
        """Append events with their subjects as ``append`` does, in one atomic batch; see ``append_batch``."""
        encoded = await self._encode(events)
        entries = [
            Entry(subject, data, event.previous_sequence)
            for (subject, event), data in zip(events, encoded, strict=True)
        ]
        return await append_batch(self._bus, entries)

    async def _encode(self, events: Sequence[tuple[str, RegistryEvent]]) -> list[bytes]:
        """Return the bytes of events, sealed where they are of adapters; those that begin get their keys now.

        Raises ``RevisionConflict`` when an adapter was erased.
        """
        begun: list[tuple[TenantId, AdapterId]] = []
        known: list[AdapterId] = []
        for _, event in events:
            if isinstance(event.head, AdapterHead):
                tenant_id, adapter_id = event.head.tenant_id, event.head.adapter_id
                if event.previous_sequence:
                    known.append(adapter_id)
                else:
                    begun.append((tenant_id, adapter_id))
        fields: Mapping[AdapterId, bytes] = {}
        if begun or known:
            try:
                fields = await self._of_events().to_write(begun, known)
            except AdapterErased:
                raise RevisionConflict from None
        return [encode_event(subject, event, fields) for subject, event in events]
