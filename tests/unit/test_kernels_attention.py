"""Paged attention: compiled code and plain torch against float64, pages and page tails poisoned with NaN."""

import itertools
from types import ModuleType

import pytest
import torch
from torch import Tensor

from octavo_kernels import cpu, ops, reference, torch_attention
from octavo_kernels.layout import KvTable, LayoutError
from octavo_kernels.native import TYPES, NativeKernels, load_native
from support.kernel_worlds import DTYPES, TOLERANCES, kv_world, relative_rms, same_bits

Path = NativeKernels | ModuleType
PATHS = pytest.mark.parametrize("path", ["native", "torch"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _path(name: str, dtype: torch.dtype) -> Path:
    if name == "torch":
        return torch_attention
    native = load_native()
    if native is None:
        pytest.skip("needs a C++ compiler")
    return native if dtype in TYPES else cpu


def _attend(
    path: Path,
    q: Tensor,
    arena: Tensor,
    kv: KvTable,
    layer_offset: int,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    out = torch.full_like(q, torch.nan)
    path.paged_attention(q, arena, kv, layer_offset, out, 0.3, window, softcap, sinks)
    return out


@PATHS
@EVERY_DTYPE
@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(None, None, False), (20, None, False), (None, 3.0, False), (None, None, True), (7, 5.0, True)],
)
def test_attention_agrees_with_float64(
    path: str, dtype: torch.dtype, window: int | None, softcap: float | None, has_sinks: bool
) -> None:
    torch.manual_seed(1)
    for heads, repeat, dim in ((2, 3, 64), (1, 1, 20), (1, 5, 100)):
        world = kv_world([70, 1, 33], [1, 1, 20], heads, dim, dtype)
        q = torch.randn(22, heads * repeat, dim).to(dtype)
        sinks = torch.randn(heads * repeat) if has_sinks else None
        out = _attend(_path(path, dtype), q, world.arena, world.kv, world.layer_offset, window, softcap, sinks)
        want = reference.paged_attention(
            q.double(), world.arena, world.kv, world.layer_offset, 0.3, window, softcap, sinks
        )
        assert relative_rms(out, want) <= TOLERANCES[dtype]


@PATHS
@EVERY_DTYPE
@pytest.mark.parametrize("window", [None, 30])
def test_a_prompt_has_the_same_bits_whole_in_chunks_and_among_neighbours(
    path: str, dtype: torch.dtype, window: int | None
) -> None:
    torch.manual_seed(2)
    kernels, length = _path(path, dtype), 150
    q = torch.randn(length, 6, 64).to(dtype)
    whole = kv_world([length], [length], 2, 64, dtype)
    expected = _attend(kernels, q, whole.arena, whole.kv, whole.layer_offset, window)
    for cuts in ([0, 1, 2, 90, 150], [0, 64, 128, 149, 150], [0, 17, 100, 150]):
        for begin, end in itertools.pairwise(cuts):
            chunk = kv_world([end], [end - begin], 2, 64, dtype)
            out = _attend(kernels, q[begin:end], chunk.arena, chunk.kv, chunk.layer_offset, window)
            assert same_bits(out, expected[begin:end])
    crowd = kv_world([length, 9, 40], [60, 9, 1], 2, 64, dtype)
    packed = torch.cat([q[90:], torch.randn(10, 6, 64).to(dtype)])
    packed[65] = torch.nan
    out = _attend(kernels, packed, crowd.arena, crowd.kv, crowd.layer_offset, window)
    assert same_bits(out[:60], expected[90:])
    assert torch.isnan(out[65]).all()


@PATHS
def test_pages_that_a_window_has_passed_are_not_read(path: str) -> None:
    world = kv_world([70], [3], 2, 64, torch.float32)
    q = torch.randn(3, 2, 64)
    expected = _attend(_path(path, torch.float32), q, world.arena, world.kv, world.layer_offset, 20)
    freed = world.kv.page_offsets.clone()
    freed[0, :3] = -1
    kv = KvTable(freed, world.kv.query_starts, world.kv.context_lens, 16, 2, 64)
    assert same_bits(_attend(_path(path, torch.float32), q, world.arena, kv, world.layer_offset, 20), expected)


@PATHS
@pytest.mark.parametrize("window", [None, 20])
def test_how_many_tokens_a_page_holds_changes_no_bit(path: str, window: int | None) -> None:
    q = torch.randn(7, 2, 64)
    worlds = [kv_world([130, 33], [5, 2], 2, 64, torch.float32, page_tokens) for page_tokens in (16, 48, 112)]
    outs = [
        _attend(_path(path, torch.float32), q, world.arena, world.kv, world.layer_offset, window) for world in worlds
    ]
    assert same_bits(outs[1], outs[0])
    assert same_bits(outs[2], outs[0])


@PATHS
def test_strided_queries_and_outputs_are_taken_as_they_are(path: str) -> None:
    world = kv_world([30, 5], [2, 1], 2, 20, torch.float32)
    q = torch.randn(4, 3, 20)
    strided = torch.full((4, 3, 25), torch.nan).transpose(0, 1)[..., 2:22]
    _path(path, torch.float32).paged_attention(
        q.transpose(0, 1), world.arena, world.kv, world.layer_offset, strided, 0.3, None, None, None
    )
    plain = _attend(
        _path(path, torch.float32), q.transpose(0, 1).contiguous(), world.arena, world.kv, world.layer_offset
    )
    assert same_bits(strided, plain)


@PATHS
def test_offsets_and_lengths_that_leave_the_arena_are_refused(path: str) -> None:
    world = kv_world([30], [2], 2, 20, torch.float32)
    kv, q = world.kv, torch.randn(2, 2, 20)
    far = kv.page_offsets + world.arena.numel()
    for pages, starts, contexts in (
        (far, [0, 2], [30]),
        (-1 - kv.page_offsets, [0, 2], [30]),
        (kv.page_offsets, [0, 2], [1]),
        (kv.page_offsets, [0, 2], [1000]),
        (kv.page_offsets, [0, 1], [30]),
        (kv.page_offsets, [1, 2], [30]),
    ):
        bad = KvTable(pages, torch.tensor(starts).int(), torch.tensor(contexts).int(), 16, 2, 20)
        with pytest.raises(LayoutError):
            _attend(_path(path, torch.float32), q, world.arena, bad, world.layer_offset)


def test_mistaken_shapes_dtypes_and_strides_are_refused_by_name() -> None:
    world = kv_world([30], [2], 2, 20, torch.float32)
    q = torch.randn(2, 2, 20)
    for name, bad in (("q", q.double()), ("q", q[..., ::2]), ("q", q[:, :1]), ("q", torch.randn(2, 3, 20))):
        with pytest.raises(LayoutError, match=name):
            ops.paged_attention(bad, world.arena, world.kv, 0, torch.empty_like(bad), 0.3)
    with pytest.raises(LayoutError, match="sinks"):
        ops.paged_attention(q, world.arena, world.kv, 0, torch.empty_like(q), 0.3, sinks=torch.zeros(3))
    with pytest.raises(LayoutError, match="arena"):
        ops.paged_attention(q, world.arena[::2], world.kv, 0, torch.empty_like(q), 0.3)
    with pytest.raises(LayoutError, match="context_lens"):
        KvTable(world.kv.page_offsets, world.kv.query_starts, torch.zeros(2, dtype=torch.int32), 16, 2, 20)
