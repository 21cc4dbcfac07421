"""A worker around its engine: subscriptions, heartbeats, the engine's thread, and the way down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from octavo_shared.bus import Bus
from octavo_shared.errors import InternalError
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.fleet import Heartbeat, TierUse, WorkerState
from octavo_shared.objects import ObjectStore
from octavo_shared.references import WorkerId
from octavo_shared.tasks import end
from octavo_shared.telemetry import log
from octavo_worker import metrics
from octavo_worker.adapters.data_keys import DataKeys
from octavo_worker.adapters.device_tier import Device
from octavo_worker.adapters.disk_cache import DiskCache
from octavo_worker.adapters.host_cache import HostCache
from octavo_worker.adapters.loader import Loader
from octavo_worker.adapters.pack_threads import pack_threads
from octavo_worker.adapters.packs import PackTiers
from octavo_worker.engine.engine import EngineLoad
from octavo_worker.engine_thread import EngineThread, Steps
from octavo_worker.erasing import Eraser
from octavo_worker.generation_server import GenerationServer
from octavo_worker.heartbeat import Heartbeats
from octavo_worker.open_requests import Generator
from octavo_worker.orders import Orders
from octavo_worker.settings import Cadence, WorkerSettings

_IO_THREADS_MAX = 4


class ServedEngine(Device, Generator, Steps, Protocol):
    """All that a worker asks of an engine."""

    @property
    def context_tokens(self) -> int: ...

    def load(self) -> EngineLoad: ...


@dataclass(frozen=True)
class _Parts:
    loader: Loader
    local: DiskCache
    warm: HostCache
    server: GenerationServer
    orders: Orders
    eraser: Eraser
    heartbeats: Heartbeats
    thread: EngineThread
    io_threads: ThreadPoolExecutor


class Worker:
    """One device group's service. ``running()`` serves while the block runs and drains on the way out."""

    def __init__(
        self,
        settings: WorkerSettings,
        bus: Bus,
        store: ObjectStore,
        engine: ServedEngine,
        manifest: BaseManifest,
        cadence: Cadence | None = None,
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._engine = engine
        self._manifest = manifest
        self._cadence = cadence or Cadence()
        self._worker_id = WorkerId(settings.worker_id)
        self._parts = self._assemble(store)
        self.is_ready = False

    @property
    def loader(self) -> Loader:
        return self._parts.loader

    @property
    def has_failed(self) -> asyncio.Event:
        """Set when the engine's thread ended by itself; nothing is served any more."""
        return self._parts.thread.has_failed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve; leaving it refuses new requests, finishes running ones within the grace and stops all threads."""
        parts = self._parts
        await parts.local.scan()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(parts.io_threads.shutdown, wait=False, cancel_futures=True)
            stack.push_async_callback(parts.loader.close)
            await stack.enter_async_context(parts.thread.running())
            await stack.enter_async_context(
                _tasks(
                    self.has_failed.set,
                    deliver=self._deliver(),
                    heartbeats=parts.heartbeats.run(),
                    leases=parts.server.watch_leases(),
                    failure=self._watch_failure(),
                    erasures=parts.eraser.watch(),
                )
            )
            await parts.orders.subscribe(self._bus, self._worker_id)
            await parts.eraser.subscribe()
            await parts.server.subscribe()
            self.is_ready = await parts.heartbeats.send()
            log.info("worker_ready", worker_id=self._worker_id, base=self._manifest.fingerprint)
            try:
                yield
            finally:
                self.is_ready = False
                parts.server.is_draining = True
                await parts.heartbeats.send()
                await parts.server.drain(self._cadence.drain_ms / 1e3)
        if self.has_failed.is_set():
            raise InternalError()

    def _assemble(self, store: ObjectStore) -> _Parts:
        settings, base = self._settings, self._manifest.fingerprint
        io_threads = pack_threads(_IO_THREADS_MAX)
        warm = HostCache(settings.warm_bytes)
        local = DiskCache(Path(settings.cache_dir), settings.local_bytes, io_threads)
        load, keys = self._engine.load(), DataKeys(self._bus)
        loader = Loader(
            self._engine,
            PackTiers(warm, local, store, keys, base, io_threads),
            base,
            int(load.num_pages * load.page_bytes * settings.resident_share),
            io_threads,
        )
        server = GenerationServer(
            self._bus,
            self._engine,
            loader,
            self._worker_id,
            base,
            self._manifest.name,
            settings.num_running_max + settings.num_waiting_max,
            self._cadence,
        )
        heartbeats = Heartbeats(self._bus, self._observe, loader.placed, self._cadence.heartbeat_ms)
        loader.on_change = heartbeats.changed
        server.on_change = heartbeats.changed
        eraser = Eraser(self._bus, self._worker_id, loader, server, keys, self._cadence)
        return _Parts(
            loader, local, warm, server, Orders(loader), eraser, heartbeats, EngineThread(self._engine), io_threads
        )

    def _observe(self) -> Heartbeat:
        parts, load = self._parts, self._engine.load()
        metrics.RUNNING.set(load.num_running)
        metrics.WAITING.set(load.num_waiting)
        metrics.PAGES_FREE.set(load.num_pages_free)
        metrics.PAGES.set(load.num_pages)
        return Heartbeat(
            worker_id=self._worker_id,
            epoch=0,
            sequence=0,
            state=WorkerState.DRAINING if parts.server.is_draining else WorkerState.READY,
            base=self._manifest.fingerprint,
            base_name=self._manifest.name,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_running_max=self._settings.num_running_max,
            num_pages_free=load.num_pages_free,
            num_pages=load.num_pages,
            page_bytes=load.page_bytes,
            resident=TierUse(parts.loader.resident_bytes, parts.loader.resident_budget_bytes),
            warm=TierUse(parts.warm.used_bytes, parts.warm.budget_bytes),
            local=TierUse(parts.local.used_bytes, parts.local.budget_bytes),
            context_tokens=self._engine.context_tokens,
        )

    async def _deliver(self) -> None:
        async for events in self._parts.thread.events():
            await self._parts.server.deliver(events)

    async def _watch_failure(self) -> None:
        await self.has_failed.wait()
        await self._parts.server.abandon()


@contextlib.asynccontextmanager
async def _tasks(on_failure: Callable[[], None], **work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run named tasks beside the block; one that fails is logged and told at once, all are ended with the block."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("task_failed", task=task.get_name(), exc_info=problem)
            on_failure()

    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        await end(*tasks)
