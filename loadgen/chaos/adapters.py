"""Tiny adapters of a tiny base: real packs, so small that pushing them costs little but the round trips."""

import json
from dataclasses import dataclass

import numpy as np

from octavo_identity.building import build, read_back
from octavo_shared.manifest import BaseManifest, ModuleShape
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.safetensors_form import RawTensor, words_dtype, write_tensors

_MODULE = "model.layers.0.self_attn.q_proj"
_FEATURES = 16
_RANK = 2

BASE = BaseManifest(
    name="tiny",
    fingerprint=Fingerprint("sha256:" + "c0" * 32),
    context_tokens=128,
    dtype="float32",
    chat_template="",
    bos_token="",
    eos_token="",
    stop_token_ids=(0,),
    modules={_MODULE: ModuleShape(_FEATURES, _FEATURES)},
    num_layers=1,
)


@dataclass(frozen=True)
class TinyAdapter:
    """The two files of a PEFT directory, and the digest that their pack must have."""

    config: bytes
    weights: bytes
    digest: Digest


def tiny_adapter(seed: int) -> TinyAdapter:
    """Return an adapter of ``BASE`` that another seed does not give."""
    random = np.random.default_rng(seed)
    config = json.dumps(
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 2 * _RANK, "bias": "none",
         "target_modules": ["q_proj"]}
    ).encode()  # fmt: skip
    tensors = {
        f"{PEFT_PREFIX}{_MODULE}.lora_A.weight": _raw(random.normal(size=(_RANK, _FEATURES))),
        f"{PEFT_PREFIX}{_MODULE}.lora_B.weight": _raw(random.normal(size=(_FEATURES, _RANK))),
    }
    weights = write_tensors(tensors, {"format": "pt"})
    return TinyAdapter(config, weights, read_back(build(config, weights, BASE, None)).digest)


def _raw(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> RawTensor:
    return RawTensor("F32", values.astype(np.float32).view(words_dtype("F32")))
