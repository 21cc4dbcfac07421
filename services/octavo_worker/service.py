"""The worker's process: load the base, prove it, publish it, serve it."""

import asyncio
import gc
import os
import sys
from pathlib import Path

import torch

from octavo_shared.bus import Bus
from octavo_shared.config import ConfigError
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.manifest import BaseManifest, ManifestConflict, publish_base
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole
from octavo_shared.service import probes, run_service
from octavo_shared.telemetry import log
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model.base import BaseModel, load_base
from octavo_worker.model.context import UnsupportedBase
from octavo_worker.settings import WorkerSettings
from octavo_worker.worker import Worker

_PUBLISH_RETRY_S = 1.0
_PUBLISH_TRIES_MAX = 600
_SWITCH_INTERVAL_S = 0.0005
"""The engine's thread takes the interpreter back from the event loop after this long, not after 5 ms."""


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Run a worker until ``stop`` is set.

    Raises ``ConfigError`` when what its settings name cannot be served, ``InternalError`` when its engine fails.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    set_num_threads()
    credentials = read_credentials(BusRole.WORKER, settings.nats_seed_file, settings.worker_id)
    is_ready = False
    async with probes(settings, lambda: is_ready):
        base = await asyncio.to_thread(_load, settings)
        engine = _engine(base, settings)
        await asyncio.to_thread(engine.warm)
        # The base lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        store = ObjectStore(settings)
        try:
            async with Bus(settings.nats_url, f"worker {settings.worker_id}", credentials=credentials) as bus:
                if not await _publish(store, base.manifest, base.tokenizer_json, stop):
                    return
                worker = Worker(settings, bus, store, engine, base.manifest)
                async with worker.running():
                    is_ready = True
                    await _first(stop, worker.has_failed)
                    is_ready = False
        finally:
            store.close()
            # Native modules check at exit that everything of theirs was collected.
            gc.unfreeze()


def set_num_threads() -> None:
    """Compute on every core that this process may use, unless ``OMP_NUM_THREADS`` says on how many.

    A container's share of a machine's cores is not in its affinity, so there only the variable can tell.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def _load(settings: WorkerSettings) -> BaseModel:
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    try:
        base = load_base(Path(settings.base_dir), settings.device, dtype)
    except UnsupportedBase as refusal:
        # Where an architecture's own code failed, the sentence may not be enough to find out why.
        log.debug("base_refused", exc_info=refusal)
        raise ConfigError(f"OCTAVO_BASE_DIR={settings.base_dir!r} cannot be served: {refusal}") from None
    log.info("base_loaded", base=base.fingerprint, name=base.manifest.name, dtype=base.manifest.dtype)
    return base


def _engine(base: BaseModel, settings: WorkerSettings) -> Engine:
    limits = EngineLimits(num_running_max=settings.num_running_max, num_waiting_max=settings.num_waiting_max)
    try:
        return Engine(base, new_arena(base, settings.arena_bytes), limits)
    except ValueError as problem:
        raise ConfigError(f"OCTAVO_ARENA_BYTES={settings.arena_bytes} is invalid: {problem}") from None


async def _publish(store: ObjectStore, manifest: BaseManifest, tokenizer_json: bytes, stop: asyncio.Event) -> bool:
    """Publish the base, waiting for S3 while it is not there; False when told to stop meanwhile.

    Raises ``ConfigError`` when another manifest is there under the same fingerprint.
    """
    for _ in range(_PUBLISH_TRIES_MAX):
        try:
            await store.ensure_bucket()
            await publish_base(store, manifest, tokenizer_json)
        except ManifestConflict as conflict:
            raise ConfigError(str(conflict)) from None
        except DependencyUnavailable:
            log.warning("base_not_published_yet", base=manifest.fingerprint)
        else:
            return True
        try:
            async with asyncio.timeout(_PUBLISH_RETRY_S):
                await stop.wait()
            return False
        except TimeoutError:
            continue
    raise DependencyUnavailable("object storage")


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def main() -> None:
    """Console script ``octavo-worker``."""
    run_service("worker", WorkerSettings, serve)
