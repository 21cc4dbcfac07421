"""The HTTP server of every service."""

import asyncio
import re

from litestar import Litestar

from octavo_cli.processes import free_port
from octavo_shared.service import http_server, probe_routes

CLIENTS_GIVE_UP_S = 5.0
"""After which httpx closes a connection that nobody uses."""


async def test_a_connection_that_idles_is_still_good_when_its_client_would_give_it_up() -> None:
    port = free_port()
    async with http_server(Litestar(probe_routes(lambda: True), openapi_config=None), "127.0.0.1", port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for idle_s in (CLIENTS_GIVE_UP_S + 1, 0):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: octavo\r\n\r\n")
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
            await asyncio.sleep(idle_s)
        writer.close()
        await writer.wait_closed()
