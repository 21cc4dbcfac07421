"""The workload of every engine benchmark: chat prompts from a seed, and adapters as PEFT directories on disk."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.safetensors_form import RawTensor, write_tensors

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_A_STD, _B_STD = 0.02, 0.08
"""As large as moves the answers but keeps them language."""
_OPENINGS = ("Tell me about", "Write a poem on", "What do you know of", "Describe", "Why do people love", "Explain")
_QUALITIES = ("quiet", "old", "bright", "small", "distant", "famous", "broken", "gentle")
_THINGS = ("rivers", "lighthouses", "gardens", "trains", "letters", "bridges", "winters", "markets", "clocks", "bread")


@dataclass(frozen=True)
class Workload:
    """``num_requests`` prompts at once, each answered with ``num_new_tokens`` greedy tokens."""

    num_requests: int = 32
    num_new_tokens: int = 32
    rank: int = 16
    seed: int = 0


def chat_prompts(base: Path, num_prompts: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return different prompts of about 35 tokens, as the base's own chat template writes them.

    The same for the same seed, and more of them begin with the same ones.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    questions = [" ".join(words) for words in itertools.product(_OPENINGS, _QUALITIES, _THINGS)]
    random.Random(f"{seed}/prompts").shuffle(questions)
    return tuple(
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": f"{question}."}], add_generation_prompt=True, return_dict=False
            )
        )
        for question in questions[:num_prompts]
    )


def write_adapters(
    folder: Path, modules: Mapping[str, ModuleShape], ranks: Sequence[int], seed: int
) -> tuple[Path, ...]:
    """Write one PEFT directory per rank, for all seven linear modules of every layer, in bf16, and return them.

    Random and deterministic: adapter i depends on ``seed``, i and its rank alone.
    """
    return tuple(
        _write_adapter(folder / f"{i:03d}-rank{rank}", modules, rank, np.random.default_rng((seed, i, rank)))
        for i, rank in enumerate(ranks)
    )


def _write_adapter(folder: Path, modules: Mapping[str, ModuleShape], rank: int, draw: np.random.Generator) -> Path:
    folder.mkdir(parents=True)
    tensors = {}
    for name, shape in modules.items():
        if name.endswith(TARGETS):
            a, b = f"{PEFT_PREFIX}{name}.lora_A.weight", f"{PEFT_PREFIX}{name}.lora_B.weight"
            tensors[a] = RawTensor("BF16", _normal_bf16(draw, (rank, shape.in_features), _A_STD))
            tensors[b] = RawTensor("BF16", _normal_bf16(draw, (shape.out_features, rank), _B_STD))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(write_tensors(tensors, {"format": "pt"}))
    return folder


def _normal_bf16(draw: np.random.Generator, shape: tuple[int, int], std: float) -> NDArray[np.uint16]:
    values = draw.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return (values.view(np.uint32) >> 16).astype(np.uint16)
