"""nats-server, object storage and identity as ``octavo up`` starts them, and what they take of memory and disk."""

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from chaos.adapters import BASE
from octavo_cli.local_servers import NatsServer, S3Server
from octavo_cli.nats_users import Seeds, authorization
from octavo_cli.processes import Process, StartFailed, answers_http, finish, free_port
from octavo_identity.data_keys import DataKeys
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.credentials import BusCredentials, read_credentials
from octavo_shared.manifest import publish_base
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole

_HOST = "127.0.0.1"
_READY_S = 120.0
_POLL_S = 0.2
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class Rig:
    """All processes of one run, with their data in ``folder``. An async context manager that leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seeds = Seeds(folder / "seeds")
        self.nats = NatsServer(folder / "nats", authorization=authorization(self._seeds.nkeys()))
        self._s3 = S3Server(folder / "s3")
        self._probe_port = free_port()
        self.identity_dir = folder / "identity"
        self._identity = self._process("identity")

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(self.nats.start(), self._s3.start())
            settings = StoreSettings(
                s3_endpoint=self._s3.endpoint, s3_access_key=self._s3.access_key, s3_secret_key=self._s3.secret_key
            )
            store = ObjectStore(settings)
            try:
                await store.ensure_bucket()
                await publish_base(store, BASE, b"{}")
            finally:
                store.close()
            await self.start_identity()
            await self._until_ready()
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
        await self._identity.stop()
        await asyncio.gather(self.nats.stop(), self._s3.stop())

    def _process(self, name: str) -> Process:
        own = {
            "OCTAVO_NATS_URL": self.nats.url,
            "OCTAVO_NATS_SEED_FILE": str(self.seed_file),
            "OCTAVO_S3_ENDPOINT": self._s3.endpoint,
            "OCTAVO_S3_ACCESS_KEY": self._s3.access_key,
            "OCTAVO_S3_SECRET_KEY": self._s3.secret_key,
            "OCTAVO_IDENTITY_DIR": str(self.identity_dir),
            "OCTAVO_ADMIN_KEY_FILE": str(self.admin_key_file),
            "OCTAVO_HTTP_PORT": str(self._probe_port),
        }
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        command = [sys.executable, "-c", "from octavo_identity.service import main; main()"]
        return Process(name, command, self._folder / "logs" / f"{name}.log", inherited | own)

    @property
    def seed_file(self) -> Path:
        """The file with the nkey seed that identity connects with."""
        return self._seeds.path(BusRole.IDENTITY)

    @property
    def admin_key_file(self) -> Path:
        return self._folder / "admin_key"

    @property
    def store_dir(self) -> Path:
        """Where nats-server keeps its streams."""
        return self._folder / "nats" / "jetstream"

    def gateway_bus(self) -> Bus:
        """Return a connection with what a gateway may do."""
        return Bus(self.nats.url, "bench", credentials=self._credentials(BusRole.GATEWAY))

    @asynccontextmanager
    async def heads(self) -> AsyncIterator[HeadStore]:
        """Yield identity's own way to the stream, for looking at it from outside."""
        async with Bus(self.nats.url, "bench", credentials=self._credentials(BusRole.IDENTITY)) as bus:
            ids = Ids(load_secret(self.identity_dir))
            yield HeadStore(bus, 1, DataKeys(bus, 1, FileKeyProvider(ids.tenant_key_root())))

    def _credentials(self, role: BusRole) -> BusCredentials:
        found = read_credentials(role, str(self._seeds.path(role)))
        assert found is not None, "there is a seed for each role"
        return found

    async def start_identity(self) -> None:
        await self._identity.start()

    async def stop_identity(self) -> None:
        await self._identity.stop()

    async def _until_ready(self) -> None:
        await self._identity.wait_ready(self._is_ready, _READY_S)

    async def _is_ready(self) -> bool:
        return await answers_http(_HOST, self._probe_port, "/readyz")

    async def kill_and_restart(self) -> float:
        """Kill nats-server and identity as a crash would, and start both; returns the seconds until both are ready."""
        nats = self.nats.process
        assert nats is not None, "the rig was started"
        for process in (self._identity, nats):
            process.kill()
        await asyncio.gather(*(process.wait(_READY_S) for process in (self._identity, nats)))
        begun_s = time.perf_counter()
        await asyncio.gather(self._start_nats(), self.start_identity())
        await self._until_ready()
        return time.perf_counter() - begun_s

    async def _start_nats(self) -> None:
        try:
            await self.nats.start()
        except StartFailed:
            # It takes longer than a local server is waited for: a target is missed, and the run goes on.
            assert self.nats.process is not None
            await self.nats.process.wait_ready(self.nats.is_healthy, _READY_S)

    def delete_view(self) -> None:
        """Delete identity's view of the registry, which it makes anew when it starts."""
        for file in self.identity_dir.glob("projection.sqlite*"):
            file.unlink()

    async def until_viewed(self, sequence: int, limit_s: float, report: Callable[[int], None]) -> float:
        """Wait until the view holds all up to ``sequence``; returns the seconds. Raises ``TimeoutError``.

        ``report`` is told how far it is.
        """
        begun_s = time.perf_counter()
        async with asyncio.timeout(limit_s):
            while (viewed := self.viewed()) < sequence:
                report(viewed)
                await asyncio.sleep(_POLL_S)
        return time.perf_counter() - begun_s

    def viewed(self) -> int:
        """Return the sequence up to which identity's view goes, from its file."""
        return self._ask_view("SELECT COALESCE(MAX(sequence), 0) FROM position")

    def num_listed(self) -> int:
        """Return how many adapters are in identity's view."""
        return self._ask_view("SELECT COUNT(*) FROM adapters")

    def _ask_view(self, query: str) -> int:
        # The file may not be there yet, or not have its tables.
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(
                sqlite3.connect(f"file:{self.identity_dir / 'projection.sqlite'}?mode=ro", uri=True)
            ) as view,
        ):
            return int(view.execute(query).fetchone()[0])
        return 0

    def pids(self) -> Mapping[str, list[int]]:
        """Return the processes whose time is accounted for, by what they are."""
        assert self.nats.process is not None, "the rig was started"
        return {"nats-server": [self.nats.process.pid], "identity": [self._identity.pid]}

    def server_bytes(self) -> int:
        """Return how much memory nats-server has in use (resident set)."""
        assert self.nats.process is not None, "the rig was started"
        return int(psutil.Process(self.nats.process.pid).memory_info().rss)

    def identity_bytes(self) -> int:
        """Return how much memory identity has in use (resident set)."""
        return int(psutil.Process(self._identity.pid).memory_info().rss)

    def disk_bytes(self) -> int:
        """Return what nats-server's streams take on the disk."""
        return _size_of(self.store_dir)

    def view_bytes(self) -> int:
        """Return what identity's view takes on the disk."""
        return _size_of(self.identity_dir)


def _size_of(folder: Path) -> int:
    """Return the bytes that are allocated for the files in a folder; one may go away meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_blocks * 512 if file.is_file() else 0
    return total
