"""The two real servers under a local Octavo: nats-server with JetStream, and SeaweedFS as S3."""

import json
import os
import secrets
import signal
from pathlib import Path

from octavo_cli.processes import Process, answers_http, free_port, script

_NATS_READY_S = 15.0
_RELOADED = "Reloaded server configuration"
_S3_READY_S = 60.0
_S3_GRACE_S = 2.0
"""SeaweedFS drains for 15 s on SIGTERM; what it acknowledged is in the kernel's hands before that."""
_S3_VOLUMES_MAX = 16_384
"""Files of 64 MiB at most, which take no room before they are written to. A bucket has its own, one after the other and
not seven at once; left alone, the server allows only as many as the disk has room for when all are full."""
_S3_FREE_MIN = "256MiB"
"""Of the disk; with less it stores nothing more. Left alone it wants a hundredth, of a large disk some gigabytes."""
_S3_ELECTION = ("-master.electionTimeout=200ms", "-master.heartbeatInterval=50ms")
"""The master, which is alone, mostly elects itself before its volume server calls. One that calls too early is sent off
and calls again 5 s later; until then nothing can be stored. In 10 ms it may be too quick for itself, which takes 13."""
_NATS_PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
_NATS_GOGC = "200"
"""By how many per cent nats-server's heap may grow before Go collects it; 100 unless told. With a million adapters
it is mostly nodes of indexes, and looking through them took a third of the server's processor time."""


class NatsServer:
    """A JetStream server on loopback; ``sync_interval: always``, as the registry wants it.

    ``authorization`` is that block of its configuration; without one, everybody may do everything. ``extra`` is what
    else its configuration holds. ``name`` is what its process is called.
    """

    def __init__(
        self, folder: Path, port: int | None = None, authorization: str = "", extra: str = "",
        name: str = "nats-server",
    ) -> None:  # fmt: skip
        self.name = name
        self._folder = folder
        self._authorization = authorization
        self._extra = extra
        self.port = port or free_port()
        self._monitor_port = free_port()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server and wait until it is healthy; a second start reuses port and data."""
        config = self._write_config()
        self.process = Process(
            self.name,
            [script("nats-server"), "-c", str(config)],
            self._folder / "nats.log",
            {"GOGC": _NATS_GOGC, **os.environ},
        )
        await self.process.start()
        await self.process.wait_ready(
            lambda: answers_http("127.0.0.1", self._monitor_port, "/healthz?js-enabled-only=true"), _NATS_READY_S
        )

    def _write_config(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "nats.conf"
        config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\nhttp: 127.0.0.1:{self._monitor_port}\n"
            f"max_payload: {_NATS_PAYLOAD_BYTES_MAX}\n"
            f'jetstream {{ store_dir: "{self._folder / "jetstream"}", sync_interval: always }}\n'
            f"{self._authorization}{self._extra}"
        )
        return config

    async def reload(self, authorization: str) -> None:
        """Let ``authorization`` hold from now on; connections that it still allows stay."""
        assert self.process is not None, "start() comes first"
        process, num_before = self.process, self.process.log_text().count(_RELOADED)
        self._authorization = authorization
        self._write_config()
        process.kill(signal.SIGHUP)

        async def is_reloaded() -> bool:
            return process.log_text().count(_RELOADED) > num_before

        await process.wait_ready(is_reloaded, _NATS_READY_S)

    async def is_healthy(self) -> bool:
        """Tell whether the server answers and, in a cluster, has all of its streams up to date."""
        return await answers_http("127.0.0.1", self._monitor_port, "/healthz")

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()


class S3Server:
    """SeaweedFS, all of it on loopback and free ports; only its S3 port is meant for others."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self._folder = folder
        self.port = port or free_port()
        self.access_key = "octavo"
        self.secret_key = self._remembered_secret()
        # Each HTTP port of SeaweedFS has a gRPC twin, which would default to port + 10000 and may overflow.
        self._ports = {
            name: free_port()
            for name in (
                "master.port",
                "master.port.grpc",
                "volume.port",
                "volume.port.grpc",
                "filer.port",
                "filer.port.grpc",
                "s3.port.grpc",
            )
        }
        self.process: Process | None = None

    def _remembered_secret(self) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "s3_secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(16))
        return path.read_text()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the server and wait until its S3 side answers; a second start reuses ports and data."""
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        identities = self._folder / "s3.json"
        identities.touch(mode=0o600)
        identities.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "octavo",
                            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )
        command = [
            script("weed"),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.port={self.port}",
            f"-s3.config={identities}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-volume.max={_S3_VOLUMES_MAX}",
            f"-volume.minFreeSpace={_S3_FREE_MIN}",
            "-master.volumeSizeLimitMB=64",
            *_S3_ELECTION,
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        self.process = Process("s3", command, self._folder / "s3.log", environment)
        await self.process.start()
        await self.process.wait_ready(self.is_healthy, _S3_READY_S)

    async def is_healthy(self) -> bool:
        """Tell whether its S3 side answers."""
        return await answers_http("127.0.0.1", self.port, "/healthz")

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop(_S3_GRACE_S)
