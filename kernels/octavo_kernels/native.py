"""The compiled CPU kernels, called through ctypes with addresses; bf16 and fp32 (write_kv: every dtype).

ctypes releases the GIL during a call. Overhead per call is about five microseconds, checks included.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.allowed import Allowed
from octavo_kernels.checks import (
    check_adapt,
    check_allowed,
    check_attention,
    check_expand,
    check_shrink,
    check_write_kv,
)
from octavo_kernels.layout import KvTable, LayoutError, RowGroups, RowTable
from octavo_kernels.native_build import BuildFailed, build, log

TYPES = {torch.bfloat16: 0, torch.float32: 1}
_ERRORS = {
    1: "groups or query_starts must begin with 0, never fall and end with the number of rows",
    2: "a group's slot is not in the table",
    3: "a rank is negative or larger than the table is wide",
    4: "an offset lies outside the arena",
    5: "a context is shorter than its query or longer than its pages",
    6: "dtype has no compiled kernel",
    7: "torch could not compute a product",
}
# ctypes codes: i int, q int64, p address, f float. Order as in native_cpu/library.cpp.
_SIGNATURES = {
    "octavo_shrink": "ipqpqpppqq",
    "octavo_expand": "ippqpppqqq",
    "octavo_adapt": "ipqpqppqqq",
    "octavo_write_kv": "qpqpqqpqqpqqqqq",
    "octavo_paged_attention": "ipqqpqpqpqqqqfqfp",
    "octavo_copy_rows": "ipqpqppq",
    "octavo_decoder_layers": "ippqpppp",
    "octavo_product": "ppqpq",
    "octavo_rms_norm": "ipqpfipqq",
    "octavo_gate": "iipqpqpqq",
    "octavo_largest": "ipqppqqpqp",
    "octavo_forbid": "pqqpqp",
    "octavo_rotate": "ipqqqpqqqpppqq",
}
_CODES = {"i": ctypes.c_int, "q": ctypes.c_int64, "p": ctypes.c_void_p, "f": ctypes.c_float}


class NativeKernels:
    """The operations of one loaded library. Tables must be alive during a call, which they are as arguments."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [_CODES[code] for code in signature]
            function.restype = ctypes.c_int
        library.octavo_can_multiply.restype = ctypes.c_bool
        self._shrink = library.octavo_shrink
        self._expand = library.octavo_expand
        self._adapt = library.octavo_adapt
        self._write_kv = library.octavo_write_kv
        self._paged_attention = library.octavo_paged_attention
        self._copy_rows = library.octavo_copy_rows
        self._decoder_layers = library.octavo_decoder_layers
        self._product = library.octavo_product
        self._rms_norm = library.octavo_rms_norm
        self._gate = library.octavo_gate
        self._largest = library.octavo_largest
        self._forbid = library.octavo_forbid
        self._rotate = library.octavo_rotate
        self.num_threads = library.octavo_num_threads
        self.can_multiply: Callable[[], bool] = library.octavo_can_multiply

    def shrink(self, x: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, out: Tensor) -> None:
        """See ``ops.shrink``."""
        num_rows, num_features = check_shrink(x, arena, table, groups, out)
        _raise_for(
            self._shrink(
                TYPES[arena.dtype],
                x.data_ptr(),
                x.stride(0),
                arena.data_ptr(),
                arena.numel(),
                table.words,
                groups.words,
                out.data_ptr(),
                num_rows,
                num_features,
            )
        )

    def expand(self, v: Tensor, arena: Tensor, table: RowTable, groups: RowGroups, y: Tensor) -> None:
        """See ``ops.expand``."""
        num_rows, num_features = check_expand(v, arena, table, groups, y)
        _raise_for(
            self._expand(
                TYPES[arena.dtype],
                v.data_ptr(),
                arena.data_ptr(),
                arena.numel(),
                table.words,
                groups.words,
                y.data_ptr(),
                y.stride(0),
                num_rows,
                num_features,
            )
        )

    def adapt(self, x: Tensor, arena: Tensor, parts: Sequence[tuple[RowTable, Tensor]], groups: RowGroups) -> None:
        """See ``ops.adapt``."""
        words = []
        for table, y in parts:
            num_rows, num_features = check_adapt(x, arena, table, groups, y)
            # As ``Part`` in native_cpu/rows.h.
            words += [ctypes.addressof(table.words), y.data_ptr(), y.stride(0), y.size(1)]
        _raise_for(
            self._adapt(
                TYPES[arena.dtype],
                x.data_ptr(),
                x.stride(0),
                arena.data_ptr(),
                arena.numel(),
                groups.words,
                (ctypes.c_int64 * len(words))(*words),
                len(parts),
                num_rows,
                num_features,
            )
        )

    def write_kv(
        self, arena: Tensor, k: Tensor, v: Tensor, token_offsets: Tensor, layer_offset: int, page_tokens: int
    ) -> None:
        """See ``ops.write_kv``."""
        check_write_kv(arena, k, v, token_offsets, page_tokens)
        num_rows, num_heads, dim = k.shape
        _raise_for(
            self._write_kv(
                arena.element_size(),
                arena.data_ptr(),
                arena.numel(),
                k.data_ptr(),
                k.stride(0),
                k.stride(1),
                v.data_ptr(),
                v.stride(0),
                v.stride(1),
                token_offsets.data_ptr(),
                layer_offset,
                page_tokens,
                num_rows,
                num_heads,
                dim,
            )
        )

    def paged_attention(
        self,
        q: Tensor,
        arena: Tensor,
        kv: KvTable,
        layer_offset: int,
        out: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        """See ``ops.paged_attention``."""
        check_attention(q, arena, kv, out, window, sinks)
        if sinks is not None:
            sinks = sinks.contiguous()
        _raise_for(
            self._paged_attention(
                TYPES[arena.dtype],
                q.data_ptr(),
                q.stride(0),
                q.stride(1),
                arena.data_ptr(),
                arena.numel(),
                kv.words,
                layer_offset,
                out.data_ptr(),
                out.stride(0),
                out.stride(1),
                q.size(0),
                q.size(1),
                scaling,
                window or 0,
                softcap or 0.0,
                sinks.data_ptr() if sinks is not None else None,
            )
        )

    def copy_rows(
        self, source: NDArray[np.uint8], runs: NDArray[np.int64], places: NDArray[np.int64], target: Tensor
    ) -> None:
        """See ``copying.copy_rows``."""
        _raise_for(
            self._copy_rows(
                TYPES[target.dtype],
                source.ctypes.data,
                source.size,
                runs.ctypes.data,
                len(runs),
                places.ctypes.data,
                target.data_ptr(),
                target.numel(),
            )
        )

    def product(self, x: Tensor, packed: ctypes.Structure) -> Tensor:
        """See ``products.product``."""
        out = torch.empty(x.shape[0], packed.out_features, dtype=x.dtype)
        at = ctypes.addressof(packed)
        _raise_for(self._product(at, x.data_ptr(), x.stride(0), out.data_ptr(), x.shape[0]))
        return out

    def decoder_layers(
        self,
        kind: int,
        functions: "ctypes.Array[ctypes.c_void_p]",
        layers_at: int,
        num_layers: int,
        step: ctypes.Structure,
        places: "ctypes.Array[ctypes.c_void_p]",
        x: Tensor,
        out: Tensor,
    ) -> None:
        """See ``decoder_layers.DecoderLayers.run``."""
        step_at = ctypes.addressof(step)
        _raise_for(
            self._decoder_layers(kind, functions, layers_at, num_layers, step_at, places, x.data_ptr(), out.data_ptr())
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, form: int) -> Tensor:
        """See ``pointwise.rms_norm``."""
        num_rows, num_features = x.shape
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kind, pitch = TYPES[x.dtype], x.stride(0)
        _raise_for(
            self._rms_norm(
                kind, x.data_ptr(), pitch, weight.data_ptr(), eps, form, out.data_ptr(), num_rows, num_features
            )
        )
        return out

    def gate(self, gates: Tensor, up: Tensor, activation: int) -> Tensor:
        """See ``pointwise.gate``."""
        num_rows, width = gates.shape
        out = torch.empty(num_rows, width, dtype=gates.dtype)
        _raise_for(
            self._gate(
                TYPES[gates.dtype],
                activation,
                gates.data_ptr(),
                gates.stride(0),
                up.data_ptr(),
                up.stride(0),
                out.data_ptr(),
                num_rows,
                width,
            )
        )
        return out

    def largest(self, x: Tensor, allowed: Allowed | None) -> tuple[Tensor, Tensor]:
        """See ``pointwise.largest``."""
        num_rows, width = x.shape
        values, indices = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
        kind, pitch = TYPES[x.dtype], x.stride(0)
        bits = _words_of(allowed, num_rows) if allowed is not None else (None, 0, None)
        _raise_for(
            self._largest(kind, x.data_ptr(), pitch, values.data_ptr(), indices.data_ptr(), num_rows, width, *bits)
        )
        return values, indices

    def forbid(self, x: Tensor, allowed: Allowed) -> None:
        """See ``pointwise.forbid``."""
        _raise_for(self._forbid(x.data_ptr(), *x.shape, *_words_of(allowed, len(x))))

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See ``pointwise.rotate``."""
        num_rows, num_heads, dim = q.shape
        num_kv_heads = k.size(1)
        out = torch.empty(num_rows, num_heads + num_kv_heads, dim, dtype=q.dtype)
        _raise_for(
            self._rotate(
                TYPES[q.dtype],
                q.data_ptr(),
                q.stride(0),
                q.stride(1),
                num_heads,
                k.data_ptr(),
                k.stride(0),
                k.stride(1),
                num_kv_heads,
                cos.data_ptr(),
                sin.data_ptr(),
                out.data_ptr(),
                num_rows,
                dim,
            )
        )
        return out


def _words_of(allowed: Allowed, num_rows: int) -> tuple[int, int, int]:
    check_allowed(allowed, num_rows)
    return allowed.words.ctypes.data, allowed.words.shape[1], allowed.of_row.ctypes.data


def _raise_for(code: int) -> None:
    if code:
        raise LayoutError(_ERRORS[code])


@functools.lru_cache(maxsize=1)
def load_native() -> NativeKernels | None:
    """Return the compiled kernels, building them at first use, or None (logged once) where they cannot be built."""
    try:
        return NativeKernels(build())
    except (BuildFailed, OSError) as error:
        log.warning("no compiled CPU kernels, using plain torch (several times slower): %s", error)
        return None
