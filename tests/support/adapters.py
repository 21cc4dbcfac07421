"""Small hand-made PEFT adapters and bases for tests, without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octavo_shared.manifest import BaseManifest, ModuleShape
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.references import Fingerprint
from octavo_shared.safetensors_form import RawTensor, words_dtype, write_tensors

TINY_FINGERPRINT = Fingerprint("sha256:" + "ab" * 32)
TINY_BASE = BaseManifest(
    name="tiny",
    fingerprint=TINY_FINGERPRINT,
    context_tokens=128,
    dtype="float32",
    chat_template="",
    bos_token="",
    eos_token="",
    stop_token_ids=(0,),
    modules={
        f"model.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "self_attn.q_proj": ModuleShape(16, 16),
            "self_attn.v_proj": ModuleShape(16, 8),
            "mlp.down_proj": ModuleShape(24, 16),
        }.items()
    },
    num_layers=2,
)


def raw(values: np.ndarray[Any, Any], dtype: str = "F32") -> RawTensor:
    """Return float values in the safetensors form."""
    if dtype == "BF16":
        return RawTensor("BF16", (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    floats = values.astype(np.float32 if dtype == "F32" else np.float16)
    return RawTensor(dtype, floats.view(words_dtype(dtype)))


def tiny_tensors(
    modules: Mapping[str, int], seed: int = 0, dtype: str = "F32", base: BaseManifest = TINY_BASE
) -> dict[str, RawTensor]:
    """Return PEFT tensors for ``modules`` (full name → rank) with random values."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, rank in modules.items():
        shape = base.modules[module]
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = raw(random.normal(size=(rank, shape.in_features)), dtype)
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = raw(random.normal(size=(shape.out_features, rank)), dtype)
    return tensors


def config_json(**fields: object) -> bytes:
    """Return an ``adapter_config.json`` for q_proj at rank 4, with ``fields`` on top."""
    given: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    return json.dumps(given | fields).encode()


def q_proj_modules(rank: int = 4) -> dict[str, int]:
    return {f"model.layers.{layer}.self_attn.q_proj": rank for layer in range(2)}


def tiny_weights(seed: int = 0, rank: int = 4, dtype: str = "F32") -> bytes:
    """Return an ``adapter_model.safetensors`` that fits ``config_json()``."""
    return write_tensors(tiny_tensors(q_proj_modules(rank), seed, dtype), {"format": "pt"})


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """Write a tiny PEFT directory and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config_json())
    (folder / "adapter_model.safetensors").write_bytes(tiny_weights(seed))
    return folder
