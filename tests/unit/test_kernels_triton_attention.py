"""Attention and write_kv in Triton's interpreter, in a process of its own; their plan and options here."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not published for this platform")

from octavo_kernels import paged_attention
from octavo_kernels.layout import KvTable, LayoutError


def test_triton_attention_agrees_with_float64_in_the_interpreter() -> None:
    cases = Path(__file__).parent.parent / "support" / "triton_attention_cases.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        # The products of a tile are small: threads would only wait for each other.
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def _table(counts: list[int], contexts: list[int], device: str) -> KvTable:
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return KvTable(
        torch.zeros(len(counts), 100, dtype=torch.int64, device=device),
        starts.to(device),
        torch.tensor(contexts, dtype=torch.int32).to(device),
        16,
        1,
        64,
    )


@pytest.mark.parametrize("num_rows_max", [1, 7, 21, 64])
def test_every_query_row_is_in_one_tile_of_its_own_sequence(num_rows_max: int) -> None:
    choose = random.Random(num_rows_max)
    for _ in range(20):
        counts = [choose.choice([0, 1, 1, 2, 7, 21, 22, 64, 150]) for _ in range(choose.randint(1, 9))]
        contexts = [count + choose.randint(0, 50) for count in counts]
        starts = [sum(counts[:b]) for b in range(len(counts))]
        tiles = paged_attention.query_tiles_of(_table(counts, contexts, "cpu"), sum(counts), num_rows_max).tiles
        seen = []
        for begin, end, shift, sequence in tiles.tolist():
            assert end - begin <= num_rows_max
            for row in range(begin, end):
                position = contexts[sequence] - counts[sequence] + row - starts[sequence]
                seen.append((row, sequence))
                assert row + shift == position
        assert seen == [(starts[b] + i, b) for b, count in enumerate(counts) for i in range(count)]


def test_the_plan_reads_nothing_to_the_host_and_is_made_once_per_table() -> None:
    # A meta tensor has no values: whatever asks for one fails.
    table = _table([3, 1], [9, 4], "meta")
    tiles = paged_attention.query_tiles_of(table, 4, 21)
    assert tiles.tiles.shape == (2, 4)
    assert paged_attention.query_tiles_of(table, 4, 21) is tiles
    assert paged_attention.query_tiles_of(table, 4, 16) is not tiles
    with pytest.raises(LayoutError, match="table that has 4"):
        paged_attention.query_tiles_of(table, 5, 16)
