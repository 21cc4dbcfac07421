"""The push gate: every ``LoraConfig`` field is one that is served right, at its default, or refused by name.

Nothing of an upload is used before it went through here. The first word of a refusal is its stable rule.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.lora_config import RANK_MAX, LoraConfig, parse_lora_config
from octavo_shared.manifest import BaseManifest
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.references import Fingerprint
from octavo_shared.safetensors_form import RawTensor, read_tensors

ALPHA_MAX = 65_536.0
CONFIG_BYTES_MAX = 1024 * 1024
TASK_TYPES = (None, "CAUSAL_LM")
_MATCHING_S_MAX = 20.0
"""For all modules together: each pattern has a time-out of its own, but a base has many modules."""

IGNORED = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
     "runtime_config", "megatron_core", "init_lora_weights", "bias", "qalora_group_size"}
)  # fmt: skip
"""Fields that do not change what a trained adapter computes, or that have a check of their own below."""

SERVED = frozenset(LoraConfig.__struct_fields__)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "loftq_config": (None, {}),
    "use_qalora": (False,),
    "ensure_weight_tying": (False,),
}
"""Refused unless they have one of these values; every field that is in no table must be None."""

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base as it is. PiSSA, OLoRA, CorDA and LoftQ rewrite it, so their adapters fit no
frozen base unless they were converted (which PEFT then records as ``true``). EVA leaves it as it is, but comes with a
configuration of its own that nothing here has been held against yet."""


@dataclass(frozen=True)
class ValidAdapter:
    config: LoraConfig
    tensors: dict[str, RawTensor]


def check_base(declared: Fingerprint | None, served: Fingerprint) -> None:
    """Refuse an adapter that says it was made for another base."""
    if declared is not None and declared != served:
        raise BaseMismatch(adapter_base=declared, served_base=served)


def validate(config_json: bytes, weights: bytes, base: BaseManifest) -> ValidAdapter:
    """Return the adapter, or raise ``AdapterRefused`` naming the rule that it breaks."""
    config = _validate_config(config_json)
    _, tensors, _ = read_tensors(weights)
    pairs = _pair(tensors)
    ranks = _ranks_by_target(config, base)
    for module, (a, b) in pairs.items():
        _check_module(module, a, b, ranks, base)
    missing = [name for name in ranks if name not in pairs]
    if missing:
        raise AdapterRefused("missing_module", f"target_modules names {missing[0]!r}, which has no tensors")
    return ValidAdapter(config, tensors)


def _ranks_by_target(config: LoraConfig, base: BaseManifest) -> dict[str, int]:
    """Return module name → rank for the modules of ``base`` that the configuration targets."""
    deadline_s = time.monotonic() + _MATCHING_S_MAX
    ranks = {}
    for name in base.modules:
        if config.targets(name):
            ranks[name] = config.rank_of(name)
        if time.monotonic() > deadline_s:
            raise AdapterRefused("pattern", "the patterns of this adapter take too long to match")
    if not ranks:
        raise AdapterRefused("no_match", "target_modules matches no linear module of the base")
    return ranks


def _validate_config(config_json: bytes) -> LoraConfig:
    if len(config_json) > CONFIG_BYTES_MAX:
        raise AdapterRefused("config", f"adapter_config.json exceeds {CONFIG_BYTES_MAX} bytes")
    try:
        given = msgspec.json.decode(config_json, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise AdapterRefused("config", "adapter_config.json is not a JSON object") from None
    if given.get("peft_type") != "LORA":
        raise AdapterRefused("peft_type", "only LoRA adapters (peft_type LORA) are served")
    if given.get("bias", "none") != "none":
        raise AdapterRefused("bias", "trained biases are not served")
    if given.get("init_lora_weights", True) not in INITIALISATIONS:
        raise AdapterRefused(
            "init_lora_weights", "this initialisation rewrote the base's weights; convert the adapter to plain LoRA"
        )
    for field, value in given.items():
        if field in SERVED or field in IGNORED:
            continue
        if value not in NEUTRAL.get(field, (None,)):
            rule = "dora" if field == "use_dora" else field[:64]
            raise AdapterRefused(rule, "an adapter with this setting is not served")
    config = parse_lora_config(given)
    if config.task_type not in TASK_TYPES:
        raise AdapterRefused("task_type", "only causal language models are served")
    ranks = (config.r, *config.rank_pattern.values())
    if not all(1 <= rank <= RANK_MAX for rank in ranks):
        raise AdapterRefused("rank", f"rank {max(ranks, key=abs)} is outside 1 to {RANK_MAX}")
    alphas = (config.lora_alpha, *config.alpha_pattern.values())
    if not all(0 < alpha <= ALPHA_MAX for alpha in alphas):
        raise AdapterRefused("alpha", f"lora_alpha is outside 0 to {ALPHA_MAX:.0f}")
    return config


def _pair(tensors: Mapping[str, RawTensor]) -> dict[str, tuple[RawTensor, RawTensor]]:
    """Return (A, B) by module name."""
    found: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in tensors.items():
        for side in ("lora_A", "lora_B"):
            suffix = f".{side}.weight"
            if name.startswith(PEFT_PREFIX) and name.endswith(suffix):
                found.setdefault(name[len(PEFT_PREFIX) : -len(suffix)], {})[side] = tensor
                break
        else:
            rule = "embedding" if "embedding" in name else "tensor_name"
            raise AdapterRefused(rule, f"tensor {name!r} is none of a plain LoRA adapter")
    for module, sides in found.items():
        if len(sides) != 2:
            raise AdapterRefused("partner", f"module {module!r} has only one of lora_A and lora_B")
    return {module: (sides["lora_A"], sides["lora_B"]) for module, sides in found.items()}


def _check_module(module: str, a: RawTensor, b: RawTensor, ranks: Mapping[str, int], base: BaseManifest) -> None:
    shape = base.modules.get(module)
    if shape is None:
        raise AdapterRefused("tensor_name", f"the base has no linear module {module!r} that can carry an adapter")
    if module not in ranks:
        raise AdapterRefused("target_modules", f"the file has tensors for {module!r}, which is not a target")
    rank = ranks[module]
    if a.shape != (rank, shape.in_features) or b.shape != (shape.out_features, rank):
        raise AdapterRefused(
            "shape",
            f"module {module!r} at rank {rank} needs A [{rank}, {shape.in_features}] and "
            f"B [{shape.out_features}, {rank}], not {list(a.shape)} and {list(b.shape)}",
        )
    for tensor in (a, b):
        if _has_non_finite(tensor):
            raise AdapterRefused("nan", f"module {module!r} has NaN or infinite weights")


def _has_non_finite(tensor: RawTensor) -> bool:
    """An element is NaN or infinite exactly when all bits of its exponent are set."""
    exponent = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[tensor.dtype]
    mask = tensor.words.dtype.type(exponent)
    return bool(np.any((tensor.words & mask) == mask))
