"""How the compiled kernels come to be, and what happens without a compiler."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo_kernels.native import NativeKernels, load_native
from octavo_kernels.native_build import BuildFailed, build, cache_folder, openmp_runtime


def test_concurrent_builds_end_in_one_usable_file(tmp_path: Path) -> None:
    if load_native() is None:
        pytest.skip("needs a C++ compiler")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: build(tmp_path), range(2)))
    assert paths[0] == paths[1]
    assert [path.name for path in tmp_path.iterdir()] == [paths[0].name]
    assert NativeKernels(paths[0]).num_threads() >= 1


def test_kernels_bring_no_second_openmp_runtime() -> None:
    if load_native() is None or openmp_runtime() is None:
        pytest.skip("needs a C++ compiler and a torch built with GNU OpenMP")
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert {path for path in loaded if "gomp" in path or "iomp" in path} == {str(openmp_runtime())}


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildFailed, match="PATH"):
        build(tmp_path)


def test_a_compiler_that_refuses_is_reported_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "cannot do that" >&2\nexit 3\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildFailed, match="cannot do that"):
        build(tmp_path / "cache")


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "octavo" / "kernels"


def test_a_machine_without_compiler_and_triton_still_computes(tmp_path: Path) -> None:
    program = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
sys.modules["triton"] = None
import torch
from octavo_kernels import layout, ops
offsets = torch.zeros(1, 1, dtype=torch.int64)
table = layout.RowTable(offsets, offsets, torch.ones(1, dtype=torch.int32), torch.ones(1))
groups = layout.RowGroups(torch.tensor([0, 2], dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
out = torch.empty(2, 1)
for _ in range(2):
    ops.shrink(torch.ones(2, 4), torch.ones(4), table, groups, out)
assert out.tolist() == [[4.0], [4.0]]
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no compiled CPU kernels") == 1
