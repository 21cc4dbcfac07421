"""Norms, gates and rotations in one pass against torch, and each row's bits in any batch."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from octavo_kernels import pointwise
from octavo_kernels.allowed import EVERYTHING, Allowed
from octavo_kernels.layout import LayoutError
from octavo_kernels.native import load_native
from octavo_kernels.pointwise import Activation, NormForm

pytestmark = pytest.mark.skipif(load_native() is None, reason="needs a C++ compiler")

DTYPES = (torch.bfloat16, torch.float32)
WIDTHS = (1, 15, 16, 63, 100, 576, 2049)


def _random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _near(got: Tensor, expected: Tensor, num_roundings: int) -> None:
    """Assert that ``got`` is within so many roundings of the float64 ``expected``."""
    bound = num_roundings * torch.finfo(got.dtype).eps * expected.abs() + 1e-30
    assert ((got.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("form", NormForm)
def test_rms_norm(dtype: torch.dtype, width: int, form: NormForm) -> None:
    rows, weight = _random(5, width + 3, dtype=dtype)[:, :width], _random(width, dtype=dtype, seed=1)
    x, w = rows.double(), weight.double()
    expected = (
        x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + w if form == NormForm.SCALE_BY_ONE_PLUS else w)
    )
    # In fp32 the sum of squares brings its own error.
    _near(pointwise.rms_norm(rows, weight, 1e-5, form), expected, 2 if dtype == torch.bfloat16 else 8)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_rounds_where_its_form_says(width: int) -> None:
    rows, weight = _random(7, width, dtype=torch.bfloat16), _random(width, dtype=torch.bfloat16, seed=1)
    normed = functional.rms_norm(rows.float(), (width,), eps=1e-5)
    twice = weight * normed.to(torch.bfloat16)
    once = (weight.float() * normed).to(torch.bfloat16)
    for form, expected in ((NormForm.ROUND_THEN_SCALE, twice), (NormForm.SCALE_THEN_ROUND, once)):
        got = pointwise.rms_norm(rows, weight, 1e-5, form)
        # Another order of the sum of squares turns a rounding now and then.
        assert (got != expected).float().mean() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_gate(dtype: torch.dtype, width: int) -> None:
    both = _random(4, 2 * width + 1, dtype=dtype, scale=6.0)
    gates, up = both[:, :width], both[:, width : 2 * width]
    x = gates.double()
    for activation, applied in (
        (Activation.SILU, functional.silu(x)),
        (Activation.GELU_TANH, functional.gelu(x, approximate="tanh")),
    ):
        got = pointwise.gate(gates, up, activation)
        expected = applied * up.double()
        distance = (got.double() - expected).abs()
        # Where the gate is nearly shut, what is left is a difference of near numbers.
        bound = 4 * torch.finfo(dtype).eps * (expected.abs() + 0.05 * up.double().abs())
        assert (distance <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extreme", [100.0, -100.0, float("inf"), float("nan")])
def test_a_gate_at_its_ends(dtype: torch.dtype, extreme: float) -> None:
    gates = torch.full((1, 5), extreme, dtype=dtype)
    got = pointwise.gate(gates, torch.ones_like(gates), Activation.SILU)
    assert torch.equal(got.nan_to_num(7.0), functional.silu(gates).nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (9, 3, 64), (4, 4, 80), (3, 1, 30)])
def test_rotate(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    num_rows = 6
    product = _random(num_rows, (heads + 2 * kv_heads) * dim, dtype=dtype).view(num_rows, -1, dim)
    q, k = product[:, :heads], product[:, heads : heads + kv_heads]
    angle = _random(num_rows, dim, dtype=torch.float32, seed=2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    half = dim // 2
    x = torch.cat([q, k], dim=1)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    expected = x * cos[:, None] + turned * sin[:, None]
    got = pointwise.rotate(q, k, cos, sin)
    if dtype == torch.bfloat16:
        assert torch.equal(got, expected)
    else:
        assert torch.allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_largest_is_the_first_of_equals(dtype: torch.dtype, width: int) -> None:
    x = _random(40, width + 1, dtype=dtype)[:, :width].clamp(max=4.0)
    values, indices = pointwise.largest(x)
    assert torch.equal(values, x.float().max(dim=-1).values)
    for row, value, index in zip(x.float(), values, indices.tolist(), strict=True):
        assert index == int((row == value).nonzero()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 64])
def test_largest_of_what_has_none(dtype: torch.dtype, width: int) -> None:
    x = _random(4, width, dtype=dtype)
    x[0, width // 2] = torch.nan
    x[1] = -torch.inf
    x[2, -1] = torch.inf
    values, indices = pointwise.largest(x)
    assert values[0].isnan()
    assert values[1] == -torch.inf
    assert values[2] == torch.inf
    assert indices[1:3].tolist() == [0, width - 1]


def _allowed(num_words: int, seed: int) -> Allowed:
    """Four rows: half of the elements, all, few, and those of the first again."""
    generator = np.random.default_rng(seed)
    words = generator.integers(0, 2**32, (2, num_words), dtype=np.uint32)
    words[0, ::3] = 0xFFFFFFFF
    words[1, ::2] = 0
    return Allowed(words.view(np.int32), np.array([0, EVERYTHING, 1, 0]))


def _is_allowed(allowed: Allowed, row: int, k: int) -> bool:
    mask = int(allowed.of_row[row])
    if mask == EVERYTHING:
        return True
    return k // 32 < allowed.words.shape[1] and bool(int(allowed.words[mask, k // 32]) >> k % 32 & 1)


@pytest.mark.parametrize("path", ["compiled", "plain torch"])
@pytest.mark.parametrize("width", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("num_words", [0, 1, 31, 40])
def test_what_has_no_bit_is_forbidden(width: int, num_words: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "plain torch":
        monkeypatch.setattr(pointwise, "load_native", lambda: None)
    x, allowed = torch.zeros(4, width), _allowed(num_words, width)
    pointwise.forbid(x, allowed)
    for i in range(4):
        for k in range(width):
            assert float(x[i, k]) == (0.0 if _is_allowed(allowed, i, k) else -np.inf)


@pytest.mark.parametrize("path", ["compiled", "plain torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("num_words", [0, 1, 31, 40])
def test_largest_of_what_is_allowed(
    dtype: torch.dtype, width: int, num_words: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "plain torch":
        monkeypatch.setattr(pointwise, "load_native", lambda: None)
    x, allowed = _random(4, width, dtype=dtype).clamp(max=0.5), _allowed(num_words, width)
    for i in range(4):
        # What is not allowed may be anything.
        for k in [k for k in range(width) if not _is_allowed(allowed, i, k)]:
            x[i, k] = torch.nan if k % 2 else torch.inf
    values, indices = pointwise.largest(x, allowed)
    assert torch.equal(allowed.take([2, 0]).mask(width), allowed.mask(width)[[2, 0]])
    for i in range(4):
        among = [(-float(x[i, k]), k) for k in range(width) if _is_allowed(allowed, i, k)]
        assert (-float(values[i]), int(indices[i])) == min(among, default=(np.inf, 0))


@pytest.mark.parametrize("of_row", [[0, 2], [0, -2], [0]])
def test_masks_that_are_not_there_are_refused(of_row: list[int]) -> None:
    allowed = Allowed(np.zeros((2, 1), dtype=np.int32), np.array(of_row))
    with pytest.raises(LayoutError):
        pointwise.largest(torch.zeros(2, 32), allowed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    x, weight = _random(300, 576, dtype=dtype), _random(576, dtype=dtype, seed=1)
    angle = _random(300, 64, dtype=torch.float32, seed=2)
    cos, sin, heads = angle.cos().to(dtype), angle.sin().to(dtype), x.view(300, 9, 64)
    together = (
        pointwise.rms_norm(x, weight, 1e-5, NormForm.ROUND_THEN_SCALE),
        pointwise.gate(x, x.flip(0), Activation.SILU),
        pointwise.rotate(heads, heads[:, :3], cos, sin),
    )
    for i in (0, 7, 8, 151, 299):
        row = slice(i, i + 1)
        assert torch.equal(pointwise.rms_norm(x[row], weight, 1e-5, NormForm.ROUND_THEN_SCALE), together[0][row])
        assert torch.equal(pointwise.gate(x[row], x.flip(0)[row], Activation.SILU), together[1][row])
        assert torch.equal(pointwise.rotate(heads[row], heads[row, :3], cos[row], sin[row]), together[2][row])


def test_what_does_not_fit_is_refused() -> None:
    x = _random(2, 8, dtype=torch.float32)
    with pytest.raises(LayoutError):
        pointwise.rms_norm(x, torch.ones(7), 1e-5, NormForm.ROUND_THEN_SCALE)
    with pytest.raises(LayoutError):
        pointwise.rms_norm(x, torch.ones(8, dtype=torch.bfloat16), 1e-5, NormForm.ROUND_THEN_SCALE)
    with pytest.raises(LayoutError):
        pointwise.gate(x, x.T.contiguous(), Activation.SILU)
    with pytest.raises(LayoutError):
        pointwise.rotate(x.view(2, 2, 4), x.view(2, 2, 4), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(LayoutError):
        pointwise.rotate(x.view(2, 2, 4), x.view(2, 2, 4), torch.ones(4, 2).T, torch.ones(2, 4))
