"""An Octavo on this machine: two servers and four kinds of service, started by readiness, stopped in reverse."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo_cli.local_servers import NatsServer, S3Server
from octavo_cli.nats_users import Seeds, authorization
from octavo_cli.processes import Process, StartFailed, answers_http, finish, free_port
from octavo_shared.permissions import BusRole

_HOST = "127.0.0.1"
_READY_S = 60.0
_WORKER_READY_S = 180.0
_RESTARTS_MAX = 5
_WATCH_S = 0.5
_MIB = 1024 * 1024
_INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "CC", "CXX", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV",
)  # fmt: skip
_SPIN = {"GOMP_SPINCOUNT": "2000"}
"""How long a worker's threads spin at a barrier before they sleep. By default it is long enough to make a worker that
shares its cores several times slower: they spin for a thread that is not running (``shared/decisions/0004-…``)."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class FleetPlan:
    """What to start. ``folder`` gets all data and logs; ``base_dir`` is a Hugging Face model directory.

    ``environ`` is merged into every process's environment: only names that all of them know, such as
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OCTAVO_LOG_LEVEL``. ``worker_environ`` is for workers, and ``gateway_environ``
    for the gateway, alone.
    """

    folder: Path
    base_dir: Path
    num_workers: int = 1
    gateway_port: int = 0
    arena_bytes: int = 512 * _MIB
    warm_bytes: int = 256 * _MIB
    local_bytes: int = 1024 * _MIB
    environ: Mapping[str, str] = field(default_factory=dict)
    worker_environ: Mapping[str, str] = field(default_factory=dict)
    gateway_environ: Mapping[str, str] = field(default_factory=dict)


class LocalFleet:
    """The processes of one plan. An async context manager; ``stop`` also follows a start that failed."""

    def __init__(self, plan: FleetPlan, report: Report = lambda line: None) -> None:
        self.plan = plan
        self._seeds = Seeds(plan.folder / "nats" / "seeds")
        self._workers = [_worker_name(number) for number in range(1, plan.num_workers + 1)]
        self.nats = NatsServer(plan.folder / "nats", authorization=self._authorization())
        self.s3 = S3Server(plan.folder / "s3")
        self.gateway_port = plan.gateway_port or free_port()
        self.processes: dict[str, Process] = {}
        """Our own services by name, in the order in which they were made."""
        self._report = report
        self._ports: dict[str, int] = {}
        self._wanted: set[str] = set()

    @property
    def gateway_url(self) -> str:
        return f"http://{_HOST}:{self.gateway_port}"

    @property
    def nats_url(self) -> str:
        return self.nats.url

    def seed_file(self, user: str) -> Path:
        """Return the file with the nkey seed that a role or a worker connects to NATS with."""
        return self._seeds.path(user)

    def _authorization(self) -> str:
        return authorization(self._seeds.nkeys(self._workers))

    @property
    def admin_key_file(self) -> Path:
        return self.plan.folder / "identity" / "admin_key"

    @property
    def admin_key(self) -> str:
        """The text of the first key, which identity wrote when it first started."""
        return self.admin_key_file.read_text().strip()

    async def __aenter__(self) -> "LocalFleet":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and return when a request could be served; raises ``StartFailed`` with nothing left."""
        try:
            await self._together(self._start_server("nats", self.nats), self._start_server("s3", self.s3))
            self._make("identity", self._identity_environ())
            self._make("residency", self._bus_environ(BusRole.RESIDENCY))
            names = ["identity", "residency", *(self._make_worker(name) for name in self._workers)]
            await self._together(*(self._start_service(name) for name in names))
            gateway_environ = self._store_environ(BusRole.GATEWAY) | dict(self.plan.gateway_environ)
            self._make("gateway", gateway_environ, self.gateway_port)
            await self._start_service("gateway")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything: the gateway, then workers, then the rest. Idempotent; finished even when cancelled."""
        self._wanted.clear()
        await finish(self._stop_all())

    async def add_worker(self) -> str:
        """Start one more worker, which NATS is told of first, and return its name once it is ready."""
        name = _worker_name(len(self._workers) + 1)
        self._workers.append(name)
        await self.nats.reload(self._authorization())
        self._make_worker(name)
        await self._start_service(name)
        return name

    def kill(self, name: str) -> None:
        """SIGKILL one service, as a crash would; it stays down until ``restart``, ``watch`` or not."""
        self._wanted.discard(name)
        self.processes[name].kill()

    async def stop_process(self, name: str) -> None:
        """Stop one service in order; it stays down until ``restart``."""
        self._wanted.discard(name)
        await self.processes[name].stop()

    async def restart(self, name: str) -> None:
        """Stop a service if it runs, and start it again on its port with its data."""
        await self.stop_process(name)
        await self._start_service(name)

    async def watch(self) -> None:
        """Start what dies while it should be up again, at most ``_RESTARTS_MAX`` times each; never returns.

        Raises ``StartFailed`` when a service keeps dying.
        """
        num_restarts: dict[str, int] = {}
        while True:
            await asyncio.sleep(_WATCH_S)
            for name in [name for name in self._wanted if not self.processes[name].is_running]:
                num_restarts[name] = num_restarts.get(name, 0) + 1
                if num_restarts[name] > _RESTARTS_MAX:
                    raise StartFailed(f"{name} keeps ending\n{self.processes[name].log_tail()}")
                state = self.processes[name].state
                self._report(f"{name} {state}; starting it again ({num_restarts[name]} of {_RESTARTS_MAX})")
                await self._start_service(name)

    async def _start_server(self, name: str, server: NatsServer | S3Server) -> None:
        await server.start()
        self._report(f"{name} is ready")

    async def _start_service(self, name: str) -> None:
        process, port = self.processes[name], self._ports[name]
        await process.start()
        timeout_s = _WORKER_READY_S if name.startswith("worker") else _READY_S
        await process.wait_ready(lambda: answers_http(_HOST, port, "/readyz"), timeout_s)
        self._wanted.add(name)
        self._report(f"{name} is ready")

    async def _stop_all(self) -> None:
        by_kind = {"gateway": 0, "worker": 1, "residency": 2, "identity": 2}
        for turn in sorted(set(by_kind.values())):
            of_turn = [p for name, p in self.processes.items() if by_kind[name.split("-")[0]] == turn]
            await asyncio.gather(*(process.stop() for process in of_turn))
        await asyncio.gather(self.s3.stop(), self.nats.stop())

    @staticmethod
    async def _together(*starts: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for start in starts:
                    group.create_task(start)
        except* (StartFailed, OSError) as failures:
            # One cause is enough to say; the others are mostly its consequences.
            raise failures.exceptions[0] from None

    def _make(self, name: str, environ: Mapping[str, str], port: int = 0) -> None:
        self._ports[name] = port or free_port()
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        probe = {"OCTAVO_HTTP_HOST": _HOST, "OCTAVO_HTTP_PORT": str(self._ports[name])}
        package = f"octavo_{name.split('-')[0]}"
        command = [sys.executable, "-c", f"from {package}.service import main; main()"]
        log_path = self.plan.folder / "logs" / f"{name}.log"
        self.processes[name] = Process(name, command, log_path, inherited | {**self.plan.environ, **environ, **probe})

    def _make_worker(self, name: str) -> str:
        environ = {
            "OCTAVO_WORKER_ID": name,
            "OCTAVO_BASE_DIR": str(self.plan.base_dir),
            "OCTAVO_CACHE_DIR": str(self.plan.folder / name),
            "OCTAVO_ARENA_BYTES": str(self.plan.arena_bytes),
            "OCTAVO_WARM_BYTES": str(self.plan.warm_bytes),
            "OCTAVO_LOCAL_BYTES": str(self.plan.local_bytes),
        }
        spin = {key: os.environ.get(key, value) for key, value in _SPIN.items()}
        self._make(name, self._store_environ(name) | spin | environ | dict(self.plan.worker_environ))
        return name

    def _bus_environ(self, user: str) -> dict[str, str]:
        return {"OCTAVO_NATS_URL": self.nats.url, "OCTAVO_NATS_SEED_FILE": str(self.seed_file(user))}

    def _store_environ(self, user: str) -> dict[str, str]:
        return self._bus_environ(user) | {
            "OCTAVO_S3_ENDPOINT": self.s3.endpoint,
            "OCTAVO_S3_ACCESS_KEY": self.s3.access_key,
            "OCTAVO_S3_SECRET_KEY": self.s3.secret_key,
            "OCTAVO_S3_BUCKET": "octavo",
        }

    def _identity_environ(self) -> dict[str, str]:
        return self._store_environ(BusRole.IDENTITY) | {
            "OCTAVO_IDENTITY_DIR": str(self.plan.folder / "identity"),
            "OCTAVO_ADMIN_KEY_FILE": str(self.admin_key_file),
        }


def _worker_name(number: int) -> str:
    return f"worker-{number}"
