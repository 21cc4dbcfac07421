"""Times the adapters of a decode step and of a prefill with several builds of the CPU kernels, taking turns.

    python kernels/bench/compare_builds.py FOLDER [FOLDER ...] [--threads 1] [--turns 12]

Each folder holds sources like ``kernels/octavo_kernels/native_cpu``; change a copy and compare. Shapes of SmolLM2-135M
in bf16: 32 rows with 32 adapters of rank 16, and 35 rows of each in the prefill, over all 30 layers. Before anything is
timed, every build must give the same results as the first one to the rounding of bf16 (exit code 1). With one thread
the CPU time of the thread is taken, which stays comparable on a busy machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo_kernels.layout import RowGroups, RowTable
from octavo_kernels.native import NativeKernels
from octavo_kernels.native_build import build

NUM_LAYERS, NUM_ADAPTERS, RANK, PREFILL_TOKENS = 30, 32, 16, 35
SIBLINGS = (((576, 576), (576, 192), (576, 192)), ((576, 576),), ((576, 1536), (576, 1536)), ((1536, 576),))
"""The modules of a layer, those with the same input together: input and output features."""
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Call:
    """One call of ``adapt``: what siblings read, and their tables."""

    num_features: int
    tables: tuple[tuple[RowTable, int], ...]


def lay_out() -> tuple[Tensor, list[Call]]:
    """Return an arena with all adapters, long rows first as the worker places them, and the calls of one step."""
    shapes = [shape for _ in range(NUM_LAYERS) for group in SIBLINGS for shape in group]
    lengths = [length for shape in shapes for length in shape]
    begins, at = [0] * len(lengths), 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        begins[index] = at
        at += RANK * lengths[index]
    firsts = torch.arange(NUM_ADAPTERS)[:, None] * at
    ranks, scalings = torch.full((NUM_ADAPTERS,), RANK, dtype=torch.int32), torch.full((NUM_ADAPTERS,), 0.5)

    def table(module: int) -> RowTable:
        a, b = (firsts + begins[2 * module + side] + torch.arange(RANK) * lengths[2 * module + side] for side in (0, 1))
        return RowTable(a.contiguous(), b.contiguous(), ranks, scalings)

    calls, module = [], 0
    for _ in range(NUM_LAYERS):
        for group in SIBLINGS:
            members = range(module, module + len(group))
            calls.append(Call(group[0][0], tuple((table(m), shapes[m][1]) for m in members)))
            module += len(group)
    return torch.randn(NUM_ADAPTERS * at).bfloat16(), calls


@dataclass
class Batch:
    """``num_rows`` rows of every adapter, with one input and one output for each width."""

    num_rows: int

    def __post_init__(self) -> None:
        widths = {width for group in SIBLINGS for shape in group for width in shape}
        total = self.num_rows * NUM_ADAPTERS
        self.inputs = {width: torch.randn(total, width).bfloat16() for width in widths}
        self.outputs = {width: torch.randn(total, width).bfloat16() for width in widths}
        starts = torch.arange(0, total + 1, self.num_rows, dtype=torch.int32)
        self.groups = RowGroups(starts, torch.arange(NUM_ADAPTERS, dtype=torch.int32))

    def run(self, native: NativeKernels, arena: Tensor, calls: list[Call]) -> float:
        """Make all calls of a step and return their milliseconds."""
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        for call in calls:
            parts = [(table, self.outputs[width]) for table, width in call.tables]
            native.adapt(self.inputs[call.num_features], arena, parts, self.groups)
        return (clock() - started) * 1e3

    def answer(self, native: NativeKernels, arena: Tensor, call: Call) -> Tensor:
        """Return what one call adds to zeros."""
        rows = self.inputs[call.num_features]
        parts = [(table, torch.zeros(len(rows), width, dtype=rows.dtype)) for table, width in call.tables]
        native.adapt(rows, arena, parts, self.groups)
        return torch.cat([added for _, added in parts], dim=1).float()


def main() -> int:
    """Compare the builds; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=12)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    arena, calls = lay_out()
    batches = {"decode": Batch(1), "prefill": Batch(PREFILL_TOKENS)}
    with tempfile.TemporaryDirectory() as cache:
        builds = {str(folder): NativeKernels(build(Path(cache), folder)) for folder in given.folders}
        for batch in batches.values():
            first, *others = (batch.answer(native, arena, calls[0]) for native in builds.values())
            if any(float((other - first).norm() / first.norm()) > _TOLERANCE for other in others):
                print("these builds do not compute the same")
                return 1
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(given.turns):
            for name, native in builds.items():
                for kind, batch in batches.items():
                    times.setdefault((name, kind), []).append(batch.run(native, arena, calls))
    print(f"milliseconds of a step's adapters, {given.threads} threads: least, median, most")
    for (name, kind), values in times.items():
        print(f"{name:60} {kind:8} {min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
