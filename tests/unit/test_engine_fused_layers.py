"""Whole layers in one call: only where every bit is the same, with adapters and without."""

from pathlib import Path

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from octavo_kernels import decoder_layers
from octavo_kernels.decoder_layers import LayerInputs
from octavo_kernels.layout import KvTable, LayoutError, RowGroups
from octavo_kernels.native import load_native
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model import base as base_module
from octavo_worker.model import fused_layers
from octavo_worker.model.base import BaseModel, load_base
from octavo_worker.model.context import StepInputs
from support.engines import ask, install, num_threads, run, save_base, tiny_pack

pytestmark = pytest.mark.skipif(load_native() is None, reason="needs a C++ compiler")

# As wide as SmolLM2: oneDNN sums a lone row of 1,536 fp32 features in another order, and of fewer mostly not.
SMALL = {
    "vocab_size": 97, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "initializer_range": 0.1,
}  # fmt: skip
FUSED = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
}
OTHERS = {
    # A residual that is scaled has the same parts.
    "granite": (GraniteConfig, GraniteForCausalLM, {"residual_multiplier": 0.5, "initializer_range": 0.02}),
    # Norms inside its attention.
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")


def _model(config: type[PretrainedConfig], model: type[PreTrainedModel], more: dict[str, object]) -> PreTrainedModel:
    torch.manual_seed(0)
    made = model(config(**SMALL | more))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return made


def _load(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[BaseModel, list[int]]:
    """Load a base and say how many layers were fused."""
    counts: list[int] = []

    def fuse_layers(*arguments: object) -> int:
        counts.append(fused_layers.fuse_layers(*arguments))  # type: ignore[arg-type]
        return counts[-1]

    monkeypatch.setattr(base_module, "fuse_layers", fuse_layers)
    return load_base(folder, "cpu", dtype), counts


def _logits(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the logits of every step of a mixed batch, prompts in chunks, one row alone at the end."""
    engine = Engine(base, new_arena(base, 16 * 2**20), EngineLimits(num_running_max=4, num_step_tokens_max=16))
    keys = [
        install(engine, tiny_pack(base.manifest, seed, rank, TARGETS), f"a{seed}") for seed, rank in ((1, 4), (2, 9))
    ]
    seen: list[torch.Tensor] = []
    logits = BaseModel.logits

    def noted(*arguments: object) -> torch.Tensor:
        seen.append(logits(*arguments).clone())  # type: ignore[arg-type]
        return seen[-1]

    with monkeypatch.context() as patched:
        patched.setattr(BaseModel, "logits", noted)
        prompts = [tuple((7 * i + 3 * k) % 97 for k in range(length)) for i, length in enumerate((23, 40, 9))]
        run(
            engine,
            ask("one", prompts[0], 6, key=keys[0]),
            ask("two", prompts[1], 12, key=keys[1]),
            ask("base", prompts[2], 4),
        )
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSED)
def test_a_fused_layer_computes_every_bit_that_its_modules_do(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_base(_model(*FUSED[family]), tmp_path / "base")
    base, counts = _load(folder, dtype, monkeypatch)
    assert counts == [2]
    fused = _logits(base, monkeypatch)
    monkeypatch.setattr(base_module, "fuse_layers", lambda *arguments: 0)
    plain = _logits(load_base(folder, "cpu", dtype), monkeypatch)
    assert len(fused) == len(plain)
    assert any(len(step) == 1 for step in fused)
    assert all(torch.equal(one, other) for one, other in zip(fused, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_many_threads_share_a_layer_changes_no_bit(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = _load(save_base(_model(*FUSED["mistral"]), tmp_path / "base"), dtype, monkeypatch)
    with num_threads(1):
        alone = _logits(base, monkeypatch)
    for count in (2, 3, 5):
        with num_threads(count):
            shared = _logits(base, monkeypatch)
        assert all(torch.equal(one, other) for one, other in zip(shared, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", OTHERS)
def test_layers_that_do_more_keep_their_own_code(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, counts = _load(save_base(_model(*OTHERS[family]), tmp_path / "base"), dtype, monkeypatch)
    assert counts == [0]
    assert all("forward" not in vars(layer) for layer in base.model.model.layers)


def test_a_torch_without_that_interface_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_layers, "_torch_functions", lambda: None)
    base, counts = _load(save_base(_model(*FUSED["llama"]), tmp_path / "base"), torch.float32, monkeypatch)
    assert counts == [0]
    assert _logits(base, monkeypatch)


def test_weights_are_given_back_with_their_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = _load(save_base(_model(*FUSED["llama"]), tmp_path / "base"), torch.float32, monkeypatch)
    product = base.model.model.layers[0].self_attn.o_proj.siblings.product
    assert product is not None
    held = product.weight._use_count()
    for layer in base.model.model.layers:
        del layer.forward
    assert product.weight._use_count() == held - 1


def test_what_does_not_fit_a_layer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = _load(save_base(_model(*FUSED["llama"]), tmp_path / "base"), torch.float32, monkeypatch)
    cells = [cell.cell_contents for cell in base.model.model.layers[0].forward.__closure__]
    fused = next(content for content in cells if isinstance(content, fused_layers.FusedLayers))
    layers = fused._layers
    x, angles, offsets = torch.zeros(3, 576), torch.zeros(3, 64), torch.zeros(3, dtype=torch.int64)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    kv = KvTable(torch.zeros(1, 1, dtype=torch.int64), starts, torch.tensor([3], dtype=torch.int32), 16, 3, 64)
    groups = RowGroups(starts, torch.tensor([-1], dtype=torch.int32))
    arena = torch.zeros(base.kv_shape.page_elements)
    none = [None] * 7
    both = [LayerInputs(kv, offsets, none)] * 2
    assert layers.run(x, angles, angles, arena, groups, both).shape == x.shape
    for arguments in (
        (x[:, :575], angles, angles, arena, groups, both),
        (x.bfloat16(), angles, angles, arena, groups, both),
        (x, angles[:2], angles, arena, groups, both),
        (x, angles, angles[:2], arena, groups, both),
        (x, angles, angles, arena, groups, [LayerInputs(kv, offsets[:2], none)] * 2),
        (x, angles, angles, arena, groups, [LayerInputs(kv, offsets, none[:6])] * 2),
        (x, angles, angles, arena[:100], groups, both),
        (x, angles, angles, arena, groups, both[:1]),
        (x, angles, angles, arena, groups, []),
    ):
        with pytest.raises(LayoutError):
            layers.run(*arguments)
    inputs = StepInputs(arena, (), groups, {})
    with fused._context.step(inputs), pytest.raises(LayoutError, match="another tensor"):
        base.model.model.layers[1].forward(x[None], position_embeddings=(angles[None], angles[None]))


def test_a_model_that_does_something_between_its_layers_keeps_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_base(_model(*FUSED["llama"]), tmp_path / "base")
    own = LlamaModel.forward

    def forward(self: LlamaModel, *arguments: object, **named: object) -> object:
        # As if the model scaled what its first layer returns, whatever computes that layer.
        with monkeypatch.context() as patched:
            first = self.layers[0].forward
            patched.setattr(self.layers[0], "forward", lambda *a, **k: first(*a, **k) * 0.5)
            return own(self, *arguments, **named)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    base, counts = _load(folder, torch.float32, monkeypatch)
    assert counts == [0]
    assert _logits(base, monkeypatch)
