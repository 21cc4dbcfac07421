"""Long runs that are told to end take all servers with them that they started."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.leftovers import check_nothing_is_left, environment


@pytest.mark.parametrize(
    ("command", "begun"),
    [
        (["bench.registry", "--adapters", "100000"], "registering"),
        (["chaos.registry"], "the deployment is ready"),
        (["chaos.partition"], "1 of "),
    ],
    ids=["bench.registry", "chaos.registry", "chaos.partition"],
)
def test_a_run_that_is_ended_politely_leaves_nothing_behind(command: list[str], begun: str, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stderr is not None
        assert any(line.startswith(begun) for line in run.stderr)
        run.terminate()
        assert run.wait(timeout=60) == 130
    check_nothing_is_left(tmp_path)
