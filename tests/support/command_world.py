"""A gateway before a real identity, and the command line that speaks to it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from octavo_cli.processes import free_port
from octavo_gateway.credentials import new_key
from octavo_gateway.service import Gateway
from octavo_gateway.settings import GatewaySettings
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.messages.keys import Role
from support.adapters import TINY_FINGERPRINT
from support.fakes import Exchange, FakeWorker
from support.identity_rig import Client, own_identity


@contextlib.asynccontextmanager
async def gateway(admin: Client, settings: StoreSettings, port: int) -> AsyncIterator[str]:
    """Run a gateway before ``admin``'s identity and yield its URL."""
    nats = admin.bus.client.connected_url
    assert nats is not None
    fields = msgspec.structs.asdict(settings) | {"nats_url": nats.geturl(), "http_port": port}
    own = GatewaySettings(**fields)
    async with (
        Bus(own.nats_url, "gateway", drain_timeout_s=1.0) as bus,
        Gateway(own, bus, admin.store).running(),
    ):
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def pushing_world(settings: StoreSettings, folder: Path) -> AsyncIterator[tuple[Client, str, str]]:
    """Yield alice@home, her key and the URL of a gateway that has heard of a worker with the tiny base."""

    async def busy(exchange: Exchange) -> None:
        await exchange.busy()

    async with own_identity(settings, folder) as admin:
        alice, key = await alice_of(admin)
        worker = FakeWorker(admin.bus, "w1", busy)
        worker.base = TINY_FINGERPRINT
        async with gateway(admin, settings, free_port()) as url, worker:
            yield alice, key, url


async def octavo(url: str, key: str, config: Path, *words: str) -> tuple[int, str]:
    """Run ``octavo WORDS``; returns its exit code and all that it said."""
    command = [sys.executable, "-c", "from octavo_cli.main import main; main()", *words]
    # Wide, or else a long path in what it says is broken in the middle.
    environ = os.environ | {
        "OCTAVO_GATEWAY_URL": url, "OCTAVO_KEY": key, "XDG_CONFIG_HOME": str(config), "COLUMNS": "400",
    }  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environ
    )
    said, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, said.decode()


async def alice_of(admin: Client) -> tuple[Client, str]:
    """Return alice@home, and the text of her key."""
    text, fresh = new_key()
    await admin.ask(
        "issue_key", tenant="home", user="alice", role=Role.OWNER, key_id=fresh.key_id,
        secret_sha256=fresh.secret_sha256,
    )  # fmt: skip
    return Client(admin.bus, admin.store, fresh), text
