"""Times adapters and attention with several builds of the CPU kernels, taking turns.

    python kernels/bench/compare_builds.py FOLDER [FOLDER ...] [--threads 1] [--turns 12]

Each folder holds sources like ``kernels/octavo_kernels/native_cpu``; change a copy and compare. Shapes of SmolLM2-135M
in bf16: 32 rows with 32 adapters of rank 16, and 35 rows of each in the prefill, over all 30 layers; attention of
decodes and of prompts over 10 layers. Before anything is timed, every build must give the same results as the first one
to the rounding of bf16 (exit code 1). With one thread the CPU time of the thread is taken, which stays comparable on a
busy machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable
from octavo_kernels.native import NativeKernels
from octavo_kernels.native_build import build

NUM_LAYERS, NUM_ADAPTERS, RANK, PREFILL_TOKENS = 30, 32, 16, 35
SIBLINGS = (((576, 576), (576, 192), (576, 192)), ((576, 576),), ((576, 1536), (576, 1536)), ((1536, 576),))
"""The modules of a layer, those with the same input together: input and output features."""
_TOLERANCE = 1e-2
_HEADS, _KV_HEADS, _HEAD_DIM, _PAGE_TOKENS, _ATTENTION_LAYERS = 9, 3, 64, 16, 10


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


@dataclass
class Attention:
    """``num_rows`` queries of each sequence, for the last of its ``num_tokens``; caches are emptied before each run."""

    num_sequences: int
    num_rows: int
    num_tokens: int

    def __post_init__(self) -> None:
        num_pages = -(-self.num_tokens // _PAGE_TOKENS)
        self._plane = 2 * _KV_HEADS * _PAGE_TOKENS * _HEAD_DIM
        pages = torch.randperm(self.num_sequences * num_pages).view(self.num_sequences, num_pages)
        starts = torch.arange(self.num_sequences + 1, dtype=torch.int32) * self.num_rows
        lens = torch.full((self.num_sequences,), self.num_tokens, dtype=torch.int32)
        offsets = pages * self._plane * _ATTENTION_LAYERS
        self._kv = KvTable(offsets, starts, lens, _PAGE_TOKENS, _KV_HEADS, _HEAD_DIM)
        self._arena = torch.randn(pages.numel() * self._plane * _ATTENTION_LAYERS).bfloat16()
        self._queries = torch.randn(self.num_sequences * self.num_rows, _HEADS, _HEAD_DIM).bfloat16()
        self._other = torch.zeros(64 * 2**20, dtype=torch.uint8)

    def run(self, native: NativeKernels) -> float:
        """Attend in all layers and return the milliseconds."""
        self._other.add_(1)
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        for layer in range(_ATTENTION_LAYERS):
            self._attend(native, layer)
        return (clock() - started) * 1e3

    def answer(self, native: NativeKernels) -> Tensor:
        """Return what the first layer attends to."""
        return self._attend(native, 0).flatten(1).float()

    def _attend(self, native: NativeKernels, layer: int) -> Tensor:
        out = torch.empty_like(self._queries)
        scaling = _HEAD_DIM**-0.5
        native.paged_attention(
            self._queries, self._arena, self._kv, layer * self._plane, out, scaling, None, None, None
        )
        return out


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
    decode, prefill = Batch(1), Batch(PREFILL_TOKENS)
    attention = {
        "attention, 32 sequences of 52": Attention(32, 1, 52),
        "attention, 8 sequences of 2,048": Attention(8, 1, 2048),
        "attention, a prompt of 512": Attention(1, 512, 512),
        "attention, 256 more behind 1,792": Attention(1, 256, 2048),
    }
    kinds: dict[str, tuple[Callable[[NativeKernels], float], Callable[[NativeKernels], Tensor]]] = {
        "adapters, decode": (partial(_run, decode, arena, calls), partial(_answer, decode, arena, calls)),
        "adapters, prefill": (partial(_run, prefill, arena, calls), partial(_answer, prefill, arena, calls)),
        **{name: (one.run, one.answer) for name, one in attention.items()},
    }
    with tempfile.TemporaryDirectory() as cache:
        builds = {str(folder): NativeKernels(build(Path(cache), folder)) for folder in given.folders}
        for kind, (_, answer) in kinds.items():
            first, *others = (answer(native) for native in builds.values())
            if any(float((other - first).norm() / first.norm()) > _TOLERANCE for other in others):
                print(f"these builds do not compute the same: {kind}")
                return 1
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(given.turns):
            for kind, (run, _) in kinds.items():
                for name, native in builds.items():
                    times.setdefault((kind, name), []).append(run(native))
    print(f"milliseconds, {given.threads} threads: least, median, most")
    for (kind, name), values in times.items():
        print(f"{kind:34} {name:40} {min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f}")
    return 0


def _run(batch: Batch, arena: Tensor, calls: list[Call], native: NativeKernels) -> float:
    return batch.run(native, arena, calls)


def _answer(batch: Batch, arena: Tensor, calls: list[Call], native: NativeKernels) -> Tensor:
    return batch.answer(native, arena, calls[0])


if __name__ == "__main__":
    sys.exit(main())
