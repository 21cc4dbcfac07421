"""Three nats-servers of one cluster on loopback, as production has them on three machines."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo_cli.local_servers import NatsServer
from octavo_cli.processes import finish, free_port

_NAME = "octavo"
_NOWHERE = "127.0.0.1:1"

Dial = Callable[[int, int, int], int]
"""(number of the server that dials, number and port of the one that is dialled) → the port to dial in its place."""


class NatsCluster:
    """Servers that replicate streams among them. An async context manager; leaving it stops all of them.

    With ``dial`` they reach each other only where it says; without, directly.
    """

    def __init__(self, folder: Path, num_servers: int = 3, authorization: str = "", dial: Dial | None = None) -> None:
        ports = {number: free_port() for number in range(1, num_servers + 1)}

        def routes_of(number: int) -> list[int]:
            others = [(other, port) for other, port in ports.items() if other != number]
            return [dial(number, other, port) if dial else port for other, port in others]

        self.servers = [
            NatsServer(
                folder / f"nats-{number}",
                authorization=authorization,
                extra=_cluster(f"nats-{number}", port, routes_of(number), is_hidden=dial is not None),
                name=f"nats-{number}",
            )
            for number, port in ports.items()
        ]

    @property
    def url(self) -> str:
        """All servers: a client goes from one to another by itself."""
        return ",".join(server.url for server in self.servers)

    async def __aenter__(self) -> "NatsCluster":
        try:
            # Together: a server is only healthy once the cluster has a leader.
            async with asyncio.TaskGroup() as group:
                for server in self.servers:
                    group.create_task(server.start())
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop all servers, also those that do not run or are suspended. Idempotent; finished even when cancelled."""
        await finish(self._stop())

    async def _stop(self) -> None:
        for server in self.servers:
            if server.process is not None:
                # A suspended one would hear of its end only when its grace is over.
                server.process.kill(signal.SIGCONT)
        await asyncio.gather(*(server.stop() for server in self.servers))


def _cluster(name: str, port: int, routes: Sequence[int], *, is_hidden: bool) -> str:
    # Servers tell each other where they listen, and would find ways of their own.
    advertise = f"  advertise: {_NOWHERE}\n" if is_hidden else ""
    others = ", ".join(f"nats-route://127.0.0.1:{other}" for other in routes)
    block = f"  name: {_NAME}\n  listen: 127.0.0.1:{port}\n{advertise}  routes: [{others}]\n"
    return f"server_name: {name}\ncluster {{\n{block}}}\n"
