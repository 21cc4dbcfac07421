"""One child process: started with a log of its own, waited for by a probe, stopped by id."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

_POLL_S = 0.05
_LOG_TAIL_LINES = 20
_SERVER_PORTS = (10_000, 32_768)
"""Above what well-known services use, below where Linux takes the ports of outgoing connections from."""
_BLOCK_PORTS = 64
_BLOCK_TRIES_MAX = 4_000
_own_ports: list[int] = []
"""Ports of the block that this process holds, which were not handed out yet."""
os.register_at_fork(after_in_child=lambda: _own_ports.clear())


class StartFailed(Exception):
    """A process ended, or was not ready in time; the message ends with its last log lines."""


def script(name: str) -> str:
    """Return the path of a console script: this environment's own first, for the PATH may hold another version."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: pip install 'octavo[cli,local]'")
    return found


def free_port() -> int:
    """Return a TCP port of loopback that is free, and that nothing but a server will want before it is bound.

    No port comes twice, whichever processes ask: whoever was given it may not have bound it yet, or stop its server and
    start it again. Each process has blocks of ports of its own; it holds the first port of each until it ends.

    It is not what the kernel hands out for port 0: those are the ports of outgoing connections too, and a server with a
    dozen ports to bind was seen to lose one of them to a connection while it started.
    """
    begin, end = _SERVER_PORTS
    for _ in range(_BLOCK_TRIES_MAX):
        while _own_ports:
            port = _own_ports.pop()
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        first = random.randrange(begin, end - _BLOCK_PORTS + 1, _BLOCK_PORTS)
        with socket.socket() as holder, contextlib.suppress(OSError):
            holder.bind(("127.0.0.1", first))
            holder.detach()  # open until the process ends
            _own_ports.extend(random.sample(range(first + 1, first + _BLOCK_PORTS), _BLOCK_PORTS - 1))
    raise StartFailed(f"no free port from {begin} to {end} on loopback")


class Process:
    """A named child in a process group of its own, so that a terminal's Ctrl-C reaches only us."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self._command = list(command)
        self._log_path = log_path
        self._environ = dict(environ)
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None, "start() comes first"
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def state(self) -> str:
        """Say in words how it is: not started, running, or how it ended."""
        if self._child is None:
            return "not started"
        code = self._child.returncode
        if code is None:
            return "running"
        return f"ended with {code}" if code >= 0 else f"ended by signal {-code} ({signal.strsignal(-code)})"

    async def start(self) -> None:
        """Start the child; its output is appended to its log file."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                start_new_session=True,
            )

    async def wait_ready(self, probe: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Return once ``probe()`` holds; raises ``StartFailed`` when the child ends or time runs out."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            if not self.is_running:
                raise StartFailed(f"{self.name} {self.state} while it started\n{self.log_tail()}")
            if await probe():
                return
            if loop.time() > deadline:
                raise StartFailed(f"{self.name} was not ready after {timeout_s:.0f} s\n{self.log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def wait(self, timeout_s: float) -> int:
        """Return the child's exit code once it ends; raises ``TimeoutError``."""
        assert self._child is not None, "start() comes first"
        return await asyncio.wait_for(self._child.wait(), timeout_s)

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send ``sign`` to the child alone."""
        if self.is_running:
            os.kill(self.pid, sign)

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the child: SIGTERM, then SIGKILL to its group after ``grace_s``. Idempotent."""
        if self._child is None:
            return
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._child.terminate()
            try:
                await asyncio.wait_for(self._child.wait(), grace_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
        await self._child.wait()

    def log_tail(self) -> str:
        """Return the last lines of the child's log."""
        return "\n".join(self.log_text().splitlines()[-_LOG_TAIL_LINES:])

    def log_text(self) -> str:
        """Return all that the child has logged."""
        with contextlib.suppress(OSError):
            return self._log_path.read_text(errors="replace")
        return ""


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` to its end however often the caller is cancelled meanwhile, then let the cancellation through.

    For clean-up: somebody who presses Ctrl-C again wants it sooner, not half of it.
    """
    task = asyncio.create_task(work, name="finish")
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError


async def answers_http(host: str, port: int, path: str) -> bool:
    """Tell whether a GET is answered with 200; for readiness probes, so every failure is a plain no."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
