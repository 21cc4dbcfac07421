"""Real servers for tests: started once per session on free loopback ports, always stopped."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from octavo_cli.local_servers import NatsServer, S3Server
from octavo_shared.config import StoreSettings

pytest_plugins = ["support.broken_run"]

# As in a service. Left alone, logs go to whatever is stdout at that moment: with an identity in the test's own process,
# that is now and then what a command printed.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: a file's tests stay in one process, and so do all system tests, which share one fleet."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            system = "tests/system/"
            return system if nodeid.startswith(system) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A real nats-server with JetStream. Tests that stop it start their own instead."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server
        runner.run(server.stop())


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server. Tests that stop it start their own instead."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server
        runner.run(server.stop())


@pytest.fixture
def store_settings(nats_server: NatsServer, s3_server: S3Server, tmp_path: Path) -> StoreSettings:
    """Settings for the session's servers, with a bucket of this test's own."""
    return StoreSettings(
        nats_url=nats_server.url,
        s3_endpoint=s3_server.endpoint,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
        s3_bucket="t" + "".join(c for c in tmp_path.name.lower() if c.isalnum())[:40],
    )
