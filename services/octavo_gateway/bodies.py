"""JSON bodies into structs; what is wrong with one is said by the name of the field."""

import re
from typing import TypeVar

import msgspec

from octavo_shared import decoding
from octavo_shared.errors import BodyTooLarge, InvalidRequest
from octavo_shared.json_faults import Fault, fault_of

T = TypeVar("T")

BODY_BYTES_MAX = 1024 * 1024
"""Of a JSON body, from wherever it came. Decoding holds the event loop, so this bounds for how long."""

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`\Z", re.DOTALL)
_OTHER_NAME = re.compile(r"Invalid enum value '(?P<name>.*)'\Z", re.DOTALL)
_FIELD_CHARS_MAX = 80


def check_size(raw: bytes) -> None:
    """Raise ``BodyTooLarge`` when ``raw`` is; HTTP bodies are bounded by the framework while they arrive."""
    if len(raw) > BODY_BYTES_MAX:
        raise BodyTooLarge(limit_bytes=BODY_BYTES_MAX)


def decode_body(raw: bytes, kind: type[T]) -> T:
    """Return ``raw`` as ``kind``; raises ``InvalidRequest`` naming the field, or ``body`` when it is no JSON at all."""
    try:
        return decoding.from_json(raw or b"{}", kind)
    except msgspec.ValidationError as error:
        raise _named(fault_of(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("body", f"is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("body", "is nested too deeply") from None


def _named(fault: Fault) -> InvalidRequest:
    path, problem = fault.path.removeprefix("."), fault.problem
    if unknown := _UNKNOWN.match(problem) or (fault.is_key and _OTHER_NAME.match(problem)):
        return InvalidRequest(_join(path, unknown["name"]), "is not a known parameter")
    if missing := _MISSING.match(problem):
        return InvalidRequest(_join(path, missing["name"]), "is required")
    if fault.is_key:
        return InvalidRequest(path or "body", f"has a member whose name is wrong: {problem}")
    return InvalidRequest(path or "body", f"has a wrong type or value: {problem}")


def _join(path: str, name: str) -> str:
    # A field's name comes from the caller: it is echoed, but never at any length.
    return f"{path}.{name}"[:_FIELD_CHARS_MAX] if path else name[:_FIELD_CHARS_MAX]
