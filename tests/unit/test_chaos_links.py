"""The proxies between nats-servers: what is cut waits, what is joined passes, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chaos.links import Links
from octavo_cli.processes import free_port


@asynccontextmanager
async def echoing(port: int) -> AsyncIterator[None]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1_000):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield


async def said(reader: asyncio.StreamReader, num_bytes: int, within_s: float = 5.0) -> bytes:
    """Return what came, empty when nothing did."""
    try:
        async with asyncio.timeout(within_s):
            return await reader.readexactly(num_bytes)
    except TimeoutError:
        return b""


@asynccontextmanager
async def route(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert await said(reader, 5) == b"hello"
    yield reader, writer
    writer.close()


async def test_what_is_cut_off_hears_and_says_nothing_until_it_is_joined_again() -> None:
    second, third, links = free_port(), free_port(), Links()
    to_second, from_second, beside = links.dial(1, 2, second), links.dial(2, 3, third), links.dial(1, 3, third)
    async with (
        echoing(second),
        echoing(third),
        links,
        route(to_second) as (in_a, out_a),
        route(from_second) as (in_b, out_b),
        route(beside) as (in_c, out_c),
    ):
        links.cut(2)
        for writer in (out_a, out_b, out_c):
            writer.write(b"one")
        assert await said(in_c, 3) == b"one"
        assert [await said(reader, 3, 0.2) for reader in (in_a, in_b)] == [b"", b""]
        links.join(2)
        for writer in (out_a, out_b):
            writer.write(b"two")
        assert [await said(reader, 6) for reader in (in_a, in_b)] == [b"onetwo", b"onetwo"]


async def test_whoever_connects_to_one_that_is_cut_off_waits() -> None:
    listening, links = free_port(), Links()
    port = links.dial(1, 2, listening)
    async with echoing(listening), links:
        links.cut(2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await said(reader, 5, 0.2) == b""
        links.join(2)
        assert await said(reader, 5) == b"hello"
        writer.close()


async def test_a_connection_that_one_side_ends_is_over_for_the_other() -> None:
    listening, links = free_port(), Links()
    port = links.dial(1, 2, listening)
    async with echoing(listening), links, route(port) as (reader, writer):
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
