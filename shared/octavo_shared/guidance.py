"""A JSON schema as the grammar that guides decoding: the gateway compiles it to refuse it, the worker to follow it."""

from typing import Any

from llguidance import LLMatcher

_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, the one of Python's ``json``: a small model is never left free to write blanks for ever."""


def grammar_of(schema: str) -> str:
    """Return the grammar of ``schema``, a JSON text; raises ``ValueError`` when it is none."""
    return str(LLMatcher.grammar_from_json_schema(schema, defaults=_FORM))
