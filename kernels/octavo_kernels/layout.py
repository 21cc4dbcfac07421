"""Where rows lie in the arena, and the checks that every path shares.

The arena is one contiguous 1-D tensor [E] of the base's dtype. Offsets are int64 *element* offsets into it.
Shapes, dtypes and devices are checked when a table is built and at each call. Values (offsets inside the arena,
ranks, slots) are checked by the CPU paths before anything is written; on a GPU that would cost a
synchronisation, so there the builder of the tables answers for them.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ARENA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class LayoutError(ValueError):
    """A shape, dtype, device, stride, or (on a CPU) an offset, rank or slot is not what the kernels take."""


def _require(tensor: Tensor, name: str, dtype: torch.dtype, ndim: int, like: Tensor) -> None:
    if tensor.dtype != dtype or tensor.dim() != ndim or not tensor.is_contiguous():
        raise LayoutError(f"{name}: want contiguous {ndim}-D {dtype}, got {tensor.dtype} {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise LayoutError(f"{name} is on {tensor.device}, its table on {like.device}")


@dataclass(frozen=True, eq=False)
class RowTable:
    """Where the rows of the S adapters of a step lie, for one module; R is the largest rank among them.

    Entries at and past a slot's rank are never read. Raises LayoutError.
    """

    a_offsets: Tensor  # [S, R] int64, offset of rank row j of A (length H), j < ranks[s]
    b_offsets: Tensor  # [S, R] int64, offset of rank column j of B (length O)
    ranks: Tensor  # [S] int32; 0: the adapter does not target this module
    scalings: Tensor  # [S] fp32

    def __post_init__(self) -> None:
        _require(self.a_offsets, "a_offsets", torch.int64, 2, self.a_offsets)
        _require(self.b_offsets, "b_offsets", torch.int64, 2, self.a_offsets)
        _require(self.ranks, "ranks", torch.int32, 1, self.a_offsets)
        _require(self.scalings, "scalings", torch.float32, 1, self.a_offsets)
        num_slots, rank_max = self.a_offsets.shape
        if self.b_offsets.shape != (num_slots, rank_max):
            raise LayoutError(f"b_offsets {tuple(self.b_offsets.shape)} differs from a_offsets {(num_slots, rank_max)}")
        if self.ranks.numel() != num_slots or self.scalings.numel() != num_slots:
            raise LayoutError(f"ranks and scalings need {num_slots} entries, one per slot")

    @cached_property
    def num_slots(self) -> int:
        """Return S."""
        return self.a_offsets.size(0)

    @cached_property
    def rank_max(self) -> int:
        """Return R."""
        return self.a_offsets.size(1)

    @cached_property
    def device_index(self) -> int:
        """Return the CUDA device index, or -1 on a CPU."""
        return self.a_offsets.get_device()

    @cached_property
    def words(self) -> "ctypes.Array[ctypes.c_int64]":
        """Return the addresses and sizes in the order of ``Table`` in native_cpu/rows.h; built once, not per call."""
        tensors = (self.a_offsets, self.b_offsets, self.ranks, self.scalings)
        return (ctypes.c_int64 * 6)(*(t.data_ptr() for t in tensors), self.num_slots, self.rank_max)


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Rows [starts[g], starts[g+1]) of the packed batch use slot slots[g]; -1 means no adapter.

    Groups cover the batch: starts[0] = 0, starts never falls, starts[G] = number of rows. Raises LayoutError.
    """

    starts: Tensor  # [G+1] int32
    slots: Tensor  # [G] int32

    def __post_init__(self) -> None:
        _require(self.starts, "starts", torch.int32, 1, self.starts)
        _require(self.slots, "slots", torch.int32, 1, self.starts)
        if self.starts.numel() != self.slots.numel() + 1:
            raise LayoutError(f"{self.slots.numel()} groups need {self.slots.numel() + 1} starts")

    @cached_property
    def num_groups(self) -> int:
        """Return G."""
        return self.slots.numel()

    @cached_property
    def device_index(self) -> int:
        """Return the CUDA device index, or -1 on a CPU."""
        return self.starts.get_device()

    @cached_property
    def words(self) -> "ctypes.Array[ctypes.c_int64]":
        """Return the addresses and sizes in the order of ``Groups`` in native_cpu/rows.h."""
        return (ctypes.c_int64 * 3)(self.starts.data_ptr(), self.slots.data_ptr(), self.num_groups)

    @cached_property
    def row_slots(self) -> Tensor:
        """Return the slot of every row, [N] int64; reads ``starts``, so it synchronises on a GPU."""
        lengths = (self.starts[1:] - self.starts[:-1]).long()
        if bool((lengths < 0).any()) or int(self.starts[0]) != 0:
            raise LayoutError("starts must begin with 0 and never fall")
        return torch.repeat_interleave(self.slots.long(), lengths)


@dataclass(frozen=True, eq=False)
class KvTable:
    """Where the keys and values of B sequences lie, in pages of ``page_tokens`` tokens.

    A page holds [layers][2 (key, value)][Hkv][page_tokens][D] elements. Token t of sequence b lies in page
    page_offsets[b, t // page_tokens] at t % page_tokens. The query rows of a sequence are its last tokens.
    Pages that a sliding window has passed are never read; their offsets may be anything. On a GPU the others must be
    multiples of gcd(8, D), as all multiples of a page's size are: 8 elements are read at once. Raises LayoutError.
    """

    page_offsets: Tensor  # [B, P] int64
    query_starts: Tensor  # [B+1] int32
    context_lens: Tensor  # [B] int32, tokens in KV after this step
    page_tokens: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        _require(self.page_offsets, "page_offsets", torch.int64, 2, self.page_offsets)
        _require(self.query_starts, "query_starts", torch.int32, 1, self.page_offsets)
        _require(self.context_lens, "context_lens", torch.int32, 1, self.page_offsets)
        num_sequences = self.page_offsets.size(0)
        if self.context_lens.numel() != num_sequences or self.query_starts.numel() != num_sequences + 1:
            raise LayoutError(f"{num_sequences} sequences need as many context_lens and one more query_starts")
        if min(self.page_tokens, self.num_kv_heads, self.head_dim) < 1:
            raise LayoutError("page_tokens, num_kv_heads and head_dim must be positive")

    @cached_property
    def device_index(self) -> int:
        """Return the CUDA device index, or -1 on a CPU."""
        return self.page_offsets.get_device()

    @cached_property
    def words(self) -> "ctypes.Array[ctypes.c_int64]":
        """Return the addresses and sizes in the order of ``Kv`` in native_cpu/attention.h."""
        tensors = (self.page_offsets, self.query_starts, self.context_lens)
        sizes = (*self.page_offsets.shape, self.page_tokens, self.num_kv_heads, self.head_dim)
        return (ctypes.c_int64 * 8)(*(t.data_ptr() for t in tensors), *sizes)
