"""Wrapped data keys in a JetStream stream of their own: what can be deleted, for good, is deleted here.

An adapter's key is the last message on its subject. It is made by compare-and-set, so that all replicas wrap one key,
and destroyed by overwriting it in the stream's files; what is left in its place says so and keeps another from being
made. A key that was destroyed takes with it all that was ever sealed under it, wherever copies lie.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity.batching import BATCH_MAX, BatchRefused, Entry, append_batch
from octavo_identity.copying import COPIED_MAX, copy_last
from octavo_identity.field_cache import FieldCache
from octavo_identity.key_provider import KeyProvider, KeyUnusable
from octavo_identity.stream import SMALL_BLOCKS, Stream
from octavo_shared import decoding, subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.errors import AdapterErased, AdapterUnavailable, DependencyUnavailable, RevisionConflict
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.messages.privacy import ERASURES_MAX, Erasures
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.seal import new_key
from octavo_shared.sealed_event import field_key
from octavo_shared.telemetry import log

_ATTEMPTS_MAX = 8
_READS_MAX = 128
"""At the same time, of one caller."""
_STEP_KEYS = 128
"""Unwrapped in one go: a millisecond or two, between which the loop does other things."""

T = TypeVar("T")


class WrappedKey(msgspec.Struct, frozen=True, tag="key"):
    """A data key that the tenant key ``key_id`` wraps."""

    key_id: str
    wrapped: bytes
    at_ms: int


class DestroyedKey(msgspec.Struct, frozen=True, tag="gone"):
    at_ms: int


_decoder = decoding.msgpack_decoder(WrappedKey | DestroyedKey)


class DataKeys:
    """Every method raises ``DependencyUnavailable`` while JetStream, or the key provider, does not answer.

    ``fields`` has the field keys of adapters whose data keys were lately made or read here.
    """

    def __init__(self, bus: Bus, num_replicas: int, provider: KeyProvider) -> None:
        self.fields = FieldCache()
        self._bus = bus
        self._stream = Stream(bus, subjects.KEY_STREAM)
        self._num_replicas = num_replicas
        self._provider = provider

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there. It may not be purged; single messages may be deleted."""
        config = StreamConfig(
            name=subjects.KEY_STREAM,
            subjects=list(subjects.KEY_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            max_msgs_per_subject=SMALL_BLOCKS,
            deny_purge=True,
            allow_atomic=True,
            allow_direct=True,
        )
        await self._stream.ensure(config)

    async def make(self, tenant_id: TenantId, adapter_id: AdapterId) -> bytes:
        """Return the adapter's data key, made now if there is none; raises ``AdapterErased``."""
        key = await self._make(subjects.data_key(adapter_id), tenant_id)
        self.fields.keep(adapter_id, key)
        return key

    async def make_all(self, owners: Sequence[tuple[TenantId, AdapterId]]) -> dict[AdapterId, bytes]:
        """Make data keys of adapters most of which have none yet, in atomic batches, and return their field keys.

        Raises as ``make`` does.
        """
        made: dict[AdapterId, bytes] = {}
        for run in _runs(owners, BATCH_MAX):
            try:
                made |= await self._make_batch(run)
            except (RevisionConflict, BatchRefused):
                # Some have one, and which is not known.
                keys = await _gather([self.make(*owner) for owner in run])
                made |= {adapter_id: field_key(key) for (_, adapter_id), key in zip(run, keys, strict=True)}
        return made

    async def _make_batch(self, owners: Sequence[tuple[TenantId, AdapterId]]) -> dict[AdapterId, bytes]:
        if len(owners) == 1:
            raise BatchRefused("one message is no batch")
        keys = {adapter_id: new_key() for _, adapter_id in owners}
        entries = [await self._entry(subjects.data_key(one), tenant, keys[one]) for tenant, one in owners]
        await append_batch(self._bus, entries)
        return {adapter_id: self.fields.keep(adapter_id, key) for adapter_id, key in keys.items()}

    async def copy(self, adapter_ids: Sequence[AdapterId]) -> dict[AdapterId, bytes | None]:
        """Return the data keys of many adapters, None for one that was destroyed; what has none is left out.

        For copies: any replica may answer for what it has, so one that was destroyed a moment ago may be among them.
        """
        found: dict[AdapterId, bytes | None] = {}
        for run in _runs(adapter_ids, COPIED_MAX):
            wanted = {subjects.data_key(adapter_id): adapter_id for adapter_id in run}
            messages = await copy_last(self._bus, subjects.KEY_STREAM, list(wanted))
            lacking = [subject for subject in wanted if subject not in messages]
            for stored in await _gather([self._stream.get(subject=subject) for subject in lacking]):
                if stored is not None:
                    messages[stored.subject] = stored
            for step in _runs(list(messages.values()), _STEP_KEYS):
                for stored in step:
                    # One that does not open is reported. The others are to be had all the same.
                    with contextlib.suppress(AdapterUnavailable):
                        found[wanted[stored.subject]] = await self._open_or_none(stored)
                await asyncio.sleep(0)
        return found

    async def _open_or_none(self, stored: LedgerEvent) -> bytes | None:
        try:
            return await self._open(stored)
        except AdapterErased:
            return None

    async def read(self, adapter_id: AdapterId) -> bytes:
        """Return the adapter's data key, as the leader has it; raises ``AdapterErased`` or ``AdapterUnavailable``."""
        try:
            found = await self._read(subjects.data_key(adapter_id))
        except AdapterErased:
            self.fields.keep_absent(adapter_id)
            raise
        if found is None:
            self.fields.keep_absent(adapter_id)
            raise AdapterUnavailable("there is no data key for it")
        self.fields.keep(adapter_id, found)
        return found

    async def make_for_upload(self, tenant_id: TenantId, adapter_id: AdapterId, upload_id: str) -> bytes:
        """Return the key that an upload's files are sealed under, made now if there is none."""
        return await self._make(subjects.upload_key(adapter_id, upload_id), tenant_id)

    async def read_for_upload(self, upload_id: str) -> bytes | None:
        """Return the key of an upload, or None when there is none any more."""
        return await self._read(subjects.upload_key("*", upload_id))

    async def destroy(self, adapter_id: AdapterId) -> None:
        """Overwrite the adapter's key and make sure that it never gets another one; idempotent."""
        subject = subjects.data_key(adapter_id)
        self.fields.forget(adapter_id)
        for _ in range(_ATTEMPTS_MAX):
            found = await self._stream.get(subject=subject)
            if found is not None and isinstance(_decoder.decode(found.data), DestroyedKey):
                return
            if found is not None:
                await self._stream.delete(found.sequence)
            try:
                await self._stream.append(subject, msgspec.msgpack.encode(DestroyedKey(wall_ms())), 0)
                return
            except RevisionConflict:
                # Somebody made a key meanwhile, or destroyed it.
                continue
        raise DependencyUnavailable("the stream of data keys")

    async def destroy_upload(self, upload_id: str) -> None:
        """Overwrite the key of an upload; idempotent."""
        if (found := await self._stream.get(subject=subjects.upload_key("*", upload_id))) is not None:
            await self._stream.delete(found.sequence)

    async def next_upload_of(self, adapter_id: AdapterId) -> str | None:
        """Return an upload to the adapter whose key is still there, or None."""
        found = await self._stream.get(subject=subjects.upload_key(adapter_id, "*"))
        return found.subject.rpartition(".")[2] if found else None

    async def destroy_old_uploads(self, min_age_s: float, num_max: int) -> int:
        """Overwrite up to ``num_max`` keys of uploads that are older than ``min_age_s``; returns how many went."""
        for num_destroyed in range(num_max):
            # The oldest comes first.
            found = await self._stream.get_next(1, subjects.upload_key("*", "*"))
            stored = _decoder.decode(found.data) if found else None
            if found is None or stored is None or stored.at_ms > wall_ms() - min_age_s * 1000:
                return num_destroyed
            await self._stream.delete(found.sequence)
        return num_max

    async def tell_erased(self, adapter_id: AdapterId) -> None:
        """Put the adapter on the list that workers ask for; once more does no harm."""
        for _ in range(_ATTEMPTS_MAX):
            last = await self._stream.get(subject=subjects.ERASED)
            try:
                await self._stream.append(subjects.ERASED, adapter_id.encode(), last.sequence if last else 0)
                return
            except RevisionConflict:
                continue
        raise DependencyUnavailable("the stream of data keys")

    async def erasures(self, after: int | None) -> Erasures:
        """Return what was put on the list behind ``after``; None: only where it ends."""
        if after is None:
            last = await self._stream.get(subject=subjects.ERASED)
            return Erasures((), last.sequence if last else 0)
        adapter_ids: list[AdapterId] = []
        while len(adapter_ids) < ERASURES_MAX:
            found = await self._stream.get_next(after + 1, subjects.ERASED)
            if found is None:
                break
            adapter_ids.append(AdapterId(found.data.decode()))
            after = found.sequence
        return Erasures(tuple(adapter_ids), after)

    async def _make(self, subject: str, tenant_id: TenantId) -> bytes:
        for _ in range(_ATTEMPTS_MAX):
            if (known := await self._read(subject)) is not None:
                return known
            key = new_key()
            entry = await self._entry(subject, tenant_id, key)
            try:
                await self._stream.append(subject, entry.data, entry.previous_sequence)
                return key
            except RevisionConflict:
                continue
        raise RevisionConflict

    async def _entry(self, subject: str, tenant_id: TenantId, key: bytes) -> Entry:
        key_id = self._provider.key_id(tenant_id)
        wrapped = await self._provider.wrap(key_id, key, subject.encode())
        return Entry(subject, msgspec.msgpack.encode(WrappedKey(key_id, wrapped, wall_ms())), 0)

    async def _read(self, subject: str) -> bytes | None:
        found = await self._stream.get(subject=subject)
        return await self._open(found) if found is not None else None

    async def _open(self, found: LedgerEvent) -> bytes:
        try:
            stored = _decoder.decode(found.data)
            if isinstance(stored, DestroyedKey):
                raise AdapterErased
            return await self._provider.unwrap(stored.key_id, stored.wrapped, found.subject.encode())
        except (KeyUnusable, msgspec.MsgspecError) as problem:
            log.error("data_key_unusable", detail=str(problem))
            raise AdapterUnavailable("its data key does not open") from problem


def _runs(items: Sequence[T], num_max: int) -> Iterator[Sequence[T]]:
    return (items[first : first + num_max] for first in range(0, len(items), num_max))


async def _gather(works: Iterable[Awaitable[T]]) -> list[T]:
    slots = asyncio.Semaphore(_READS_MAX)

    async def one(work: Awaitable[T]) -> T:
        async with slots:
            return await work

    return await asyncio.gather(*(one(work) for work in works))
