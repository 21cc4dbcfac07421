"""Linear layers of the frozen base: weights packed once, adapters of many requests added row by row."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo_kernels import ops, products
from octavo_kernels.decoder_layers import Product, TorchProduct
from octavo_worker.model.context import StepContext

_ROWS_HINT = 64
"""The batch that oneDNN lays the weights out for: between a decode step and a prefill chunk."""
_ROWS_MIN = 2
"""oneDNN sums one row alone in another order, in fp32 mostly and in bf16 rarely; from 2 rows to 512 every row was
measured to have the same bits, at 576 to 8192 features, on one thread and on two."""
_linear_pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""Looked up once; None in a torch that was built without oneDNN."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules of one parent that are given the same input, one right after the other."""


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        # Without native bf16 dot products oneDNN's packed path can be absent; F.linear always works.
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class PackedWeight:
    """``x Wᵀ + bias`` for frozen weights, which are laid out once on a CPU and kept as they are elsewhere.

    bf16 is laid out for our own product where the CPU has what it needs, all else for oneDNN. The outputs of several
    ``linears`` stand behind each other. On a CPU a row's result is bitwise the same alone and in any batch. The linears
    may be thrown away.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        bias = torch.cat(biases) if len(biases) > 1 else biases[0] if biases else None
        # Not parameters: a packed tensor is opaque to everything that walks over parameters.
        self._product: Product | None = None
        self._weight, self._bias = weight, bias
        if products.can_pack(weight):
            self._product = products.pack(weight, bias)
        elif _can_pack(weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
            self._product = TorchProduct(packed, bias, weight.shape[1], weight.shape[0])
        if self._product is not None:
            self._weight = self._product.weight

    @property
    def product(self) -> Product | None:
        """What computes the same without this object; None where the weights are not laid out."""
        return self._product

    def project(self, rows: Tensor) -> Tensor:
        """Map ``rows`` [N, in_features] to [N, out_features]."""
        if self._product is None:
            return functional.linear(rows, self._weight, self._bias)
        if isinstance(self._product, products.PackedProduct):
            return products.product(rows, self._product)
        num_rows = rows.shape[0]
        if num_rows < _ROWS_MIN:
            rows = functional.pad(rows, (0, 0, 0, _ROWS_MIN - num_rows))
        assert _linear_pointwise is not None, "weights were packed without oneDNN"
        result: Tensor = _linear_pointwise.default(rows, self._weight, self._bias, "none", [], "")
        return result if num_rows >= _ROWS_MIN else result[:num_rows]


class PackedLinear(nn.Module):
    """Replaces an ``nn.Linear`` that no adapter may target."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._packed = PackedWeight([linear])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        return self._packed.project(rows).view(*x.shape[:-1], self.out_features)


class SiblingLinears:
    """Linears that are given the same input: the first to be called computes all, the others take their part.

    It is the same input only if it is the same tensor; another one is computed anew, so a model that calls them in any
    other way is still served right.
    """

    def __init__(self, linears: Sequence[nn.Linear], names: Sequence[str], context: StepContext) -> None:
        self.in_features = linears[0].in_features
        self._packed = PackedWeight(linears)
        self._widths = [linear.out_features for linear in linears]
        self._names = tuple(names)
        self._context = context
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of the linears, in the order of their outputs."""
        return self._names

    @property
    def product(self) -> Product | None:
        """All linears as one product, if it may be computed elsewhere; see ``PackedWeight.product``."""
        return self._packed.product

    def part(self, index: int, x: Tensor) -> Tensor:
        """Return what linear ``index`` maps ``x`` [..., in_features] to, adapters included."""
        if self._input is not x or index not in self._parts:
            self._input, self._parts = x, dict(enumerate(self._compute(x)))
        found = self._parts.pop(index)
        if not self._parts:
            # Everybody has been here: the input may go, and nothing old is taken for new.
            self._input = None
        return found.view(*x.shape[:-1], self._widths[index])

    def _compute(self, x: Tensor) -> Sequence[Tensor]:
        rows = x.reshape(-1, self.in_features)
        product = self._packed.project(rows)
        parts = torch.split(product, self._widths, dim=-1) if len(self._widths) > 1 else (product,)
        inputs = self._context.inputs
        if inputs is not None:
            tables = inputs.tables
            adapted = [(tables[name], part) for name, part in zip(self._names, parts, strict=True) if name in tables]
            if adapted:
                ops.adapt(rows, inputs.arena, adapted, inputs.groups)
        return parts


class MultiAdapterLinear(nn.Module):
    """An ``nn.Linear`` that adds ``scaling · B (A x)`` to each row whose request uses an adapter.

    Which adapter that is, and where its rows lie, comes from the step's context. Rows without one are untouched.
    """

    def __init__(self, linear: nn.Linear, siblings: SiblingLinears, index: int) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._siblings = siblings
        self._index = index

    @property
    def siblings(self) -> SiblingLinears:
        """The linears that it is computed with."""
        return self._siblings

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., in_features] to [..., out_features]; rows may be further apart than they are wide."""
        return self._siblings.part(self._index, x)


def replace_linears(model: nn.Module, head: nn.Module | None, context: StepContext) -> dict[str, MultiAdapterLinear]:
    """Replace every ``nn.Linear`` of ``model`` in place; returns those that adapters may target, by full name.

    The output head is packed too, but no adapter may target it.
    """
    targeted = {}
    for parent_name, parent in list(model.named_modules()):
        linears = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        for names in _grouped({name: linear for name, linear in linears.items() if linear is not head}):
            group = [linears[name] for name in names]
            full_names = [f"{parent_name}.{name}" if parent_name else name for name in names]
            siblings = SiblingLinears(group, full_names, context)
            for index, (name, full_name) in enumerate(zip(names, full_names, strict=True)):
                targeted[full_name] = MultiAdapterLinear(linears[name], siblings, index)
                setattr(parent, name, targeted[full_name])
        for name, linear in linears.items():
            if linear is head:
                setattr(parent, name, PackedLinear(linear))
    return targeted


def _grouped(linears: dict[str, nn.Linear]) -> Iterator[tuple[str, ...]]:
    """Yield the names of ``linears``, those of siblings together."""
    left = dict(linears)
    for names in _SIBLINGS:
        group = [left[name] for name in names if name in left]
        forms = {(linear.in_features, linear.bias is None) for linear in group}
        if len(group) == len(names) and len(forms) == 1:
            yield names
            for name in names:
                del left[name]
    for name in left:
        yield (name,)
