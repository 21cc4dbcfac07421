"""shrink, expand and write_kv in plain torch: on a CPU without a compiler, and for fp16.

Loops run over sixteen ranks at a time, never over rows. Every product has the same fixed shape [TILE, .] x [., TILE],
so that a row's neighbours cannot change how it is computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_kernels.checks import check_expand, check_shrink, check_write_kv
from octavo_kernels.layout import LayoutError, RowGroups, RowTable
from octavo_kernels.tiles import TILE, tiles_of


@dataclass(frozen=True)
class _Work:
    """The tiles that have an adapter of rank above zero."""

    rows: Tensor  # [T, TILE] int64, clamped where there is none
    has_row: Tensor  # [T, TILE] bool
    slots: Tensor  # [T] int64
    ranks: Tensor  # [T] int64


def _work_of(table: RowTable, groups: RowGroups, num_rows: int) -> _Work:
    """Check the values and plan the tiles; raises LayoutError."""
    if groups.row_slots.numel() != num_rows:
        raise LayoutError("groups must end with the number of rows")
    slots = groups.slots
    if slots.numel() and (int(slots.min()) < -1 or int(slots.max()) >= table.num_slots):
        raise LayoutError("a group's slot is not in the table")
    ranks = table.ranks
    if ranks.numel() and (int(ranks.min()) < 0 or int(ranks.max()) > table.rank_max):
        raise LayoutError("a rank is negative or larger than the table is wide")
    tiles = tiles_of(groups, num_rows)
    tile_slots = tiles.slots.long()
    tile_ranks = torch.where(tile_slots >= 0, ranks[tile_slots.clamp_min(0)].long(), 0) if len(ranks) else tile_slots
    keep = tile_ranks > 0
    rows = tiles.begins[keep].long()[:, None] + torch.arange(TILE, device=slots.device)
    has_row = rows < tiles.ends[keep][:, None]
    return _Work(torch.where(has_row, rows, 0), has_row, tile_slots[keep], tile_ranks[keep])


def _gather(arena: Tensor, offsets: Tensor, work: _Work, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the arena rows of ranks [first, first + TILE) as fp32 [T, TILE, width], and which exist [T, TILE].

    Raises LayoutError for an offset outside the arena.
    """
    ranks = torch.arange(first, first + TILE, device=arena.device)
    exists = ranks < work.ranks[:, None]
    at = offsets[work.slots[:, None], ranks.clamp_max(offsets.size(1) - 1)]
    at = torch.where(exists, at, 0)
    if at.numel() and (int(at.min()) < 0 or int(at.max()) > arena.numel() - width):
        raise LayoutError("an offset lies outside the arena")
    # A view of every run of `width` elements: indexing it copies whole rows instead of single elements.
    rows = arena.as_strided((arena.numel() - width + 1, width), (1, 1), arena.storage_offset())[at]
    return torch.where(exists[..., None], rows.float(), 0.0), exists


def shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> None:
    """See ``ops.shrink``."""
    num_rows, width = check_shrink(x, arena, table, groups, out)
    work = _work_of(table, groups, num_rows)
    inputs = torch.where(work.has_row[..., None], x[work.rows].float(), 0.0)
    parts = []
    for first in range(0, table.rank_max if len(work.slots) else 0, TILE):
        weights, exists = _gather(arena, table.a_offsets, work, first, width)
        products = inputs @ weights.transpose(1, 2)
        parts.append(torch.where(exists[:, None], products, 0.0))
    out.zero_()
    if parts:
        out[work.rows[work.has_row]] = torch.cat(parts, 2)[work.has_row][:, : table.rank_max]


def expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> None:
    """See ``ops.expand``. Sixteen ranks after sixteen ranks, in order."""
    num_rows, width = check_expand(v, arena, table, groups, y)
    work = _work_of(table, groups, num_rows)
    total = torch.zeros(len(work.slots), TILE, width, device=y.device)
    for first in range(0, table.rank_max if len(work.slots) else 0, TILE):
        weights, exists = _gather(arena, table.b_offsets, work, first, width)
        ranks = torch.arange(first, first + TILE, device=v.device).clamp_max(table.rank_max - 1)
        scaled = v[work.rows][..., ranks] * table.scalings[work.slots, None, None]
        total += torch.where(exists[:, None], scaled, 0.0) @ weights
    rows = work.rows[work.has_row]
    y[rows] = (y[rows].float() + total[work.has_row]).to(y.dtype)


def write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int) -> None:
    """See ``ops.write_kv``."""
    check_write_kv(arena, k, v, token_offsets, page_tokens)
    num_rows, num_heads, dim = k.shape
    plane = page_tokens * dim
    if not num_rows:
        return
    heads = torch.arange(num_heads, device=arena.device) * plane + layer_offset
    at = token_offsets[:, None, None] + heads[:, None] + torch.arange(dim, device=arena.device)
    last = arena.numel() - num_heads * plane
    if layer_offset < 0 or int(token_offsets.min()) < 0 or int(at.max()) >= last:
        raise LayoutError("an offset lies outside the arena")
    arena[at] = k
    arena[at + num_heads * plane] = v
