"""``x Wᵀ + bias`` for frozen bf16 weights on CPUs that multiply pairs of bf16 (AVX512-BF16).

A library lays a weight out for one kind of batch. This product takes a few dozen rows at the speed of many, because it
asks for the next weights while it multiplies. Elsewhere there is none, and the worker multiplies with torch.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from octavo_kernels import huge_pages
from octavo_kernels.layout import LayoutError
from octavo_kernels.native import load_native

_PANEL, _GROUP = 16, 48
"""As PANEL and MANY_OUTPUTS in native_cpu/products.h."""


class PackedWords(ctypes.Structure):
    """As ``Packed`` in native_cpu/products.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
    )


@dataclass(frozen=True, eq=False)
class PackedProduct:
    """A weight laid out by ``pack``, and a bias; neither may change."""

    weight: Tensor  # [elements] bf16, in groups of 48 outputs; the last group is filled up with zeros to 16, 32 or 48
    bias: Tensor | None  # [out_features] bf16
    in_features: int
    out_features: int

    @cached_property
    def words(self) -> PackedWords:
        """The same for compiled kernels; valid while this object lives."""
        bias = self.bias.data_ptr() if self.bias is not None else None
        return PackedWords(self.weight.data_ptr(), bias, self.in_features, self.out_features)


def can_pack(weight: Tensor) -> bool:
    """Tell whether ``weight`` [O, H] can be packed: it is bf16, H is even, and this CPU multiplies such pairs."""
    native = load_native() if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 else None
    return native is not None and weight.dim() == 2 and weight.shape[1] % 2 == 0 and native.can_multiply()


def pack(weight: Tensor, bias: Tensor | None = None) -> PackedProduct:
    """Lay ``weight`` [O, H] out for ``product``; raises LayoutError where ``can_pack`` is False or a bias differs."""
    if not can_pack(weight) or (bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype)):
        raise LayoutError(f"pack: cannot lay out {tuple(weight.shape)} {weight.dtype} and its bias here")
    num_outputs, num_features = weight.shape
    num_grouped = num_outputs // _GROUP * _GROUP
    tail = functional.pad(weight[num_grouped:], (0, 0, 0, -num_outputs % _PANEL))
    parts = [_paired(weight[:num_grouped], _GROUP), _paired(tail, max(_PANEL, len(tail)))]
    packed = huge_pages.zeros(sum(map(len, parts)), weight.dtype)
    torch.cat(parts, out=packed)
    return PackedProduct(packed, None if bias is None else bias.contiguous(), num_features, num_outputs)


def _paired(rows: Tensor, group: int) -> Tensor:
    """Return ``rows`` in groups of ``group``: of each, pair after pair of features, all rows' pairs together."""
    return rows.reshape(-1, group, rows.shape[1] // 2, 2).transpose(1, 2).reshape(-1)


def product(x: Tensor, packed: PackedProduct) -> Tensor:
    """Return ``x Wᵀ + bias``, rounded once.

    Semantics:
        result[i, o] = bias[o] + Σ_k x[i, k] · W[o, k]   one chain of fp32 sums over pairs of features, in order

    A row's bits depend on that row only. Subnormal numbers count as zero, as the instruction has it.

    Shapes: x [N, H] bf16, rows contiguous, any pitch; result [N, O], contiguous.

    Raises: LayoutError. Reference: ``x.double() @ W.double().T``; within one rounding of the result and 1e-5 of the
    sum of absolute products.
    """
    if x.dim() != 2 or x.shape[1] != packed.in_features or x.dtype != torch.bfloat16 or x.stride(1) != 1:
        raise LayoutError(f"product: {tuple(x.shape)} {x.dtype} by {packed.in_features} features, rows contiguous")
    native = load_native()
    if native is None:
        raise LayoutError("product: there are no compiled kernels")
    return native.product(x, packed.words)
