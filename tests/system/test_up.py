"""``octavo up`` as a person runs it: it says how to talk to it, and Ctrl-C leaves nothing behind."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

OCTAVO = Path(sys.executable).parent / "octavo"
READY_S = 120.0
STOP_S = 40.0


@contextlib.asynccontextmanager
async def octavo_up(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command; its output, both kinds, comes on ``stdout``. Whatever is left is killed."""
    child = await asyncio.create_subprocess_exec(
        OCTAVO, "up", "--folder", str(folder), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await child.wait()


async def read_until(child: asyncio.subprocess.Process, words: str) -> str:
    """Return the output up to the line that holds ``words``."""
    assert child.stdout is not None
    seen = ""
    async with asyncio.timeout(READY_S):
        while words not in seen:
            line = await child.stdout.readline()
            assert line, f"it ended before {words!r}:\n{seen}"
            seen += line.decode()
    return seen


async def interrupt(child: asyncio.subprocess.Process) -> tuple[list[psutil.Process], str]:
    """Press Ctrl-C once; returns which of its processes outlive it, and what it still said."""
    pids = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    async with asyncio.timeout(STOP_S):
        rest = await child.stdout.read()
        await child.wait()
    return [process for process in pids if process.is_running()], rest.decode()


async def test_ctrl_c_ends_a_running_octavo_and_leaves_no_process(tmp_path: Path) -> None:
    async with octavo_up(tmp_path) as child:
        said = await read_until(child, "Ctrl-C stops everything")
        assert all(words in said for words in ("curl", "OpenAI", "nats.connect", "OCTAVO_KEY=oct_"))
        assert len(psutil.Process(child.pid).children(recursive=True)) >= 6
        left, rest = await interrupt(child)
    assert left == [], rest
    assert child.returncode in (0, 130), rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("moment", ["preparing the base", "nats is ready", "identity is ready"])
async def test_ctrl_c_while_it_starts_leaves_no_process(tmp_path: Path, moment: str) -> None:
    async with octavo_up(tmp_path) as child:
        await read_until(child, moment)
        left, rest = await interrupt(child)
    assert left == [], rest
    assert "Traceback" not in rest
