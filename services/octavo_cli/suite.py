"""Suites: files of one JSON object per line that say what an adapter should answer. Pure but for reading the file."""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import regex

from octavo_cli.answers import ClientError
from octavo_shared import decoding
from octavo_shared.references import NAME_PATTERN, Digest

_SUITE_BYTES_MAX = 64 * 1024 * 1024
_ITEMS_MAX = 100_000
_EXPECT_CHARS_MAX = 64 * 1024
_MAX_TOKENS_DEFAULT = 64
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")


class Check(StrEnum):
    """How an answer is held against what is expected."""

    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    PERPLEXITY = "perplexity"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prompt`` is continued as it is (``/v1/completions``), ``messages`` are answered (``/v1/chat/completions``)."""

    expect: str
    check: Check = Check.EXACT
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=8_192)] = _MAX_TOKENS_DEFAULT


@dataclass(frozen=True)
class Item:
    """One line of a suite that can be asked."""

    number: int
    line: Line


@dataclass(frozen=True)
class Suite:
    """``digest`` is that of the file's bytes: whoever has the same file has the same suite."""

    name: str
    digest: Digest
    items: tuple[Item, ...]


class BrokenSuite(ClientError):
    """A suite that cannot be run; names the line."""

    def __init__(self, path: Path, number: int, problem: str) -> None:
        super().__init__("bad_suite", f"{path}, line {number}: {problem}", 0)


def suite_name(path: Path) -> str:
    """Return what a suite is called unless told otherwise: the file's name without its ending."""
    name = _NOT_IN_NAMES.sub("-", path.stem.lower()).strip("-._")[:63]
    if NAME_PATTERN.match(name) is None:
        raise ClientError("bad_suite", f"{path} has no name that a suite can have; give one with --name", 0)
    return name


def suite_digest(path: Path) -> Digest:
    """Return the digest of the file ``path``."""
    return _digest_of(_read(path))


def load_suite(path: Path, name: str | None = None) -> Suite:
    """Return the suite in the file ``path``; raises ``BrokenSuite`` for the first line that is wrong."""
    raw = _read(path)
    items = []
    for number, text in enumerate(raw.split(b"\n"), start=1):
        if text.strip():
            items.append(Item(number, _line(path, number, text)))
        if len(items) > _ITEMS_MAX:
            raise BrokenSuite(path, number, f"a suite has at most {_ITEMS_MAX} items")
    if not items:
        raise ClientError("bad_suite", f"{path} holds no items", 0)
    return Suite(suite_name(path) if name is None else name, _digest_of(raw), tuple(items))


def _read(path: Path) -> bytes:
    if path.stat().st_size > _SUITE_BYTES_MAX:
        raise ClientError("bad_suite", f"{path} is larger than {_SUITE_BYTES_MAX} bytes", 0)
    return path.read_bytes()


def _digest_of(raw: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(raw).hexdigest()}")


def _line(path: Path, number: int, text: bytes) -> Line:
    try:
        line = decoding.from_json(text, Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenSuite(path, number, str(error) or "is nested too deeply") from None
    if (line.prompt is None) == (line.messages is None):
        raise BrokenSuite(path, number, "wants either 'prompt' or 'messages'")
    if line.prompt == "" or line.messages == ():
        raise BrokenSuite(path, number, "'prompt' or 'messages' is empty")
    if not line.expect or len(line.expect) > _EXPECT_CHARS_MAX:
        raise BrokenSuite(path, number, f"'expect' must have 1 to {_EXPECT_CHARS_MAX} characters")
    if line.check is Check.PERPLEXITY and line.prompt is None:
        raise BrokenSuite(path, number, "perplexity is told of a 'prompt' that 'expect' continues, not of 'messages'")
    if line.check is Check.REGEX:
        try:
            regex.compile(line.expect)
        except (regex.error, OverflowError, RecursionError) as error:
            raise BrokenSuite(path, number, f"'expect' is no pattern: {error}") from None
    return line
