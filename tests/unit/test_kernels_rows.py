"""shrink, expand and write_kv: compiled code and plain torch against float64, with every output poisoned first."""

from types import ModuleType

import pytest
import torch

from octavo_kernels import cpu, reference, torch_rows
from octavo_kernels.layout import LayoutError, RowGroups, RowTable
from octavo_kernels.native import TYPES, NativeKernels, load_native
from octavo_kernels.tiles import tiles_of
from support.kernel_worlds import DTYPES, TOLERANCES, relative_rms, row_groups, row_world, same_bits

Path = NativeKernels | ModuleType


def _path(name: str, dtype: torch.dtype) -> Path:
    if name == "torch":
        return torch_rows
    native = load_native()
    if native is None:
        pytest.skip("needs a C++ compiler")
    return native if dtype in TYPES else cpu


PATHS = pytest.mark.parametrize("path", ["native", "torch"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
RANKS = [1, 3, 16, 0, 63]


def _groups(rows: int) -> RowGroups:
    """Return mixed groups over ``rows`` rows, with an empty one, one of no adapter, and a slot used twice."""
    if rows < 8:
        return row_groups([1] * rows, [4, 1][:rows])
    return row_groups([1, rows - 8, 0, 2, 3, 2], [0, 2, 1, -1, 4, 2])


@PATHS
@EVERY_DTYPE
@pytest.mark.parametrize(("rows", "h", "o"), [(1, 63, 2049), (2, 100, 63), (33, 576, 100), (100, 2049, 576)])
def test_shrink_and_expand_agree_with_float64(path: str, dtype: torch.dtype, rows: int, h: int, o: int) -> None:
    torch.manual_seed(rows)
    kernels, world, groups = _path(path, dtype), row_world(RANKS, h, o, dtype), _groups(rows)
    x = torch.randn(rows, h + 5).to(dtype)[:, 2 : 2 + h]
    out = torch.full((rows, 63), torch.nan)
    kernels.shrink(x, world.arena, world.table, groups, out)
    assert relative_rms(out, reference.shrink(x.double(), world.arena, world.table, groups)) <= TOLERANCES[dtype]
    wide = torch.randn(rows, o + 20).to(dtype)
    wide[:, :10] = wide[:, 10 + o :] = torch.nan
    y, before = wide[:, 10 : 10 + o], wide.clone()
    want = reference.expand(out.double(), world.arena, world.table, groups, y.double())
    kernels.expand(out, world.arena, world.table, groups, y)
    assert relative_rms(y, want) <= TOLERANCES[dtype]
    assert same_bits(wide[:, :10], before[:, :10])
    assert same_bits(wide[:, 10 + o :], before[:, 10 + o :])
    untouched = [i for i, slot in enumerate(groups.row_slots.tolist()) if slot in (-1, 3)]
    assert same_bits(wide[untouched], before[untouched])
    assert not out[untouched].any()


@PATHS
@EVERY_DTYPE
@pytest.mark.parametrize("rank", [1, 3, 16, 63])
def test_a_row_has_the_same_bits_alone_and_in_any_crowd(path: str, dtype: torch.dtype, rank: int) -> None:
    torch.manual_seed(rank)
    kernels, world = _path(path, dtype), row_world([rank, 16, 7], 576, 100, dtype)
    x, y = torch.randn(40, 576).to(dtype), torch.randn(40, 100).to(dtype)
    x[20:] = x[0]
    y[20:] = y[0]
    alone, alone_out = y[:1].clone(), torch.full((1, max(rank, 16)), torch.nan)
    one = row_groups([1], [0])
    kernels.shrink(x[:1], world.arena, world.table, one, alone_out)
    kernels.expand(alone_out, world.arena, world.table, one, alone)
    for lengths, slots, where in (
        ([1, 3, 36], [0, 1, 2], [0]),
        ([20, 20], [1, 0], list(range(20, 40))),
        ([20, 1, 1, 3, 15], [2, 0, 1, 0, -1], [20, 22, 23, 24]),
        ([0, 40], [1, 0], [0, *range(20, 40)]),
    ):
        groups = row_groups(lengths, slots)
        out, together = torch.full((40, max(rank, 16)), torch.nan), y.clone()
        kernels.shrink(x, world.arena, world.table, groups, out)
        kernels.expand(out, world.arena, world.table, groups, together)
        for row in where:
            assert same_bits(out[row, :rank], alone_out[0, :rank])
            assert same_bits(together[row], alone[0])


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    kernels, world = _path("native", dtype), row_world([63, 16], 2049, 2049, dtype)
    x = torch.randn(33, 2049).to(dtype)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for rows in (1, 33):
            out, y = torch.full((rows, 63), torch.nan), torch.ones(rows, 2049, dtype=dtype)
            kernels.shrink(x[:rows], world.arena, world.table, row_groups([rows], [0]), out)
            kernels.expand(out, world.arena, world.table, row_groups([rows], [0]), y)
            results.append((out[0], y[0]))
    torch.set_num_threads(threads)
    assert all(same_bits(out, results[0][0]) and same_bits(y, results[0][1]) for out, y in results)


@PATHS
@EVERY_DTYPE
def test_a_neighbours_nan_stays_its_own(path: str, dtype: torch.dtype) -> None:
    kernels, world = _path(path, dtype), row_world([16, 5, 3], 100, 63, dtype)
    for offsets in (world.table.a_offsets[1], world.table.b_offsets[2]):
        world.arena[int(offsets[0]) : int(offsets[0]) + 63] = torch.nan
    groups = row_groups([2, 3, 1, 4, 1], [1, 0, 2, 0, -1])
    x, y = torch.randn(11, 100).to(dtype), torch.randn(11, 63).to(dtype)
    x[4] = torch.nan
    out = torch.full((11, 16), torch.nan)
    kernels.shrink(x, world.arena, world.table, groups, out)
    kernels.expand(out, world.arena, world.table, groups, y)
    spoilt = torch.tensor([True, True, False, False, True, True, False, False, False, False, False])
    assert torch.isnan(y[spoilt]).all()
    assert torch.isfinite(y[~spoilt]).all()


@PATHS
@EVERY_DTYPE
def test_infinity_and_subnormal_numbers_survive(path: str, dtype: torch.dtype) -> None:
    arena = torch.ones(40, dtype=dtype)
    offsets = torch.zeros(1, 1, dtype=torch.int64)
    table = RowTable(offsets, offsets, torch.ones(1, dtype=torch.int32), torch.zeros(1))
    tiny = torch.finfo(dtype).smallest_normal / 4
    y = torch.tensor([[tiny, torch.inf, -torch.inf, 1.0]]).to(dtype)
    before = y.clone()
    _path(path, dtype).expand(torch.ones(1, 1), arena, table, row_groups([1], [0]), y)
    assert same_bits(y, before)


@PATHS
@EVERY_DTYPE
def test_write_kv_puts_every_element_in_its_place_and_nothing_elsewhere(path: str, dtype: torch.dtype) -> None:
    heads, dim, page_tokens, layers = 3, 20, 4, 2
    page = layers * 2 * heads * page_tokens * dim
    arena = torch.full((3 * page + 3,), torch.nan, dtype=dtype)
    k = torch.randn(heads, 5, dim).to(dtype).transpose(0, 1)
    v = torch.randn(5, heads, dim + 4).to(dtype)[..., :dim]
    token_offsets = torch.tensor([page * 2, page * 2 + dim, 3, 3 + 3 * dim, page])
    want = reference.write_kv(arena, k, v, token_offsets, page // layers, page_tokens)
    _path(path, dtype).write_kv(arena, k, v, token_offsets, page // layers, page_tokens)
    assert same_bits(arena, want)


@PATHS
def test_values_that_would_leave_the_arena_are_refused_before_anything_is_written(path: str) -> None:
    kernels, world = _path(path, torch.float32), row_world([2], 8, 8, torch.float32)
    x, table, arena = torch.randn(2, 8), world.table, world.arena
    good = row_groups([2], [0])
    outside = table.a_offsets + arena.numel()
    wide_ranks = torch.tensor([3], dtype=torch.int32)
    for bad_table, groups in (
        (RowTable(outside, outside, table.ranks, table.scalings), good),
        (RowTable(-1 - table.a_offsets, -1 - table.b_offsets, table.ranks, table.scalings), good),
        (RowTable(table.a_offsets, table.b_offsets, wide_ranks, table.scalings), good),
        (table, row_groups([2], [1])),
        (table, row_groups([2], [-2])),
        (table, row_groups([1], [0])),
        (table, row_groups([3], [0])),
        (table, row_groups([3, -1], [0, 0])),
    ):
        out, y = torch.full((2, 2), 7.0), torch.full((2, 8), 7.0)
        with pytest.raises(LayoutError):
            kernels.shrink(x, arena, bad_table, groups, out)
        with pytest.raises(LayoutError):
            kernels.expand(out, arena, bad_table, groups, y)
        assert (out == 7.0).all()
        assert (y == 7.0).all()
    k = torch.randn(1, 1, 8)
    for at in (-1, arena.numel() - 8):
        before = arena.clone()
        with pytest.raises(LayoutError):
            kernels.write_kv(arena, k, k, torch.tensor([at]), 0, 4)
        assert same_bits(arena, before)


@PATHS
def test_empty_batches_and_tables_are_fine(path: str) -> None:
    kernels, world = _path(path, torch.float32), row_world([2], 8, 8, torch.float32)
    kernels.shrink(torch.empty(0, 8), world.arena, world.table, row_groups([], []), torch.empty(0, 2))
    none = RowTable(
        torch.empty(0, 0, dtype=torch.int64),
        torch.empty(0, 0, dtype=torch.int64),
        torch.empty(0, dtype=torch.int32),
        torch.empty(0),
    )
    y = torch.ones(3, 8)
    kernels.shrink(torch.ones(3, 8), world.arena, none, row_groups([3], [-1]), torch.empty(3, 0))
    kernels.expand(torch.empty(3, 0), world.arena, none, row_groups([3], [-1]), y)
    assert (y == 1).all()


@pytest.mark.parametrize("num_rows", [0, 7, 9])
def test_tiles_that_were_planned_for_other_rows_are_refused(num_rows: int) -> None:
    groups = row_groups([3, 5], [0, 1])
    assert tiles_of(groups, 8) is tiles_of(groups, 8)
    with pytest.raises(LayoutError, match="groups that have 8"):
        tiles_of(groups, num_rows)


@EVERY_DTYPE
@pytest.mark.parametrize("rows", [1, 2, 33, 100])
def test_adapt_is_shrink_and_expand_of_each_part_bit_for_bit(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    h, widths, groups = 100, (63, 2049), _groups(rows)
    first = row_world(RANKS, h, widths[0], dtype)
    second = row_world([5, 0, 2, 17, 1], h, widths[1], dtype, seed=1)
    arena, shift = torch.cat([first.arena, second.arena]), first.arena.numel()
    moved = RowTable(
        second.table.a_offsets + shift, second.table.b_offsets + shift, second.table.ranks, second.table.scalings
    )
    tables = (first.table, moved)
    x = torch.randn(rows, h + 5).to(dtype)[:, 2 : 2 + h]
    # Parts of one product, as siblings have them.
    product = torch.randn(rows, sum(widths)).to(dtype)
    expected = product.clone()
    for table, y in zip(tables, expected.split(widths, dim=1), strict=True):
        reduced = torch.full((rows, table.rank_max), torch.nan)
        cpu.shrink(x, arena, table, groups, reduced)
        cpu.expand(reduced, arena, table, groups, y)
    cpu.adapt(x, arena, list(zip(tables, product.split(widths, dim=1), strict=True)), groups)
    assert same_bits(product, expected)


def test_adapt_writes_nothing_when_one_part_is_wrong() -> None:
    world = row_world([3, 2], 64, 32, torch.float32)
    table = world.table
    wrong = RowTable(table.a_offsets, table.b_offsets + 10**9, table.ranks, table.scalings)
    product, groups = torch.randn(4, 64), row_groups([2, 2], [0, 1])
    before = product.clone()
    parts = list(zip((table, wrong), product.split(32, dim=1), strict=True))
    with pytest.raises(LayoutError):
        cpu.adapt(torch.randn(4, 64), world.arena, parts, groups)
    assert same_bits(product, before)
