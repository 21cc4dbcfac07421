"""paged_attention as a Triton kernel: one program per tile of query rows and key head. Never run on a GPU yet.

The query heads that share a key head lie side by side in the lanes of a tile: [rows, heads of the key head]. A tile
has one shape, for the single row of a decode as for a prefill: the shape of a product decides its order of additions,
and a row may not depend on its batch. 64 lanes are the fewest that wgmma and tcgen05 take; a decode leaves most of them
empty, but it is bound by reading keys and values, which a tile of any shape reads once. fp32 has no matrix
instruction on NVIDIA, so there empty lanes would cost time: it takes 16.

A program walks all keys of its rows in one fixed order, so there is nothing to reduce between programs and no atomic.
"""

import functools
import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.checks import check_attention
from octavo_kernels.layout import KvTable, LayoutError

KEY_SPAN = 64  # keys per turn of the loop, aligned to absolute positions so that chunking cannot move them
COLUMNS_MIN = 16  # the least width that a product takes
_NO_WINDOW = 2**31 - 1
_LOG2_E = math.log2(math.e)
# bf16 and fp16 on NVIDIA, by capability and columns; capabilities that are not here multiply as 8 does.
_WARPS_AND_STAGES = {
    8: {64: (4, 3), 128: (8, 2), 256: (8, 3)},
    9: {64: (4, 3), 128: (4, 3), 256: (8, 3)},
    10: {64: (4, 2), 128: (4, 3), 256: (8, 3)},
}


@dataclass(frozen=True)
class QueryTiles:
    """T tiles of at most ``num_rows_max`` query rows of one sequence; those past the last one have begin = end = 0."""

    tiles: Tensor  # [T, 4] int32: first row, end of its rows, position of a row minus its number, sequence
    num_rows: int
    num_rows_max: int


# One plan serves all layers of a step; it goes when its table goes.
_plans: WeakKeyDictionary[KvTable, QueryTiles] = WeakKeyDictionary()


def query_tiles_of(kv: KvTable, num_rows: int, num_rows_max: int) -> QueryTiles:
    """Return the tiles of ``num_rows`` query rows, planned once on their device without a synchronisation.

    Raises LayoutError when a later call has another number of rows. (The first call's number is believed, as in
    ``tiles.tiles_of``.)
    """
    tiles = _plans.get(kv)
    if tiles is None or tiles.num_rows_max != num_rows_max:
        tiles = _plans[kv] = _plan(kv, num_rows, num_rows_max)
    if tiles.num_rows != num_rows:
        raise LayoutError(f"{num_rows} rows were given with a table that has {tiles.num_rows}")
    return tiles


def _plan(kv: KvTable, num_rows: int, num_rows_max: int) -> QueryTiles:
    starts = kv.query_starts.long()
    num_tiles = (starts[1:] - starts[:-1] + num_rows_max - 1) // num_rows_max
    last = num_tiles.cumsum(0)
    num_sequences = kv.context_lens.numel()
    # No more than one tile per sequence and one per num_rows_max rows; the host does not know how many of them.
    tile = torch.arange(num_sequences + num_rows // num_rows_max, device=starts.device)
    sequence = torch.searchsorted(last, tile, right=True)
    is_used = sequence < num_sequences
    sequence = sequence.clamp_max(num_sequences - 1)
    limit = starts[sequence + 1]
    begin = starts[sequence] + (tile - last[sequence] + num_tiles[sequence]) * num_rows_max
    end = torch.minimum(begin + num_rows_max, limit)
    shift = kv.context_lens[sequence] - limit
    tiles = torch.stack([torch.where(is_used, begin, 0), torch.where(is_used, end, 0), shift, sequence], 1).int()
    return QueryTiles(tiles, num_rows, num_rows_max)


@triton.jit  # type: ignore[untyped-decorator]
def _lanes_from(row, stop, group, repeat: tl.constexpr, heads: tl.constexpr, lanes: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return row (int32) and query head (int64) of every lane, and whether it has any."""
    # One count for both: then it hangs on the row, and is not kept in registers from row to row.
    count = row * heads + tl.arange(0, lanes)
    parts: tl.constexpr = (repeat + heads - 1) // heads
    head = group % parts * heads + count % heads
    i = count // heads
    return i, (group // parts * repeat + head).to(tl.int64), (i < stop) & (head < repeat)


# Not specialised by value: else a number of pages that 16 divides would choose another binary than its neighbour.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["layer_offset", "pages_max", "window", "q_row", "q_head", "out_row", "out_head"]
)
def attention_kernel(  # type: ignore[no-untyped-def]
    q,
    arena,
    page_offsets,
    tiles,
    sinks,
    out,
    layer_offset,
    pages_max,
    window,
    slope,
    cap,
    q_row,
    q_head,
    out_row,
    out_head,
    num_kv_heads: tl.constexpr,
    repeat: tl.constexpr,
    dim: tl.constexpr,
    page_tokens: tl.constexpr,
    lanes: tl.constexpr,
    columns: tl.constexpr,
    span: tl.constexpr,
    align: tl.constexpr,
):
    """Write out [rows of a tile, heads of a key head]; offset and strides count ``align`` elements."""
    heads: tl.constexpr = min(repeat, lanes)
    plane: tl.constexpr = page_tokens * dim
    tile = tiles + tl.program_id(0) * 4
    begin, end, shift = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    pages = page_offsets + tl.load(tile + 3).to(tl.int64) * pages_max
    group = tl.program_id(1)
    kv_head = group // ((repeat + heads - 1) // heads)
    d = tl.arange(0, columns)
    is_column = d < dim
    layer = arena + layer_offset.to(tl.int64) * align + kv_head * plane
    rows = lanes // heads
    row = begin
    while row < end:
        stop = tl.minimum(row + rows, end)
        i, n, is_lane = _lanes_from(row, stop, group, repeat, heads, lanes)
        at_q = q + (i.to(tl.int64) * q_row + n * q_head)[:, None] * align + d[None, :]
        queries = tl.load(at_q, mask=is_lane[:, None] & is_column[None, :], other=0.0)
        largest = tl.full((lanes,), float("-inf"), tl.float32)
        total = tl.zeros((lanes,), tl.float32)
        if sinks is not None:
            largest = tl.load(sinks + n, mask=is_lane, other=0.0) * 1.4426950408889634
            total += 1.0
        acc = tl.zeros((lanes, columns), tl.float32)
        position = i + shift
        first = tl.maximum(row + shift - window + 1, 0)
        last = stop + shift
        # Two buffers for acc would spill on sm_100.
        for base in tl.range(first // span * span, last, span, disallow_acc_multi_buffer=True):
            t = base + tl.arange(0, span)
            # Selected, not multiplied by zero: what no row of the tile sees is not read.
            is_read = ((t >= first) & (t < last))[:, None] & is_column[None, :]
            page = tl.multiple_of(tl.load(pages + tl.minimum(t, last - 1) // page_tokens), align)
            at = (layer + page + t % page_tokens * dim)[:, None] + d[None, :]
            keys = tl.load(at, mask=is_read, other=0.0)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * slope
            if cap is not None:
                scores = cap - 2.0 * cap / (tl.exp2(scores) + 1.0)
            # Unsigned, so that one comparison asks for 0 <= distance < window.
            distance = (position[:, None] - t[None, :]).to(tl.uint32)
            scores = tl.where(distance < window.to(tl.uint32), scores, float("-inf"))
            higher = tl.maximum(largest, tl.max(scores, 1))
            anchor = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - anchor[:, None])
            decay = tl.exp2(largest - anchor)
            total = total * decay + tl.sum(weights, 1)
            values = tl.load(at + num_kv_heads * plane, mask=is_read, other=0.0)
            acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None], input_precision="ieee")
            largest = higher
        # A block that a row does not see adds 0.0, which turns -0.0 into 0.0: so every result does.
        result = acc / total[:, None] + 0.0
        # A value that is not finite reaches, times a weight of zero, rows of the tile that do not see it. Their sums of
        # weights stay finite, which tells; the rows of such a tile are computed again one by one, as a decode's are.
        is_odd = is_lane & (tl.sum(result * 0.0, 1) != 0.0) & (total < float("inf"))
        if (stop - row > 1) & (tl.max(is_odd.to(tl.int32), 0) > 0):
            rows = 1
        else:
            # Counted again from a row that is read again: else these addresses stay in registers through the loop.
            i, n, is_lane = _lanes_from(tl.load(tile) + (row - begin), stop, group, repeat, heads, lanes)
            at_out = out + (i.to(tl.int64) * out_row + n * out_head)[:, None] * align + d[None, :]
            tl.store(at_out, result.to(out.dtype.element_ty), mask=is_lane[:, None] & is_column[None, :])
            row = stop


def lanes_of(element_bytes: int) -> int:
    """Return the lanes of a tile; fixed, see above."""
    return 16 if element_bytes == 4 else 64


def launch_options(columns: int, element_bytes: int, capability: int | None) -> dict[str, int]:
    """Return the compiler's options for a CUDA capability's major number, or None for HIP; none follows the batch.

    The most stages and the fewest warps with which nothing spills; two programs share an H100's multiprocessor so.
    """
    if capability is None:
        # Products of 16 x 16, so that four waves share 64 lanes; of 32 x 32, two would repeat what the others do.
        num_stages = 2 if element_bytes == 2 and columns <= 128 else 1
        return {"num_warps": 4, "num_stages": num_stages, "matrix_instr_nonkdim": 16}
    if element_bytes == 4:
        return {"num_warps": max(4, columns // 16), "num_stages": 3}
    options = _WARPS_AND_STAGES.get(capability, _WARPS_AND_STAGES[8])
    num_warps, num_stages = options[min(max(columns, 64), 256)]
    return {"num_warps": num_warps, "num_stages": num_stages}


@functools.lru_cache
def _capability_of(device_index: int) -> int | None:
    """Return the major number; the interpreter, on a CPU, takes any."""
    if device_index < 0:
        return 8
    return None if torch.version.hip else torch.cuda.get_device_capability(device_index)[0]


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
    """See ``ops.paged_attention``. Values of the tables are not checked."""
    check_attention(q, arena, kv, out, window, sinks)
    num_rows, num_heads, dim = q.shape
    if not num_rows:
        return
    repeat, element_bytes = num_heads // kv.num_kv_heads, arena.element_size()
    lanes = lanes_of(element_bytes)
    heads = min(repeat, lanes)
    tiles = query_tiles_of(kv, num_rows, lanes // heads).tiles
    columns = max(COLUMNS_MIN, triton.next_power_of_2(dim))
    strides = (q.stride(0), q.stride(1), out.stride(0), out.stride(1))
    align = math.gcd(8, dim, layer_offset, *strides)
    # 2^s: tanh(x) = 1 - 2 / (2^(2 x log2 e) + 1), with its factors drawn out of the loop.
    slope = scaling * _LOG2_E if softcap is None else 2.0 * scaling * _LOG2_E / softcap
    attention_kernel[(tiles.size(0), kv.num_kv_heads * triton.cdiv(repeat, heads))](
        q,
        arena,
        kv.page_offsets,
        tiles,
        None if sinks is None else sinks.contiguous(),
        out,
        layer_offset // align,
        kv.page_offsets.size(1),
        _NO_WINDOW if window is None else min(window, _NO_WINDOW),
        slope,
        None if softcap is None else softcap * _LOG2_E,
        *(stride // align for stride in strides),
        num_kv_heads=kv.num_kv_heads,
        repeat=repeat,
        dim=dim,
        page_tokens=kv.page_tokens,
        lanes=lanes,
        columns=columns,
        span=KEY_SPAN,
        align=align,
        **launch_options(columns, element_bytes, _capability_of(arena.get_device())),
    )
