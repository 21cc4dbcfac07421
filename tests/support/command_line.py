"""The ``octavo`` command as a person runs it: read while it runs, interrupted, and looked after for what it leaves."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

OCTAVO = Path(sys.executable).parent / "octavo"
_STOP_S = 40.0


@contextlib.asynccontextmanager
async def octavo(*words: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``octavo WORDS``; its output, both kinds, comes on ``stdout``. Whatever is left is killed."""
    child = await asyncio.create_subprocess_exec(
        OCTAVO, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=os.environ | environ
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await child.wait()


async def read_until(child: asyncio.subprocess.Process, words: str, timeout_s: float = 120.0) -> str:
    """Return the output up to the line that holds ``words``."""
    assert child.stdout is not None
    seen = ""
    async with asyncio.timeout(timeout_s):
        while words not in seen:
            line = await child.stdout.readline()
            assert line, f"it ended before {words!r}:\n{seen}"
            seen += line.decode()
    return seen


async def interrupt(
    child: asyncio.subprocess.Process, sign: signal.Signals = signal.SIGINT, num_times: int = 1
) -> tuple[list[psutil.Process], str]:
    """Send ``sign``, again every half second; returns which of its processes outlive it, and what it still said."""
    children = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(sign)
    assert child.stdout is not None
    async with asyncio.timeout(_STOP_S):
        reading = asyncio.create_task(child.stdout.read())
        for _ in range(num_times - 1):
            await asyncio.wait([reading], timeout=0.5)
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(sign)
        rest = await reading
        await child.wait()
    return [process for process in children if process.is_running()], rest.decode()
