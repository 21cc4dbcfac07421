"""The gateway process: wires its parts together, keeps the side tasks running, and stops in order."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from octavo_gateway.admission import Admission, RateLimit
from octavo_gateway.app import build_app
from octavo_gateway.attempt import Waits
from octavo_gateway.base_names import BaseNames
from octavo_gateway.dispatcher import Dispatcher
from octavo_gateway.fleet import FleetView
from octavo_gateway.front import FrontDesk
from octavo_gateway.http_admin import AdminRoutes
from octavo_gateway.http_bases import BaseRoutes
from octavo_gateway.http_erasure import ErasureRoutes
from octavo_gateway.http_evaluation import EvaluationRoutes
from octavo_gateway.http_generation import GenerationRoutes
from octavo_gateway.http_importing import ImportRoutes
from octavo_gateway.http_keys import KeyRoutes
from octavo_gateway.http_ledger import LedgerRoutes
from octavo_gateway.http_lifecycle import LifecycleRoutes
from octavo_gateway.http_provenance import ProvenanceRoutes
from octavo_gateway.http_pushing import PushRoutes
from octavo_gateway.http_registry import RegistryRoutes
from octavo_gateway.http_usage import UsageRoutes
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.meter import Meter
from octavo_gateway.nats_entry import NatsEntry
from octavo_gateway.planner import Planner
from octavo_gateway.settings import GatewaySettings
from octavo_gateway.text import TextStore
from octavo_gateway.uploads import Transfers
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import OctavoError
from octavo_shared.messages.fleet import Heartbeat
from octavo_shared.messages.generation import LEASE_INTERVAL_MS, Lease
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole
from octavo_shared.service import http_server, run_service
from octavo_shared.tasks import end
from octavo_shared.telemetry import log

_DRAIN_S = 10.0
_CLOSE_S = 3.0
_TEXT_RETRY_S = 1.0


class Gateway:
    """All parts of one gateway; ``running`` serves HTTP and NATS while its block runs."""

    def __init__(self, settings: GatewaySettings, bus: Bus, store: ObjectStore, waits: Waits | None = None) -> None:
        self._settings = settings
        self._bus = bus
        self._store = store
        self.gateway_id = f"gw-{uuid.uuid4().hex[:12]}"
        self.fleet = FleetView()
        self._texts = TextStore(store)
        self.admission = Admission(
            RateLimit(settings.requests_per_s, settings.requests_burst), settings.num_in_flight_max
        )
        identity = IdentityClient(bus)
        dispatcher = Dispatcher(bus, self.fleet, self.gateway_id, waits)
        self._meter = Meter(bus, self.gateway_id)
        planner = Planner(identity, self.fleet, self._texts, BaseNames(store))
        self._front = FrontDesk(planner, dispatcher, self._meter)
        self._nats = NatsEntry(bus, self._front, self.admission)
        transfers = Transfers(store, settings.upload_bytes_max)
        routes = [
            *GenerationRoutes(self._front, self.admission, identity, self.fleet).handlers(),
            *PushRoutes(identity, self.fleet, transfers).handlers(),
            *RegistryRoutes(identity, self.fleet, transfers).handlers(),
            *LifecycleRoutes(identity).handlers(),
            *ImportRoutes(identity, self.fleet).handlers(),
            *BaseRoutes(identity).handlers(),
            *ErasureRoutes(identity).handlers(),
            *LedgerRoutes(identity).handlers(),
            *ProvenanceRoutes(identity).handlers(),
            *EvaluationRoutes(identity).handlers(),
            *AdminRoutes(identity, bus).handlers(),
            *KeyRoutes(identity).handlers(),
            *UsageRoutes(identity).handlers(),
        ]
        self._is_stopping = False
        self._app = build_app(routes, self.is_ready)

    def is_ready(self) -> bool:
        """Tell whether a request could be served: not stopping, the bus is there, a live worker's base is known."""
        return (
            not self._is_stopping
            and self._bus.is_connected
            and any(self._texts.known(base) for base in self.fleet.bases())
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve; on leaving say so, refuse new requests, finish old ones within ``_DRAIN_S``, end what is left."""
        await self._bus.serve(subjects.HEARTBEAT, Heartbeat, self._on_heartbeat)
        tasks = [
            asyncio.create_task(self._lease_forever(), name="lease"),
            asyncio.create_task(self._learn_bases_forever(), name="learn bases"),
            asyncio.create_task(self._meter.run(), name="meter"),
        ]
        settings = self._settings
        try:
            async with http_server(self._app, settings.http_host, settings.http_port, _CLOSE_S):
                try:
                    async with self._nats.serving():
                        log.info("gateway_started", gateway_id=self.gateway_id, port=settings.http_port)
                        try:
                            yield
                        finally:
                            # Load balancers and the queue group look elsewhere from here on.
                            self._is_stopping = True
                finally:
                    self.admission.close()
                    await self._front.drain(_DRAIN_S)
        finally:
            await end(*tasks)
            # Nothing runs any more that could still be counted.
            await self._meter.close()

    async def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        self.fleet.apply(heartbeat)

    async def _lease_forever(self) -> None:
        while True:
            # While the bus is away there is nobody to tell; workers then end our sequences by themselves.
            with contextlib.suppress(OctavoError):
                await self._bus.publish(subjects.LEASE, Lease(self.gateway_id))
            await asyncio.sleep(LEASE_INTERVAL_MS / 1000)

    async def _learn_bases_forever(self) -> None:
        has_bucket = False
        while True:
            await self.fleet.changed(_TEXT_RETRY_S)
            try:
                if not has_bucket:
                    await self._store.ensure_bucket()
                    has_bucket = True
                for base, name in self.fleet.bases().items():
                    if self._texts.known(base) is None:
                        await self._texts.get(base)
                        log.info("base_learned", base=base, name=name)
            except OctavoError as error:
                log.warning("base_not_learned", code=error.code, detail=error.message)
                await asyncio.sleep(_TEXT_RETRY_S)
            except Exception:
                log.exception("base_not_learned")
                await asyncio.sleep(_TEXT_RETRY_S)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run a gateway until ``stop`` is set."""
    credentials = read_credentials(BusRole.GATEWAY, settings.nats_seed_file)
    store = ObjectStore(settings)
    try:
        async with (
            Bus(settings.nats_url, "gateway", credentials=credentials) as bus,
            Gateway(settings, bus, store).running(),
        ):
            await stop.wait()
    finally:
        store.close()


def main() -> None:
    """Entry point of ``octavo-gateway``."""
    run_service("gateway", GatewaySettings, serve)
