"""What of a PEFT ``adapter_config.json`` decides an adapter's numbers: ranks, scalings and targeted modules.

The rules follow PEFT 0.21 (``check_target_module_exists``, ``get_pattern_key``, ``LoraLayer.update_layer``);
a test holds them against PEFT itself.
"""

import functools
import math
import time
from typing import Any, TypeVar

import msgspec
import regex

from octavo_shared.errors import AdapterRefused

_MATCH_TIMEOUT_S = 0.05
_PATTERNS_TIMEOUT_S = 0.5
_PATTERN_LENGTH_MAX = 1_024
_PATTERNS_MAX = 2_048

RANK_MAX = 512
ALL_LINEAR = "all-linear"

V = TypeVar("V")


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The served subset of PEFT's ``LoraConfig``, in canonical form. Field names are PEFT's.

    Patterns come from users, so they are matched with a time-out: a hostile one is refused, not waited for.
    The order of ``rank_pattern`` and ``alpha_pattern`` counts: as in PEFT, the first pattern that matches decides.
    """

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    lora_dropout: float = 0.0
    task_type: str | None = None

    def rank_of(self, module: str) -> int:
        """Return the rank that the configuration gives ``module``."""
        return self._by_pattern(self.rank_pattern, module, self.r)

    def scaling_of(self, module: str, rank: int) -> float:
        """Return the factor on ``B A x``: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        alpha = self._by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Tell whether PEFT would put an adapter on ``module``, a linear module's full name."""
        if self._is_listed(self.exclude_modules, module):
            return False
        if self.target_modules == ALL_LINEAR:
            # PEFT leaves the output embeddings out.
            return not module.endswith("lm_head")
        if not self._is_listed(self.target_modules, module):
            return False
        names = self.target_modules
        # PEFT asks for the layer only where a name matched as a suffix.
        if isinstance(names, str) or module in (names or ()) or self.layers_to_transform in (None, ()):
            return True
        layer = self._layer_of(module)
        wanted = self.layers_to_transform
        return layer in ((wanted,) if isinstance(wanted, int) else wanted or ())

    def _layer_of(self, module: str) -> int | None:
        if not self.layers_pattern:
            found = regex.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)
            return int(found["index"]) if found else None
        names = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
        for name in names:
            found = _match(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.", module, "layers_pattern")
            if found:
                return int(found["index"])
        return None

    def _is_listed(self, names: str | tuple[str, ...] | None, module: str) -> bool:
        if names is None:
            return False
        if isinstance(names, str):
            return _match(rf"(?:{names})\Z", module, "target_modules") is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    @staticmethod
    def _by_pattern(patterns: dict[str, V], module: str, default: V) -> V:
        # All patterns of one module share one time-out, so that many slow ones are not much worse than one.
        deadline_s = time.monotonic() + _PATTERNS_TIMEOUT_S
        for pattern, value in patterns.items():
            if _match(_suffix_pattern(pattern), module, "rank_pattern or alpha_pattern", deadline_s):
                return value
        return patterns.get(module, default)


def _suffix_pattern(pattern: str) -> str:
    """PEFT lets a key of ``rank_pattern`` or ``alpha_pattern`` match the end of a module's name."""
    return rf"(.*\.)?({pattern})$"


# The regex module's own cache holds 500 patterns, but an adapter may name each of its modules in one.
@functools.lru_cache(maxsize=_PATTERNS_MAX + 16)
def _compiled(pattern: str, field: str) -> regex.Pattern[str]:
    if len(pattern) > _PATTERN_LENGTH_MAX:
        raise AdapterRefused("pattern", f"a pattern in {field} is longer than {_PATTERN_LENGTH_MAX} characters")
    try:
        return regex.compile(pattern, cache_pattern=False)
    except regex.error as problem:
        raise AdapterRefused("pattern", f"a pattern in {field} is no regular expression: {problem}") from None


def _match(pattern: str, text: str, field: str, deadline_s: float | None = None) -> regex.Match[str] | None:
    compiled = _compiled(pattern, field)
    try:
        timeout_s = _MATCH_TIMEOUT_S if deadline_s is None else deadline_s - time.monotonic()
        if timeout_s <= 0:
            raise TimeoutError
        return compiled.match(text, timeout=timeout_s)
    except TimeoutError:
        raise AdapterRefused("pattern", f"a pattern in {field} takes too long to match") from None


def parse_lora_config(given: dict[str, Any]) -> LoraConfig:
    """Return the served subset of ``given`` in canonical form (lists sorted); raises ``AdapterRefused``.

    Fields that do not change the numbers of the adapter (paths, versions, ``inference_mode``) are left out, so
    that the same adapter has the same digest on whichever machine it was saved.
    """
    values = {field: given[field] for field in LoraConfig.__struct_fields__ if given.get(field) is not None}
    for field in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if isinstance(values.get(field), list):
            # PEFT keeps these as sets; their order in the file is an accident.
            values[field] = sorted({str(value): value for value in values[field]}.values(), key=str) or None
    if str(values.get("target_modules")).lower() == ALL_LINEAR:
        values["target_modules"] = ALL_LINEAR
    try:
        config = msgspec.convert(values, LoraConfig)
    except msgspec.ValidationError as problem:
        raise AdapterRefused("config", str(problem)) from None
    if len(config.rank_pattern) + len(config.alpha_pattern) > _PATTERNS_MAX:
        raise AdapterRefused("config", f"more than {_PATTERNS_MAX} rank and alpha patterns")
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        # Compiled here, where the time-outs of matching do not run yet; a malformed one is refused at once.
        _compiled(_suffix_pattern(pattern), "rank_pattern or alpha_pattern")
    return config
