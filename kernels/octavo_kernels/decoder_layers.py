"""Whole pre-norm decoder layers in one call on a CPU: the same kernels, without Python between them.

Bit for bit what the modules compute one after the other. Products that are not ours are torch's own, reached through
the plain C interface that torch keeps for compiled models; a torch without it has no layers in one call, and serves as
well.
"""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo_kernels.layout import KvTable, LayoutError, RowGroups, RowTable
from octavo_kernels.native import TYPES, load_native
from octavo_kernels.pointwise import Activation, NormForm
from octavo_kernels.products import PackedProduct, PackedWords

_TORCH_FUNCTIONS = (
    "aoti_torch_create_tensor_from_blob",
    "aoti_torch_get_data_ptr",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_cpu__linear_pointwise",
)
"""In the order of ``Torch`` in native_cpu/decoder_layers.h."""
_DELETE_TENSOR = 2
_NUM_MODULES = 7


@dataclass(frozen=True)
class NormWeights:
    """A root mean square norm; see ``pointwise.rms_norm``."""

    weight: Tensor
    form: NormForm
    eps: float


@dataclass(frozen=True)
class TorchProduct:
    """``x Wᵀ + bias`` with a weight that torch has laid out for oneDNN."""

    weight: Tensor
    bias: Tensor | None
    in_features: int
    out_features: int


Product = PackedProduct | TorchProduct


@dataclass(frozen=True)
class LayerWeights:
    """What a layer is made of; q, k and v are one product, gate and up another.

    ``window`` None: all tokens are seen. ``layer_offset`` as in ``ops.write_kv``.
    """

    input_norm: NormWeights
    inner_norm: NormWeights
    qkv: Product
    o: Product
    gate_up: Product
    down: Product
    activation: Activation
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    window: int | None
    layer_offset: int


class _Product(ctypes.Structure):
    _fields_ = (("packed", PackedWords), ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("form", ctypes.c_int64), ("eps", ctypes.c_double))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", _Norm),
        ("inner_norm", _Norm),
        ("qkv", _Product),
        ("o", _Product),
        ("gate_up", _Product),
        ("down", _Product),
        ("activation", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("layer_offset", ctypes.c_int64),
        ("scaling", ctypes.c_double),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("arena_len", ctypes.c_int64),
        ("groups", ctypes.c_void_p),
    )


@functools.cache
def _torch_functions() -> "ctypes.Array[ctypes.c_void_p] | None":
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _TORCH_FUNCTIONS]
    except (OSError, AttributeError):
        return None
    return (ctypes.c_void_p * len(addresses))(*addresses)


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether layers of ``dtype`` on ``device`` can be computed in one call here."""
    if device.type != "cpu" or dtype not in TYPES or load_native() is None:
        return False
    return _torch_functions() is not None and hasattr(torch._C, "_aoti")


@dataclass(frozen=True)
class LayerInputs:
    """Where one layer finds its keys and values, and the tables of q, k, v, o, gate, up and down: None where no adapter
    targets the module. ``token_offsets`` [N] as in ``ops.write_kv``.
    """

    kv: KvTable
    token_offsets: Tensor
    tables: Sequence[RowTable | None]


class DecoderLayers:
    """Layers of a base that follow each other. Their weights must not change; what it holds of them goes with it."""

    def __init__(self, weights: Sequence[LayerWeights]) -> None:
        functions, native = _torch_functions(), load_native()
        if functions is None or native is None or not weights:
            raise LayoutError("this torch, or this machine, has no layers in one call")
        self._functions, self._native = functions, native
        self._delete_tensor = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(functions[_DELETE_TENSOR] or 0)
        self._weights = tuple(weights)
        self._dtype = weights[0].input_norm.weight.dtype
        self._hidden = weights[0].qkv.in_features
        if any((one.input_norm.weight.dtype, one.qkv.in_features) != (self._dtype, self._hidden) for one in weights):
            raise LayoutError("layers: one dtype and one width wanted")
        self._layers = (_Layer * len(weights))(*(self._words(one) for one in weights))

    def __len__(self) -> int:
        return len(self._weights)

    def _words(self, weights: LayerWeights) -> _Layer:
        return _Layer(
            input_norm=_norm(weights.input_norm),
            inner_norm=_norm(weights.inner_norm),
            qkv=self._product(weights.qkv),
            o=self._product(weights.o),
            gate_up=self._product(weights.gate_up),
            down=self._product(weights.down),
            activation=int(weights.activation),
            heads=weights.num_heads,
            kv_heads=weights.num_kv_heads,
            dim=weights.head_dim,
            window=weights.window or 0,
            layer_offset=weights.layer_offset,
            scaling=weights.scaling,
        )

    def _product(self, product: Product) -> _Product:
        if isinstance(product, PackedProduct):
            return _Product(product.words, None, None)
        bias = self._handle(product.bias) if product.bias is not None else None
        words = PackedWords(None, None, product.in_features, product.out_features)
        return _Product(words, self._handle(product.weight), bias)

    def _handle(self, tensor: Tensor) -> int:
        """Return the address of a torch tensor object of C++, which lives as long as these layers."""
        capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        address: int = get_pointer(capsule, None)
        weakref.finalize(self, self._delete_tensor, address)
        return address

    def run(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        arena: Tensor,
        groups: RowGroups,
        inputs: Sequence[LayerInputs],
    ) -> Tensor:
        """Return what the layers make of N rows; writes their keys and values into the arena.

        Shapes: x [N, hidden], cos and sin [N, D], contiguous, the base's dtype; ``inputs`` one per layer.

        Raises: LayoutError, and nothing is known then of the arena's rows for these tokens.
        """
        num_rows, weights = x.shape[0], self._weights
        if len(inputs) != len(weights):
            raise LayoutError(f"layers: inputs for {len(weights)} layers wanted, got {len(inputs)}")
        dims = {one.head_dim for one in weights}
        if x.shape != (num_rows, self._hidden) or {(num_rows, dim) for dim in dims} != {tuple(cos.shape)}:
            raise LayoutError(f"layers: {tuple(x.shape)} rows and {tuple(cos.shape)} angles do not fit the layers")
        if sin.shape != cos.shape:
            raise LayoutError(f"layers: sines {tuple(sin.shape)} differ from cosines {tuple(cos.shape)}")
        if any(t.dtype != self._dtype or t.is_cuda or not t.is_contiguous() for t in (x, cos, sin, arena)):
            raise LayoutError(f"layers: x, cos, sin and the arena must be contiguous {self._dtype} on the CPU")
        places: list[int | None] = []
        for one, given in zip(weights, inputs, strict=True):
            offsets, kv = given.token_offsets, given.kv
            if offsets.shape != (num_rows,) or offsets.dtype != torch.int64 or len(given.tables) != _NUM_MODULES:
                raise LayoutError("layers: one int64 offset for each row and a table for each module wanted")
            if kv.num_kv_heads != one.num_kv_heads or kv.head_dim != one.head_dim:
                raise LayoutError("layers: keys and values lie in other heads than the layer has")
            # As ``LayerPlaces`` in native_cpu/decoder_layers.h.
            places += [ctypes.addressof(kv.words), offsets.data_ptr()]
            places += [ctypes.addressof(t.words) if t is not None else None for t in given.tables]
        out = torch.empty_like(x)
        step = _Step(
            num_rows,
            cos.data_ptr(),
            sin.data_ptr(),
            arena.data_ptr(),
            arena.numel(),
            ctypes.addressof(groups.words),
        )
        self._native.decoder_layers(
            TYPES[self._dtype],
            self._functions,
            ctypes.addressof(self._layers),
            len(weights),
            step,
            (ctypes.c_void_p * len(places))(*places),
            x,
            out,
        )
        return out


def _norm(norm: NormWeights) -> _Norm:
    return _Norm(norm.weight.data_ptr(), int(norm.form), norm.eps)
