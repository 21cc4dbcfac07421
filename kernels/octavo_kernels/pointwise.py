"""What a decoder does between its products and behind the last one, each in one pass over memory on a CPU.

A base is served without these too: its own code does the same in six, two and ten passes. They exist for CPUs with
compiled kernels only; on a GPU the architecture's own code runs. A row's result depends on that row only.
"""

from enum import IntEnum

import torch
from torch import Tensor

from octavo_kernels.allowed import Allowed
from octavo_kernels.layout import LayoutError
from octavo_kernels.native import TYPES, NativeKernels, load_native


class NormForm(IntEnum):
    """Where a root mean square norm rounds to the tensor's dtype, and what its weight means."""

    ROUND_THEN_SCALE = 0
    SCALE_THEN_ROUND = 1
    SCALE_BY_ONE_PLUS = 2


class Activation(IntEnum):
    """The function that is applied to the gate."""

    SILU = 0
    GELU_TANH = 1


def is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether these operations exist for tensors of ``dtype`` on ``device``."""
    return device.type == "cpu" and dtype in TYPES and load_native() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float, form: NormForm) -> Tensor:
    """Divide every row by its root mean square and scale it.

    Semantics, with r = 1 / sqrt(mean(x[i]²) + eps), and T rounding to x's dtype:
        ROUND_THEN_SCALE   T(T(x[i] r) weight)
        SCALE_THEN_ROUND   T(x[i] r weight)
        SCALE_BY_ONE_PLUS  T(x[i] r (1 + weight))

    Shapes: x [N, H] bf16 or fp32, rows contiguous, any pitch; weight [H] of the same dtype; result [N, H], contiguous.

    Raises: LayoutError. Reference: ``torch.nn.functional.rms_norm``; within one rounding.
    """
    if x.dim() != 2 or x.stride(1) != 1 or weight.shape != x.shape[1:] or not weight.is_contiguous():
        raise LayoutError(f"rms_norm: {tuple(x.shape)} by {tuple(weight.shape)}, rows and weight contiguous, wanted")
    return _native(x, weight).rms_norm(x, weight, eps, form)


def gate(gates: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return T(T(f(gates)) · up), T rounding to their dtype.

    Shapes: gates, up [N, W] bf16 or fp32, rows contiguous, any pitch; result [N, W], contiguous.

    Raises: LayoutError. Reference: ``torch.nn.functional.silu`` and ``gelu``; within two roundings.
    """
    if gates.dim() != 2 or gates.shape != up.shape or gates.stride(1) != 1 or up.stride(1) != 1:
        raise LayoutError(
            f"gate: equal shapes with contiguous rows wanted, got {tuple(gates.shape)}, {tuple(up.shape)}"
        )
    return _native(gates, up).gate(gates, up, activation)


def largest(x: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest value of each row, of its allowed elements, and the first index that has it.

    A row that holds a NaN has NaN as its largest value; its index means nothing then. One with nothing allowed has
    minus infinity. On a GPU, and where there is no compiled kernel, torch does the same.

    Shapes: x [N, W] bf16, fp16 or fp32; results [N] fp32 and [N] int64.
    """
    native = load_native() if x.dtype in TYPES and not x.is_cuda else None
    if native is None or x.dim() != 2 or x.stride(1) != 1 or not x.shape[1]:
        if allowed is not None:
            x = x.masked_fill(~allowed.mask(x.shape[1]).to(x.device), -torch.inf)
        values, indices = x.max(dim=-1)
        return values.float(), indices
    return native.largest(x, allowed)


def forbid(x: Tensor, allowed: Allowed) -> None:
    """Set every element of ``x`` to minus infinity that is not allowed.

    Shapes: x [N, W] fp32, contiguous.
    """
    native = None if x.is_cuda else load_native()
    if native is not None and x.dtype == torch.float32 and x.is_contiguous():
        native.forbid(x, allowed)
    else:
        x.masked_fill_(~allowed.mask(x.shape[1]).to(x.device), -torch.inf)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of elements half a head apart (rotary embedding), rounding each product and the sum.

    Semantics, for x = q and then x = k:
        out[i, n, d] = T(T(x[i, n, d] cos[i, d]) + T(x'[i, n, d] sin[i, d])),
        x'[d] = -x[d + D/2] for d < D/2, else x[d - D/2]

    Shapes: q [N, Hq, D], k [N, Hkv, D] bf16 or fp32, any strides but the last, D even; cos, sin [N, D], contiguous;
    result [N, Hq + Hkv, D], contiguous, q's heads first.

    Raises: LayoutError. Source: RoFormer (arXiv:2104.09864).
    """
    num_rows, _, dim = q.shape
    if k.size(0) != num_rows or k.size(2) != dim or dim % 2 or q.stride(2) != 1 or k.stride(2) != 1:
        raise LayoutError(
            f"rotate: q {tuple(q.shape)} and k {tuple(k.shape)} want equal rows and even, contiguous heads"
        )
    if cos.shape != (num_rows, dim) or sin.shape != cos.shape or not cos.is_contiguous() or not sin.is_contiguous():
        raise LayoutError(f"rotate: cos and sin must be contiguous {(num_rows, dim)}, got {tuple(cos.shape)}")
    return _native(q, k, cos, sin).rotate(q, k, cos, sin)


def _native(first: Tensor, *others: Tensor) -> NativeKernels:
    native, dtype = load_native(), first.dtype
    if native is None or dtype not in TYPES or first.is_cuda:
        raise LayoutError("want CPU tensors, bf16 or fp32, and compiled kernels")
    for other in others:
        if other.dtype != dtype or other.is_cuda:
            raise LayoutError(f"want CPU tensors, all {dtype}")
    return native
