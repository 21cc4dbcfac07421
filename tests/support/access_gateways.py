"""Gateways in this process in front of a real identity, with a worker that answers for any adapter."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import msgspec

from octavo_cli.processes import free_port
from octavo_gateway.service import Gateway
from octavo_gateway.settings import GatewaySettings
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.manifest import publish_base
from support.access_world import AccessWorld
from support.adapters import TINY_BASE, TINY_FINGERPRINT
from support.fakes import FakeWorker, Script, tiny_manifest, tiny_tokenizer
from support.identity_rig import Client


@dataclass
class Front:
    """HTTP clients, one of each gateway, and the worker behind all of them."""

    worker: FakeWorker
    http: list[httpx.AsyncClient] = field(default_factory=list)


def on_nats_of(settings: StoreSettings, client: Client) -> StoreSettings:
    """Return ``settings`` for the NATS that ``client`` is connected to."""
    url = client.bus.client.connected_url
    assert url is not None
    return msgspec.structs.replace(settings, nats_url=url.geturl())


@contextlib.asynccontextmanager
async def front_of(
    world: AccessWorld, settings: StoreSettings, script: Script, num_gateways: int
) -> AsyncIterator[Front]:
    """Run gateways on the world's NATS, and a worker that follows ``script``, until they know each other."""
    tokenizer = tiny_tokenizer()
    # The base that adapters are pushed for, now with a tokenizer. What is published is never replaced, but removed.
    for key in await world.admin.store.keys("bases/"):
        await world.admin.store.delete(key)
    shapes = {"modules": TINY_BASE.modules, "num_layers": TINY_BASE.num_layers}
    manifest = msgspec.structs.replace(tiny_manifest(tokenizer, TINY_FINGERPRINT), **shapes)
    await publish_base(world.admin.store, manifest, tokenizer.to_str().encode())
    own = on_nats_of(settings, world.admin)
    async with contextlib.AsyncExitStack() as stack:
        worker = FakeWorker(world.admin.bus, "w1", script)
        worker.base = TINY_FINGERPRINT
        front = Front(await stack.enter_async_context(worker))
        for _ in range(num_gateways):
            port = free_port()
            gateway_settings = GatewaySettings(
                **msgspec.structs.asdict(own)
                | {"http_port": port, "requests_per_s": 10_000.0, "requests_burst": 10_000}
            )
            bus = await stack.enter_async_context(Bus(own.nats_url, "gateway", drain_timeout_s=0.1))
            gateway = Gateway(gateway_settings, bus, world.admin.store)
            await stack.enter_async_context(gateway.running())
            while not gateway.is_ready():
                await gateway.fleet.changed(0.05)
            http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20)
            front.http.append(await stack.enter_async_context(http))
        yield front
