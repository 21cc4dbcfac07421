"""The safetensors byte form, read with hard limits and written deterministically; numpy only.

The library's own reader accepts NaN, ``../`` in names, 200,000 empty tensors and 10 MB of metadata, and its writer
does not promise an order, so both sides of the form are here: an 8-byte little-endian header length, a JSON header,
then the tensors' bytes without gaps.
"""

import math
import re
import struct
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused

HEADER_BYTES_MAX = 2 * 1024 * 1024
TENSORS_MAX = 8_192
NAME_LENGTH_MAX = 256
_QUOTES_MAX = 10 * TENSORS_MAX + 40_000
"""A tensor's entry has ten. What is beyond may be in the metadata of a pack, whose configuration holds names."""
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ALIGNMENT = 8
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*(:?)', re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_PICKLE_BEGINNINGS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class RawTensor(NamedTuple):
    """A tensor as bytes: ``dtype`` F32, F16 or BF16 (which numpy lacks), ``words`` the bit patterns in its shape."""

    dtype: str
    words: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**48)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=4)]
    data_offsets: tuple[_Offset, _Offset]


_entry_decoder = decoding.json_decoder(_Entry)


def words_dtype(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integer type that holds one element of ``dtype``."""
    return np.dtype("<u4" if DTYPE_BYTES[dtype] == 4 else "<u2")


def read_tensors(data: bytes | memoryview) -> tuple[dict[str, str], dict[str, RawTensor], dict[str, int]]:
    """Return metadata, tensors (views into ``data``) and each tensor's byte offset from the start of ``data``.

    Raises ``AdapterRefused`` with the rule ``format`` (or ``pickle``, ``dtype``, ``tensor_name``) on anything
    malformed, over a limit, named twice, overlapping or with gaps. Limits are looked at before objects are made, so
    that what is refused took little time and memory beside the file's own.
    """
    view = memoryview(data)
    header, start, num_keys = _read_header(view)
    raw_metadata = header.pop("__metadata__", None)
    metadata = _metadata(raw_metadata)
    if not header:
        raise AdapterRefused("format", "the file holds no tensor")
    if len(header) > TENSORS_MAX:
        raise AdapterRefused("format", f"more than {TENSORS_MAX} tensors")
    entries: dict[str, _Entry] = {}
    for name, raw in header.items():
        if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
            raise AdapterRefused("tensor_name", f"{name[:80]!r} is not a tensor name of a LoRA adapter")
        try:
            entries[name] = _entry_decoder.decode(raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as problem:
            raise AdapterRefused("format", f"tensor {name!r}: {problem}") from None
    # JSON lets a key come twice and the last one count, so that two readers may see two files in one.
    if num_keys != 4 * len(entries) + (raw_metadata is not None) + len(metadata):
        raise AdapterRefused("format", "the header names something twice")
    tensors, offsets, end = {}, {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPE_BYTES:
            raise AdapterRefused("dtype", f"tensor {name!r} is {entry.dtype[:16]}; served are F32, F16 and BF16")
        begin, stop = entry.data_offsets
        num_elements = math.prod(entry.shape)
        if begin != end or stop - begin != num_elements * DTYPE_BYTES[entry.dtype] or start + stop > len(view):
            raise AdapterRefused("format", f"tensor {name!r} has offsets that do not fit its shape or the file")
        words = np.frombuffer(view, words_dtype(entry.dtype), num_elements, start + begin)
        tensors[name] = RawTensor(entry.dtype, words.reshape(entry.shape))
        offsets[name] = start + begin
        end = stop
    if start + end != len(view):
        raise AdapterRefused("format", "the file goes on behind its last tensor")
    return metadata, tensors, offsets


def num_keys(encoded: bytes) -> int:
    """Return how many keys all objects of a JSON text have together, those that come twice counted twice.

    It must be known to be JSON: only then can strings be told from what is between them.
    """
    return _STRING.findall(encoded).count(b":")


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
    rows = (np.ascontiguousarray(tensor.words).data for tensor in tensors.values())
    return b"".join((struct.pack("<Q", len(encoded)), encoded, *rows))


def _read_header(view: memoryview) -> tuple[dict[str, msgspec.Raw], int, int]:
    """Return the header's fields, still encoded, where the tensors begin, and how many keys the header has in all.

    Junk inside is never made objects.
    """
    length = struct.unpack("<Q", view[:8])[0] if len(view) >= 8 else None
    if length is None or length > HEADER_BYTES_MAX:
        # Only here: a header of 640 bytes begins like a pickle does, so a length that is in order comes first.
        if bytes(view[:2]) in _PICKLE_BEGINNINGS:
            raise AdapterRefused("pickle", "this is a pickle or torch file; save the adapter as safetensors")
        raise AdapterRefused("format", f"this is no safetensors file, or its header exceeds {HEADER_BYTES_MAX} bytes")
    if 8 + length > len(view):
        raise AdapterRefused("format", "the file ends inside its header")
    encoded = bytes(view[8 : 8 + length])
    if encoded.count(b'"') > _QUOTES_MAX:
        raise AdapterRefused("format", f"more than {TENSORS_MAX} tensors, or metadata of too many parts")
    try:
        fields = decoding.from_json(encoded, dict[str, msgspec.Raw])
        return fields, 8 + length, num_keys(encoded)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise AdapterRefused("format", "the header is not a JSON object") from None


def _metadata(raw: msgspec.Raw | None) -> dict[str, str]:
    try:
        return decoding.from_json(raw, dict[str, str]) if raw is not None else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise AdapterRefused("format", "the metadata are not a map of strings") from None
