"""The Triton kernels compiled ahead of time for four GPUs, none of which is here: what the binaries claim."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not published for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from octavo_kernels import expand, shrink  # noqa: E402
from octavo_kernels.tiles import TILE  # noqa: E402

# Largest shared memory that one block may ask for, in bytes; registers that one thread may have.
SHARED_BYTES_MAX = {80: 166_912, 90: 232_448, 100: 232_448, "gfx942": 65_536}
TARGETS = {80: ("cuda", 80, 32), 90: ("cuda", 90, 32), 100: ("cuda", 100, 32), "gfx942": ("hip", "gfx942", 64)}
MATRIX_INSTRUCTION = re.compile(r"mma\.sync|wgmma|tcgen05\.mma|v_mfma")
TABLES = {"offsets": "*i64", "ranks": "*i32", "scalings": "*fp32", "begins": "*i32", "ends": "*i32", "slots": "*i32"}


@dataclass(frozen=True)
class Binary:
    """What one compiled kernel needs."""

    registers: int
    spilled: int
    shared_bytes: int
    has_matrix_instruction: bool


@pytest.fixture(autouse=True)
def compiler_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compile for real each time, and choose the default that Triton 3.9 otherwise warns about."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


def _compile(name: str, dtype: str, arch: int | str, folder: Path) -> Binary:
    module, kernel = (shrink, shrink.shrink_kernel) if name == "shrink" else (expand, expand.expand_kernel)
    types = {**TABLES, "x": f"*{dtype}", "y": f"*{dtype}", "arena": f"*{dtype}", "v": "*fp32", "out": "*fp32"}
    types |= {"num_features": "i32", "rank_max": "i32", "x_pitch": "i64", "y_pitch": "i64"}
    types |= {"side": "constexpr", "span": "constexpr"}
    signature = {argument: types[argument] for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, {"side": TILE, "span": module.FEATURES})
    options = {"num_warps": module.NUM_WARPS, "num_stages": module.NUM_STAGES}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[arch]), options=options)
    if arch == "gfx942":
        text = compiled.asm["amdgcn"]
        fields = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)", text)}
        registers = fields["vgpr_count"]
        spilled = fields["vgpr_spill_count"] + fields["sgpr_spill_count"] + fields["private_segment_fixed_size"]
    else:
        text = compiled.asm["ptx"]
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", cubin], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        fields = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        registers, spilled = fields["REG"], fields["STACK"] + fields["LOCAL"]
    print(f"{name} {dtype} {arch}: {registers} registers, {compiled.metadata.shared} bytes shared")
    return Binary(registers, spilled, compiled.metadata.shared, bool(MATRIX_INSTRUCTION.search(text)))


@pytest.mark.parametrize("arch", list(TARGETS))
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", ["shrink", "expand"])
def test_kernel_compiles_without_spills_and_within_the_device(
    name: str, dtype: str, arch: int | str, tmp_path: Path
) -> None:
    binary = _compile(name, dtype, arch, tmp_path)
    assert 0 < binary.registers <= 255
    assert binary.spilled == 0
    assert binary.shared_bytes <= SHARED_BYTES_MAX[arch]
    # NVIDIA has no exact fp32 matrix product; fp16 expand uses fp32 because of fp16's range.
    is_exact_fp32 = dtype == "fp32" or (name, dtype) == ("expand", "fp16")
    assert binary.has_matrix_instruction == (arch == "gfx942" or not is_exact_fp32)
