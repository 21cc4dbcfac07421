"""What each operation means, in plain loops and any floating dtype (float64 in tests). Slow on purpose.

Indices: row i of N, feature h of H or o of O, rank j < r(i), slot s(i) of the row's group, scaling c(s).

    shrink   v[i, j] = sum_h x[i, h] · A_s(i)[j, h]
    expand   y[i, o] += c(s(i)) · sum_j v[i, j] · B_s(i)[j, o]
    attend   out[i, n] = sum_t softmax_t(cap(scaling · q[i, n] · K[t, n'])) · V[t, n'],  n' = n // (Hq / Hkv)
"""

import torch
from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable


def shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups) -> Tensor:
    """Return the rows of ``x`` [N, H] in the rank space of their adapters, [N, R]; zero where there is none."""
    out = x.new_zeros(x.size(0), table.rank_max)
    for i, slot in enumerate(groups.row_slots.tolist()):
        for j in range(int(table.ranks[slot]) if slot >= 0 else 0):
            offset = int(table.a_offsets[slot, j])
            out[i, j] = x[i] @ arena[offset : offset + x.size(1)].to(x.dtype)
    return out


def expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> Tensor:
    """Return ``y`` [N, O] with every adapter's scaled part added; rows without an adapter as they were."""
    out = y.clone()
    for i, slot in enumerate(groups.row_slots.tolist()):
        for j in range(int(table.ranks[slot]) if slot >= 0 else 0):
            offset = int(table.b_offsets[slot, j])
            out[i] += (table.scalings[slot].to(y.dtype) * v[i, j]) * arena[offset : offset + y.size(1)].to(y.dtype)
    return out


def write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int) -> Tensor:
    """Return a copy of ``arena`` with the keys and values [N, Hkv, D] of N tokens in their places."""
    out = arena.clone()
    num_rows, num_heads, dim = k.shape
    for i in range(num_rows):
        for head in range(num_heads):
            key_at = int(token_offsets[i]) + layer_offset + head * page_tokens * dim
            value_at = key_at + num_heads * page_tokens * dim
            out[key_at : key_at + dim] = k[i, head]
            out[value_at : value_at + dim] = v[i, head]
    return out


def paged_attention(
    q: Tensor,
    arena: Tensor,
    kv: KvTable,
    layer_offset: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return causal attention [N, Hq, D] of ``q`` over the pages; a row at position p sees (p - window, p]."""
    out = torch.zeros_like(q)
    head_elements = kv.page_tokens * kv.head_dim
    repeat = q.size(1) // kv.num_kv_heads
    starts = kv.query_starts.tolist()
    for b, context in enumerate(kv.context_lens.tolist()):
        for i in range(starts[b], starts[b + 1]):
            position = context - (starts[b + 1] - i)
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(q.size(1)):
                rows = []
                for t in range(first, position + 1):
                    page = int(kv.page_offsets[b, t // kv.page_tokens]) + layer_offset
                    at = page + (head // repeat) * head_elements + (t % kv.page_tokens) * kv.head_dim
                    value_at = at + kv.num_kv_heads * head_elements
                    rows.append((arena[at : at + kv.head_dim], arena[value_at : value_at + kv.head_dim]))
                scores = torch.stack([key for key, _ in rows]).to(q.dtype) @ q[i, head] * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1].to(q.dtype)])
                weights = torch.softmax(scores, 0)[: len(rows)]
                out[i, head] = weights @ torch.stack([value for _, value in rows]).to(q.dtype)
    return out
