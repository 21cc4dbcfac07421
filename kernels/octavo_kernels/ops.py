"""The operations of the engine. The tensors choose the path: CUDA takes Triton, a CPU takes ``cpu``.

Triton is imported when the first CUDA tensor arrives, so that a machine without it works.
The Triton kernels have never run on a GPU (see the README).

A row's result depends on that row, its own adapter and its own context only: never on the other rows of the batch,
their number, how a prompt was cut into chunks, or the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo_kernels import cpu
from octavo_kernels.layout import KvTable, RowGroups, RowTable


def shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> None:
    """Project every row onto its adapter's rank space; writes ``out`` and nothing else.

    Semantics:
        out[i, j] = x[i] · arena[table.a_offsets[slot(i), j] :][:H]   for j < ranks[slot(i)], else 0

    Shapes: N rows, H features, R the table's width
        x      [N, H]  the arena's dtype, rows contiguous, any pitch
        out    [N, R]  fp32

    Raises: LayoutError when a shape, dtype, device or stride differs (on a CPU also a value).
    Reference: ``reference.shrink``; tolerance 5e-3 bf16, 1e-3 fp16, 1e-5 fp32 (relative RMS).
    Source: Punica (arXiv:2310.18547), S-LoRA (arXiv:2311.03285).
    """
    if x.is_cuda:
        from octavo_kernels.shrink import shrink as shrink_triton

        shrink_triton(x, arena, table, groups, out)
    else:
        cpu.shrink(x, arena, table, groups, out)


def expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> None:
    """Add every row's adapter to ``y`` in place.

    Semantics:
        y[i] += sum_j (scalings[slot(i)] · v[i, j]) · arena[table.b_offsets[slot(i), j] :][:O]   for j < ranks[slot(i)]
        summed in fp32 and rounded once; rows without an adapter (or of rank 0) keep every bit

    Shapes: N rows, O features, R the table's width
        v      [N, R]  fp32, what ``shrink`` wrote
        y      [N, O]  the arena's dtype, rows contiguous, any pitch

    Raises: LayoutError, as ``shrink``.
    Reference: ``reference.expand``; tolerances as ``shrink``.
    """
    if y.is_cuda:
        from octavo_kernels.expand import expand as expand_triton

        expand_triton(v, arena, table, groups, y)
    else:
        cpu.expand(v, arena, table, groups, y)


def adapt(x: Tensor, arena: Tensor, parts: Sequence[tuple[RowTable, Tensor]], groups: RowGroups) -> None:
    """``shrink`` and ``expand`` of several modules that read the same ``x``; adds to each part's y in place.

    Semantics: for each (table, y) in ``parts``, what ``shrink`` into a fresh ``v`` and then ``expand`` into y do,
    bit for bit.

    Shapes: x [N, H] as in ``shrink``; each y [N, O] as in ``expand``, its own O.

    Raises: LayoutError, as ``shrink``; nothing was written then on a CPU.
    """
    if not x.is_cuda:
        cpu.adapt(x, arena, parts, groups)
        return
    for table, y in parts:
        reduced = torch.empty(x.shape[0], table.rank_max, dtype=torch.float32, device=x.device)
        shrink(x, arena, table, groups, reduced)
        expand(reduced, arena, table, groups, y)


def write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int) -> None:
    """Copy the keys and values of N tokens into their pages, for one layer.

    Semantics:
        arena[token_offsets[i] + layer_offset + h · page_tokens · D :][:D] = k[i, h]
        and v[i, h] at Hkv · page_tokens · D elements further

    Shapes: k, v [N, Hkv, D] the arena's dtype, any strides but the last; token_offsets [N] int64, the page's
    offset + (t % page_tokens) · D; layer_offset = layer in its group · 2 · Hkv · page_tokens · D.

    Raises: LayoutError, as ``shrink``. Reference: ``reference.write_kv``; exact.
    """
    if arena.is_cuda:
        from octavo_kernels.write_kv import write_kv as write_kv_triton

        write_kv_triton(arena, k, v, token_offsets, layer_offset, page_tokens)
    else:
        cpu.write_kv(arena, k, v, token_offsets, layer_offset, page_tokens)


def paged_attention(
    q: Tensor,
    arena: Tensor,
    kv: KvTable,
    layer_offset: int,
    out: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Causal attention of every query row over its own sequence's pages, for one layer; writes ``out`` only.

    Semantics: with p the position of row i and n' = n // (Hq / Hkv)
        s[t]      = scaling · q[i, n] · K[t, n'],   softcap · tanh(s / softcap) if softcap
        out[i, n] = sum_t e^s[t] V[t, n'] / (sum_t e^s[t] + e^sinks[n])   over t in (p - window, p]

    Shapes: q, out [N, Hq, D] the arena's dtype, any strides but the last; sinks [Hq] fp32.

    Raises: LayoutError, as ``shrink``. Reference: ``reference.paged_attention``; tolerances as ``shrink``.
    Source: PagedAttention (arXiv:2309.06180), online softmax (arXiv:1805.02867).
    """
    if q.is_cuda:
        from octavo_kernels.paged_attention import paged_attention as paged_attention_triton

        paged_attention_triton(q, arena, kv, layer_offset, out, scaling, window, softcap, sinks)
    else:
        cpu.paged_attention(q, arena, kv, layer_offset, out, scaling, window, softcap, sinks)
