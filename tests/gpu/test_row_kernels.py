"""The Triton kernels where they belong, against float64 and bit for bit against themselves alone."""

import pytest
import torch

from octavo_kernels import ops, reference
from octavo_kernels.layout import RowGroups, RowTable
from support.kernel_worlds import DTYPES, TOLERANCES, RowWorld, relative_rms, row_groups, row_world, same_bits

RANKS = [3, 16, 1, 0, 63]


def _moved(world: RowWorld, device: torch.device) -> RowWorld:
    table = world.table
    parts = (part.to(device) for part in (table.a_offsets, table.b_offsets, table.ranks, table.scalings))
    return RowWorld(world.arena.to(device), RowTable(*parts), world.num_features, world.num_outputs)


def _groups(lengths: list[int], slots: list[int], device: torch.device) -> RowGroups:
    groups = row_groups(lengths, slots)
    return RowGroups(groups.starts.to(device), groups.slots.to(device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("h", "o"), [(63, 100), (576, 1536), (100, 2049)])
def test_shrink_and_expand_agree_with_float64(gpu: torch.device, dtype: torch.dtype, h: int, o: int) -> None:
    here = row_world(RANKS, h, o, dtype)
    there = _moved(here, gpu)
    lengths, slots = [1, 17, 0, 2, 5, 3], [2, 0, 1, -1, 3, 4]
    x, y = torch.randn(28, h).to(dtype), torch.randn(28, o).to(dtype)
    groups = row_groups(lengths, slots)
    out = torch.full((28, 63), torch.nan, device=gpu)
    ops.shrink(x.to(gpu), there.arena, there.table, _groups(lengths, slots, gpu), out)
    expected = reference.shrink(x.double(), here.arena, here.table, groups)
    assert relative_rms(out.cpu(), expected) <= TOLERANCES[dtype]
    got = y.to(gpu)
    ops.expand(out, there.arena, there.table, _groups(lengths, slots, gpu), got)
    expected = reference.expand(out.cpu().double(), here.arena, here.table, groups, y.double())
    assert relative_rms(got.cpu(), expected) <= TOLERANCES[dtype]
    assert same_bits(got[18:25].cpu(), y[18:25]), "rows without an adapter or of rank 0 changed"


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit(gpu: torch.device, dtype: torch.dtype) -> None:
    world = _moved(row_world([16, 5], 576, 192, dtype), gpu)
    x, y = torch.randn(7, 576).to(dtype).to(gpu), torch.randn(7, 192).to(dtype).to(gpu)
    x[6] = torch.nan
    together, alone = y.clone(), y[3:4].clone()
    for rows, result, groups in (
        (x, together, _groups([3, 1, 2, 1], [1, 0, 1, 0], gpu)),
        (x[3:4], alone, _groups([1], [0], gpu)),
    ):
        reduced = torch.empty(len(rows), 16, device=gpu)
        ops.shrink(rows, world.arena, world.table, groups, reduced)
        ops.expand(reduced, world.arena, world.table, groups, result)
    assert torch.isfinite(alone).all()
    assert same_bits(together[3:4].cpu(), alone.cpu())
