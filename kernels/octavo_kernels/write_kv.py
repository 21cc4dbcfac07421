"""write_kv as a Triton kernel: one program per 16 rows and key head. Never run on a GPU yet."""

import math

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.checks import check_write_kv

ROWS = 16  # per program
NUM_WARPS = 4


# Not specialised by value: else a step of one row, or of sixteen, would wait for the compiler.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["layer_offset", "num_rows", "num_heads", "k_row", "k_head", "v_row", "v_head"]
)
def write_kv_kernel(  # type: ignore[no-untyped-def]
    arena,
    k,
    v,
    token_offsets,
    layer_offset,
    num_rows,
    num_heads,
    k_row,
    k_head,
    v_row,
    v_head,
    dim: tl.constexpr,
    page_tokens: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    align: tl.constexpr,
):
    """Copy one head of some rows to their pages. Offset and strides count ``align`` elements."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    head = tl.program_id(1)
    d = tl.arange(0, columns)
    is_copied = (row < num_rows)[:, None] & (d < dim)[None, :]
    row64, head64 = row.to(tl.int64), head.to(tl.int64)
    at = tl.multiple_of(tl.load(token_offsets + row, mask=row < num_rows, other=0), align)
    to = (arena + layer_offset.to(tl.int64) * align + head * (page_tokens * dim) + at)[:, None] + d[None, :]
    from_k = k + (row64 * k_row + head64 * k_head)[:, None] * align + d[None, :]
    from_v = v + (row64 * v_row + head64 * v_head)[:, None] * align + d[None, :]
    keys = tl.load(from_k, mask=is_copied, other=0.0)
    values = tl.load(from_v, mask=is_copied, other=0.0)
    tl.store(to, keys, mask=is_copied)
    tl.store(to + num_heads * (page_tokens * dim), values, mask=is_copied)


def write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int) -> None:
    """See ``ops.write_kv``. Offsets are not checked."""
    check_write_kv(arena, k, v, token_offsets, page_tokens)
    num_rows, num_heads, dim = k.shape
    if not num_rows:
        return
    strides = (k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    align = math.gcd(8, dim, layer_offset, *strides)
    write_kv_kernel[(triton.cdiv(num_rows, ROWS), num_heads)](
        arena,
        k,
        v,
        token_offsets,
        layer_offset // align,
        num_rows,
        num_heads,
        *(stride // align for stride in strides),
        dim=dim,
        page_tokens=page_tokens,
        rows=ROWS,
        columns=triton.next_power_of_2(dim),
        align=align,
        num_warps=NUM_WARPS,
    )
