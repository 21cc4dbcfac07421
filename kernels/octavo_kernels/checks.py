"""Checks of shapes, dtypes, strides and devices at each call; about two microseconds, shared by all paths."""

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.allowed import EVERYTHING, Allowed
from octavo_kernels.layout import ARENA_DTYPES, KvTable, LayoutError, RowGroups, RowTable

_FLOAT32 = torch.float32


def _check_arena(arena: Tensor) -> torch.dtype:
    dtype = arena.dtype
    if arena.dim() != 1 or dtype not in ARENA_DTYPES or not arena.is_contiguous():
        raise LayoutError(f"arena: want contiguous 1-D bf16, fp16 or fp32, got {dtype} {tuple(arena.shape)}")
    return dtype


def _check_devices(arena: Tensor, first: Tensor, second: Tensor, *tables: RowTable | RowGroups | KvTable) -> None:
    index = arena.get_device()
    if first.get_device() != index or second.get_device() != index or any(t.device_index != index for t in tables):
        raise LayoutError("all tensors and tables must be on the arena's device")


def check_shrink(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> tuple[int, int]:
    """Return (N, H) of ``x`` [N, H] after checking it against ``out`` [N, R] fp32; raises LayoutError."""
    if x.dim() != 2 or x.dtype != _check_arena(arena) or x.stride(1) != 1:
        raise LayoutError(f"x: want [N, H] {arena.dtype} with contiguous rows, got {x.dtype} {tuple(x.shape)}")
    num_rows, num_features = x.shape
    if out.dtype != _FLOAT32 or out.shape != (num_rows, table.rank_max) or not out.is_contiguous():
        raise LayoutError(f"out: want contiguous fp32 {(num_rows, table.rank_max)}, got {out.dtype} {tuple(out.shape)}")
    _check_devices(arena, x, out, table, groups)
    return num_rows, num_features


def check_expand(v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> tuple[int, int]:
    """Return (N, O) of ``y`` [N, O] after checking it against ``v`` [N, R] fp32; raises LayoutError."""
    if y.dim() != 2 or y.dtype != _check_arena(arena) or y.stride(1) != 1:
        raise LayoutError(f"y: want [N, O] {arena.dtype} with contiguous rows, got {y.dtype} {tuple(y.shape)}")
    num_rows, num_features = y.shape
    if v.dtype != _FLOAT32 or v.shape != (num_rows, table.rank_max) or not v.is_contiguous():
        raise LayoutError(f"v: want contiguous fp32 {(num_rows, table.rank_max)}, got {v.dtype} {tuple(v.shape)}")
    _check_devices(arena, v, y, table, groups)
    return num_rows, num_features


def check_adapt(x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> tuple[int, int]:
    """Return (N, H) of ``x`` [N, H] after checking it against ``y`` [N, O]; raises LayoutError."""
    dtype = _check_arena(arena)
    if x.dim() != 2 or x.dtype != dtype or x.stride(1) != 1:
        raise LayoutError(f"x: want [N, H] {dtype} with contiguous rows, got {x.dtype} {tuple(x.shape)}")
    if y.dim() != 2 or y.dtype != dtype or y.stride(1) != 1 or y.size(0) != x.size(0):
        raise LayoutError(f"y: want [{x.size(0)}, O] {dtype} with contiguous rows, got {y.dtype} {tuple(y.shape)}")
    _check_devices(arena, x, y, table, groups)
    return x.size(0), x.size(1)


def check_write_kv(arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, page_tokens: int) -> None:
    """Check ``k`` and ``v`` [N, Hkv, D] and ``token_offsets`` [N] int64; raises LayoutError."""
    dtype = _check_arena(arena)
    if k.dim() != 3 or k.shape != v.shape or k.dtype != dtype or v.dtype != dtype:
        raise LayoutError(f"k and v: want equal [N, Hkv, D] {dtype}, got {k.dtype} {tuple(k.shape)}, {v.dtype}")
    if k.stride(2) != 1 or v.stride(2) != 1:
        raise LayoutError("k and v: each head's elements must be contiguous")
    if token_offsets.dtype != torch.int64 or token_offsets.shape != (k.size(0),) or not token_offsets.is_contiguous():
        raise LayoutError(f"token_offsets: want contiguous int64 ({k.size(0)},)")
    if page_tokens < 1 or token_offsets.get_device() != arena.get_device():
        raise LayoutError("page_tokens must be positive and token_offsets on the arena's device")
    _check_devices(arena, k, v)


def check_attention(
    q: Tensor, arena: Tensor, kv: KvTable, out: Tensor, window: int | None, sinks: Tensor | None
) -> None:
    """Check ``q`` and ``out`` [N, Hq, D] and ``sinks`` [Hq] fp32; raises LayoutError."""
    dtype = _check_arena(arena)
    if q.dim() != 3 or q.dtype != dtype or q.stride(2) != 1 or q.size(2) != kv.head_dim:
        raise LayoutError(f"q: want [N, Hq, {kv.head_dim}] {dtype}, got {q.dtype} {tuple(q.shape)}")
    if q.size(1) % kv.num_kv_heads:
        raise LayoutError(f"{q.size(1)} query heads are no multiple of {kv.num_kv_heads} key heads")
    if out.shape != q.shape or out.dtype != dtype or out.stride(2) != 1:
        raise LayoutError(f"out: want {tuple(q.shape)} {dtype}, got {out.dtype} {tuple(out.shape)}")
    if window is not None and window < 1:
        raise LayoutError("window must be positive")
    if sinks is not None and (
        sinks.dtype != _FLOAT32 or sinks.shape != (q.size(1),) or sinks.get_device() != q.get_device()
    ):
        raise LayoutError(f"sinks: want fp32 ({q.size(1)},) on the arena's device, got {sinks.dtype}")
    _check_devices(arena, q, out, kv)


def check_allowed(allowed: Allowed, num_rows: int) -> None:
    """Raise ``LayoutError`` unless ``allowed`` is for ``num_rows`` rows and each names a mask that is there."""
    words, of_row = allowed.words, allowed.of_row
    if words.dtype != np.int32 or words.ndim != 2 or of_row.dtype != np.int64 or of_row.shape != (num_rows,):
        raise LayoutError(f"allowed: masks of int32 and {num_rows} int64 wanted, got {words.shape} and {of_row.shape}")
    if not (words.flags.c_contiguous and of_row.flags.c_contiguous):
        raise LayoutError("allowed: contiguous arrays wanted")
    if num_rows and not EVERYTHING <= of_row.min() <= of_row.max() < len(words):
        raise LayoutError(f"allowed: a row names none of the {len(words)} masks")
