"""Triton kernels compiled ahead of time for GPUs that are not here: what the binaries need, read from them."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Largest shared memory that one block may ask for, in bytes.
SHARED_BYTES_MAX = {80: 166_912, 90: 232_448, 100: 232_448, "gfx942": 65_536}
TARGETS = {80: ("cuda", 80, 32), 90: ("cuda", 90, 32), 100: ("cuda", 100, 32), "gfx942": ("hip", "gfx942", 64)}


@dataclass(frozen=True)
class Binary:
    """What one compiled kernel needs."""

    registers: int
    spilled: int
    shared_bytes: int
    text: str  # PTX or the GPU's assembly


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    options: Mapping[str, int],
    arch: int | str,
    folder: Path,
    *,
    is_aligned: bool = False,
) -> Binary:
    """Compile for ``arch``; arguments without an entry in ``constants`` have a type in ``types``.

    With ``is_aligned`` addresses are multiples of 16 bytes, as the launcher finds them to be for torch's own tensors.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if is_aligned and signature[name].startswith("*")]
    source = ASTSource(kernel, signature, dict(constants), {(i,): [["tt.divisibility", 16]] for i in aligned})
    with pytest.MonkeyPatch.context() as patch:
        # Compile for real each time, and choose the default that Triton 3.9 otherwise warns about.
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[arch]), options=dict(options))
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
    return Binary(registers, spilled, compiled.metadata.shared, text)
