"""Attention and write_kv in Triton compiled ahead of time for four GPUs: what the binaries claim."""

import re
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not published for this platform")

from octavo_kernels import paged_attention, write_kv  # noqa: E402
from support.compiled_kernels import SHARED_BYTES_MAX, TARGETS, Binary, compile_kernel  # noqa: E402

MATRIX_INSTRUCTIONS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", "gfx942": "v_mfma"}
# Reads of 16 bytes, on NVIDIA straight into shared memory while the block before is multiplied.
WIDE_READ = {80: "cp.async.cg", 90: "cp.async.cg", 100: "cp.async.cg", "gfx942": "global_load_dwordx4"}
NARROW_READ = re.compile(r"ld\.global\S*\.[bu]16\b|global_load_\w*short")
ARCHES = pytest.mark.parametrize("arch", list(TARGETS))


def _compile_attention(
    dtype: str, dim: int, repeat: int, arch: int | str, folder: Path, *, is_plain: bool, page_tokens: int = 16
) -> Binary:
    element_bytes = 4 if dtype == "fp32" else 2
    columns = triton.next_power_of_2(dim)
    data = dict.fromkeys(("q", "arena", "out"), f"*{dtype}")
    tables = {"page_offsets": "*i64", "tiles": "*i32", "sinks": "*fp32", "slope": "fp32", "cap": "fp32"}
    sizes = dict.fromkeys(("layer_offset", "pages_max", "window", "q_row", "q_head", "out_row", "out_head"), "i32")
    constants: dict[str, object] = {"num_kv_heads": 8, "repeat": repeat, "dim": dim, "align": 8}
    constants["page_tokens"] = page_tokens
    constants |= {"lanes": paged_attention.lanes_of(element_bytes), "columns": columns}
    constants |= {"span": paged_attention.KEY_SPAN}
    if is_plain:
        constants |= {"sinks": None, "cap": None}
    capability = None if arch == "gfx942" else int(arch) // 10
    options = paged_attention.launch_options(columns, element_bytes, capability)
    binary = compile_kernel(
        paged_attention.attention_kernel,
        data | tables | sizes,
        constants,
        options,
        arch,
        folder,
        is_aligned=True,
    )
    print(
        f"paged_attention {dtype} {arch} {dim} x {repeat}: {binary.registers} registers, {binary.shared_bytes} shared"
    )
    return binary


def _assert_it_fits(binary: Binary, arch: int | str) -> None:
    assert 0 < binary.registers <= (512 if arch == "gfx942" else 255)
    assert binary.spilled == 0
    assert binary.shared_bytes <= SHARED_BYTES_MAX[arch]


@ARCHES
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_attention_compiles_without_spills_and_with_matrix_instructions(
    dim: int, dtype: str, arch: int | str, tmp_path: Path
) -> None:
    binary = _compile_attention(dtype, dim, 3, arch, tmp_path, is_plain=False)
    _assert_it_fits(binary, arch)
    assert WIDE_READ[arch] in binary.text
    assert not NARROW_READ.search(binary.text)
    # NVIDIA has no exact fp32 matrix product.
    is_exact_fp32 = dtype == "fp32" and arch != "gfx942"
    assert (MATRIX_INSTRUCTIONS[arch] in binary.text) == (not is_exact_fp32)
    assert not re.search(r"\batom\.|\bred\.(global|shared|async)|(global|flat|buffer|ds)_atomic", binary.text)


@ARCHES
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_attention_without_softcap_and_sinks_does_not_spill_either(dim: int, arch: int | str, tmp_path: Path) -> None:
    _assert_it_fits(_compile_attention("bf16", dim, 1, arch, tmp_path, is_plain=True), arch)


@ARCHES
@pytest.mark.parametrize("dim", [64, 256])
def test_pages_of_80_tokens_cost_no_more_than_those_of_16(dim: int, arch: int | str, tmp_path: Path) -> None:
    few, many = (
        _compile_attention("bf16", dim, 2, arch, tmp_path, is_plain=False, page_tokens=page_tokens)
        for page_tokens in (16, 80)
    )
    _assert_it_fits(many, arch)
    assert many.registers <= few.registers
    assert WIDE_READ[arch] in many.text
    assert not NARROW_READ.search(many.text)


@ARCHES
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_write_kv_compiles_without_spills_and_copies_16_bytes_at_once(
    dtype: str, arch: int | str, tmp_path: Path
) -> None:
    names = ("layer_offset", "num_rows", "num_heads", "k_row", "k_head", "v_row", "v_head")
    types = dict.fromkeys(("arena", "k", "v"), f"*{dtype}") | dict.fromkeys(names, "i32") | {"token_offsets": "*i64"}
    constants = {"dim": 80, "page_tokens": 16, "rows": write_kv.ROWS, "columns": 128, "align": 8}
    binary = compile_kernel(
        write_kv.write_kv_kernel,
        types,
        constants,
        {"num_warps": write_kv.NUM_WARPS},
        arch,
        tmp_path,
        is_aligned=True,
    )
    print(f"write_kv {dtype} {arch}: {binary.registers} registers, {binary.shared_bytes} shared")
    _assert_it_fits(binary, arch)
    assert re.search(r"st\.global\.v4|global_store_dwordx4", binary.text)
