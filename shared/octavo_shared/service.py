"""The life of a service process: settings, telemetry, signals, probes, orderly stop."""

import asyncio
import atexit
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NoReturn, TypeVar

import uvicorn
from litestar import Litestar, MediaType, Response, get
from litestar.types import ASGIApp
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from octavo_shared.config import BusSettings, ConfigError, read_settings
from octavo_shared.errors import OctavoError
from octavo_shared.telemetry import log, start_telemetry

_COLLECT_EVERY = 50_000
"""New objects that are still there."""
_KEEP_ALIVE_S = 75
"""For an idle connection: longer than clients keep theirs (5 s in httpx, with which OpenAI's client asks, 60 s in many
proxies). If both gave up at the same moment, a request could meet the end of its connection and go unanswered."""

S = TypeVar("S", bound=BusSettings)
Main = Callable[[S, asyncio.Event], Coroutine[Any, Any, None]]


def run_service(name: str, settings_kind: type[S], main: Main[S]) -> None:
    """Run ``main(settings, stop)`` until it returns; SIGTERM and SIGINT set ``stop``, a second one cancels ``main``.

    Exits with 2 when a setting, or what it names, is wrong and with 1 when ``main`` fails; the reason is one line.
    """
    try:
        settings = read_settings(settings_kind)
    except ConfigError as error:
        _refuse(name, error)
    provider = start_telemetry(name, settings.log_level)
    spare_collections()

    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(main(settings, stop), name=name)

        def on_signal() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        for kind in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(kind, on_signal)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
        log.info("service_stopped")
    except ConfigError as error:
        _refuse(name, error)
    except OctavoError as error:
        log.error("service_failed", code=error.code, detail=error.message)
        sys.exit(1)
    finally:
        if provider is not None:
            provider.shutdown()


def spare_collections() -> None:
    """Keep what was imported out of all garbage collections, and let them come more rarely.

    A service that has a thousand requests in flight otherwise goes over all of its modules again and again.
    """
    gc.collect()
    gc.freeze()
    # Else the interpreter cannot take the modules apart when it ends, and libraries complain of leaks on stderr.
    atexit.register(gc.unfreeze)
    gc.set_threshold(_COLLECT_EVERY)


def _refuse(name: str, error: ConfigError) -> NoReturn:
    sys.stderr.write(f"{name}: {error}\n")
    sys.exit(2)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service owns them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def http_server(app: ASGIApp, host: str, port: int, drain_s: float = 5.0) -> AsyncIterator[None]:
    """Serve ``app`` while the block runs; on leaving, wait ``drain_s`` for open requests."""
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=int(drain_s),
        timeout_keep_alive=_KEEP_ALIVE_S,
    )  # fmt: skip
    server = _Server(config)
    task = asyncio.create_task(server.serve(), name="http server")
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event to wait for
            await asyncio.sleep(0.01)
        if task.done():
            await task
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def probes(settings: BusSettings, is_ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Serve ``/livez``, ``/readyz`` and ``/metrics`` while the block runs, if a port is configured."""
    if settings.http_port == 0:
        yield
        return
    app = Litestar(probe_routes(is_ready), openapi_config=None, logging_config=None)
    async with http_server(app, settings.http_host, settings.http_port):
        yield


def probe_routes(is_ready: Callable[[], bool]) -> list[Any]:
    """Return the three route handlers; ``/readyz`` is 503 until ``is_ready()``."""

    @get("/livez", media_type=MediaType.TEXT, include_in_schema=False)
    async def livez() -> str:
        return "alive\n"

    @get("/readyz", media_type=MediaType.TEXT, include_in_schema=False)
    async def readyz() -> Response[str]:
        ready = is_ready()
        return Response("ready\n" if ready else "not ready\n", status_code=200 if ready else 503)

    @get("/metrics", include_in_schema=False)
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    return [livez, readyz, metrics]
