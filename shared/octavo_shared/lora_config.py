"""What of a PEFT ``adapter_config.json`` decides an adapter's numbers: ranks, scalings and targeted modules.

The rules follow PEFT 0.21 (``check_target_module_exists``, ``get_pattern_key``, ``LoraLayer.update_layer``);
a test holds them against PEFT itself.
"""

import math
import re
import time
from typing import Any, TypeVar

import msgspec
import regex

from octavo_shared.errors import AdapterRefused

_BUDGET_S = 20.0
_MATCH_TIMEOUT_S = 0.5
_PATTERN_LENGTH_MAX = 1_024
_PATTERNS_MAX = 2_048
_NAMES_MAX = 10_000
_REPEATS_MAX = 1_000
_GROUPS_MAX = 32
_EXPANDED_MAX = 200_000
"""Places in all patterns of an adapter when counted repeats are unrolled, as regex does, at up to 1 kB each."""

RANK_MAX = 512
ALL_LINEAR = "all-linear"

_BY_PATTERN = "rank_pattern or alpha_pattern"
_WHOLE = "{}"
_TAIL = r"(.*\.)?({})$"
"""PEFT lets a key of ``rank_pattern`` or ``alpha_pattern`` match the end of a module's name."""
_LAYER = r"(?:^|.*?\.){}\.(?P<index>\d+)\."
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+\Z")
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")

_TOKEN = re.compile(
    r"""(?P<open> \( (?: \? (?: : | = | ! | <= | <! | > | i: ) )? (?! \? ) )
    | (?P<close> \) )
    | (?P<count> \{ (?: (?P<least>\d+) (?: , (?P<most>\d*) )? | , (?P<at_most>\d+) ) \} )
    | \( \? i \)
    | \\ [dDsSwWbAZ !-/:-@\[-`{-~]
    | \[ \^? (?: [ -%'-,.-Z^-{}] | - (?!-) | \\ [dDsSwW !-/:-@\[-`{-~] )+ \]
    | [ -'*-Z^-z|~]
    """,
    re.VERBOSE | re.ASCII,
)

V = TypeVar("V")


class Matcher:
    """Compiles and matches the patterns of one adapter, which together may take ``budget_s`` seconds.

    They come from users, and PEFT matches them with ``re``, which knows no time-out; ``regex`` does. A hostile pattern
    is refused (``AdapterRefused``, rule ``pattern``), not waited for.
    """

    def __init__(self, budget_s: float = _BUDGET_S) -> None:
        self._left_s = budget_s
        self._num_expanded = 0
        self._compiled: dict[tuple[str, str], tuple[regex.Pattern[str], str]] = {}

    def compile(self, pattern: str, form: str, field: str) -> tuple[regex.Pattern[str], str]:
        """Return ``pattern`` as ``form`` embeds it, and an ending that every name that it matches has."""
        if self._left_s <= 0:
            raise _too_slow(field)
        if (pattern, form) in self._compiled:
            return self._compiled[pattern, form]
        begin_s = time.monotonic()
        self._num_expanded += _num_expanded(pattern, field)
        if self._num_expanded > _EXPANDED_MAX:
            raise AdapterRefused("pattern", f"the patterns in {field} repeat too much")
        try:
            # PEFT's engine has the first word on what is a pattern, also without what is put around it here.
            re.compile(pattern)
            re.compile(form.format(pattern))
            compiled = regex.compile(form.format(pattern), cache_pattern=False)
        except (re.error, regex.error, RecursionError, OverflowError) as problem:
            raise AdapterRefused("pattern", f"a pattern in {field} is no regular expression: {problem}") from None
        # An adapter may name each of its modules in a pattern, so most pairs are told apart without the engine.
        ending = pattern.rpartition(".")[2] if form != _LAYER and _PLAIN_NAME.match(pattern) else ""
        self._compiled[pattern, form] = compiled, ending
        # Only time that is spent here counts: between two matches a large file may be read.
        self._left_s -= time.monotonic() - begin_s
        return compiled, ending

    def match(self, pattern: str, form: str, module: str, field: str) -> regex.Match[str] | None:
        """Return how ``pattern`` matches the name ``module``: the whole of it, or as ``form`` says."""
        compiled, ending = self.compile(pattern, form, field)
        if not module.endswith(ending):
            return None
        if self._left_s <= 0:
            raise _too_slow(field)
        match = compiled.fullmatch if form == _WHOLE else compiled.match
        begin_s = time.monotonic()
        try:
            return match(module, timeout=min(_MATCH_TIMEOUT_S, self._left_s))
        except TimeoutError:
            raise _too_slow(field) from None
        finally:
            self._left_s -= time.monotonic() - begin_s


def _too_slow(field: str) -> AdapterRefused:
    return AdapterRefused("pattern", f"the patterns in {field} take too long to match")


def _num_expanded(pattern: str, field: str) -> int:
    """Return how many places ``pattern`` has with its counted repeats unrolled; raises ``AdapterRefused``.

    Only syntax that means the same to ``re`` and to ``regex`` gets through: ``regex`` has much that ``re`` reads
    literally (``a{e<=3}``) or not at all. Names of modules need no more, and they are ASCII.
    """
    if len(pattern) > _PATTERN_LENGTH_MAX:
        raise AdapterRefused("pattern", f"a pattern in {field} is longer than {_PATTERN_LENGTH_MAX} characters")
    # (places, product of nested repeats) of the groups that are open, innermost last, and of the latest item.
    groups, item = [(0, 1)], (0, 1)
    position = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or len(groups) > _GROUPS_MAX:
            raise AdapterRefused("pattern", f"{pattern[position : position + 8]!r} in {field} is not served")
        position = token.end()
        if token["open"]:
            groups.append((0, 1))
            continue
        if token["count"]:
            times = max(1, *(int(token[part] or 0) for part in ("least", "most", "at_most")))
            item = (item[0] * (times - 1), item[1] * times)
            if item[1] > _REPEATS_MAX:
                raise AdapterRefused("pattern", f"a pattern in {field} repeats a part more than {_REPEATS_MAX} times")
        elif token["close"]:
            if len(groups) == 1:
                raise AdapterRefused("pattern", f"a pattern in {field} closes a group that is not open")
            item = groups.pop()
        else:
            item = (1, 1)
        groups[-1] = (groups[-1][0] + item[0], max(groups[-1][1], item[1]))
    return groups[0][0]


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The served subset of PEFT's ``LoraConfig``, in canonical form. Field names are PEFT's.

    The order of ``layers_pattern``, ``rank_pattern`` and ``alpha_pattern`` counts: as in PEFT, the first pattern that
    matches decides.
    """

    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    lora_dropout: float = 0.0
    task_type: str | None = None

    def rank_of(self, module: str, matcher: Matcher) -> int:
        """Return the rank that the configuration gives ``module``."""
        return _first_match(self.rank_pattern, module, self.r, matcher)

    def scaling_of(self, module: str, rank: int, matcher: Matcher) -> float:
        """Return the factor on ``B A x``: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        alpha = _first_match(self.alpha_pattern, module, self.lora_alpha, matcher)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str, matcher: Matcher) -> bool:
        """Tell whether PEFT would put an adapter on ``module``, a linear module's full name."""
        if _is_listed(self.exclude_modules, module, "exclude_modules", matcher):
            return False
        if self.target_modules == ALL_LINEAR:
            # PEFT leaves the output embeddings out.
            return not module.endswith("lm_head")
        if not _is_listed(self.target_modules, module, "target_modules", matcher):
            return False
        names = self.target_modules
        # PEFT asks for the layer only where a name matched as a suffix.
        if isinstance(names, str) or module in (names or ()) or self.layers_to_transform in (None, ()):
            return True
        layer = self._layer_of(module, matcher)
        wanted = self.layers_to_transform
        return layer in ((wanted,) if isinstance(wanted, int) else wanted or ())

    def _layer_of(self, module: str, matcher: Matcher) -> int | None:
        found: re.Match[str] | regex.Match[str] | None = None
        if not self.layers_pattern:
            found = _ANY_LAYER.match(module)
        else:
            names = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
            matches = (matcher.match(name, _LAYER, module, "layers_pattern") for name in names)
            found = next((match for match in matches if match), None)
        # A pattern with alternatives may match without having come to the number.
        return int(found["index"]) if found and found["index"] else None


def _is_listed(names: str | tuple[str, ...] | None, module: str, field: str, matcher: Matcher) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return matcher.match(names, _WHOLE, module, field) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first_match(patterns: dict[str, V], module: str, default: V, matcher: Matcher) -> V:
    for pattern, value in patterns.items():
        if matcher.match(pattern, _TAIL, module, _BY_PATTERN):
            return value
    return patterns.get(module, default)


def parse_lora_config(given: dict[str, Any], matcher: Matcher | None = None) -> LoraConfig:
    """Return the served subset of ``given`` in canonical form (sets sorted); raises ``AdapterRefused``.

    Fields that do not change the numbers of the adapter (paths, versions, ``inference_mode``) are left out, so
    that the same adapter has the same digest on whichever machine it was saved.
    """
    values = {field: given[field] for field in LoraConfig.__struct_fields__ if given.get(field) is not None}
    for field in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if isinstance(values.get(field), list):
            if len(values[field]) > _NAMES_MAX:
                raise AdapterRefused("config", f"{field} has more than {_NAMES_MAX} entries")
            if field != "layers_pattern" and all(isinstance(value, str | int) for value in values[field]):
                # PEFT looks these up as in a set; their order in the file is an accident.
                values[field] = sorted({str(value): value for value in values[field]}.values(), key=str)
            values[field] = values[field] or None
    if str(values.get("target_modules")).lower() == ALL_LINEAR:
        values["target_modules"] = ALL_LINEAR
    try:
        config = msgspec.convert(values, LoraConfig)
    except msgspec.ValidationError as problem:
        raise AdapterRefused("config", str(problem)) from None
    layers = config.layers_pattern or ()
    by_pattern = (*config.rank_pattern, *config.alpha_pattern)
    if len(by_pattern) + (1 if isinstance(layers, str) else len(layers)) > _PATTERNS_MAX:
        raise AdapterRefused("config", f"more than {_PATTERNS_MAX} layer, rank and alpha patterns")
    matcher = matcher or Matcher()
    for pattern in by_pattern:
        # A malformed one is refused also if no module comes to it.
        matcher.compile(pattern, _TAIL, _BY_PATTERN)
    return config
