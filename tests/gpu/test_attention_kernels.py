"""Attention and write_kv in Triton on a GPU: against float64, bit for bit against themselves alone, no waiting."""

import itertools

import pytest
import torch
from torch import Tensor

from octavo_kernels import ops, paged_attention, reference, torch_attention
from octavo_kernels.layout import KvTable
from support.kernel_worlds import DTYPES, TOLERANCES, KvWorld, kv_world, relative_rms, same_bits

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = pytest.mark.parametrize(
    ("heads", "repeat", "dim"), [(3, 3, 64), (2, 1, 80), (1, 5, 96), (2, 4, 128), (1, 7, 128), (1, 2, 256), (1, 71, 20)]
)


def _moved(world: KvWorld, device: torch.device) -> KvWorld:
    kv = world.kv
    tables = (part.to(device) for part in (kv.page_offsets, kv.query_starts, kv.context_lens))
    moved = KvTable(*tables, kv.page_tokens, kv.num_kv_heads, kv.head_dim)
    return KvWorld(world.arena.to(device), moved, world.layer_offset)


def _attend(
    q: Tensor,
    world: KvWorld,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Run on the GPU; returns the result on the CPU."""
    device = world.arena.device
    out = torch.full(q.shape, torch.nan, dtype=q.dtype, device=device)
    there = sinks.to(device) if sinks is not None else None
    ops.paged_attention(q.to(device), world.arena, world.kv, world.layer_offset, out, 0.3, window, softcap, there)
    return out.cpu()


@EVERY_DTYPE
@SHAPES
@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(None, None, False), (20, None, False), (None, 50.0, False), (None, None, True), (7, 5.0, True)],
)
def test_attention_agrees_with_float64_and_with_plain_torch(
    gpu: torch.device,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    heads: int,
    repeat: int,
    dim: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    here = kv_world([70, 1, 64, 48, 33], [1, 1, 1, 0, 20], heads, dim, dtype)
    there = _moved(here, gpu)
    q = torch.randn(23, heads * repeat, dim).to(dtype)
    sinks = torch.randn(heads * repeat) if has_sinks else None
    got = _attend(q, there, window, softcap, sinks)
    want = reference.paged_attention(q.double(), here.arena, here.kv, here.layer_offset, 0.3, window, softcap, sinks)
    assert relative_rms(got, want) <= TOLERANCES[dtype]
    plain = torch.full(q.shape, torch.nan, dtype=dtype, device=gpu)
    there_sinks = sinks.to(gpu) if sinks is not None else None
    torch_attention.paged_attention(
        q.to(gpu), there.arena, there.kv, there.layer_offset, plain, 0.3, window, softcap, there_sinks
    )
    assert relative_rms(got, plain.cpu()) <= 2 * TOLERANCES[dtype]


@EVERY_DTYPE
@SHAPES
@pytest.mark.parametrize("window", [None, 30])
def test_a_row_has_the_same_bits_alone_in_a_crowd_and_in_chunks(
    gpu: torch.device, window: int | None, heads: int, repeat: int, dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(2)
    length = 300
    q = torch.randn(length, heads * repeat, dim).to(dtype)
    expected = _attend(q, _moved(kv_world([length], [length], heads, dim, dtype), gpu), window)
    assert torch.isfinite(expected).all()
    for cuts in ([0, 1, 2, 90, 299, length], [0, 17, 64, 134, length]):
        for begin, end in itertools.pairwise(cuts):
            chunk = _moved(kv_world([end], [end - begin], heads, dim, dtype), gpu)
            assert same_bits(_attend(q[begin:end], chunk, window), expected[begin:end])
    crowd = _moved(kv_world([length, 9, 40, 100], [45, 9, 1, 3], heads, dim, dtype), gpu)
    packed = torch.cat([q[-45:], torch.randn(13, heads * repeat, dim).to(dtype)])
    packed[45:54] = torch.nan
    out = _attend(packed, crowd, window)
    assert same_bits(out[:45], expected[-45:])
    assert torch.isnan(out[45:54]).all()
    assert torch.isfinite(out[54:]).all()


@EVERY_DTYPE
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_later_token_that_is_not_finite_reaches_no_earlier_row(
    gpu: torch.device, value: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    world = _moved(kv_world([70, 30], [10, 10], 2, 64, dtype), gpu)
    q = torch.randn(20, 6, 64).to(dtype)
    expected = _attend(q, world)
    # Token 65 of the first sequence, the value of its second key head.
    at = int(world.kv.page_offsets[0, 4]) + world.layer_offset + 3 * 16 * 64 + 64
    world.arena[at + 5] = value
    out = _attend(q, world)
    assert same_bits(out[:5], expected[:5])
    assert same_bits(out[5:10, :3], expected[5:10, :3])
    assert not torch.isfinite(out[5:10, 3:, 5]).any()
    assert same_bits(out[10:], expected[10:])


@EVERY_DTYPE
@pytest.mark.parametrize(("heads", "dim", "count"), [(3, 64, 1), (2, 80, 33), (1, 20, 16)])
def test_write_kv_copies_every_bit_and_touches_nothing_else(
    gpu: torch.device, heads: int, dim: int, count: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(4)
    layer = 2 * heads * 16 * dim
    tokens = torch.randperm(4 * 16, generator=generator)[:count]
    offsets = tokens // 16 * 2 * layer + tokens % 16 * dim
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    bits = torch.randint(-(2**15), 2**15, (2, heads, count, dim + 3), generator=generator).to(kind)
    arena = torch.randint(-(2**15), 2**15, (4 * 2 * layer,), generator=generator).to(kind)
    k, v = bits.to(gpu).view(dtype)[..., :dim].transpose(1, 2)
    got = arena.to(gpu).view(dtype)
    ops.write_kv(got, k, v, offsets.to(gpu), layer, 16)
    keys, values = bits[..., :dim].transpose(1, 2)
    assert torch.equal(got.view(kind).cpu(), reference.write_kv(arena, keys, values, offsets, layer, 16))


def test_a_step_waits_for_nothing(gpu: torch.device) -> None:
    world = _moved(kv_world([70, 30], [1, 30], 2, 64, torch.bfloat16), gpu)
    q = torch.randn(31, 6, 64, device=gpu).bfloat16()
    out = torch.empty_like(q)
    # Compiled first; then a new table, so that its plan is made again.
    ops.paged_attention(q, world.arena, world.kv, world.layer_offset, out, 0.3)
    kv = world.kv
    again = KvTable(kv.page_offsets, kv.query_starts, kv.context_lens, kv.page_tokens, kv.num_kv_heads, kv.head_dim)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.paged_attention(q, world.arena, again, world.layer_offset, out, 0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert paged_attention.query_tiles_of(again, 31, 21).tiles.is_cuda
