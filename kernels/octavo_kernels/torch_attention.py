"""Paged attention in plain torch: on a CPU without a compiler, and for fp16; the second reference for a GPU.

Loops run over blocks of keys, never over rows or sequences. Lengths are read to the host once per table.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from octavo_kernels.checks import check_attention
from octavo_kernels.layout import KvTable, LayoutError

# Fixed shapes of the products: a query row at position p always sits at p % QUERY_SPAN of its block, next to zeros or
# to its own sequence, so that neighbours and chunking cannot change how it is computed.
QUERY_SPAN = 16
KEY_SPAN = 64
_BLOCKS_AT_ONCE = 64  # bounds the memory of gathered keys


@dataclass(frozen=True)
class _QueryBlocks:
    """The query rows of a step in blocks of QUERY_SPAN, aligned to positions in their sequence."""

    rows: Tensor  # [Q, QUERY_SPAN] int64 row of q, clamped where there is none
    has_row: Tensor  # [Q, QUERY_SPAN] bool
    positions: Tensor  # [Q, QUERY_SPAN] int64
    sequences: Tensor  # [Q] int64
    ends: list[int]  # [Q] first position that no row of the block sees
    num_rows: int


# One plan serves all layers of a step; it goes when its table goes.
_plans: WeakKeyDictionary[KvTable, _QueryBlocks] = WeakKeyDictionary()


def _blocks_of(kv: KvTable, num_rows: int) -> _QueryBlocks:
    blocks = _plans.get(kv)
    if blocks is None:
        blocks = _plans[kv] = _plan_blocks(kv)
    if blocks.num_rows != num_rows:
        raise LayoutError("query_starts must end with the number of rows")
    return blocks


def _plan_blocks(kv: KvTable) -> _QueryBlocks:
    """Plan the blocks of a step; raises LayoutError."""
    starts, contexts = kv.query_starts.tolist(), kv.context_lens.tolist()
    if starts[0] != 0:
        raise LayoutError("query_starts must begin with 0, never fall and end with the number of rows")
    plans, sequences, ends = [], [], []
    for b, context in enumerate(contexts):
        num_queries = starts[b + 1] - starts[b]
        if num_queries < 0 or context < num_queries or context > kv.page_offsets.size(1) * kv.page_tokens:
            raise LayoutError("a context is shorter than its query or longer than its pages")
        first = context - num_queries
        for base in range(first // QUERY_SPAN * QUERY_SPAN, context if num_queries else 0, QUERY_SPAN):
            plans.append((base, starts[b] - first, first, context))
            sequences.append(b)
            ends.append(min(base + QUERY_SPAN, context))
    device = kv.page_offsets.device
    bases, shifts, firsts, limits = torch.tensor(plans, dtype=torch.int64).view(-1, 4).to(device).unbind(1)
    positions = bases[:, None] + torch.arange(QUERY_SPAN, device=device)
    has_row = (positions >= firsts[:, None]) & (positions < limits[:, None])
    rows = torch.where(has_row, positions + shifts[:, None], 0)
    return _QueryBlocks(
        rows, has_row, positions, torch.tensor(sequences, dtype=torch.int64, device=device), ends, starts[-1]
    )


def _gather_keys(
    arena: Tensor, kv: KvTable, layer_offset: int, sequences: Tensor, tokens: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return keys and values [Q, Hkv, KEY_SPAN, D] fp32 of ``tokens``; zero where not ``seen`` [Q, KEY_SPAN]."""
    plane = kv.page_tokens * kv.head_dim
    pages = (tokens // kv.page_tokens).clamp_max(kv.page_offsets.size(1) - 1)
    at = kv.page_offsets[sequences[:, None], pages] + layer_offset + (tokens % kv.page_tokens) * kv.head_dim
    at = torch.where(seen, at, 0)
    limit = arena.numel() - (2 * kv.num_kv_heads - 1) * plane - kv.head_dim
    if not arena.is_cuda and at.numel() and (int(at.min()) < 0 or int(at.max()) > limit):
        raise LayoutError("an offset lies outside the arena")
    heads = torch.arange(kv.num_kv_heads, device=arena.device) * plane
    elements = torch.arange(kv.head_dim, device=arena.device)
    index = at[:, None, :, None] + heads[:, None, None] + elements
    shown = seen[:, None, :, None]
    keys = torch.where(shown, arena[index].float(), 0.0)
    values = torch.where(shown, arena[index + kv.num_kv_heads * plane].float(), 0.0)
    return keys, values


def paged_attention(
    q: Tensor,
    arena: Tensor,
    kv: KvTable,
    layer_offset: int,
    out: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    """See ``ops.paged_attention``. Running softmax over blocks of keys; every product has the same fixed shape."""
    check_attention(q, arena, kv, out, window, sinks)
    blocks = _blocks_of(kv, q.size(0))
    kv_heads, repeat = kv.num_kv_heads, q.size(1) // kv.num_kv_heads
    for part in range(0, len(blocks.ends), _BLOCKS_AT_ONCE):
        some = slice(part, part + _BLOCKS_AT_ONCE)
        rows, has_row, positions = blocks.rows[some], blocks.has_row[some], blocks.positions[some]
        count = rows.size(0)
        queries = torch.where(has_row[:, :, None, None], q[rows].float(), 0.0)
        # [Q, Hkv, repeat * QUERY_SPAN, D]: the rows and heads that share a key head, side by side.
        queries = queries.permute(0, 2, 1, 3).reshape(count, kv_heads, repeat * QUERY_SPAN, kv.head_dim)
        largest = torch.full((count, kv_heads, repeat, QUERY_SPAN), -torch.inf, device=q.device)
        total = torch.zeros_like(largest)
        if sinks is not None:
            largest = largest.maximum(sinks.view(kv_heads, repeat, 1))
            total += 1.0
        sums = torch.zeros(count, kv_heads, repeat, QUERY_SPAN, kv.head_dim, device=q.device)
        for base in range(0, max(blocks.ends[some]), KEY_SPAN):
            tokens = torch.arange(base, base + KEY_SPAN, device=q.device)
            mask = (tokens <= positions[:, :, None]) & has_row[:, :, None]
            if window is not None:
                mask &= tokens > positions[:, :, None] - window
            keys, values = _gather_keys(arena, kv, layer_offset, blocks.sequences[some], tokens, mask.any(1))
            scores = (queries @ keys.transpose(2, 3)).view(count, kv_heads, repeat, QUERY_SPAN, KEY_SPAN) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = torch.where(mask[:, None, None], scores, -torch.inf)
            higher = largest.maximum(scores.amax(-1))
            anchor = torch.where(higher == -torch.inf, 0.0, higher)
            weights = torch.exp(scores - anchor[..., None])
            decay = torch.exp(largest - anchor)
            total = total * decay + weights.sum(-1)
            products = weights.view(count, kv_heads, repeat * QUERY_SPAN, KEY_SPAN) @ values
            sums = sums * decay[..., None] + products.view_as(sums)
            largest = higher
        result = (sums / total[..., None]).permute(0, 3, 1, 2, 4).reshape(count, QUERY_SPAN, q.size(1), kv.head_dim)
        out[rows[has_row]] = result[has_row].to(out.dtype)
