"""The bus against a real server: what a subscriber is promised."""

import asyncio

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, MaxPayloadError

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


@pytest.mark.parametrize(
    "hostile",
    [b"HPUB test.bus xx 8 10\r\nNATS/1.0{}\r\n", b"PUB test.bus \xff\xfe 2\r\n{}\r\n"],
    ids=["short header", "reply is not UTF-8"],
)
async def test_a_message_that_cannot_be_decoded_is_dropped_and_the_next_is_heard(
    nats_server: NatsServer, hostile: bytes
) -> None:
    async with Bus(nats_server.url, "server") as server, Bus(nats_server.url, "caller") as caller:
        await server.serve("test.bus", Ping, echo)
        _, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n' + hostile)
        await writer.drain()
        for number in range(3):
            assert await caller.request("test.bus", Ping(number), Ping, 5.0) == Ping(number)
        writer.close()


async def test_what_has_come_is_still_answered_when_a_bus_drains(nats_server: NatsServer) -> None:
    num_messages = 50

    async def slow(message: Msg) -> None:
        await asyncio.sleep(0.01)
        await message.respond(b"")

    async with Bus(nats_server.url, "caller") as caller, caller.inbox() as (reply, inbox):
        async with Bus(nats_server.url, "server") as server:
            await server.subscribe("test.drain", slow, num_handlers_max=2)
            for _ in range(num_messages):
                await caller.client.publish("test.drain", b"", reply=reply)
            await caller.settled()
        assert [(await inbox.next_msg(timeout=5)).data for _ in range(num_messages)] == [b""] * num_messages


async def test_what_is_published_together_arrives_as_if_it_were_one_by_one(nats_server: NatsServer) -> None:
    sent = [
        (f"test.together.{number}", f"Number: {number}\r\nOf: all\r\n".encode(), bytes(number)) for number in range(99)
    ]
    came: list[tuple[str, dict[str, str] | None, bytes]] = []
    async with Bus(nats_server.url, "server") as server, Bus(nats_server.url, "caller") as caller:

        async def note(message: Msg) -> None:
            came.append((message.subject, message.headers, message.data))

        await server.subscribe("test.together.*", note)
        await caller.client.publish_together(sent)
        await caller.settled()
        await server.settled()
        with pytest.raises(MaxPayloadError):
            await caller.client.publish_together([("test.together.1", b"", bytes(caller.client.max_payload))])
        await server.drain()
    expected = [(subject, {"Number": str(len(data)), "Of": "all"}, data) for subject, _, data in sent]
    assert came == expected
    with pytest.raises(ConnectionClosedError):
        await caller.client.publish_together(sent)
