"""shrink as a Triton kernel: one program per tile of 16 rows and 16 ranks. Never run on a GPU yet.

A program walks all of H in one fixed order, so there is nothing to reduce between programs and no atomic. The same
tile serves a decode row and a prefill: a matrix-vector variant for decode would add up in another order, and a row's
result would then depend on its neighbours. Decode is bound by reading A, which both would read once.
"""

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.checks import check_shrink
from octavo_kernels.layout import RowGroups, RowTable
from octavo_kernels.tiles import TILE, tiles_of

FEATURES = 64  # of H per turn of the loop
NUM_WARPS = 2
NUM_STAGES = 3


@triton.jit  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x,
    arena,
    offsets,
    ranks,
    begins,
    ends,
    slots,
    out,
    num_features,
    rank_max,
    x_pitch,
    side: tl.constexpr,
    span: tl.constexpr,
):
    """Write out [rows of a tile, 16 ranks]; zero past the adapter's rank and where there is no adapter."""
    tile = tl.program_id(0)
    slot = tl.load(slots + tile)
    if slot == -2:
        return
    row = tl.load(begins + tile) + tl.arange(0, side)
    has_row = row < tl.load(ends + tile)
    row64 = row.to(tl.int64)
    j = tl.program_id(1) * side + tl.arange(0, side)
    rank = 0
    if slot >= 0:
        rank = tl.load(ranks + slot)
    acc = tl.zeros((side, side), dtype=tl.float32)
    if tl.program_id(1) * side < rank:
        # Selected, not multiplied by zero: lanes past the rank read nothing.
        at = tl.load(offsets + slot.to(tl.int64) * rank_max + j, mask=j < rank, other=0)
        for start in range(0, num_features, span):
            h = start + tl.arange(0, span)
            xs = tl.load(
                x + row64[:, None] * x_pitch + h[None, :],
                mask=has_row[:, None] & (h < num_features)[None, :],
                other=0.0,
            )
            a = tl.load(
                arena + at[None, :] + h[:, None], mask=(j < rank)[None, :] & (h < num_features)[:, None], other=0.0
            )
            acc = tl.dot(xs, a, acc, input_precision="ieee")
    # 0 · NaN of a row is NaN past the rank too, hence the selection.
    result = tl.where((j < rank)[None, :], acc, 0.0)
    tl.store(out + row64[:, None] * rank_max + j[None, :], result, mask=has_row[:, None] & (j < rank_max)[None, :])


def shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> None:
    """See ``ops.shrink``. Values of the tables are not checked."""
    num_rows, num_features = check_shrink(x, arena, table, groups, out)
    if not num_rows or not table.rank_max:
        return
    tiles = tiles_of(groups, num_rows)
    shrink_kernel[(tiles.slots.numel(), triton.cdiv(table.rank_max, TILE))](
        x,
        arena,
        table.a_offsets,
        table.ranks,
        tiles.begins,
        tiles.ends,
        tiles.slots,
        out,
        num_features,
        table.rank_max,
        x.stride(0),
        side=TILE,
        span=FEATURES,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
