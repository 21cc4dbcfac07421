"""A real gateway in this process between real servers, a fake identity and fake workers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from octavo_cli.processes import free_port
from octavo_gateway.attempt import Waits
from octavo_gateway.service import Gateway
from octavo_gateway.settings import GatewaySettings
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.manifest import publish_base
from octavo_shared.messages.fleet import Placed
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.keys import Role
from octavo_shared.objects import ObjectStore
from support.fake_identity import FakeIdentity, FakeResidency
from support.fakes import FakeWorker, Script, tiny_manifest, tiny_tokenizer

ANSWER = "the answer is forty two €😀 and the rest"
WAITS = Waits(budget_ms=20_000, poll_ms=50, stall_ms=1_000, worker_ms=500, room_ms=1_500)


@dataclass
class World:
    """What a test needs to act and to look."""

    gateway: Gateway
    bus: Bus
    store: ObjectStore
    identity: FakeIdentity
    residency: FakeResidency
    http: httpx.AsyncClient
    settings: GatewaySettings
    alice: str
    bob: str
    admin: str
    diary: AdapterHandle
    tokens: list[int]
    workers: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def add_worker(self, worker_id: str, script: Script, placed: tuple[Placed, ...] = ()) -> FakeWorker:
        """Start a fake worker and wait until the gateway knows it."""
        worker = await self.workers.enter_async_context(FakeWorker(self.bus, worker_id, script, placed))
        await self.until(lambda: self.gateway.fleet.epoch_of(worker.worker_id) is not None and self.gateway.is_ready())
        return worker

    async def until(self, holds) -> None:  # type: ignore[no-untyped-def]
        """Return once ``holds()``, looked at on every heartbeat; fails after ten seconds."""
        async with asyncio.timeout(10):
            while not holds():
                await self.gateway.fleet.changed(0.05)

    def body(self, **fields: object) -> dict[str, object]:
        """Return a chat body for alice's adapter."""
        return {"model": "alice/diary", "messages": [{"role": "user", "content": "hi"}]} | fields

    def key(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.alice}"}


@contextlib.asynccontextmanager
async def gateway_world(store_settings: StoreSettings, **changes: object) -> AsyncIterator[World]:
    """Yield a world with alice, who owns ``alice/diary``, bob, an administrator, and no worker yet."""
    tokenizer = tiny_tokenizer()
    fields = {name: getattr(store_settings, name) for name in store_settings.__struct_fields__}
    # One bucket for all tests, emptied after each: every bucket costs the S3 server volumes of its own.
    settings = GatewaySettings(**fields | {"http_port": free_port(), "s3_bucket": "gateway"} | changes)
    store = ObjectStore(settings)
    await store.ensure_bucket()
    await publish_base(store, tiny_manifest(tokenizer), tokenizer.to_str().encode())
    base_url = f"http://127.0.0.1:{settings.http_port}"
    async with (
        Bus(settings.nats_url, "fakes", drain_timeout_s=0.1) as bus,
        Bus(settings.nats_url, "gateway", drain_timeout_s=1.0) as gateway_bus,
    ):
        identity, residency = FakeIdentity(bus), FakeResidency(bus)
        await identity.start()
        await residency.start()
        gateway = Gateway(settings, gateway_bus, store, WAITS)
        async with gateway.running(), httpx.AsyncClient(base_url=base_url, timeout=20) as http:
            world = World(
                gateway=gateway,
                bus=bus,
                store=store,
                identity=identity,
                residency=residency,
                http=http,
                settings=settings,
                alice=identity.add_key(1, "alice", "alice"),
                bob=identity.add_key(2, "bob", "bob"),
                admin=identity.add_key(3, "root", "octavo", Role.ADMIN),
                diary=identity.add_adapter("alice/diary", {"alice@alice"}),
                tokens=tokenizer.encode(ANSWER, add_special_tokens=False).ids,
            )
            async with world.workers:
                yield world
    with contextlib.suppress(DependencyUnavailable):
        for key in [*await store.keys("staging/"), *await store.keys("packs/")]:
            await store.delete(key)
    store.close()
