"""The bus on a cluster: any of its servers will do, and one that keeps silent is left."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from octavo_cli.nats_cluster import NatsCluster
from octavo_cli.processes import free_port
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.generation import Cancel
from support.identity_rig import own_nats


async def test_of_several_servers_one_that_is_there_is_enough(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats:
        urls = f"nats://127.0.0.1:{free_port()},{nats.url}"
        async with Bus(urls, "test", connect_timeout_s=10) as bus:
            assert bus.is_connected


@asynccontextmanager
async def echo(bus: Bus) -> AsyncIterator[None]:
    async def answer(message: Cancel) -> Cancel:
        return message

    await bus.serve("echo", Cancel, answer)
    yield


async def test_a_server_that_is_suspended_is_left_for_another_one_within_seconds(tmp_path: Path) -> None:
    async with (
        NatsCluster(tmp_path) as cluster,
        Bus(cluster.servers[0].url, "server") as server,
        echo(server),
        Bus(cluster.servers[1].url, "client") as client,
    ):
        # Servers tell each other who serves what; only then is a request not refused.
        async with asyncio.timeout(10):
            while not await answers(client):
                await asyncio.sleep(0.05)
        process = cluster.servers[1].process
        assert process is not None
        process.kill(signal.SIGSTOP)
        async with asyncio.timeout(12):
            while not await answers(client):
                await asyncio.sleep(0.05)
        process.kill(signal.SIGCONT)


async def answers(client: Bus) -> bool:
    try:
        await client.request("echo", Cancel("r"), Cancel, timeout_s=0.5)
    except DependencyUnavailable:
        return False
    return True
