"""Placement: true rank, no row across two pages, at most one page of slack, every value where the kernels look."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import LoraConfig
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import PackedModule, build_pack, read_header
from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.adapters.placement import Layouts, install, place
from support.adapters import TINY_BASE, tiny_tensors

SMOLLM2 = {"page": 30 * 2 * 3 * 16 * 64, "layers": 30, "shapes": [(576, 576), (576, 192), (576, 1536), (1536, 576)]}
LLAMA_8B = {"page": 32 * 2 * 8 * 16 * 128, "layers": 32, "shapes": [(4096, 4096), (4096, 1024), (4096, 14336)]}


def _check(runs: list[tuple[int, int]], page_elements: int) -> int:
    """Assert that no row straddles a page or overlaps another; returns the elements that nobody takes."""
    num_pages, pages, begins = place(runs, page_elements)
    lengths = [length for num_rows, length in runs for _ in range(num_rows)]
    assert len(lengths) == len(pages) == len(begins)
    taken = np.zeros((num_pages, page_elements), dtype=np.int8)
    for page, begin, length in zip(pages.tolist(), begins.tolist(), lengths, strict=True):
        assert 0 <= begin <= page_elements - length, "a row straddles a page"
        taken[page, begin : begin + length] += 1
    assert taken.max(initial=0) <= 1, "rows overlap"
    return num_pages * page_elements - sum(lengths)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=12), st.integers(40, 160))
def test_rows_never_straddle_a_page_or_overlap(lengths: list[tuple[int, int]], page: int) -> None:
    slack = _check(lengths, page)
    # Any page but the last lacks room for the shortest row that came after it.
    assert slack < page + place(lengths, page)[0] * 40


@pytest.mark.parametrize("base", [SMOLLM2, LLAMA_8B], ids=["smollm2", "llama-8b"])
@pytest.mark.parametrize("rank", [1, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("num_shapes", [1, 2, 3])
def test_slack_is_at_most_one_page(base: dict, rank: int, num_shapes: int) -> None:  # type: ignore[type-arg]
    shapes = base["shapes"][:num_shapes] * (1 if rank == 64 else base["layers"])
    runs = [(rank, length) for shape in shapes for length in shape]
    assert 0 <= _check(runs, base["page"]) < base["page"]


def test_a_row_longer_than_a_page_is_refused() -> None:
    with pytest.raises(AdapterRefused, match="row_exceeds_page"):
        place([(1, 41)], 40)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("arena_dtype", [torch.float32, torch.bfloat16])
def test_every_value_lies_where_the_tables_say(dtype: str, arena_dtype: torch.dtype) -> None:
    named_ranks = (("0.self_attn.q_proj", 3), ("1.mlp.down_proj", 1), ("1.self_attn.v_proj", 7))
    ranks = {f"model.layers.{name}": rank for name, rank in named_ranks}
    tensors = tiny_tensors(ranks, seed=3, dtype=dtype)
    pack = build_pack(LoraConfig(r=4), tensors, TINY_BASE.fingerprint, None)
    header = read_header(pack)
    arena = Arena(page_elements=50, num_pages=30, dtype=arena_dtype)
    arena.alloc(2, PageUse.KV)
    layout = Layouts(TINY_BASE.modules, arena.page_elements).layout_of(header.modules)
    pages = arena.alloc(layout.num_pages, PageUse.ADAPTER)[::-1]
    placed = install(layout, memoryview(pack), pages, arena)
    names = tuple(TINY_BASE.modules)

    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    for m, name in enumerate(names):
        assert int(placed.ranks[m]) == ranks.get(name, 0)
        for side, table, length in (
            ("A", placed.a_offsets, TINY_BASE.modules[name].in_features),
            ("B", placed.b_offsets, TINY_BASE.modules[name].out_features),
        ):
            if name not in ranks:
                continue
            words = tensors[f"base_model.model.{name}.lora_{side}.weight"].words
            saved = torch.from_numpy(words.view(np.int32 if dtype == "F32" else np.int16)).view(torch_dtype)
            expected = (saved if side == "A" else saved.T).to(arena_dtype)
            for j in range(ranks[name]):
                offset = int(table[m, j])
                assert torch.equal(arena.memory[offset : offset + length], expected[j])
        if name in ranks:
            scaling = next(module.scaling for module in header.modules if module.name == name)
            assert float(placed.scalings[m]) == pytest.approx(scaling)


def test_modules_that_the_base_lacks_or_shapes_otherwise_are_refused() -> None:
    tensors = tiny_tensors({"model.layers.0.self_attn.q_proj": 4})
    pack = build_pack(LoraConfig(r=4), tensors, TINY_BASE.fingerprint, None)
    modules = read_header(pack).modules
    with pytest.raises(AdapterRefused, match="unknown_module"):
        Layouts({}, 1024).layout_of(modules)
    with pytest.raises(AdapterRefused, match="wrong_shape"):
        Layouts({modules[0].name: ModuleShape(16, 17)}, 1024).layout_of(modules)


def test_a_layout_is_kept_for_adapters_of_the_same_form_only() -> None:
    layouts = Layouts(TINY_BASE.modules, 1024)
    module = "model.layers.0.self_attn.q_proj"

    def modules(rank: int, seed: int, dtype: str = "F32") -> tuple[PackedModule, ...]:
        tensors = tiny_tensors({module: rank}, seed=seed, dtype=dtype)
        return read_header(build_pack(LoraConfig(r=rank), tensors, TINY_BASE.fingerprint, None)).modules

    kept = layouts.layout_of(modules(4, seed=1))
    assert layouts.layout_of(modules(4, seed=2)) is kept
    assert layouts.layout_of(modules(5, seed=1)) is not kept
    assert layouts.layout_of(modules(4, seed=1, dtype="BF16")) is not kept
