"""Three nats-servers of one cluster on loopback, as production has them on three machines."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from octavo_cli.local_servers import NatsServer
from octavo_cli.processes import finish, free_port

_NAME = "octavo"


class NatsCluster:
    """Servers that replicate streams among them. An async context manager; leaving it stops all of them."""

    def __init__(self, folder: Path, num_servers: int = 3, authorization: str = "") -> None:
        routes = [free_port() for _ in range(num_servers)]
        self.servers = [
            NatsServer(
                folder / f"nats-{number}",
                authorization=authorization,
                extra=_cluster(f"nats-{number}", port, [other for other in routes if other != port]),
                name=f"nats-{number}",
            )
            for number, port in enumerate(routes, 1)
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


def _cluster(name: str, port: int, routes: Sequence[int]) -> str:
    others = ", ".join(f"nats-route://127.0.0.1:{other}" for other in routes)
    return f"server_name: {name}\ncluster {{\n  name: {_NAME}\n  listen: 127.0.0.1:{port}\n  routes: [{others}]\n}}\n"
