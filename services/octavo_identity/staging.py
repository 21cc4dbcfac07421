"""From staged files to a stored pack."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import msgspec

from octavo_identity.build_pool import BuildPool
from octavo_identity.building import Built
from octavo_identity.data_keys import DataKeys
from octavo_identity.records import AdapterHead, StoredRevision
from octavo_identity.validator import check_base
from octavo_shared.errors import (
    AdapterUnavailable,
    BaseMismatch,
    DependencyUnavailable,
    InvalidRequest,
    OctavoError,
    UploadTooLarge,
)
from octavo_shared.manifest import BaseManifest, fetch_base
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.pushing import UPLOAD_BYTES_MAX, Commit
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.pack import digest_of
from octavo_shared.references import AdapterId, Fingerprint, TenantId
from octavo_shared.seal import Context, SealBroken, open_sealed, pack_context, seal, sealed_size, staging_context
from octavo_shared.telemetry import log

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
UPLOAD_GONE = "names an upload that was committed or swept, or whose adapter was erased"
_BUILDS_MAX = 2

T = TypeVar("T")


class PackPlace(msgspec.Struct, frozen=True):
    """Where a pack lies, and what it is sealed as."""

    object_key: str
    tenant_id: TenantId
    adapter_id: AdapterId
    revision: int
    base: Fingerprint

    @classmethod
    def of(cls, head: AdapterHead, stored: StoredRevision) -> Self:
        """Return where the pack of a revision lies."""
        revision = stored.revision
        return cls(stored.object_key, head.tenant_id, head.adapter_id, revision.number, revision.base)

    @property
    def context(self) -> Context:
        return pack_context(self.tenant_id, self.adapter_id, self.revision, self.base)


Build = Callable[[bytes, bytes, BaseManifest, str | None], Built]
"""(configuration, weights, base, dtype) → the pack, on a thread."""


class Staging:
    """Reads uploads, validates them and stores packs. Building is bounded: a build holds an adapter in memory.

    What is in object storage is sealed, always: an upload under a key of its own, a pack under its adapter's.
    """

    def __init__(
        self,
        store: ObjectStore,
        keys: DataKeys,
        build_with: Build | None = None,
        upload_bytes_max: int = UPLOAD_BYTES_MAX,
    ) -> None:
        self._store = store
        self._keys = keys
        self._upload_bytes_max = upload_bytes_max
        self._pool = BuildPool()
        self._build_with = build_with or self._pool.build
        self._slots = asyncio.Semaphore(_BUILDS_MAX)
        self._threads = ThreadPoolExecutor(_BUILDS_MAX, thread_name_prefix="build")
        self._bases: dict[Fingerprint, BaseManifest] = {}

    def close(self) -> None:
        """Begin no more builds, and end those that run."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    async def build(self, commit: Commit) -> Built:
        """Return the pack of what was staged for ``commit``; nothing is stored yet.

        Raises ``BaseMismatch``, ``AdapterRefused``, ``UploadTooLarge``, or ``InvalidRequest`` when a file was not
        uploaded.
        """
        check_base(commit.declared_base, commit.served_base)
        if commit.dtype not in (None, "bf16"):
            raise InvalidRequest("dtype", "must be 'bf16' or left out")
        base = await self._base(commit.served_base)
        await self._slots.acquire()
        try:
            config, weights = await self._read(commit.upload_id)
            building = self._threads.submit(self._build_with, config, weights, base, commit.dtype)
        except BaseException:
            self._slots.release()
            raise
        loop = asyncio.get_running_loop()

        def free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._slots.release)

        # A caller that gives up does not end the thread, so its slot stays taken until the thread itself ends.
        building.add_done_callback(free)
        return await asyncio.wrap_future(building)

    async def _read(self, upload_id: str) -> tuple[bytes, bytes]:
        key = await self._keys.read_for_upload(upload_id)
        if key is None:
            raise InvalidRequest("upload_id", UPLOAD_GONE)
        try:
            config, weights = [
                await self._open(
                    f"staging/{upload_id}/{name}", self._upload_bytes_max, key, staging_context(upload_id, name)
                )
                for name in (CONFIG_FILE, WEIGHTS_FILE)
            ]
        except ObjectMissing as missing:
            problem = f"names an upload without both {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise InvalidRequest("upload_id", problem) from missing
        except ObjectTooLarge as large:
            raise UploadTooLarge(limit_bytes=self._upload_bytes_max) from large
        except SealBroken as broken:
            raise InvalidRequest("upload_id", "names files that are not what was staged") from broken
        return config, weights

    async def _open(self, object_key: str, bytes_max: int, key: bytes, context: Context) -> bytes:
        sealed = await self._store.read(object_key, sealed_size(bytes_max))
        return await asyncio.to_thread(lambda: bytes(open_sealed(sealed, key, context)))

    async def _base(self, fingerprint: Fingerprint) -> BaseManifest:
        if fingerprint not in self._bases:
            found = await fetch_base(self._store, fingerprint)
            if found is None:
                raise BaseMismatch(adapter_base=fingerprint, served_base="none that is published")
            self._bases[fingerprint] = found[0]
        return self._bases[fingerprint]

    async def build_all(self, commits: Sequence[Commit]) -> list[Built | OctavoError]:
        """Return of each commit what ``build`` does, or what it raises."""
        return await asyncio.gather(*(_result(self.build(commit)) for commit in commits))

    async def store_packs(self, packs: Sequence[tuple[PackPlace, bytes]]) -> list[OctavoError | None]:
        """Store each pack as ``store_pack`` does; returns what that raises, None for one that is stored."""
        return await asyncio.gather(*(_result(self.store_pack(place, pack)) for place, pack in packs))

    async def discard_all(self, upload_ids: Sequence[str]) -> None:
        """Discard each upload."""
        await asyncio.gather(*(self.discard(upload_id) for upload_id in upload_ids))

    async def store_pack(self, place: PackPlace, pack: bytes) -> None:
        """Seal the pack under its adapter's key and store it under an object key that is written once."""
        key = await self._keys.make(place.tenant_id, place.adapter_id)
        sealed = await asyncio.to_thread(seal, pack, key, place.context)
        await self._store.write(place.object_key, sealed)

    async def copy_pack(self, source: PackPlace, revision: Revision, target: PackPlace) -> None:
        """Store the pack of ``revision`` at ``source`` once more, sealed for ``target``.

        Raises ``AdapterUnavailable`` when it is not what the revision's digest says, and ``AdapterErased``.
        """
        async with self._slots:
            try:
                key = await self._keys.read(source.adapter_id)
                pack = await self._open(source.object_key, revision.pack_bytes, key, source.context)
            except ObjectMissing as missing:
                raise AdapterUnavailable("its pack is not in object storage") from missing
            except (SealBroken, ObjectTooLarge) as broken:
                raise AdapterUnavailable("the stored pack was changed") from broken
            if await asyncio.to_thread(digest_of, pack) != revision.digest:
                raise AdapterUnavailable("the stored pack does not match its digest")
            await self.store_pack(target, pack)

    async def discard(self, upload_id: str) -> None:
        """Delete what was staged, and its key first; what cannot be deleted now is swept later."""
        try:
            await self._keys.destroy_upload(upload_id)
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                await self._store.delete(f"staging/{upload_id}/{name}")
        except DependencyUnavailable:
            log.warning("staging_not_discarded")


async def _result(work: Awaitable[T]) -> T | OctavoError:
    try:
        return await work
    except OctavoError as error:
        return error
