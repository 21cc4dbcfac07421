"""``octavo up`` as a person runs it: it says how to talk to it, and Ctrl-C leaves nothing behind."""

import signal
from pathlib import Path

import psutil
import pytest

from support.command_line import interrupt, octavo, read_until


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGHUP])
async def test_a_running_octavo_ends_in_order_and_leaves_no_process(tmp_path: Path, sign: signal.Signals) -> None:
    async with octavo("up", "--folder", str(tmp_path), "--port", "0") as child:
        said = await read_until(child, "Ctrl-C stops everything")
        assert all(words in said for words in ("curl", "OpenAI", "nats.connect", "client.seed", "OCTAVO_KEY=oct_"))
        assert len(psutil.Process(child.pid).children(recursive=True)) >= 6
        left, rest = await interrupt(child, sign)
    assert left == [], rest
    assert child.returncode in (0, 130), rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("moment", ["preparing the base", "nats is ready", "identity is ready"])
async def test_ctrl_c_while_it_starts_leaves_no_process(tmp_path: Path, moment: str) -> None:
    async with octavo("up", "--folder", str(tmp_path), "--port", "0") as child:
        await read_until(child, moment)
        left, rest = await interrupt(child, num_times=4)
    assert left == [], rest
    assert "Traceback" not in rest
