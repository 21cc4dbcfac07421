"""Linear layers of the frozen base: weights packed once, adapters of many requests added row by row."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo_kernels import ops
from octavo_worker.model.context import StepContext

_ROWS_HINT = 64
"""The batch that oneDNN lays the weights out for: between a decode step and a prefill chunk."""
_ROWS_MIN = 2
"""oneDNN sums one row alone in another order, in fp32 mostly and in bf16 rarely; from 2 rows to 512 every row was
measured to have the same bits, at 576 to 8192 features, on one thread and on two."""


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        # Without native bf16 dot products oneDNN's packed path can be absent; F.linear always works.
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class PackedLinear(nn.Module):
    """``x Wᵀ + bias`` for a frozen weight, which is laid out once for oneDNN on a CPU and kept as it is elsewhere.

    On a CPU a row's result is bitwise the same alone and in any batch. Replaces an ``nn.Linear``; the original
    parameter is released.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        self._is_packed = _can_pack(weight)
        # Neither is a parameter: a packed tensor is opaque to everything that walks over parameters.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT) if self._is_packed else weight
        self._bias = linear.bias.detach() if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        return self.project(rows).view(*x.shape[:-1], self.out_features)

    def project(self, rows: Tensor) -> Tensor:
        """Map ``rows`` [N, in_features] to [N, out_features]."""
        if not self._is_packed:
            return functional.linear(rows, self._weight, self._bias)
        num_rows = rows.shape[0]
        if num_rows < _ROWS_MIN:
            rows = functional.pad(rows, (0, 0, 0, _ROWS_MIN - num_rows))
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product[:num_rows]


class MultiAdapterLinear(PackedLinear):
    """A ``PackedLinear`` that adds ``scaling · B (A x)`` to each row whose request uses an adapter.

    Which adapter that is, and where its rows lie, comes from the step's context. Rows without one are untouched.
    """

    def __init__(self, linear: nn.Linear, name: str, context: StepContext) -> None:
        super().__init__(linear)
        self.name = name
        self._context = context

    def project(self, rows: Tensor) -> Tensor:
        """Map ``rows`` [N, in_features] to [N, out_features], adapters included."""
        product = super().project(rows)
        inputs = self._context.inputs
        table = inputs.tables.get(self.name) if inputs is not None else None
        if inputs is None or table is None:
            return product
        reduced = torch.empty(rows.shape[0], table.a_offsets.shape[1], dtype=torch.float32, device=rows.device)
        ops.shrink(rows, inputs.arena, table, inputs.groups, reduced)
        ops.expand(reduced, inputs.arena, table, inputs.groups, product)
        return product


def replace_linears(model: nn.Module, head: nn.Module | None, context: StepContext) -> dict[str, MultiAdapterLinear]:
    """Replace every ``nn.Linear`` of ``model`` in place; returns those that adapters may target, by full name.

    The output head is packed too, but no adapter may target it.
    """
    targeted = {}
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        parent_name, _, attribute = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if module is head:
            setattr(parent, attribute, PackedLinear(module))
        else:
            targeted[name] = MultiAdapterLinear(module, name, context)
            setattr(parent, attribute, targeted[name])
    return targeted
