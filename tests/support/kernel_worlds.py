"""Random adapters and caches in one arena, for the tests of the kernels; every draw comes from a fixed seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable

TOLERANCES = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
DTYPES = tuple(TOLERANCES)


@dataclass(frozen=True)
class RowWorld:
    """Adapters of given ranks for one module [H → O], scattered over an arena whose gaps are NaN."""

    arena: Tensor
    table: RowTable
    num_features: int
    num_outputs: int


def row_world(ranks: list[int], h: int, o: int, dtype: torch.dtype, seed: int = 0) -> RowWorld:
    """Place every rank row in its own random position; entries past a slot's rank point outside the arena."""
    generator = torch.Generator().manual_seed(seed)
    rank_max = max(ranks, default=0)
    place = max(h, o) + 6
    order = torch.randperm(2 * sum(ranks) + 1, generator=generator).tolist()
    arena = torch.full((len(order) * place + 5,), torch.nan, dtype=dtype)
    a_offsets = torch.full((len(ranks), rank_max), -(10**12))
    b_offsets = a_offsets.clone()
    for slot, rank in enumerate(ranks):
        for j in range(rank):
            for offsets, width in ((a_offsets, h), (b_offsets, o)):
                at = order.pop() * place + int(torch.randint(6, (1,), generator=generator))
                offsets[slot, j] = at
                arena[at : at + width] = torch.randn(width, generator=generator).to(dtype)
    scalings = torch.rand(len(ranks), generator=generator) + 0.5
    table = RowTable(a_offsets, b_offsets, torch.tensor(ranks, dtype=torch.int32), scalings)
    return RowWorld(arena, table, h, o)


def row_groups(lengths: list[int], slots: list[int]) -> RowGroups:
    """Return groups of these lengths."""
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return RowGroups(starts, torch.tensor(slots, dtype=torch.int32))


@dataclass(frozen=True)
class KvWorld:
    """Sequences with filled caches in shuffled pages of two layers; unused pages and page tails are NaN."""

    arena: Tensor
    kv: KvTable
    layer_offset: int


def kv_world(
    contexts: list[int],
    queries: list[int],
    heads: int,
    dim: int,
    dtype: torch.dtype,
    page_tokens: int = 16,
    seed: int = 0,
) -> KvWorld:
    """Fill the second layer's keys and values of every sequence with noise drawn per sequence."""
    layer = 2 * heads * page_tokens * dim
    pages_max = max(-(-context // page_tokens) for context in contexts) + 1
    count = len(contexts) * pages_max
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).view(len(contexts), pages_max)
    arena = torch.full((count * 2 * layer + 7,), torch.nan, dtype=dtype)
    for b, context in enumerate(contexts):
        generator = torch.Generator().manual_seed(seed + 1000 + b)
        # Token by token, so that a longer context begins with the same tokens.
        for t in range(context):
            at = int(order[b, t // page_tokens]) * 2 * layer + layer
            page = arena[at : at + layer].view(2, heads, page_tokens, dim)
            page[:, :, t % page_tokens] = torch.randn(2, heads, dim, generator=generator).to(dtype)
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    contexts_now = torch.tensor(contexts, dtype=torch.int32)
    return KvWorld(arena, KvTable(order * 2 * layer, starts, contexts_now, page_tokens, heads, dim), layer)


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference over that of ``expected`` (over one where that is zero)."""
    scale = float(expected.double().norm())
    return float((actual.double() - expected.double()).norm()) / (scale or 1.0)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of equal dtype agree in every bit, NaN included."""
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return bool((one.contiguous().view(kind) == other.contiguous().view(kind)).all())
