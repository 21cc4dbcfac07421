"""Replaced linears: the same product, and on a CPU every row the same bits alone as in any batch."""

import pytest
import torch
from torch import nn

from octavo_worker.model.context import StepContext
from octavo_worker.model.kv_shape import KvShape
from octavo_worker.model.linear import MultiAdapterLinear, PackedLinear, replace_linears

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


class _Attention(nn.Module):
    def __init__(self, width_of_k: int = 48) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(64, 96), nn.Linear(width_of_k, 32)
        self.v_proj, self.o_proj = nn.Linear(64, 32), nn.Linear(96, 64)


@pytest.mark.parametrize("width_of_k", [64, 48])
def test_siblings_give_what_each_gives_alone_in_whatever_order_they_are_called(width_of_k: int) -> None:
    torch.manual_seed(0)
    model = _Attention(width_of_k).requires_grad_(False)
    before = {name: child for name, child in model.named_children() if isinstance(child, nn.Linear)}
    replaced = replace_linears(model, None, StepContext(KvShape((None,), 1, 16)))
    assert set(replaced) == set(before)
    assert all(isinstance(linear, MultiAdapterLinear) for linear in replaced.values())
    first, second = ({width: torch.randn(1, 5, width) for width in (64, 48, 96)} for _ in range(2))
    calls = ["q_proj", "k_proj", "v_proj", "v_proj", "k_proj", "q_proj", "q_proj", "o_proj", "v_proj"]
    for inputs in (first, second, first):
        for name in calls:
            x = inputs[before[name].in_features]
            torch.testing.assert_close(replaced[name](x), before[name](x), atol=1e-5, rtol=1e-5)


def test_an_input_that_was_changed_in_place_is_not_taken_for_the_old_one() -> None:
    model = _Attention(64).requires_grad_(False)
    replaced = replace_linears(model, None, StepContext(KvShape((None,), 1, 16)))
    x = torch.randn(3, 64)
    old = [replaced[name](x) for name in ("q_proj", "k_proj", "v_proj")]
    x.add_(1.0)
    new = [replaced[name](x) for name in ("q_proj", "k_proj", "v_proj")]
    assert not any(torch.equal(one, other) for one, other in zip(old, new, strict=True))
