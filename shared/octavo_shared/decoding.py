"""Decoding into types, on any thread.

msgspec learns what is in a Struct when it is first asked for it, and lets other threads see what it has half learnt:
two that decode the same type for the first time at the same moment end the process (a null pointer in ``StructInfo``,
seen with 0.22). So all types are learnt here, by one thread after the other, and nothing else decodes into one.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

_learning = threading.Lock()


def _learn_json(kind: Any) -> "msgspec.json.Decoder[Any]":
    with _learning:
        return msgspec.json.Decoder(kind)


def _learn_msgpack(kind: Any) -> "msgspec.msgpack.Decoder[Any]":
    with _learning:
        return msgspec.msgpack.Decoder(kind)


_json_decoder: "Callable[[Any], msgspec.json.Decoder[Any]]" = cache(_learn_json)
_msgpack_decoder: "Callable[[Any], msgspec.msgpack.Decoder[Any]]" = cache(_learn_msgpack)


@overload
def json_decoder(kind: type[T]) -> "msgspec.json.Decoder[T]": ...
@overload
def json_decoder(kind: Any) -> "msgspec.json.Decoder[Any]": ...
def json_decoder(kind: Any) -> Any:
    """Return the decoder of JSON into ``kind``; every thread may use it."""
    return _json_decoder(kind)


@overload
def msgpack_decoder(kind: type[T]) -> "msgspec.msgpack.Decoder[T]": ...
@overload
def msgpack_decoder(kind: Any) -> "msgspec.msgpack.Decoder[Any]": ...
def msgpack_decoder(kind: Any) -> Any:
    """Return the decoder of MessagePack into ``kind``; every thread may use it."""
    return _msgpack_decoder(kind)


def from_json(data: bytes | bytearray | memoryview | str, kind: type[T]) -> T:
    """Decode JSON; raises ``msgspec.MsgspecError``."""
    decoded: T = _json_decoder(kind).decode(data)
    return decoded


def from_msgpack(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode MessagePack; raises ``msgspec.MsgspecError``."""
    decoded: T = _msgpack_decoder(kind).decode(data)
    return decoded


def convert(
    value: object, kind: type[T], *, strict: bool = True, dec_hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Return plain dictionaries, lists and the like as a ``kind``; raises ``msgspec.ValidationError``."""
    json_decoder(kind)
    return msgspec.convert(value, kind, strict=strict, dec_hook=dec_hook)
