"""Times one decode step's adapters and attention on this CPU, for the shapes of SmolLM2-135M.

    python kernels/bench/bench_cpu.py [--rows 32] [--rank 16] [--context 64] [--repeats 30] [--seed 0] [--threads 2]

With --threads 1 the CPU time of the thread is taken, not the wall clock: it stays comparable on a busy machine.

First a correctness gate against float64 (exit code 1 if it fails), then warm-up, then median, p20 and p80 of the
compiled kernels and, in the same run, of the plain torch path. The last line is one line of JSON.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from octavo_kernels import reference, torch_attention, torch_rows
from octavo_kernels.layout import KvTable, RowGroups, RowTable
from octavo_kernels.native import NativeKernels, load_native

NUM_LAYERS = 30
HEADS, KV_HEADS, HEAD_DIM, PAGE_TOKENS = 9, 3, 64, 16
SHAPES = (("q", 576, 576), ("k", 576, 192), ("v", 576, 192), ("o", 576, 576), ("gate", 576, 1536), ("up", 576, 1536))
MODULES = (*SHAPES, ("down", 1536, 576))
SIBLINGS = ((0, 1, 2), (3,), (4, 5), (6,))
"""Which modules of a layer are given the same input, and so are adapted in one call."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step over the repeats, and what was moved in the median one."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    gigabytes_per_s: float


@dataclass(frozen=True)
class Module:
    """One module of one layer: its table and its input, output and rank-space tensors."""

    table: RowTable
    x: Tensor
    y: Tensor
    v: Tensor


def build_modules(arena: Tensor, rows: int, rank: int) -> list[Module]:
    """Lay every row's own adapter out in the arena: per adapter, all layers and modules one after another."""
    modules, at = [], 0
    per_adapter = NUM_LAYERS * sum(rank * (h + o) for _, h, o in MODULES)
    bases = torch.arange(rows)[:, None] * per_adapter
    ranks, scalings = torch.full((rows,), rank, dtype=torch.int32), torch.full((rows,), 0.5)
    for _ in range(NUM_LAYERS):
        for _, h, o in MODULES:
            a_offsets = bases + at + torch.arange(rank) * h
            b_offsets = bases + at + rank * h + torch.arange(rank) * o
            at += rank * (h + o)
            table = RowTable(a_offsets, b_offsets, ranks, scalings)
            x, y = torch.randn(rows, h).bfloat16(), torch.randn(rows, o).bfloat16()
            modules.append(Module(table, x, y, torch.empty(rows, rank)))
    return modules


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference over that of ``expected``."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def measure(step: Callable[[], None], repeats: int, moved_bytes: int) -> Timing:
    """Time ``step`` after three warm-up runs."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(3):
        step()
    times_ms = []
    for _ in range(repeats):
        start = clock()
        step()
        times_ms.append((clock() - start) * 1e3)
    cuts = statistics.quantiles(times_ms, n=5)
    median = statistics.median(times_ms)
    return Timing(round(median, 3), round(cuts[0], 3), round(cuts[3], 3), round(moved_bytes / median / 1e6, 2))


def copy(source: Tensor, target: Tensor) -> None:
    """Copy one array onto another."""
    target.copy_(source)


def gate(
    native: NativeKernels, module: Module, arena: Tensor, groups: RowGroups, attend: Callable[[Tensor], Tensor]
) -> float:
    """Return the largest relative RMS of the compiled kernels against float64."""
    wide = arena.double()
    native.shrink(module.x, arena, module.table, groups, module.v)
    errors = [relative_rms(module.v, reference.shrink(module.x.double(), arena, module.table, groups))]
    y = module.y.clone()
    native.expand(module.v, arena, module.table, groups, y)
    errors.append(relative_rms(y, reference.expand(module.v.double(), arena, module.table, groups, module.y.double())))
    errors.append(relative_rms(attend(arena), attend(wide)))
    return max(errors)


def main() -> int:
    """Run the gate and the measurements; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        ("rows", 32),
        ("rank", 16),
        ("context", 64),
        ("repeats", 30),
        ("seed", 0),
        ("prefill", 512),
        ("threads", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    native = load_native()
    if native is None:
        print("no compiler: there is nothing to compare with plain torch")
        return 1
    rows, rank, context = given.rows, given.rank, given.context
    adapter_elements = rows * NUM_LAYERS * sum(rank * (h + o) for _, h, o in MODULES)
    pages = max(1, math.ceil(context / PAGE_TOKENS))
    layer_elements = 2 * KV_HEADS * PAGE_TOKENS * HEAD_DIM
    page_elements = NUM_LAYERS * layer_elements
    arena = torch.randn(max(adapter_elements, rows * pages * page_elements)).bfloat16()
    modules = build_modules(arena, rows, rank)
    groups = RowGroups(torch.arange(rows + 1, dtype=torch.int32), torch.arange(rows, dtype=torch.int32))
    page_offsets = torch.randperm(rows * pages).view(rows, pages) * page_elements
    starts, contexts = groups.starts, torch.full((rows,), context, dtype=torch.int32)
    kv = KvTable(page_offsets, starts, contexts, PAGE_TOKENS, KV_HEADS, HEAD_DIM)
    q = torch.randn(rows, HEADS, HEAD_DIM).bfloat16()
    out = torch.empty_like(q)
    token_offsets = page_offsets[:, -1] + (context - 1) % PAGE_TOKENS * HEAD_DIM
    k = torch.randn(rows, KV_HEADS, HEAD_DIM).bfloat16()

    def attend(memory: Tensor) -> Tensor:
        if memory.dtype == torch.float64:
            return reference.paged_attention(q.double(), memory, kv, 0, 0.125)
        native.paged_attention(q, memory, kv, 0, out, 0.125, None, None, None)
        return out

    error = gate(native, modules[-1], arena, groups, attend)
    print(f"gate: relative RMS {error:.2e} against float64 (at most 5e-3)")
    if not error <= 5e-3:
        return 1

    layers = [modules[first : first + len(MODULES)] for first in range(0, len(modules), len(MODULES))]
    siblings = [[layer[i] for i in indices] for layer in layers for indices in SIBLINGS]

    def adapt() -> None:
        for group in siblings:
            native.adapt(group[0].x, arena, [(m.table, m.y) for m in group], groups)

    def adapt_plainly() -> None:
        for m in modules:
            torch_rows.shrink(m.x, arena, m.table, groups, m.v)
            torch_rows.expand(m.v, arena, m.table, groups, m.y)

    def attention(path: object, write: object) -> Callable[[], None]:
        run, put = path.paged_attention, write.write_kv  # type: ignore[attr-defined]

        def step() -> None:
            for layer in range(NUM_LAYERS):
                put(arena, k, k, token_offsets, layer * layer_elements, PAGE_TOKENS)
                run(q, arena, kv, layer * layer_elements, out, 0.125, None, None, None)

        return step

    length = given.prefill
    chunk_pages = math.ceil(length / PAGE_TOKENS)
    chunk = KvTable(
        torch.arange(chunk_pages)[None] * page_elements,
        torch.tensor([0, length], dtype=torch.int32),
        torch.tensor([length], dtype=torch.int32),
        PAGE_TOKENS,
        KV_HEADS,
        HEAD_DIM,
    )
    if arena.numel() < chunk_pages * page_elements:
        arena = torch.cat([arena, torch.randn(chunk_pages * page_elements - arena.numel()).bfloat16()])
    long_q = torch.randn(length, HEADS, HEAD_DIM).bfloat16()
    long_out = torch.empty_like(long_q)

    def prefill() -> None:
        for layer in range(NUM_LAYERS):
            native.paged_attention(long_q, arena, chunk, layer * layer_elements, long_out, 0.125, None, None, None)

    adapter_bytes, kv_bytes = adapter_elements * 2, rows * context * NUM_LAYERS * 2 * KV_HEADS * HEAD_DIM * 2
    timings = {
        "adapters_native": measure(adapt, given.repeats, adapter_bytes),
        "adapters_torch": measure(adapt_plainly, 3, adapter_bytes),
        "attention_native": measure(attention(native, native), given.repeats, kv_bytes),
        "attention_torch": measure(attention(torch_attention, torch_rows), 5, kv_bytes),
        f"prefill_{length}_native": measure(prefill, 5, length * NUM_LAYERS * 2 * KV_HEADS * HEAD_DIM * 2),
    }
    # What this machine reads and writes when it does nothing else: a copy of an array of the adapters' size.
    source, target = arena.clone(), torch.empty_like(arena)
    ceiling = measure(lambda: copy(source, target), 10, arena.numel() * 2 * 2)
    print(f"{'per step':24} {'median ms':>10} {'p20':>9} {'p80':>9} {'GB/s':>7}")
    for name, t in {**timings, "copy ceiling": ceiling}.items():
        print(f"{name:24} {t.median_ms:10.2f} {t.p20_ms:9.2f} {t.p80_ms:9.2f} {t.gigabytes_per_s:7.2f}")
    report = {name: asdict(timing) for name, timing in timings.items()}
    versions = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    print(json.dumps({**vars(given), **versions, "relative_rms": error, "copy_ceiling": asdict(ceiling), **report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
