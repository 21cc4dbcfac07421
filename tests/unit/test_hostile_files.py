"""Files made to do harm: each is refused by its rule, within 200 ms and 64 MB, and takes nobody along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.hostile import hostile_packs, hostile_uploads

CPU_MS_MAX = 200.0
"""Of the process's own time: what others do on the machine is not the file's doing."""
PEAK_BYTES_MAX = 64 * 1024 * 1024
"""Beside the bytes of the file itself."""
CASES = {"uploads": hostile_uploads, "packs": hostile_packs}


@pytest.mark.parametrize("kind", CASES)
def test_no_hostile_file_is_accepted_or_takes_more_than_it_may(kind: str) -> None:
    rules = {name: rule for name, (_, rule) in CASES[kind]().items()}
    assert len(rules) >= 100
    command = [sys.executable, "-m", "support.hostile", kind]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    taken = {case["name"]: case for case in map(json.loads, run.stdout.splitlines())}
    assert not rules.keys() - taken.keys(), f"crashed: {run.stderr[-2000:]}"
    wrong = {name: (taken[name]["rule"], rule) for name, rule in rules.items() if taken[name]["rule"] != rule}
    assert not wrong, "another rule (or none) refused these, first what did, then what should"
    slow = {name: case["cpu_ms"] for name, case in taken.items() if case["cpu_ms"] > CPU_MS_MAX}
    large = {name: case["peak_bytes"] for name, case in taken.items() if case["peak_bytes"] > PEAK_BYTES_MAX}
    worst_ms, worst_bytes = (max(case[what] for case in taken.values()) for what in ("cpu_ms", "peak_bytes"))
    print(f"{len(taken)} hostile {kind}: at most {worst_ms:.0f} ms and {worst_bytes / 2**20:.1f} MB")
    assert not slow, slow
    assert not large, large
