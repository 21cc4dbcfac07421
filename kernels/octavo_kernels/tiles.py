"""Row groups cut into tiles of TILE rows, none of which holds rows of two groups; for Triton and plain torch."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from octavo_kernels.layout import LayoutError, RowGroups

# Fixed, also for a single row: the shape of a product decides its order of additions, so it may not follow the batch.
# 16 is the least side that matrix instructions take.
TILE = 16


@dataclass(frozen=True)
class RowTiles:
    """T tiles, at most one per group plus one per TILE rows; those past the last one have begin = end and slot -2."""

    begins: Tensor  # [T] int32 first row
    ends: Tensor  # [T] int32 end of the rows of the tile's group
    slots: Tensor  # [T] int32; -1: rows without an adapter
    num_rows: int


# One plan serves all modules of a step; it goes when its groups go.
_plans: WeakKeyDictionary[RowGroups, RowTiles] = WeakKeyDictionary()


def tiles_of(groups: RowGroups, num_rows: int) -> RowTiles:
    """Return the tiles of ``groups``, planned once on their device without a synchronisation.

    Raises LayoutError when a later call has another number of rows: its rows are not those of the groups, which
    would reach past its end. (The first call's number is believed; reading it from ``starts`` would synchronise.)
    """
    tiles = _plans.get(groups)
    if tiles is None:
        tiles = _plans[groups] = _plan(groups, num_rows)
    if tiles.num_rows != num_rows:
        raise LayoutError(f"{num_rows} rows were given with groups that have {tiles.num_rows}")
    return tiles


def _plan(groups: RowGroups, num_rows: int) -> RowTiles:
    starts = groups.starts.long()
    num_tiles = (starts[1:] - starts[:-1] + TILE - 1) // TILE
    last = num_tiles.cumsum(0)
    tile = torch.arange(groups.num_groups + num_rows // TILE, device=starts.device)
    group = torch.searchsorted(last, tile, right=True)
    is_used = group < groups.num_groups
    group = group.clamp_max(groups.num_groups - 1)
    begins = starts[group] + (tile - last[group] + num_tiles[group]) * TILE
    ends = torch.where(is_used, starts[group + 1], 0)
    slots = torch.where(is_used, groups.slots[group], -2)
    return RowTiles(torch.where(is_used, begins, 0).int(), ends.int(), slots.int(), num_rows)
