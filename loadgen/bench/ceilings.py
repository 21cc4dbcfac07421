"""What this machine gives, measured: the base's own packed products, and copies of memory."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from octavo_shared.manifest import ModuleShape
from octavo_worker.model.linear import PackedWeight

_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_COPY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class _Product:
    """``x Wᵀ`` for one weight of the base's shapes."""

    weight: PackedWeight
    in_features: int
    out_features: int


class PackedProducts:
    """All products of one forward pass and nothing else: the floor of a step.

    Weights are random, of the base's shapes, laid out as the worker lays out its own; every layer has its own, so
    that they come from memory as they do in a step. Products of the same input are one product, as in the worker.
    """

    def __init__(
        self, modules: Mapping[str, ModuleShape], head: ModuleShape | None, dtype: torch.dtype, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self._dtype = dtype
        self._products = [_product(shape, dtype) for shape in _fused(modules)]
        self._head = [_product(head, dtype)] if head is not None else []

    @property
    def num_elements(self) -> int:
        """Elements of all weights."""
        return sum(p.in_features * p.out_features for p in (*self._products, *self._head))

    def gflop(self, num_rows: int, *, with_head: bool) -> float:
        """Return 10⁹ floating-point operations of one pass over ``num_rows`` rows."""
        products = self._chosen(with_head=with_head)
        return 2e-9 * num_rows * sum(p.in_features * p.out_features for p in products)

    def pass_ms(self, num_rows: int, num_repeats: int, *, with_head: bool) -> float:
        """Return the median milliseconds of all products at ``num_rows`` rows."""
        return self._time_ms(self._chosen(with_head=with_head), num_rows, num_repeats)

    def best_gflops(self, num_rows: int, num_repeats: int) -> float:
        """Return GFLOP/s of the shape that is fastest at ``num_rows`` rows: the ceiling of any product."""
        by_shape: dict[tuple[int, int], list[_Product]] = defaultdict(list)
        for product in self._chosen(with_head=True):
            by_shape[product.in_features, product.out_features].append(product)
        return max(
            2e-6 * num_rows * h * o * len(products) / self._time_ms(products, num_rows, num_repeats)
            for (h, o), products in by_shape.items()
        )

    def _chosen(self, *, with_head: bool) -> list[_Product]:
        return [*self._products, *self._head] if with_head else self._products

    def _time_ms(self, products: Sequence[_Product], num_rows: int, num_repeats: int) -> float:
        inputs = {p.in_features: torch.randn(num_rows, p.in_features).to(self._dtype) for p in products}

        def step() -> None:
            for product in products:
                product.weight.project(inputs[product.in_features])

        with torch.inference_mode():
            return median_ms(step, num_repeats)


def _fused(modules: Mapping[str, ModuleShape]) -> list[ModuleShape]:
    """Return the products' shapes, those of one input put together."""
    shapes = []
    for name, shape in modules.items():
        parent, _, leaf = name.rpartition(".")
        group = next((names for names in _FUSED if leaf in names), (leaf,))
        members = [modules[f"{parent}.{member}"] for member in group if f"{parent}.{member}" in modules]
        if leaf == group[0]:
            shapes.append(ModuleShape(shape.in_features, sum(member.out_features for member in members)))
    return shapes


def _product(shape: ModuleShape, dtype: torch.dtype) -> _Product:
    linear = nn.Linear(shape.in_features, shape.out_features, bias=False, dtype=dtype)
    return _Product(PackedWeight([linear]), shape.in_features, shape.out_features)


def copy_gb_s(num_repeats: int) -> float:
    """Return GB/s of copying memory with all threads, bytes read and bytes written both counted."""
    source, target = torch.ones(_COPY_BYTES, dtype=torch.uint8), torch.empty(_COPY_BYTES, dtype=torch.uint8)
    return 2 * _COPY_BYTES / 1e6 / median_ms(lambda: _copy(target, source), num_repeats)


def memcpy_ms(source: bytes, target: NDArray[np.uint8]) -> float:
    """Return the milliseconds of copying ``source`` to ``target``, as long and touched before, on one thread."""
    view = np.frombuffer(source, dtype=np.uint8)
    started = time.perf_counter()
    np.copyto(target, view)
    return (time.perf_counter() - started) * 1e3


def median_ms(work: Callable[[], None], num_repeats: int) -> float:
    """Return the median milliseconds of ``work`` after one run that is not counted."""
    work()
    times = []
    for _ in range(num_repeats):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
