"""Copies rows of a pack to where they are served from, cast once, in one pass."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.layout import LayoutError
from octavo_kernels.native import TYPES, load_native

SOURCE_TYPES = {"BF16": 0, "F32": 1, "F16": 2}
"""Dtypes that rows may be stored in, by their names in a safetensors file, with their numbers in a table of runs."""
_DTYPES = {0: torch.bfloat16, 1: torch.float32, 2: torch.float16}


def copy_rows(source: NDArray[np.uint8], runs: NDArray[np.int64], places: NDArray[np.int64], target: Tensor) -> None:
    """Copy runs of rows from bytes to places in ``target``, rounding to its dtype (nearest, ties to even).

    Shapes: K runs, T rows in all of them
        source  [bytes] uint8, contiguous
        runs    [K, 4] int64: first byte in ``source``, rows, elements of a row, number of the dtype as in SOURCE_TYPES
        places  [T] int64: the element of ``target`` where each row begins, in the order of the runs
        target  [E] bf16, fp16 or fp32 on the CPU

    Rows must not overlap. The interpreter's lock is free while bytes are copied.
    Raises: LayoutError, before anything is written, for what lies outside ``source`` or ``target``.
    """
    if runs.ndim != 2 or runs.shape[1] != 4 or places.ndim != 1 or int(runs[:, 1].sum()) != len(places):
        raise LayoutError(f"copy_rows: runs {runs.shape} do not describe {places.shape} rows")
    if target.dim() != 1 or not target.is_contiguous() or target.is_cuda:
        raise LayoutError("copy_rows: want a contiguous 1-D target on the CPU")
    if any(a.dtype != np.int64 or not a.flags.c_contiguous for a in (runs, places)):
        raise LayoutError("copy_rows: runs and places must be contiguous int64")
    native = load_native()
    if native is not None and target.dtype in TYPES:
        native.copy_rows(source, runs, places, target)
    else:
        _copy_rows(source, runs, places, target)


def _copy_rows(source: NDArray[np.uint8], runs: NDArray[np.int64], places: NDArray[np.int64], target: Tensor) -> None:
    bounds = np.concatenate([[0], np.cumsum(runs[:, 1])])
    parts = [(*run, places[bounds[i] : bounds[i + 1]]) for i, run in enumerate(runs.tolist())]
    for begin, num_rows, length, number, places_of_run in parts:
        dtype = _DTYPES.get(number)
        if dtype is None:
            raise LayoutError("copy_rows: a run has an unknown dtype")
        last = begin + num_rows * length * dtype.itemsize
        is_outside = num_rows and (places_of_run.min() < 0 or places_of_run.max() > target.numel() - length)
        if min(begin, num_rows, length) < 0 or last > source.size or is_outside:
            raise LayoutError("copy_rows: a row lies outside the source or the target")
    for begin, num_rows, length, number, places_of_run in parts:
        dtype = _DTYPES[number]
        # A copy, because torch takes neither read-only memory nor wide elements that begin unaligned.
        words = torch.from_numpy(source[begin : begin + num_rows * length * dtype.itemsize].copy())
        rows = words.view(dtype).view(num_rows, length)
        # A run lies in one piece but for the page ends inside it.
        breaks = (np.flatnonzero(np.diff(places_of_run) != length) + 1).tolist()
        for first, end in zip([0, *breaks], [*breaks, num_rows], strict=True):
            if first < end:
                start = int(places_of_run[first])
                target[start : start + (end - first) * length].view(end - first, length).copy_(rows[first:end])
