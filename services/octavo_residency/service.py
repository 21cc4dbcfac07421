"""The residency manager: hears heartbeats and demand, orders prefetch and evict, answers what is where.

Verbs (queue group ``RESIDENCY_QUEUE``): ``evict`` (EvictCommand → EvictReport, idempotent) and ``view``
(ViewCommand → View). Both fail with ``DependencyUnavailable`` only by not answering. Its state is soft; a
request never depends on it, because a worker that gets no order loads by itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from nats.aio.msg import Msg
from opentelemetry.trace import SpanKind
from prometheus_client import Counter

from octavo_residency.planner import Planner
from octavo_residency.popularity import Popularity
from octavo_residency.view import FleetView
from octavo_shared import decoding, subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.config import BusSettings
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import DependencyUnavailable, OctavoError
from octavo_shared.messages.fleet import (
    HEARTBEAT_TIMEOUT_MS,
    Demand,
    Evict,
    EvictCommand,
    EvictReport,
    Heartbeat,
    OrderDone,
    View,
    ViewCommand,
)
from octavo_shared.permissions import BusRole
from octavo_shared.references import WorkerId
from octavo_shared.service import probes, run_service
from octavo_shared.tasks import end
from octavo_shared.telemetry import log, tracer

_ORDER_TIMEOUT_S = 2.0
_NUM_ORDERS_MAX = 8
"""Evict orders of one relief pass that are on their way to a worker at the same time."""

_PREFETCHES = Counter("octavo_residency_prefetches_ordered", "Prefetch orders sent to workers")
_EVICTS = Counter("octavo_residency_evicts_ordered", "Evict orders sent to workers")


class Residency:
    """The manager's handlers around its pure parts. ``running()`` subscribes; leaving it stops what it began."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._fleet = FleetView()
        self._planner = Planner(Popularity())
        self._num_prefetches = 0
        self._num_evicts = 0
        self._relieving: set[WorkerId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_ready = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        await self._bus.serve(subjects.HEARTBEAT, Heartbeat, self._on_heartbeat)
        await self._bus.subscribe(subjects.DEMAND, self._on_demand, subjects.RESIDENCY_QUEUE)
        await self._bus.serve(subjects.residency("evict"), EvictCommand, self.evict, subjects.RESIDENCY_QUEUE)
        await self._bus.serve(subjects.residency("view"), ViewCommand, self.view, subjects.RESIDENCY_QUEUE)
        watch = asyncio.create_task(self._watch_silence(), name="watch silence")
        self.is_ready = True
        try:
            yield
        finally:
            self.is_ready = False
            await end(watch, *self._tasks)

    async def evict(self, command: EvictCommand) -> EvictReport:
        """Drop an adapter's copies above ``command.tier`` on every worker that is not known to lack it.

        Workers that turn out not to hold it count as evicted; those that do not answer are in neither list.
        """
        adapter = command.adapter
        key = adapter.pack_key
        order = Evict(adapter.adapter_id, adapter.digest, command.tier)
        # A worker of which a snapshot is still awaited, or whose load has just been ordered, may hold it unheard.
        unheard = {*self._fleet.incomplete(), *self._planner.ordered_to(key, now_ms())}
        asked = sorted({*self._fleet.holders(key), *(w for w in unheard if self._fleet.worker(w) is not None)})
        evicted: list[WorkerId] = []
        pinned: list[WorkerId] = []
        for worker_id, done in zip(asked, await asyncio.gather(*(self._order(w, order) for w in asked)), strict=True):
            if done is not None:
                (evicted if done.is_done else pinned).append(worker_id)
            if done is not None and done.is_done:
                self._planner.commanded(worker_id, order, now_ms())
        log.info("evict_commanded", tier=command.tier.value, num_evicted=len(evicted), num_pinned=len(pinned))
        return EvictReport(tuple(evicted), tuple(pinned))

    async def view(self, _: ViewCommand) -> View:
        """Return what is known of every live worker."""
        return View(self._fleet.snapshots(), self._num_prefetches, self._num_evicts)

    async def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        is_new = self._fleet.worker(heartbeat.worker_id) is None
        worker = self._fleet.heard(heartbeat, now_ms())
        if worker is None:
            return
        if is_new:
            log.info("worker_heard", worker_id=heartbeat.worker_id)
        # One relief pass per worker at a time, so that no order is sent again before its effect is heard.
        if heartbeat.worker_id not in self._relieving:
            orders = self._planner.on_heartbeat(heartbeat.worker_id, worker, now_ms())
            if orders:
                self._relieving.add(heartbeat.worker_id)
                self._spawn(self._relieve(heartbeat.worker_id, orders))

    async def _on_demand(self, message: Msg) -> None:
        demand = decoding.from_msgpack(message.data, Demand)
        worker = self._fleet.worker(demand.worker_id)
        order = self._planner.on_demand(demand, worker, now_ms())
        if order is None:
            return
        with tracer.start_as_current_span("residency.place", kind=SpanKind.CONSUMER) as span:
            span.set_attribute("octavo.worker_id", demand.worker_id)
            try:
                await self._bus.publish(subjects.worker(demand.worker_id, "prefetch"), order)
            except DependencyUnavailable:
                log.warning("prefetch_not_sent", worker_id=demand.worker_id)
                return
        self._num_prefetches += 1
        _PREFETCHES.inc()

    async def _relieve(self, worker_id: WorkerId, orders: list[Evict]) -> None:
        slots = asyncio.Semaphore(_NUM_ORDERS_MAX)

        async def send(order: Evict) -> bool:
            async with slots:
                done = await self._order(worker_id, order)
            if done is None or not done.is_done:
                return False
            self._planner.evicted(worker_id, order)
            return True

        try:
            obeyed = await asyncio.gather(*(send(order) for order in orders))
            log.info("tiers_relieved", worker_id=worker_id, num_ordered=len(orders), num_obeyed=sum(obeyed))
        finally:
            self._relieving.discard(worker_id)

    async def _order(self, worker_id: WorkerId, order: Evict) -> OrderDone | None:
        self._num_evicts += 1
        _EVICTS.inc()
        try:
            return await self._bus.request(
                subjects.worker(worker_id, "evict"), order, OrderDone, _ORDER_TIMEOUT_S, who="worker"
            )
        except OctavoError as error:
            log.warning("evict_unanswered", worker_id=worker_id, code=error.code)
            return None

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_TIMEOUT_MS / 4_000)
            for worker_id in self._fleet.forget_silent(now_ms()):
                self._planner.forget(worker_id)
                log.warning("worker_silent", worker_id=worker_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="relieve")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(settings: BusSettings, stop: asyncio.Event) -> None:
    """Run the residency manager until ``stop`` is set."""
    credentials = read_credentials(BusRole.RESIDENCY, settings.nats_seed_file)
    async with Bus(settings.nats_url, "residency", credentials=credentials) as bus:
        residency = Residency(bus)
        async with probes(settings, lambda: residency.is_ready and bus.is_connected), residency.running():
            log.info("residency_ready")
            await stop.wait()


def main() -> None:
    """Console script ``octavo-residency``."""
    run_service("residency", BusSettings, serve)
