"""Tiny real bases whose layers look back through sliding windows, and what ``transformers`` generates with them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from octavo_worker.model.base import BaseModel, load_base
from support.engines import save_base

WINDOW = 20
_SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    # Untrained weights this large, and a head of its own, make the next token depend on the whole context.
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def _all_windows() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SHAPE, num_hidden_layers=2))


def _one_of_each() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**_SHAPE, num_hidden_layers=2, query_pre_attn_scalar=16))


def _three_to_one() -> PreTrainedModel:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE, num_hidden_layers=4, layer_types=kinds))


KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "all_windows": _all_windows,
    "one_of_each": _one_of_each,
    "three_to_one": _three_to_one,
}
"""One group; two groups with equal pages; two groups, one of which keeps three times as many tokens in a page."""


class WindowedBase:
    """A base of one of ``KINDS`` beside the unmodified model."""

    def __init__(self, kind: str, folder: Path) -> None:
        torch.manual_seed(0)
        model = KINDS[kind]()
        self.base: BaseModel = load_base(save_base(model, folder), "cpu", torch.float32)
        model.set_attn_implementation("eager")
        self._model = model.eval()
        self._known: dict[tuple[int, ...], list[int]] = {}

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return what ``transformers`` generates greedily."""
        known = self._known.get(tuple(prompt), [])
        if len(known) < num_tokens:
            with torch.inference_mode():
                ids = torch.tensor([list(prompt)])
                out = self._model.generate(  # type: ignore[operator]
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
                )
            known = self._known[tuple(prompt)] = out[0, len(prompt) :].tolist()
        return known[:num_tokens]
