"""The Triton kernels on CPU tensors against float64; collected only by a pytest run with TRITON_INTERPRET=1."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from octavo_kernels import expand as expand_module
from octavo_kernels import reference
from octavo_kernels import shrink as shrink_module
from support.kernel_worlds import TOLERANCES, relative_rms, row_groups, row_world, same_bits

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GROUPS = row_groups([1, 17, 0, 2, 5, 3], [2, 0, 1, -1, 3, 4])
RANKS = [3, 16, 1, 0, 63]

_interpreted_dot = InterpreterBuilder.create_dot


def _dot_of_bf16(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """Widen bf16 operands, which is exact: Triton 3.9's interpreter multiplies their bit patterns as integers."""
    wide = [self.cast_impl(side, tl.float32) if side.dtype.scalar == tl.bfloat16 else side for side in (a, b)]
    return _interpreted_dot(self, *wide, *rest)


InterpreterBuilder.create_dot = _dot_of_bf16


def test_the_kernels_are_interpreted_here() -> None:
    assert triton.knobs.runtime.interpret, "run through tests/unit/test_kernels_triton.py"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("h", "o"), [(63, 100), (100, 2049)])
def test_shrink_and_expand_agree_with_float64(dtype: torch.dtype, h: int, o: int) -> None:
    world = row_world(RANKS, h, o, dtype)
    x = torch.randn(28, h).to(dtype)
    out = torch.full((28, 63), torch.nan)
    shrink_module.shrink(x, world.arena, world.table, GROUPS, out)
    expected = reference.shrink(x.double(), world.arena, world.table, GROUPS)
    assert relative_rms(out, expected) <= TOLERANCES[dtype]
    wide = torch.randn(28, o + 30).to(dtype)
    y, before = wide[:, 10 : 10 + o], wide.clone()
    want = reference.expand(out.double(), world.arena, world.table, GROUPS, y.double())
    expand_module.expand(out, world.arena, world.table, GROUPS, y)
    assert relative_rms(y, want) <= TOLERANCES[dtype]
    assert same_bits(wide[18:25], before[18:25]), "rows without an adapter or of rank 0 changed"
    assert same_bits(wide[:, :10], before[:, :10])
    assert same_bits(wide[:, 10 + o :], before[:, 10 + o :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit_and_their_nan_stays_theirs(dtype: torch.dtype) -> None:
    world = row_world([16, 5], 100, 63, dtype)
    x, y = torch.randn(7, 100).to(dtype), torch.randn(7, 63).to(dtype)
    x[6] = torch.nan
    world.arena[int(world.table.a_offsets[1, 0])] = torch.nan
    crowd = row_groups([3, 1, 2, 1], [1, 0, 1, 0])
    out, together = torch.empty(7, 16), y.clone()
    shrink_module.shrink(x, world.arena, world.table, crowd, out)
    expand_module.expand(out, world.arena, world.table, crowd, together)
    alone_out, alone = torch.empty(1, 16), y[3:4].clone()
    shrink_module.shrink(x[3:4], world.arena, world.table, row_groups([1], [0]), alone_out)
    expand_module.expand(alone_out, world.arena, world.table, row_groups([1], [0]), alone)
    assert torch.isfinite(alone).all()
    assert same_bits(out[3:4], alone_out)
    assert same_bits(together[3:4], alone)
    assert torch.isnan(together[[0, 1, 2, 4, 5, 6]]).all()
