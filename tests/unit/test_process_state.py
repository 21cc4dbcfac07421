"""What is said of a child process that has ended, and what a service says that its interpreter ends."""

import signal
import sys
from pathlib import Path

import pytest

from octavo_cli.processes import Process, StartFailed

WAITING = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
SERVICE = f"from octavo_shared.telemetry import start_telemetry\nstart_telemetry('some')\n{WAITING}"


def child(folder: Path, program: str) -> Process:
    return Process("child", [sys.executable, "-c", program], folder / "child.log", {})


async def begun(process: Process) -> Process:
    async def has_begun() -> bool:
        return "begun" in process.log_text()

    await process.start()
    await process.wait_ready(has_begun, 60)
    return process


async def test_a_process_says_how_it_is(tmp_path: Path) -> None:
    process = child(tmp_path, WAITING)
    assert process.state == "not started"
    await begun(process)
    assert process.state == "running"
    process.kill()
    await process.wait(60)
    assert process.state == "ended by signal 9 (Killed)"


async def test_a_start_that_fails_says_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="child ended with 3 while it started\nno base"):
        await begun(child(tmp_path, "print('no base'); raise SystemExit(3)"))


async def test_a_service_that_crashes_leaves_where_it_was(tmp_path: Path) -> None:
    process = await begun(child(tmp_path, SERVICE))
    process.kill(signal.SIGSEGV)
    await process.wait(60)
    assert process.state == "ended by signal 11 (Segmentation fault)"
    assert "Fatal Python error: Segmentation fault" in process.log_text()
    assert 'File "<string>", line 5 in <module>' in process.log_tail()
