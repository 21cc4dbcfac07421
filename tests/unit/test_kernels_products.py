"""Products of frozen bf16 weights against float64, and each row's bits in any batch."""

import pytest
import torch
from torch import Tensor

from octavo_kernels import products
from octavo_kernels.layout import LayoutError
from octavo_kernels.native import load_native

_native = load_native()
pytestmark = pytest.mark.skipif(
    _native is None or not _native.can_multiply(), reason="needs a C++ compiler and a CPU with AVX512-BF16"
)

SHAPES = [(2, 1), (64, 15), (100, 16), (576, 32), (576, 33), (576, 48), (1536, 64), (62, 97), (576, 76), (576, 960)]
"""Features and outputs; the last group has one panel, two, or three, whole or in part. Where features are no multiple
of 32, a CPU with AMX multiplies as one without."""


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("num_features", "num_outputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 9, 16, 17, 32, 37, 48, 70])
def test_product(num_features: int, num_outputs: int, has_bias: bool, num_rows: int) -> None:
    weight = _random(num_outputs, num_features, seed=0)
    bias = _random(num_outputs, seed=1) if has_bias else None
    x = _random(num_rows, num_features + 3, seed=2)[:, :num_features]
    got = products.product(x, products.pack(weight, bias))
    expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0.0)
    sizes = x.double().abs() @ weight.double().abs().T + 1.0
    assert got.shape == expected.shape
    assert ((got.double() - expected).abs() <= torch.finfo(torch.bfloat16).eps * expected.abs() + 1e-5 * sizes).all()


@pytest.mark.parametrize("num_features", [576, 62])
def test_a_row_has_the_same_bits_beside_any_others(num_features: int) -> None:
    packed = products.pack(_random(100, num_features, seed=0), _random(100, seed=1))
    x = _random(40, num_features, seed=2)
    whole = products.product(x, packed)
    for begin in range(40):
        for end in range(begin + 1, min(40, begin + 20)):
            assert torch.equal(products.product(x[begin:end], packed), whole[begin:end])


def test_what_is_no_number_stays_in_its_row_and_its_output() -> None:
    weight, x = _random(64, 32, seed=0), _random(9, 32, seed=1)
    clean = products.product(x, products.pack(weight))
    weight[5, 3], x[2, 7] = torch.nan, torch.inf
    got = products.product(x, products.pack(weight))
    assert not got[2].isfinite().any()
    assert got[:, 5].isnan().all()
    others = torch.ones_like(got, dtype=torch.bool)
    others[2], others[:, 5] = False, False
    assert torch.equal(got[others], clean[others])


def test_what_cannot_be_packed_or_multiplied_is_refused() -> None:
    for weight in (torch.zeros(4, 3).bfloat16(), torch.zeros(4, 2), torch.zeros(4).bfloat16()):
        assert not products.can_pack(weight)
        with pytest.raises(LayoutError):
            products.pack(weight)
    weight = torch.zeros(4, 2).bfloat16()
    for bias in (torch.zeros(3).bfloat16(), torch.zeros(4)):
        with pytest.raises(LayoutError):
            products.pack(weight, bias)
    packed = products.pack(weight)
    for x in (torch.zeros(1, 4).bfloat16(), torch.zeros(1, 2), torch.zeros(2).bfloat16(), weight.T[:, :2]):
        with pytest.raises(LayoutError):
            products.product(x, packed)
