"""Replaced linears: the same product, and on a CPU every row the same bits alone as in any batch."""

import pytest
import torch
from torch import nn

from octavo_worker.model.linear import PackedLinear

SHAPES = [(576, 576), (576, 192), (576, 1536), (1536, 576), (64, 96), (48, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    dtype: torch.dtype, num_in: int, num_out: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(num_in, num_out, bias=has_bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(512, num_in).to(dtype)
    packed = PackedLinear(linear)
    whole = packed(x)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(whole, linear(x), atol=tolerance, rtol=tolerance)
    for count in (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 256, 511):
        assert torch.equal(packed(x[:count]), whole[:count]), count
        assert torch.equal(packed(x[512 - count :]), whole[512 - count :]), count


def test_leading_dimensions_are_kept() -> None:
    packed = PackedLinear(nn.Linear(8, 3).requires_grad_(False))
    assert packed(torch.zeros(1, 5, 8)).shape == (1, 5, 3)
    assert packed(torch.zeros(2, 0, 8)).shape == (2, 0, 3)
