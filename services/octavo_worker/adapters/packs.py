"""Packs below the device: found warm, local or cold, verified on the bytes that will be used, kept on the way up.

Cold and local packs are sealed, as they were stored; what is warm was opened with the adapter's data key, once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from opentelemetry.trace import SpanKind, Status, StatusCode

from octavo_shared.clock import now_ms
from octavo_shared.errors import AdapterRefused, AdapterUnavailable, BaseMismatch, DependencyUnavailable
from octavo_shared.messages.generation import AdapterHandle, Tier
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.pack import PackHeader, digest_of, read_header
from octavo_shared.references import Fingerprint, PackKey
from octavo_shared.seal import SealBroken, open_sealed, pack_context, sealed_size
from octavo_shared.telemetry import log, tracer
from octavo_worker.adapters.disk_cache import DiskCache
from octavo_worker.adapters.host_cache import HostCache

_COLD_READS_MAX = 4
_COLD_READ_TIMEOUT_S = 30.0

T = TypeVar("T")


Pack = bytes | bytearray
"""A pack as it was hashed. What was opened here lies in memory that can be wiped."""


class DataKeys(Protocol):
    """Where the keys of sealed packs come from."""

    async def key_of(self, handle: AdapterHandle) -> bytes:
        """Return the data key of a handle's adapter; raises ``AdapterErased`` or ``AdapterUnavailable``."""
        ...


@dataclass(frozen=True)
class FoundPack:
    """A pack whose digest and base are right. ``tier`` is where it was found."""

    pack: Pack
    header: PackHeader
    tier: Tier
    fetch_ms: float
    verify_ms: float


class PackTiers:
    """Warm, local and cold as one place to get packs from. Belongs to the event loop; its work runs on threads."""

    def __init__(
        self,
        warm: HostCache,
        local: DiskCache,
        store: ObjectStore,
        keys: DataKeys,
        base: Fingerprint,
        threads: Executor,
    ) -> None:
        self.warm = warm
        self.local = local
        self._store = store
        self._keys = keys
        self._base = base
        self._threads = threads
        # Reads from S3 have a bound of their own: four stalled ones must not hold up what is near.
        self._cold_slots = asyncio.Semaphore(_COLD_READS_MAX)
        self._writes: dict[PackKey, asyncio.Task[bool]] = {}

    def find(self, key: PackKey) -> Tier:
        """Return the nearest tier that has ``key``; COLD when none has."""
        if key in self.warm:
            return Tier.WARM
        return Tier.LOCAL if key in self.local else Tier.COLD

    async def fetch(self, handle: AdapterHandle) -> FoundPack:
        """Return the pack of ``handle`` from the nearest tier, verified.

        A copy nearby that does not open, or does not match its digest, is dropped and the next tier asked. Raises
        ``BaseMismatch``, ``AdapterErased``, or ``AdapterUnavailable`` when S3 has it not, has something else or does
        not answer, or when identity gives no key.
        """
        key = handle.pack_key
        if (pack := self.warm.get(key)) is not None:
            if (found := await self._verified(handle, pack, Tier.WARM, 0.0)) is not None:
                return found
            self.warm.drop(key)
        # Asked for while the pack is read; usually it is known already.
        data_key = asyncio.create_task(self._keys.key_of(handle), name="data key")
        try:
            return await self._fetch_sealed(key, handle, data_key)
        finally:
            data_key.cancel()
            await asyncio.wait([data_key])
            if not data_key.cancelled():
                data_key.exception()

    async def _fetch_sealed(self, key: PackKey, handle: AdapterHandle, data_key: asyncio.Task[bytes]) -> FoundPack:
        started_ms = now_ms()
        if (sealed := await self.local.read(key)) is not None:
            fetch_ms = now_ms() - started_ms
            found = await self._opened(handle, sealed, await asyncio.shield(data_key), Tier.LOCAL, fetch_ms)
            if found is not None:
                self.warm.put(key, found.pack, fetch_ms + found.verify_ms)
                return found
            await self.local.drop(key)
        started_ms = now_ms()
        sealed = await self._read_cold(handle)
        fetch_ms = now_ms() - started_ms
        found = await self._opened(handle, sealed, await asyncio.shield(data_key), Tier.COLD, fetch_ms)
        if found is None:
            raise AdapterUnavailable("the stored pack was changed")
        self.warm.put(key, found.pack, fetch_ms + found.verify_ms)
        # The request does not wait for the disk.
        task = asyncio.create_task(self.local.write(key, sealed, fetch_ms), name="keep local")
        self._writes[key] = task
        task.add_done_callback(lambda _: self._writes.pop(key, None))
        return found

    async def drop(self, key: PackKey, below: Tier) -> None:
        """Let go of the copies above ``below``; returns once files are gone."""
        if (write := self._writes.get(key)) is not None:
            await asyncio.wait([write])
        if below in (Tier.LOCAL, Tier.COLD):
            self.warm.drop(key)
        if below is Tier.COLD:
            await self.local.drop(key)

    def keys(self) -> set[PackKey]:
        """Return the keys of all packs that are here."""
        return {key for tier in (self.warm, self.local) for key, _ in tier.sizes()} | self._writes.keys()

    async def erase(self, key: PackKey, below: Tier) -> None:
        """Destroy the copies of a pack above ``below``; no load of it may be under way."""
        self.warm.erase(key)
        await self.drop(key, below)

    async def settle(self) -> None:
        """Wait for the file writes in the background."""
        if self._writes:
            await asyncio.wait(list(self._writes.values()))

    async def _read_cold(self, handle: AdapterHandle) -> bytes:
        async with self._cold_slots:
            with tracer.start_as_current_span("s3.read", kind=SpanKind.CLIENT) as span:
                span.set_attribute("octavo.pack_bytes", handle.pack_bytes)
                cause: Exception
                try:
                    async with asyncio.timeout(_COLD_READ_TIMEOUT_S):
                        return await self._store.read(handle.object_key, sealed_size(handle.pack_bytes))
                except ObjectMissing as error:
                    problem, cause = "object storage has no such pack", error
                except ObjectTooLarge as error:
                    problem, cause = "the stored pack was changed", error
                except DependencyUnavailable as error:
                    problem, cause = "object storage does not answer", error
                except TimeoutError as error:
                    problem, cause = f"object storage took longer than {_COLD_READ_TIMEOUT_S:.0f} s", error
                span.set_status(Status(StatusCode.ERROR, problem))
                raise AdapterUnavailable(problem) from cause

    async def _opened(
        self, handle: AdapterHandle, sealed: bytes, data_key: bytes, tier: Tier, fetch_ms: float
    ) -> FoundPack | None:
        context = pack_context(handle.tenant_id, handle.adapter_id, handle.revision, handle.base)
        started_ms = now_ms()
        try:
            pack = await self._on_thread(lambda: open_sealed(sealed, data_key, context))
        except SealBroken as broken:
            log.error("pack_seal_broken", tier=tier.value, revision=handle.revision, detail=str(broken))
            return None
        opened_ms = now_ms() - started_ms
        found = await self._verified(handle, pack, tier, fetch_ms)
        return replace(found, verify_ms=found.verify_ms + opened_ms) if found is not None else None

    async def _verified(self, handle: AdapterHandle, pack: Pack, tier: Tier, fetch_ms: float) -> FoundPack | None:
        started_ms = now_ms()

        def verify() -> PackHeader | None:
            view = memoryview(pack)
            return read_header(view) if digest_of(view) == handle.digest else None

        try:
            header = await self._on_thread(verify)
        except AdapterRefused as error:
            raise AdapterUnavailable(f"the pack is malformed ({error.message})") from error
        if header is None:
            log.error("pack_digest_mismatched", tier=tier.value, revision=handle.revision, pack_bytes=len(pack))
            return None
        if header.base != self._base:
            raise BaseMismatch(adapter_base=header.base, served_base=self._base)
        return FoundPack(pack, header, tier, fetch_ms, now_ms() - started_ms)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
