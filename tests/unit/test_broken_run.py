"""What a run of the tests says last when it breaks itself, on two processes as in ``make test``."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
def test_wrong() -> None:
    assert 1 == 2

def test_breaking() -> None:
    pass

def test_right() -> None:
    pass
"""
BREAKING = """
import os

pytest_plugins = ["support.broken_run"]

def pytest_runtest_logfinish(nodeid: str) -> None:
    if nodeid.endswith("test_breaking") and "PYTEST_XDIST_WORKER" in os.environ:
        raise OSError(28, "No space left on device")
"""

COLLECTED = """
import gc
import traceback

class Told:
    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        try:
            (1 + 2) / (lambda: 0)()
        except ZeroDivisionError:
            traceback.format_exc()
        Told()  # There is one to collect at any time.

def test_wrong() -> None:
    gc.set_threshold(20)
    Told()
    raise ValueError("wrong")
"""


def run_in(folder: Path, conftest: str, *options: str, tests: str = TESTS) -> tuple[int, str]:
    (folder / "test_some.py").write_text(tests)
    (folder / "conftest.py").write_text(conftest)
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ = {**own, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout


def test_a_run_that_breaks_names_what_failed_and_what_broke_it(tmp_path: Path) -> None:
    code, said = run_in(tmp_path, BREAKING, "-n", "1")
    assert code == 3
    _, _, last = said.partition("= 1 failed, ")
    assert "test_some.py::test_wrong: assert 1 == 2" in last
    assert "No space left on device" in last


def test_a_run_that_does_not_break_ends_with_pytests_own_summary(tmp_path: Path) -> None:
    code, said = run_in(tmp_path, 'pytest_plugins = ["support.broken_run"]\n')
    assert code == 1
    assert "1 failed, 2 passed" in said.splitlines()[-1]


def test_what_is_collected_while_a_failure_is_told_does_not_break_the_run(tmp_path: Path) -> None:
    code, said = run_in(tmp_path, 'pytest_plugins = ["support.broken_run"]\n', tests=COLLECTED)
    assert code == 1, said
    assert "test_some.py::test_wrong - ValueError: wrong" in said
