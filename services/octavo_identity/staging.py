"""From staged files to a stored pack."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from octavo_identity.build_pool import BuildPool
from octavo_identity.building import Built
from octavo_identity.validator import check_base
from octavo_shared.errors import AdapterUnavailable, BaseMismatch, DependencyUnavailable, InvalidRequest
from octavo_shared.manifest import BaseManifest, fetch_base
from octavo_shared.messages.identity import Commit
from octavo_shared.objects import ObjectMissing, ObjectStore
from octavo_shared.pack import digest_of
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.telemetry import log

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BUILDS_MAX = 2


Build = Callable[[bytes, bytes, BaseManifest, str | None], Built]
"""(configuration, weights, base, dtype) → the pack, on a thread."""


class Staging:
    """Reads uploads, validates them and stores packs. Building is bounded: a build holds an adapter in memory."""

    def __init__(self, store: ObjectStore, build_with: Build | None = None) -> None:
        self._store = store
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

        Raises ``BaseMismatch``, ``AdapterRefused``, or ``InvalidRequest`` when a file was not uploaded.
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
        folder = f"staging/{upload_id}"
        try:
            return await self._store.read(f"{folder}/{CONFIG_FILE}"), await self._store.read(f"{folder}/{WEIGHTS_FILE}")
        except ObjectMissing as missing:
            problem = f"names an upload without both {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise InvalidRequest("upload_id", problem) from missing

    async def _base(self, fingerprint: Fingerprint) -> BaseManifest:
        if fingerprint not in self._bases:
            found = await fetch_base(self._store, fingerprint)
            if found is None:
                raise BaseMismatch(adapter_base=fingerprint, served_base="none that is published")
            self._bases[fingerprint] = found[0]
        return self._bases[fingerprint]

    async def store_pack(self, object_key: str, pack: bytes) -> None:
        """Store the pack under a key that is written once."""
        await self._store.write(object_key, pack)

    async def copy_pack(self, source_key: str, digest: Digest, object_key: str) -> None:
        """Store the pack at ``source_key`` once more, under a key that is written once.

        It is read here and not copied by the object store: a damaged pack would become two, and one that is encrypted
        for its adapter could not be had this way. Raises ``AdapterUnavailable`` when it is not what its digest says.
        """
        async with self._slots:
            try:
                pack = await self._store.read(source_key)
            except ObjectMissing as missing:
                raise AdapterUnavailable("its pack is not in object storage") from missing
            if await asyncio.to_thread(digest_of, pack) != digest:
                raise AdapterUnavailable("the stored pack does not match its digest")
            await self._store.write(object_key, pack)

    async def discard(self, upload_id: str) -> None:
        """Delete what was staged; what cannot be deleted now is swept later."""
        try:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                await self._store.delete(f"staging/{upload_id}/{name}")
        except DependencyUnavailable:
            log.warning("staging_not_discarded")
