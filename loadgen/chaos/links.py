"""The network between the nats-servers of a cluster: TCP proxies between them, which can be held up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from octavo_cli.processes import free_port
from octavo_shared.tasks import end

_HOST = "127.0.0.1"
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Link:
    """What server ``dialling`` reaches server ``dialled`` by: the proxy at ``port`` before where that one listens."""

    dialling: int
    dialled: int
    port: int
    listening: int


class Links:
    """A proxy for each pair of servers. An async context manager.

    ``cut`` holds up whatever goes to and from a server. Nothing is lost and no connection ends, as where a network
    drops packets: what was said in the meantime arrives when the server is joined again.
    """

    def __init__(self) -> None:
        self._links: list[_Link] = []
        self._joined: dict[int, asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._carrying: set[asyncio.Task[None]] = set()

    def dial(self, dialling: int, dialled: int, port: int) -> int:
        """Return where ``dialling`` reaches ``dialled``, which listens on ``port``: see ``NatsCluster``."""
        link = _Link(dialling, dialled, free_port(), port)
        self._links.append(link)
        for number in (dialling, dialled):
            self.join(number)
        return link.port

    def cut(self, number: int) -> None:
        """Let nothing through to or from the server of this number, until it is joined again."""
        self._joined[number].clear()

    def join(self, number: int) -> None:
        self._joined.setdefault(number, asyncio.Event()).set()

    async def __aenter__(self) -> Self:
        for link in self._links:
            self._servers.append(await asyncio.start_server(self._accept_for(link), _HOST, link.port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        await end(*self._carrying)

    def _accept_for(self, link: _Link) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._carrying.add(task)
            try:
                # asyncio's server logs a cancelled task of its own as an error.
                with contextlib.suppress(asyncio.CancelledError):
                    await self._carry(link, reader, writer)
            finally:
                self._carrying.discard(task)

        return accept

    async def _carry(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await self._may_pass(link)
            there, back = await asyncio.open_connection(_HOST, link.listening)
            with contextlib.closing(back):
                async with asyncio.TaskGroup() as both:
                    pumps = [both.create_task(self._pump(link, *way)) for way in ((reader, back), (there, writer))]
                    # A connection whose one side is over is over.
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                    for pump in pumps:
                        pump.cancel()

    async def _pump(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_PIECE_BYTES):
                await self._may_pass(link)
                sink.write(data)
                await sink.drain()

    async def _may_pass(self, link: _Link) -> None:
        """Wait until both ends are joined."""
        ends = [self._joined[number] for number in (link.dialling, link.dialled)]
        while not all(one.is_set() for one in ends):
            for one in ends:
                await one.wait()
