"""The CPU path: compiled kernels where a compiler was found and the dtype has one, else plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo_kernels import torch_attention, torch_rows
from octavo_kernels.layout import KvTable, RowGroups, RowTable
from octavo_kernels.native import TYPES, load_native


def shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> None:
    """See ``ops.shrink``."""
    native = load_native()
    if native is not None and arena.dtype in TYPES:
        native.shrink(x, arena, table, groups, out)
    else:
        torch_rows.shrink(x, arena, table, groups, out)


def expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> None:
    """See ``ops.expand``."""
    native = load_native()
    if native is not None and arena.dtype in TYPES:
        native.expand(v, arena, table, groups, y)
    else:
        torch_rows.expand(v, arena, table, groups, y)


def adapt(x: Tensor, arena: Tensor, parts: Sequence[tuple[RowTable, Tensor]], groups: RowGroups) -> None:
    """See ``ops.adapt``."""
    native = load_native()
    if native is not None and arena.dtype in TYPES:
        native.adapt(x, arena, parts, groups)
        return
    for table, y in parts:
        reduced = torch.empty(x.shape[0], table.rank_max, dtype=torch.float32)
        torch_rows.shrink(x, arena, table, groups, reduced)
        torch_rows.expand(reduced, arena, table, groups, y)


def write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int) -> None:
    """See ``ops.write_kv``."""
    native = load_native()
    if native is not None:
        native.write_kv(arena, k, v, token_offsets, layer_offset, page_tokens)
    else:
        torch_rows.write_kv(arena, k, v, token_offsets, layer_offset, page_tokens)


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
    """See ``ops.paged_attention``."""
    native = load_native()
    if native is not None and arena.dtype in TYPES:
        native.paged_attention(q, arena, kv, layer_offset, out, scaling, window, softcap, sinks)
    else:
        torch_attention.paged_attention(q, arena, kv, layer_offset, out, scaling, window, softcap, sinks)
