"""The bus against a real server: what a subscriber is promised."""

import asyncio

import msgspec

from octavo_cli.local_servers import NatsServer
from octavo_shared.bus import Bus

NUM_SUBJECTS = 1_000


class Ping(msgspec.Struct, frozen=True):
    number: int


async def echo(ping: Ping) -> Ping:
    return ping


async def test_whoever_is_served_is_heard_at_once(nats_server: NatsServer) -> None:
    async with Bus(nats_server.url, "server") as server, Bus(nats_server.url, "caller") as caller:
        async with asyncio.timeout(60):
            for number in range(NUM_SUBJECTS):
                await server.serve(f"test.bus.{number}", Ping, echo)
                # One subscription in 250 was unknown to the server here when it was flushed once only.
                assert await caller.request(f"test.bus.{number}", Ping(number), Ping, 5.0) == Ping(number)
