"""The pack: the one byte form of a revision, which is stored, hashed and copied into pages.

A pack is a safetensors file. Per module, sorted by name, ``<module>.a`` holds A's rows [rank, in_features] and
``<module>.b`` holds B's columns as rows [rank, out_features], so that a rank slice is contiguous. Its metadata hold
the base's fingerprint, the served subset of the LoRA configuration and the scalings. Tensors keep the dtype that they
were saved in, so a pack is lossless; building it is deterministic, so equal adapters have equal digests.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import RANK_MAX, LoraConfig
from octavo_shared.patterns import Matcher
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.safetensors_form import RawTensor, num_keys, read_tensors, write_tensors

FORMAT = "octavo-pack/1"
SCALING_MAX = 65_536.0
_METADATA_KEY = "octavo"
_ALIGNMENT = 8
_SCAN_ELEMENTS = 64 * 1024
PEFT_PREFIX = "base_model.model."


class _Metadata(msgspec.Struct, frozen=True):
    format: str
    base: Fingerprint
    config: LoraConfig
    scalings: dict[str, float]


class PackedModule(msgspec.Struct, frozen=True):
    """Where one module's rows lie; offsets in bytes from the start of the pack, dtypes F32, F16 or BF16."""

    name: str
    rank: int
    in_features: int
    out_features: int
    scaling: float
    a_dtype: str
    b_dtype: str
    a_offset: int
    b_offset: int


class PackHeader(msgspec.Struct, frozen=True):
    base: Fingerprint
    config: LoraConfig
    modules: tuple[PackedModule, ...]

    @property
    def rank_max(self) -> int:
        return max(module.rank for module in self.modules)

    @property
    def dtype(self) -> str:
        """The dtype of all tensors, or ``mixed``."""
        dtypes = {dtype for module in self.modules for dtype in (module.a_dtype, module.b_dtype)}
        return dtypes.pop() if len(dtypes) == 1 else "mixed"


def build_pack(
    config: LoraConfig,
    tensors: Mapping[str, RawTensor],
    base: Fingerprint,
    dtype: str | None,
    matcher: Matcher | None = None,
) -> bytes:
    """Return the pack of validated PEFT ``tensors`` (``<prefix><module>.lora_A.weight`` and ``…lora_B…``).

    ``dtype`` ``bf16`` rounds to the small form (nearest, ties to even); None keeps what was saved. ``matcher`` is the
    one that validated the patterns, so that its time also covers what is matched here. Raises ``AdapterRefused`` when
    that is used up, or when a weight would round to infinity.
    """
    matcher = matcher or Matcher()
    if dtype is not None and (bad := [name for name, tensor in tensors.items() if not stays_finite(tensor, dtype)]):
        raise AdapterRefused("nan", f"{bad[0]!r} has weights that are infinite in bf16; push it as it is")
    rows: dict[str, RawTensor] = {}
    scalings = {}
    for module in sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")):
        a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
        name = module.removeprefix(PEFT_PREFIX)
        rows[f"{name}.a"] = _stored(a, dtype)
        rows[f"{name}.b"] = _stored(RawTensor(b.dtype, b.words.T), dtype)
        scalings[name] = config.scaling_of(name, a.shape[0], matcher)
    metadata = _Metadata(FORMAT, base, config, scalings)
    # Fields come in the order of their definition and sets are sorted, so the same configuration has the same bytes
    # however its file spelt it. Patterns keep their order, because the first one that matches decides a rank; PEFT
    # writes them sorted.
    encoded = msgspec.json.encode(metadata).decode()
    return write_tensors(rows, {_METADATA_KEY: encoded})


def read_header(pack: bytes | memoryview) -> PackHeader:
    """Return what a pack holds and where; raises ``AdapterRefused`` on anything malformed."""
    return _read(pack)[0]


def _read(pack: bytes | memoryview) -> tuple[PackHeader, dict[str, RawTensor]]:
    raw, tensors, offsets = read_tensors(pack)
    metadata = _parse_metadata(raw)
    if min(offsets.values()) % _ALIGNMENT:
        raise AdapterRefused("format", "the rows do not begin where rows of a pack do")
    modules = []
    for name in sorted(metadata.scalings):
        a, b = tensors.get(f"{name}.a"), tensors.get(f"{name}.b")
        if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[0]:
            raise AdapterRefused("format", f"module {name!r} has no matching pair of tensors")
        if not 1 <= a.shape[0] <= RANK_MAX:
            raise AdapterRefused("rank", f"module {name!r} has rank {a.shape[0]}, which is outside 1 to {RANK_MAX}")
        if a.shape[1] < 1 or b.shape[1] < 1:
            raise AdapterRefused("format", f"module {name!r} has rows without elements")
        if not 0 < metadata.scalings[name] <= SCALING_MAX:
            raise AdapterRefused("scaling", f"module {name!r} has a scaling outside 0 to {SCALING_MAX:.0f}")
        modules.append(
            PackedModule(
                name, a.shape[0], a.shape[1], b.shape[1], metadata.scalings[name],
                a.dtype, b.dtype, offsets[f"{name}.a"], offsets[f"{name}.b"],
            )
        )  # fmt: skip
    if 2 * len(modules) != len(tensors):
        raise AdapterRefused("format", "the pack holds tensors that belong to no module")
    return PackHeader(metadata.base, metadata.config, tuple(modules)), tensors


def _parse_metadata(raw: Mapping[str, str]) -> _Metadata:
    if raw.keys() != {_METADATA_KEY}:
        raise AdapterRefused("format", "the file is not a pack: its metadata are missing or malformed")
    encoded = raw[_METADATA_KEY].encode()
    try:
        metadata = decoding.from_json(encoded, _Metadata)
        outer = decoding.from_json(encoded, dict[str, msgspec.Raw])
        inner = decoding.from_json(outer["config"], dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise AdapterRefused("format", "the file is not a pack: its metadata are missing or malformed") from None
    if metadata.format != FORMAT:
        raise AdapterRefused("format", f"pack format {metadata.format[:32]!r} is not {FORMAT!r}")
    config = metadata.config
    parts = (outer, inner, metadata.scalings, config.rank_pattern, config.alpha_pattern)
    if num_keys(encoded) != sum(len(part) for part in parts):
        raise AdapterRefused("format", "the pack's metadata name something twice, or something unknown")
    return metadata


def digest_of(pack: bytes | memoryview) -> Digest:
    """Return the SHA-256 of the whole pack. Releases the GIL while it hashes."""
    return Digest("sha256:" + hashlib.sha256(pack).hexdigest())


def unpack(pack: bytes | memoryview, folder: Path, base_name: str) -> None:
    """Write the PEFT directory that ``pack`` came from: bit-identical tensors and an equivalent configuration."""
    header, rows = _read(pack)
    tensors: dict[str, RawTensor] = {}
    for module in header.modules:
        a, b = rows[f"{module.name}.a"], rows[f"{module.name}.b"]
        tensors[f"{PEFT_PREFIX}{module.name}.lora_A.weight"] = a
        tensors[f"{PEFT_PREFIX}{module.name}.lora_B.weight"] = RawTensor(b.dtype, b.words.T)
    config: dict[str, Any] = msgspec.to_builtins(header.config)
    config |= {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(write_tensors(tensors, {"format": "pt"}))
    (folder / "adapter_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))


def _stored(tensor: RawTensor, dtype: str | None) -> RawTensor:
    if dtype is None or tensor.dtype == "BF16":
        return RawTensor(tensor.dtype, np.ascontiguousarray(tensor.words))
    rounded = np.empty(tensor.shape, np.uint16)
    for row, words in zip(rounded, tensor.words, strict=True):
        _round_to_bf16(tensor.dtype, words, row)
    return RawTensor("BF16", rounded)


def _round_to_bf16(dtype: str, words: NDArray[Any], out: NDArray[np.uint16]) -> None:
    """Values are finite (the validator has seen them), so adding the rounding bias reaches no NaN."""
    if dtype == "F16":
        words = np.ascontiguousarray(words).view(np.float16).astype(np.float32).view(np.uint32)
    bias = np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    out[...] = (words + bias) >> np.uint32(16)


def stays_finite(tensor: RawTensor, dtype: str | None) -> bool:
    """Tell whether no weight is NaN or infinite, nor will be when it is stored as ``dtype`` (None: as it is).

    Looks at a cacheful at a time: a file that is refused took no memory beside its own.
    """
    # An element is NaN or infinite exactly when all bits of its exponent are set. fp32 goes on a little behind the
    # largest bf16, and what lies there rounds up to infinity.
    sign_bit, first_bad = {"F32": (31, 0x7F800000), "BF16": (15, 0x7F80), "F16": (15, 0x7C00)}[tensor.dtype]
    if dtype == "bf16" and tensor.dtype == "F32":
        first_bad = 0x7F7F8000
    words = tensor.words.reshape(-1)
    mask = words.dtype.type((1 << sign_bit) - 1)
    room = np.empty(min(len(words), _SCAN_ELEMENTS), words.dtype)
    for begin in range(0, len(words), _SCAN_ELEMENTS):
        part = words[begin : begin + _SCAN_ELEMENTS]
        if np.bitwise_and(part, mask, out=room[: len(part)]).max() >= first_bad:
            return False
    return True
