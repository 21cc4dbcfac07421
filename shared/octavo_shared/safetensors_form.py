"""The safetensors byte form, read with hard limits and written deterministically; numpy only.

The library's own reader accepts NaN, ``../`` in names, 200,000 empty tensors and 10 MB of metadata, and its writer
does not promise an order, so both sides of the form are here: an 8-byte little-endian header length, a JSON header,
then the tensors' bytes without gaps.
"""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from octavo_shared.errors import AdapterRefused

HEADER_BYTES_MAX = 4 * 1024 * 1024
TENSORS_MAX = 20_000
NAME_LENGTH_MAX = 256
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ALIGNMENT = 8
_PICKLE_BEGINNINGS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class RawTensor(NamedTuple):
    """A tensor as bytes: ``dtype`` F32, F16 or BF16 (which numpy lacks), ``words`` the bit patterns in its shape."""

    dtype: str
    words: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_entry_decoder = msgspec.json.Decoder(_Entry)


def words_dtype(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integer type that holds one element of ``dtype``."""
    return np.dtype("<u4" if DTYPE_BYTES[dtype] == 4 else "<u2")


def read_tensors(data: bytes | memoryview) -> tuple[dict[str, str], dict[str, RawTensor], dict[str, int]]:
    """Return metadata, tensors (views into ``data``) and each tensor's byte offset from the start of ``data``.

    Raises ``AdapterRefused`` with the rule ``format`` (or ``pickle``, ``dtype``, ``tensor_name``) on anything
    malformed, over a limit, overlapping or with gaps.
    """
    view = memoryview(data)
    header, start = _read_header(view)
    metadata = _metadata(header.pop("__metadata__", None))
    if not header:
        raise AdapterRefused("format", "the file holds no tensor")
    if len(header) > TENSORS_MAX:
        raise AdapterRefused("format", f"more than {TENSORS_MAX} tensors")
    entries: dict[str, _Entry] = {}
    for name, raw in header.items():
        if len(name) > NAME_LENGTH_MAX or not name.isprintable() or "/" in name or "\\" in name or ".." in name:
            raise AdapterRefused("tensor_name", f"{name[:80]!r} is not a tensor name of a LoRA adapter")
        try:
            entries[name] = _entry_decoder.decode(raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as problem:
            raise AdapterRefused("format", f"tensor {name!r}: {problem}") from None
    tensors, offsets, end = {}, {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPE_BYTES:
            raise AdapterRefused("dtype", f"tensor {name!r} is {entry.dtype[:16]}; served are F32, F16 and BF16")
        if len(entry.shape) > 4 or any(size < 0 or size > 2**31 for size in entry.shape):
            raise AdapterRefused("format", f"tensor {name!r} has an absurd shape")
        begin, stop = entry.data_offsets
        num_elements = int(np.prod(entry.shape, dtype=object)) if entry.shape else 1
        if begin != end or stop - begin != num_elements * DTYPE_BYTES[entry.dtype] or start + stop > len(view):
            raise AdapterRefused("format", f"tensor {name!r} has offsets that do not fit its shape or the file")
        words = np.frombuffer(view, words_dtype(entry.dtype), num_elements, start + begin)
        tensors[name] = RawTensor(entry.dtype, words.reshape(entry.shape))
        offsets[name] = start + begin
        end = stop
    if start + end != len(view):
        raise AdapterRefused("format", "the file goes on behind its last tensor")
    return metadata, tensors, offsets


def write_tensors(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file's bytes: tensors in the mapping's order, canonical JSON, padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        num_bytes = tensor.words.nbytes
        header[name] = _Entry(tensor.dtype, tensor.shape, (position, position + num_bytes))
        position += num_bytes
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    parts = [struct.pack("<Q", len(encoded)), encoded]
    parts += [np.ascontiguousarray(tensor.words).tobytes() for tensor in tensors.values()]
    return b"".join(parts)


def _read_header(view: memoryview) -> tuple[dict[str, msgspec.Raw], int]:
    """Return the header's fields, still encoded, and where the tensors begin: junk inside is never made objects."""
    length = struct.unpack("<Q", view[:8])[0] if len(view) >= 8 else None
    if length is None or length > HEADER_BYTES_MAX:
        # Only here: a header of 640 bytes begins like a pickle does, so a length that is in order comes first.
        if bytes(view[:2]) in _PICKLE_BEGINNINGS:
            raise AdapterRefused("pickle", "this is a pickle or torch file; save the adapter as safetensors")
        raise AdapterRefused("format", f"this is no safetensors file, or its header exceeds {HEADER_BYTES_MAX} bytes")
    if 8 + length > len(view):
        raise AdapterRefused("format", "the file ends inside its header")
    try:
        return msgspec.json.decode(view[8 : 8 + length], type=dict[str, msgspec.Raw]), 8 + length
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise AdapterRefused("format", "the header is not a JSON object") from None


def _metadata(raw: msgspec.Raw | None) -> dict[str, str]:
    try:
        return msgspec.json.decode(raw, type=dict[str, str]) if raw is not None else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise AdapterRefused("format", "the metadata are not a map of strings") from None
