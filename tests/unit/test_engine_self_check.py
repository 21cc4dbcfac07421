"""The start-up self-check: what cannot be served right refuses with one sentence; what can, passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from octavo_worker.model import attention
from octavo_worker.model.base import load_base
from octavo_worker.model.context import UnsupportedBase
from octavo_worker.model.fingerprint import fingerprint_of
from support.engines import TINY_LLAMA, save_base

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def _llama(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(type(TINY_LLAMA)(**{**TINY_LLAMA.to_dict(), **changes}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        _llama,
        lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
        # Windows shorter than the prompt, soft-capped attention and a soft-capped head.
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, sliding_window=12, query_pre_attn_scalar=16)),
    ],
    ids=["llama", "qwen3", "gemma2"],
)
def test_architectures_that_compute_the_same_packed_are_served(
    tmp_path: Path, make: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    base = load_base(save_base(make(), tmp_path / "base"), "cpu", dtype)
    assert base.manifest.modules["model.layers.1.self_attn.q_proj"].in_features == 64
    assert "lm_head" not in base.manifest.modules
    assert base.fingerprint == fingerprint_of(tmp_path / "base")


def test_a_base_with_layers_that_do_not_attend_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BambaConfig(
        **{**SMALL, "num_hidden_layers": 2}, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8
    )
    folder = save_base(BambaForCausalLM(config), tmp_path / "base")
    with pytest.raises(UnsupportedBase):
        load_base(folder)


def test_rotary_embedding_that_couples_neighbours_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    with pytest.raises(UnsupportedBase, match="'dynamic' depends on the longest sequence"):
        load_base(save_base(_llama(rope_parameters=rope), tmp_path / "base"))


def test_a_model_that_computes_something_else_packed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged = attention.paged_attention_forward

    def without_scaling(*args: torch.Tensor, scaling: float, **kwargs: object) -> object:
        return paged(*args, scaling=2 * scaling, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "paged_attention_forward", without_scaling)
    with pytest.raises(UnsupportedBase, match="packed than alone"):
        load_base(save_base(_llama(), tmp_path / "base"))
    monkeypatch.undo()
    attention.register()


def test_attention_that_asks_for_something_unknown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paged = attention.paged_attention_forward

    def with_bias(*args: torch.Tensor, **kwargs: object) -> object:
        return paged(*args, **kwargs, position_bias=torch.zeros(1))  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "paged_attention_forward", with_bias)
    with pytest.raises(UnsupportedBase, match="'position_bias', which is not served"):
        load_base(save_base(_llama(), tmp_path / "base"))
    monkeypatch.undo()
    attention.register()


def test_the_fingerprint_ignores_sharding_and_who_wrote_the_file_but_nothing_else(tmp_path: Path) -> None:
    model = _llama()
    whole = save_base(model, tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    (tmp_path / "sharded" / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    config = tmp_path / "sharded" / "config.json"
    config.write_text(config.read_text().replace('"transformers_version": "', '"transformers_version": "9'))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert fingerprint_of(tmp_path / "sharded") == fingerprint_of(whole)

    config.write_text(config.read_text().replace('"vocab_size": 97', '"vocab_size": 98'))
    assert fingerprint_of(tmp_path / "sharded") != fingerprint_of(whole)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    assert fingerprint_of(save_base(model, tmp_path / "other")) != fingerprint_of(whole)
    with pytest.raises(UnsupportedBase, match=r"config\.json does not exist"):
        fingerprint_of(tmp_path)
