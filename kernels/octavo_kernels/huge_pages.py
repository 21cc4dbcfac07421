"""Memory for what lives long and is read whole in every step: in huge pages, where Linux gives them.

A page of 4 kB is 64 lines of memory; in a virtual machine it costs as much to find the next one as to read several.
"""

import contextlib
import mmap
import threading

import torch
from torch import Tensor

_REGION_BYTES = 64 * 1024 * 1024
"""What is smaller shares a region, so that it wastes no huge page. A region goes with the last tensor in it."""
_LINE_BYTES = 64
_lock = threading.Lock()
_region: mmap.mmap | None = None
_num_used = 0


def zeros(num_elements: int, dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
    """Return ``num_elements`` zeros, on a CPU at a multiple of 64 bytes; plain memory where there are no huge pages."""
    global _region, _num_used
    num_bytes = num_elements * dtype.itemsize
    if torch.device(device).type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or not num_bytes:
        return torch.zeros(num_elements, dtype=dtype, device=device)
    if num_bytes >= _REGION_BYTES:
        return torch.frombuffer(_map(num_bytes), dtype=dtype, count=num_elements)
    with _lock:
        if _region is None or _num_used + num_bytes > _REGION_BYTES:
            _region, _num_used = _map(_REGION_BYTES), 0
        begin, region = _num_used, _region
        _num_used += -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
    return torch.frombuffer(region, dtype=dtype, count=num_elements, offset=begin)


def _map(num_bytes: int) -> mmap.mmap:
    region = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # In a kernel without huge pages the memory is as good, only slower.
    with contextlib.suppress(OSError):
        region.madvise(mmap.MADV_HUGEPAGE)
    return region
