"""expand as a Triton kernel: one program per tile of 16 rows and 128 features. Never run on a GPU yet.

Ranks are added sixteen at a time in order, in fp32, and y is rounded once. A bf16 arena meets the fp32 rank values
as two bf16 parts (high and rest), which keeps 16 of their bits and both products on the matrix units; fp16 has too
small a range for that, so fp16 and fp32 use exact fp32 products (on NVIDIA without matrix instructions).
"""

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.checks import check_expand
from octavo_kernels.layout import RowGroups, RowTable
from octavo_kernels.tiles import TILE, tiles_of

FEATURES = 128  # of O per program
NUM_WARPS = 4
NUM_STAGES = 2


@triton.jit  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    v,
    arena,
    offsets,
    ranks,
    scalings,
    begins,
    ends,
    slots,
    y,
    num_features,
    rank_max,
    y_pitch,
    side: tl.constexpr,
    span: tl.constexpr,
):
    """Add the adapter of a tile to y [rows of the tile, 128 features]; no adapter or rank 0: touch nothing."""
    tile = tl.program_id(0)
    slot = tl.load(slots + tile)
    if slot < 0:
        return
    rank = tl.load(ranks + slot)
    if rank == 0:
        return
    row = tl.load(begins + tile) + tl.arange(0, side)
    has_row = row < tl.load(ends + tile)
    row64 = row.to(tl.int64)
    o = tl.program_id(1) * span + tl.arange(0, span)
    scaling = tl.load(scalings + slot)
    slot64 = slot.to(tl.int64)
    acc = tl.zeros((side, span), dtype=tl.float32)
    for start in range(0, rank, side):
        j = start + tl.arange(0, side)
        w = scaling * tl.load(
            v + row64[:, None] * rank_max + j[None, :], mask=has_row[:, None] & (j < rank)[None, :], other=0.0
        )
        at = tl.load(offsets + slot64 * rank_max + j, mask=j < rank, other=0)
        b = tl.load(arena + at[:, None] + o[None, :], mask=(j < rank)[:, None] & (o < num_features)[None, :], other=0.0)
        if b.dtype == tl.bfloat16:
            high = w.to(tl.bfloat16)
            # Equal covers infinity too, whose rest would be NaN.
            rest = tl.where(high.to(tl.float32) == w, 0.0, w - high.to(tl.float32)).to(tl.bfloat16)
            acc = tl.dot(high, b, acc)
            acc = tl.dot(rest, b, acc)
        else:
            acc = tl.dot(w, b.to(tl.float32), acc, input_precision="ieee")
    at_y = y + row64[:, None] * y_pitch + o[None, :]
    mask = has_row[:, None] & (o < num_features)[None, :]
    old = tl.load(at_y, mask=mask, other=0.0)
    tl.store(at_y, (old.to(tl.float32) + acc).to(old.dtype), mask=mask)


def expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> None:
    """See ``ops.expand``. Values of the tables are not checked."""
    num_rows, num_features = check_expand(v, arena, table, groups, y)
    if not num_rows or not table.rank_max:
        return
    tiles = tiles_of(groups, num_rows)
    expand_kernel[(tiles.slots.numel(), triton.cdiv(num_features, FEATURES))](
        v,
        arena,
        table.b_offsets,
        table.ranks,
        table.scalings,
        tiles.begins,
        tiles.ends,
        tiles.slots,
        y,
        num_features,
        table.rank_max,
        y.stride(0),
        side=TILE,
        span=FEATURES,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
