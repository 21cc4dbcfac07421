"""The push gate: every ``LoraConfig`` field is one that is served right, at its default, or refused by name.

Nothing of an upload is used before it went through here. The first word of a refusal is its stable rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.lora_config import RANK_MAX, LoraConfig, parse_lora_config
from octavo_shared.manifest import BaseManifest
from octavo_shared.pack import PEFT_PREFIX, SCALING_MAX, stays_finite
from octavo_shared.patterns import Matcher
from octavo_shared.references import Fingerprint
from octavo_shared.safetensors_form import RawTensor, read_tensors

ALPHA_MAX = SCALING_MAX
CONFIG_BYTES_MAX = 512 * 1024
METADATA_LENGTH_MAX = 64 * 1024
TASK_TYPES = (None, "CAUSAL_LM")

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
    # PEFT makes a default configuration of an empty one, which switches these on.
    "megatron_config": (None,),
    "eva_config": (None,),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "use_bdlora": (None,),
    "monteclora_config": (None,),
    "alora_invocation_tokens": (None,),
}
"""Refused unless they have one of these values. A field that is in no table is one of another PEFT: it must be switched
off (null, false or empty), as it is in every adapter that makes no use of it."""

_SAID = {"target_parameters": "adapters on bare parameters, such as the weights of experts, are not served"}

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base as it is and the adapter plain LoRA."""
_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that rewrite the base, so their adapters fit no frozen one unless they were converted (which PEFT then
records as ``true``)."""
_UNPROVEN = ("eva", "mica")
"""These leave the base as it is, but come with a configuration or a kind of layer of their own that nothing here has
been held against yet."""
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
"""PEFT's own list of names (``EMBEDDING_LAYER_NAMES``), whose weights it saves beside the adapter's."""
_EXPERTS = "experts"
"""What architectures call the part that holds the experts of a mixture, whether as modules or as parameters."""


@dataclass(frozen=True)
class ValidAdapter:
    config: LoraConfig
    tensors: dict[str, RawTensor]


def check_base(declared: Fingerprint | None, served: Fingerprint) -> None:
    """Refuse an adapter that says it was made for another base."""
    if declared is not None and declared != served:
        raise BaseMismatch(adapter_base=declared, served_base=served)


def validate(
    config_json: bytes, weights: bytes | memoryview, base: BaseManifest, matcher: Matcher | None = None
) -> ValidAdapter:
    """Return the adapter, or raise ``AdapterRefused`` naming the rule that it breaks.

    ``matcher`` bounds what the patterns of the adapter may take, here and wherever else they are matched.
    """
    matcher = matcher or Matcher()
    config = _validate_config(config_json, matcher)
    metadata, tensors, _ = read_tensors(weights)
    if sum(len(key) + len(value) for key, value in metadata.items()) > METADATA_LENGTH_MAX:
        raise AdapterRefused("metadata", f"the file's metadata are longer than {METADATA_LENGTH_MAX} characters")
    pairs = _pair(tensors, base)
    ranks = {name: config.rank_of(name, matcher) for name in base.modules if config.targets(name, matcher)}
    if not ranks:
        raise AdapterRefused("no_match", "target_modules matches no linear module of the base")
    for module, (a, b) in pairs.items():
        _check_module(module, a, b, ranks, base)
    missing = [name for name in ranks if name not in pairs]
    if missing:
        raise AdapterRefused("missing_module", f"target_modules names {missing[0]!r}, which has no tensors")
    return ValidAdapter(config, tensors)


def _validate_config(config_json: bytes, matcher: Matcher) -> LoraConfig:
    if len(config_json) > CONFIG_BYTES_MAX:
        raise AdapterRefused("config", f"adapter_config.json exceeds {CONFIG_BYTES_MAX} bytes")
    try:
        given = decoding.from_json(config_json, dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise AdapterRefused("config", "adapter_config.json is not a JSON object") from None
    if given.get("peft_type") != "LORA":
        raise AdapterRefused("peft_type", "only LoRA adapters (peft_type LORA) are served")
    if given.get("bias", "none") != "none":
        raise AdapterRefused("bias", "trained biases are not served")
    _check_initialisation(given.get("init_lora_weights", True))
    for field, value in given.items():
        if field in SERVED or field in IGNORED:
            continue
        if value not in NEUTRAL[field] if field in NEUTRAL else not _is_off(value):
            rule = "dora" if field == "use_dora" else field[:64]
            raise AdapterRefused(rule, _SAID.get(field, "an adapter with this setting is not served"))
    config = parse_lora_config(given, matcher)
    if config.task_type not in TASK_TYPES:
        raise AdapterRefused("task_type", "only causal language models are served")
    ranks = (config.r, *config.rank_pattern.values())
    if not all(1 <= rank <= RANK_MAX for rank in ranks):
        raise AdapterRefused("rank", f"rank {max(ranks, key=abs)} is outside 1 to {RANK_MAX}")
    alphas = (config.lora_alpha, *config.alpha_pattern.values())
    if not all(0 < alpha <= ALPHA_MAX for alpha in alphas):
        raise AdapterRefused("alpha", f"lora_alpha is outside 0 to {ALPHA_MAX:.0f}")
    return config


def _check_initialisation(begun_by: Any) -> None:
    if begun_by in INITIALISATIONS:
        return
    name = begun_by.lower()[:64] if isinstance(begun_by, str) else type(begun_by).__name__
    if name.startswith(_REWRITING):
        problem = "this initialisation rewrote the base's weights; convert the adapter to plain LoRA"
    elif name in _UNPROVEN:
        problem = f"adapters that {name!r} initialised are not served yet"
    else:
        problem = f"{name!r} is no initialisation that is known to leave the base as it is"
    raise AdapterRefused("init_lora_weights", problem)


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ([], {})


def _pair(tensors: Mapping[str, RawTensor], base: BaseManifest) -> dict[str, tuple[RawTensor, RawTensor]]:
    """Return (A, B) by module name."""
    found: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in tensors.items():
        module, _, side = name.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".")
        is_plain = side in ("lora_A", "lora_B") and name == f"{PEFT_PREFIX}{module}.{side}.weight"
        if module not in base.modules:
            _check_place(name)
        if not is_plain:
            raise AdapterRefused("tensor_name", f"tensor {name!r} is none of a plain LoRA adapter")
        found.setdefault(module, {})[side] = tensor
    for module, sides in found.items():
        if len(sides) != 2:
            raise AdapterRefused("partner", f"module {module!r} has only one of lora_A and lora_B")
    return {module: (sides["lora_A"], sides["lora_B"]) for module, sides in found.items()}


def _check_place(name: str) -> None:
    """Refuse the tensor ``name`` of a module that the base cannot adapt in words that say which kind of part it is."""
    parts = name.split(".")
    if _EXPERTS in parts:
        raise AdapterRefused("experts", f"tensor {name!r} belongs to experts of the base, which take no adapters")
    if _HEAD in parts:
        raise AdapterRefused("embedding", f"tensor {name!r} belongs to the output head, which takes no adapter")
    if "embedding" in name or ".base_layer." in name or _EMBEDDING in parts:
        raise AdapterRefused("embedding", f"tensor {name!r} belongs to an embedding; trained ones are not served")


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
        if not stays_finite(tensor, None):
            raise AdapterRefused("nan", f"module {module!r} has NaN or infinite weights")
