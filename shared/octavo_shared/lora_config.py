"""What of a PEFT ``adapter_config.json`` decides an adapter's numbers: ranks, scalings and targeted modules.

The rules follow PEFT 0.21 (``check_target_module_exists``, ``get_pattern_key``, ``LoraLayer.update_layer``);
a test holds them against PEFT itself.
"""

import math
import re
from typing import Annotated, Any, TypeVar

import msgspec
import regex

from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused
from octavo_shared.patterns import TAIL, WHOLE, Matcher

_PATTERNS_MAX = 2_048
_NAMES_MAX = 10_000

RANK_MAX = 512
ALL_LINEAR = "all-linear"

_BY_PATTERN = "rank_pattern or alpha_pattern"
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")

V = TypeVar("V")
_Int = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The served subset of PEFT's ``LoraConfig``, in canonical form. Field names are PEFT's.

    The order of ``layers_pattern``, ``rank_pattern`` and ``alpha_pattern`` counts: as in PEFT, the first pattern that
    matches decides.
    """

    r: _Int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: _Int | tuple[_Int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: dict[str, _Int] = {}
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
            matches = (matcher.layer_of(name, module, "layers_pattern") for name in names)
            found = next((match for match in matches if match), None)
        # A pattern with alternatives may match without having come to the number.
        return int(found["index"]) if found and found["index"] else None


def _is_listed(names: str | tuple[str, ...] | None, module: str, field: str, matcher: Matcher) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return matcher.matches(names, WHOLE, module, field)
    return matcher.is_listed(names, module, field)


def _first_match(patterns: dict[str, V], module: str, default: V, matcher: Matcher) -> V:
    for pattern, value in patterns.items():
        if matcher.matches(pattern, TAIL, module, _BY_PATTERN):
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
        config = decoding.convert(values, LoraConfig)
    except msgspec.ValidationError as problem:
        raise AdapterRefused("config", str(problem)) from None
    layers = config.layers_pattern or ()
    by_pattern = (*config.rank_pattern, *config.alpha_pattern)
    if len(by_pattern) + (1 if isinstance(layers, str) else len(layers)) > _PATTERNS_MAX:
        raise AdapterRefused("config", f"more than {_PATTERNS_MAX} layer, rank and alpha patterns")
    matcher = matcher or Matcher()
    for pattern in by_pattern:
        # A malformed one is refused also if no module comes to it.
        matcher.compile(pattern, TAIL, _BY_PATTERN)
    return config
