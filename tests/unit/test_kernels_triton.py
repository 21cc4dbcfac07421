"""The Triton kernels in Triton's interpreter; a process of its own, because the choice is made at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not published for this platform")


def test_triton_kernels_agree_with_float64_in_the_interpreter() -> None:
    cases = Path(__file__).parent.parent / "support" / "triton_cases.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
