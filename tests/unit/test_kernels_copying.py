"""Rows copied from a pack's bytes: every dtype to every other as torch casts, and nothing outside what was given."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels import copying
from octavo_kernels.copying import SOURCE_TYPES, copy_rows
from octavo_kernels.layout import LayoutError

_TORCH = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
_TARGETS = (torch.bfloat16, torch.float16, torch.float32)
PATHS = ("compiled", "plain torch")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain torch":
        monkeypatch.setattr(copying, "load_native", lambda: None)
    return str(request.param)


def _values(num_rows: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return values of all sizes, ties between neighbours of the narrower dtypes and numbers that are none."""
    generator = torch.Generator().manual_seed(num_rows * length)
    scale = torch.exp2(torch.randint(-30, 15, (num_rows, length), generator=generator).float())
    values = torch.randn(num_rows, length, generator=generator) * scale
    values.view(-1)[::7] = 1.00390625  # half way between two bf16
    values.view(-1)[::11] = 6.0e-8  # subnormal in fp16
    values.view(-1)[3::29] = torch.inf
    values.view(-1)[5::31] = torch.nan
    return values.to(dtype)


def _bytes(*parts: Tensor, lead: int) -> NDArray[np.uint8]:
    return np.concatenate(
        [np.zeros(lead, np.uint8), *(part.contiguous().view(torch.uint8).numpy().reshape(-1) for part in parts)]
    )


@pytest.mark.parametrize("target_dtype", _TARGETS)
@pytest.mark.parametrize("stored", _TORCH)
@pytest.mark.parametrize("lead", [0, 1, 8])
@pytest.mark.parametrize(("num_rows", "length"), [(1, 1), (3, 16), (5, 63), (16, 100), (2, 2049)])
def test_every_row_arrives_as_torch_would_cast_it(
    path: str, stored: str, target_dtype: torch.dtype, lead: int, num_rows: int, length: int
) -> None:
    rows = _values(num_rows, length, _TORCH[stored])
    source = _bytes(rows, lead=lead)
    runs = np.array([[lead, num_rows, length, SOURCE_TYPES[stored]]])
    # The first half lies in one piece, the others with gaps between.
    places = np.array([i * length + (i > num_rows // 2) * 3 * i for i in range(num_rows)])
    target = torch.full((int(places[-1]) + length + 5,), 7.0, dtype=target_dtype)
    copy_rows(source, runs, places, target)
    is_taken = torch.zeros(len(target), dtype=torch.bool)
    for row, begin in zip(rows.to(target_dtype), places.tolist(), strict=True):
        got = target[begin : begin + length]
        assert torch.equal(got.isnan(), row.isnan())
        assert torch.equal(got.nan_to_num(9.0), row.nan_to_num(9.0))
        is_taken[begin : begin + length] = True
    assert (target[~is_taken] == 7.0).all(), "something was written between the rows"


@pytest.mark.parametrize(
    ("run", "places"),
    [
        ((0, 2, 8, 1), (0, 57)),  # the last row ends behind the target
        ((0, 2, 8, 1), (-1, 8)),
        ((4, 2, 8, 1), (0, 8)),  # the rows end behind the source
        ((-4, 2, 8, 1), (0, 8)),
        ((0, 2, -8, 1), (0, 8)),
        ((0, 2, 8, 3), (0, 8)),  # no such dtype
        ((0, 1, 8, 1), (0, 8)),  # fewer rows than places
    ],
)
def test_what_lies_outside_is_refused_before_anything_is_written(
    path: str, run: tuple[int, int, int, int], places: tuple[int, int]
) -> None:
    target = torch.zeros(64)
    source = _bytes(torch.ones(16), lead=0)
    with pytest.raises(LayoutError):
        copy_rows(source, np.array([run]), np.array(places), target)
    assert (target == 0).all()
