"""Where in a JSON document something is wrong, told from what msgspec says of it."""

import re
from dataclasses import dataclass

import msgspec

# The place comes last, and a path never holds a backtick; what stands before it may echo anything.
_PLACED = re.compile(r"(?P<problem>.*) - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`\Z", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """``path`` leads from the document to what is wrong: ``.messages[0].role``, or empty for the document itself.

    With ``is_key`` that is the name of some member of the object there, and not a value.
    """

    problem: str
    path: str
    is_key: bool


def fault_of(error: msgspec.ValidationError) -> Fault:
    """Return what is wrong, and where."""
    text = str(error)
    found = _PLACED.match(text)
    return Fault(found["problem"], found["path"], found["key"] is not None) if found else Fault(text, "", False)
