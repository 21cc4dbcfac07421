"""The start-up self-check: what cannot be served right refuses with one sentence; what can, passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from octavo_worker.model import attention, requirements
from octavo_worker.model import base as base_module
from octavo_worker.model.base import load_base
from octavo_worker.model.context import StepContext, UnsupportedBase
from octavo_worker.model.linear import MultiAdapterLinear, SiblingLinears, replace_linears
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


def _take_every_kind_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the configuration of a hybrid pass, as that of an architecture that says nothing of its layers would."""
    monkeypatch.setattr(requirements, "_ATTENDING", {"full_attention", "linear_attention", "hybrid"})


def test_a_base_with_layers_that_do_not_attend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _take_every_kind_of_layer(monkeypatch)
    torch.manual_seed(0)
    config = BambaConfig(
        **{**SMALL, "num_hidden_layers": 2}, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8
    )
    folder = save_base(BambaForCausalLM(config), tmp_path / "base")
    with pytest.raises(UnsupportedBase, match=r"^layer 0 of this base does not attend through the paged attention$"):
        load_base(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_whose_rows_see_their_neighbours_is_refused_however_little_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    _take_every_kind_of_layer(monkeypatch)
    # Attention and a state space side by side in each layer: all layers attend, and the logits are within rounding.
    torch.manual_seed(0)
    config = FalconH1Config(**SMALL, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16)
    folder = save_base(FalconH1ForCausalLM(config), tmp_path / "base")
    with pytest.raises(UnsupportedBase, match="other prompts of a batch change an answer"):
        load_base(folder, "cpu", dtype)


def test_whatever_an_architecture_raises_is_a_refusal_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise KeyError("first\nsecond")

    monkeypatch.setattr(base_module, "windows_of", fail)
    with pytest.raises(UnsupportedBase, match=r"^this architecture cannot be served: KeyError: [^\n]+$"):
        load_base(save_base(_llama(), tmp_path / "base"))


def test_a_layer_that_asks_for_another_window_than_it_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "windows_of", lambda _model, num_layers: (12,) * num_layers)
    with pytest.raises(UnsupportedBase, match="layer 0 asks for a window of None; its pages are for 12"):
        load_base(save_base(_llama(), tmp_path / "base"))


def test_a_linear_that_sees_only_the_wanted_rows_takes_no_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModernBertDecoderConfig(**SMALL | {"num_key_value_heads": 4}, local_attention=16, bos_token_id=1,
                                     eos_token_id=2, cls_token_id=1, sep_token_id=2)  # fmt: skip
    folder = save_base(ModernBertDecoderForCausalLM(config), tmp_path / "base")
    with capture_logs() as logs:
        base = load_base(folder)
    assert isinstance(base.model.get_submodule("lm_head.dense"), MultiAdapterLinear)
    assert "lm_head.dense" not in base.manifest.modules
    assert {"model.layers.0.mlp.Wi", "model.layers.1.attn.q_proj"} <= base.manifest.modules.keys()
    (told,) = [entry for entry in logs if entry["event"] == "modules_not_targetable"]
    assert (told["num_modules"], told["first"]) == (1, "lm_head.dense")


def test_a_linear_that_is_never_called_takes_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_spare_one(
        model: torch.nn.Module, head: torch.nn.Module | None, context: StepContext
    ) -> dict[str, MultiAdapterLinear]:
        linear = torch.nn.Linear(64, 64)
        spare = MultiAdapterLinear(linear, SiblingLinears([linear], ["model.spare"], context), 0)
        return replace_linears(model, head, context) | {"model.spare": spare}

    monkeypatch.setattr(base_module, "replace_linears", with_a_spare_one)
    base = load_base(save_base(_llama(), tmp_path / "base"))
    assert "model.spare" not in base.manifest.modules
    assert len(base.manifest.modules) == 14


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
