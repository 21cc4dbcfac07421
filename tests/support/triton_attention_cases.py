"""Attention and write_kv in Triton on CPU tensors; collected only by a pytest run with TRITON_INTERPRET=1."""

import ctypes
import itertools
import mmap
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from octavo_kernels import paged_attention as attention_module
from octavo_kernels import reference
from octavo_kernels import write_kv as write_kv_module
from octavo_kernels.layout import KvTable
from support.kernel_worlds import DTYPES, TOLERANCES, KvWorld, kv_world, relative_rms, same_bits

# Lanes without a row divide by zero, and some tests put NaN and infinity in on purpose; numpy says so.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
_interpreted_cast = InterpreterBuilder.cast_impl


def _cast_to_nearest(self: Any, source: Any, to: Any) -> Any:
    """Round fp32 to bf16 as GPUs do, to nearest even: Triton 3.9's interpreter cuts the lower half off."""
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        rounded = torch.from_numpy(source.data).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view("uint16"), to.scalar)
    return _interpreted_cast(self, source, to)


def _dot_row_by_row(self: Any, a: Any, b: Any, acc: Any, *_options: Any) -> Any:
    """Multiply as matrix units do: a row's result is a function of that row, wherever it lies in its tile.

    One product of numpy's gives a row other bits at another place. bf16 is widened, which is exact; Triton 3.9's
    interpreter would multiply its bit patterns as integers.
    """
    left, right = (self.cast_impl(side, tl.float32).data for side in (a, b))
    return TensorHandle(acc.data + np.matmul(left[:, None, :], right[None])[:, 0], acc.dtype.scalar)


InterpreterBuilder.cast_impl = _cast_to_nearest
InterpreterBuilder.create_dot = _dot_row_by_row


def _attend(
    q: Tensor,
    world: KvWorld,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kv: KvTable | None = None,
) -> Tensor:
    out = torch.full_like(q, torch.nan)
    attention_module.paged_attention(
        q, world.arena, kv or world.kv, world.layer_offset, out, 0.3, window, softcap, sinks
    )
    return out


def _at_the_end_of_memory(arena: Tensor) -> Tensor:
    """Return a copy whose last element lies before a page that kills the process when it is touched."""
    num_bytes = arena.numel() * arena.element_size()
    room = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    copy = torch.frombuffer(memory, dtype=arena.dtype, offset=room - num_bytes, count=arena.numel())
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(copy.data_ptr() + num_bytes)
    if libc.mprotect(guard, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return copy.copy_(arena)


def test_the_kernels_are_interpreted_here() -> None:
    assert triton.knobs.runtime.interpret, "run through tests/unit/test_kernels_triton_attention.py"


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(None, None, False), (20, None, False), (None, 50.0, False), (None, None, True), (7, 5.0, True)],
)
@pytest.mark.parametrize(
    ("heads", "repeat", "dim"), [(2, 3, 64), (1, 1, 80), (1, 5, 96), (1, 2, 128), (1, 2, 256), (1, 7, 20)]
)
def test_attention_agrees_with_float64(
    heads: int,
    repeat: int,
    dim: int,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    # Decodes and prompts, a context that ends with a block of keys, one that ends with a page, a sequence without rows.
    world = kv_world([70, 1, 64, 48, 33], [1, 1, 1, 0, 20], heads, dim, dtype)
    q = torch.randn(23, heads * repeat, dim).to(dtype)
    sinks = torch.randn(heads * repeat) if has_sinks else None
    out = _attend(q, world, window, softcap, sinks)
    want = reference.paged_attention(q.double(), world.arena, world.kv, world.layer_offset, 0.3, window, softcap, sinks)
    assert relative_rms(out, want) <= TOLERANCES[dtype]


@pytest.mark.parametrize(("dtype", "repeat"), [(torch.float32, 17), (torch.bfloat16, 71)])
def test_more_heads_on_a_key_head_than_a_tile_has_lanes(dtype: torch.dtype, repeat: int) -> None:
    torch.manual_seed(2)
    world = kv_world([33, 5], [2, 1], 2, 16, dtype)
    q = torch.randn(3, 2 * repeat, 16).to(dtype)
    want = reference.paged_attention(q.double(), world.arena, world.kv, world.layer_offset, 0.3)
    assert relative_rms(_attend(q, world), want) <= TOLERANCES[dtype]


@EVERY_DTYPE
@pytest.mark.parametrize(("heads", "repeat", "dim"), [(2, 3, 64), (1, 5, 80), (1, 1, 256)])
@pytest.mark.parametrize(("window", "softcap", "has_sinks"), [(None, None, False), (30, 4.0, True)])
def test_a_row_has_the_same_bits_alone_in_a_crowd_and_in_chunks(
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    heads: int,
    repeat: int,
    dim: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(3)
    length = 135
    q = torch.randn(length, heads * repeat, dim).to(dtype)
    rest = (window, softcap, torch.randn(heads * repeat) if has_sinks else None)
    expected = _attend(q, kv_world([length], [length], heads, dim, dtype), *rest)
    assert torch.isfinite(expected).all()
    for cuts in ([0, 1, 2, 90, length], [0, 17, 64, 134, length]):
        for begin, end in itertools.pairwise(cuts):
            chunk = kv_world([end], [end - begin], heads, dim, dtype, seed=0)
            assert same_bits(_attend(q[begin:end], chunk, *rest), expected[begin:end])
    # As one decode row, and as a chunk, between sequences of which one is NaN.
    crowd = kv_world([length, 9, 40, 100], [45, 9, 1, 3], heads, dim, dtype)
    packed = torch.cat([q[90:], torch.randn(13, heads * repeat, dim).to(dtype)])
    packed[45:54] = torch.nan
    out = _attend(packed, crowd, *rest)
    assert same_bits(out[:45], expected[90:])
    assert torch.isnan(out[45:54]).all()
    assert torch.isfinite(out[54:]).all()


@EVERY_DTYPE
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_later_token_that_is_not_finite_reaches_no_earlier_row(value: float, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    world = kv_world([70, 30], [10, 10], 2, 64, dtype)
    q = torch.randn(20, 6, 64).to(dtype)
    expected = _attend(q, world)
    # Token 65 of the first sequence, the value of its second key head.
    plane = 16 * 64
    at = int(world.kv.page_offsets[0, 4]) + world.layer_offset + 3 * plane + 64
    world.arena[at + 5] = value
    out = _attend(q, world)
    assert same_bits(out[:5], expected[:5])
    assert same_bits(out[5:10, :3], expected[5:10, :3])
    assert not torch.isfinite(out[5:10, 3:, 5]).any()
    assert same_bits(out[5:10, 3:, 6:], expected[5:10, 3:, 6:])
    assert same_bits(out[10:], expected[10:])


@pytest.mark.parametrize("window", [None, 20])
def test_how_many_tokens_a_page_holds_changes_no_bit(window: int | None) -> None:
    torch.manual_seed(7)
    q = torch.randn(7, 4, 64)
    worlds = [kv_world([130, 33], [5, 2], 2, 64, torch.float32, page_tokens) for page_tokens in (16, 48)]
    small, large = (_attend(q, world, window) for world in worlds)
    assert same_bits(large, small)


@EVERY_DTYPE
def test_nothing_outside_is_read_or_written(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    heads, repeat, dim = 2, 3, 20
    world = kv_world([40, 16], [3, 16], heads, dim, dtype)
    q = torch.randn(19, heads * repeat, dim).to(dtype)
    expected = _attend(q, world, 20)
    # The first page has slid out of the window of the first sequence; the last page that is read ends the arena.
    pages = world.kv.page_offsets.clone()
    limit = world.layer_offset + 2 * heads * 16 * dim
    pages[0, 0] = -(10**12)
    pages[0, 3] = pages[1, 1] = 10**12
    pages[1, 0] = world.arena.numel()
    moved = torch.cat([world.arena, world.arena[int(world.kv.page_offsets[1, 0]) :][:limit]])
    kv = KvTable(pages, world.kv.query_starts, world.kv.context_lens, 16, heads, dim)
    wide = torch.full((heads * repeat, 21, dim + 9), 7.0).to(dtype)
    out = wide[:, 1:20, 2 : 2 + dim].transpose(0, 1)
    attention_module.paged_attention(
        q.transpose(0, 1).contiguous().transpose(0, 1),
        _at_the_end_of_memory(moved),
        kv,
        world.layer_offset,
        out,
        0.3,
        20,
        None,
        None,
    )
    assert same_bits(out, expected)
    out.fill_(7.0)
    assert (wide == 7.0).all()


@EVERY_DTYPE
@pytest.mark.parametrize(("heads", "dim", "count"), [(3, 64, 1), (2, 80, 33), (1, 20, 16)])
def test_write_kv_copies_every_bit_and_touches_nothing_else(
    heads: int, dim: int, count: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(6)
    layer = 2 * heads * 16 * dim
    tokens = torch.randperm(3 * 16, generator=generator)[:count]
    # The last token of the last page ends the arena.
    tokens[0] = 3 * 16 - 1
    tokens = tokens.unique()
    offsets = tokens // 16 * 2 * layer + tokens % 16 * dim
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    # Every pattern of bits, those of NaN included; heads before rows, as a model hands them over.
    bits = torch.randint(-(2**15), 2**15, (2, heads, len(tokens), dim + 3), generator=generator).to(kind)
    k, v = bits.view(dtype)[..., :dim].transpose(1, 2)
    arena = torch.randint(-(2**15), 2**15, (3 * 2 * layer,), generator=generator).to(kind).view(dtype)
    guarded = _at_the_end_of_memory(arena)
    write_kv_module.write_kv(guarded, k, v, offsets, layer, 16)
    expected = reference.write_kv(arena.view(kind), k.view(kind), v.view(kind), offsets, layer, 16)
    assert torch.equal(guarded.view(kind), expected)
