"""A registry as in production, on one machine: three clustered nats-servers, an object store, identity replicas."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.adapters import BASE
from chaos.links import Links
from octavo_cli.local_servers import S3Server
from octavo_cli.nats_cluster import NatsCluster
from octavo_cli.nats_users import Seeds, authorization
from octavo_cli.processes import Process, answers_http, finish, free_port
from octavo_identity.ids import write_private
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.credentials import BusCredentials, new_seed, public_nkey, read_seed
from octavo_shared.manifest import publish_base
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole

NUM_SERVERS = 3
NUM_IDENTITIES = 2
_READY_S = 60.0
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class Deployment:
    """All processes of one run, in ``folder``. An async context manager that leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seeds = Seeds(folder / "seeds")
        self._operator = BusCredentials(BusRole.IDENTITY, new_seed())
        nkeys = self._seeds.nkeys()
        self.links = Links()
        users = _with_operator(authorization(nkeys), self._operator)
        self.nats = NatsCluster(folder, NUM_SERVERS, users, self.links.dial)
        self.s3 = S3Server(folder / "s3")
        self.settings = StoreSettings(
            nats_url=self.nats.url,
            s3_endpoint=self.s3.endpoint,
            s3_access_key=self.s3.access_key,
            s3_secret_key=self.s3.secret_key,
        )
        self._probe_ports = [free_port() for _ in range(NUM_IDENTITIES)]
        self.identities = [self._identity(number) for number in range(NUM_IDENTITIES)]

    async def __aenter__(self) -> Self:
        try:
            await self.links.__aenter__()
            await asyncio.gather(self.nats.__aenter__(), self.s3.start())
            store = ObjectStore(self.settings)
            try:
                await store.ensure_bucket()
                await publish_base(store, BASE, b"{}")
            finally:
                store.close()
            await asyncio.gather(*(self.start_identity(number) for number in range(NUM_IDENTITIES)))
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End everything. Idempotent; finished even when cancelled."""
        await finish(self._stop())

    async def _stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self.identities))
        await asyncio.gather(self.nats.stop(), self.s3.stop())
        await self.links.__aexit__(None, None, None)

    def _identity(self, number: int) -> Process:
        name = f"identity-{number + 1}"
        # Replicas share the deployment's secret; each has a view of the registry of its own.
        secret = self._folder / "secret"
        if not secret.exists():
            write_private(secret, secrets.token_hex(32))
        write_private(self._folder / name / "secret", secret.read_text())
        own = {
            "OCTAVO_NATS_URL": self.nats.url,
            "OCTAVO_NATS_SEED_FILE": str(self._seeds.path(BusRole.IDENTITY)),
            "OCTAVO_S3_ENDPOINT": self.s3.endpoint,
            "OCTAVO_S3_ACCESS_KEY": self.s3.access_key,
            "OCTAVO_S3_SECRET_KEY": self.s3.secret_key,
            "OCTAVO_IDENTITY_DIR": str(self._folder / name),
            "OCTAVO_ADMIN_KEY_FILE": str(self.admin_key_file),
            "OCTAVO_NUM_REPLICAS": str(NUM_SERVERS),
            "OCTAVO_HTTP_PORT": str(self._probe_ports[number]),
        }
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        command = [sys.executable, "-c", "from octavo_identity.service import main; main()"]
        return Process(name, command, self.identity_log(number), inherited | own)

    @property
    def admin_key_file(self) -> Path:
        return self._folder / "admin_key"

    def identity_dir(self, number: int) -> Path:
        return self._folder / f"identity-{number + 1}"

    def identity_log(self, number: int) -> Path:
        return self._folder / "logs" / f"identity-{number + 1}.log"

    async def start_identity(self, number: int) -> None:
        """Start a replica and wait until it serves and has read the whole stream."""
        process = self.identities[number]
        await process.start()
        port = self._probe_ports[number]
        await process.wait_ready(lambda: answers_http("127.0.0.1", port, "/readyz"), _READY_S)

    async def identity_is_ready(self, number: int) -> bool:
        return await answers_http("127.0.0.1", self._probe_ports[number], "/readyz")

    def gateway_bus(self, name: str) -> Bus:
        """Return a connection with what a gateway may do, which is what writers are."""
        seed = read_seed(self._seeds.path(BusRole.GATEWAY))
        return Bus(self.nats.url, name, credentials=BusCredentials(BusRole.GATEWAY, seed))

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Bus]:
        """Yield a connection that may do everything: no service has one, but whoever runs the servers does."""
        async with Bus(self.nats.url, "operator", credentials=self._operator) as bus:
            yield bus


def _with_operator(text: str, operator: BusCredentials) -> str:
    head = "  users: [\n"
    assert head in text, "the operator goes in front of the other users"
    # Its inbox is identity's, so that it can use what identity uses to read the stream.
    everything = '{publish: {allow: ">"}, subscribe: {allow: ">"}}'
    return text.replace(head, f"{head}    {{nkey: {public_nkey(operator.seed)}, permissions: {everything}}}\n", 1)
