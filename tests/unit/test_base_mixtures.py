"""Mixtures of experts: served right, whatever the neighbours send to the same experts; their adapters go elsewhere."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from octavo_identity.validator import validate
from octavo_shared.errors import AdapterRefused
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.safetensors_form import write_tensors
from octavo_worker.model import attention, self_check
from octavo_worker.model import base as base_module
from octavo_worker.model.base import load_base
from octavo_worker.model.context import UnsupportedBase
from support.adapters import config_json, raw
from support.engines import save_base
from support.golden import WINDOW, check_golden, make_model, make_rig, one_thread, small

# What "all-linear" would be, but for experts: on some mixtures PEFT makes it mean these too.
WIDE = ["q_proj", "k_proj", "v_proj", "o_proj"]
SHARED = {"qwen2-moe": ["shared_expert.up_proj", "shared_expert_gate"]}

MIXTURE = {"num_experts_per_tok": 2}
MIXTURES: dict[str, Callable[[], PretrainedConfig]] = {
    # Sinks, every other layer slides, biases in experts, weights transposed, a clamped gate.
    "gpt-oss": lambda: hf.GptOssConfig(**small(num_local_experts=4, sliding_window=WINDOW, **MIXTURE)),
    "mixtral": lambda: hf.MixtralConfig(**small(num_local_experts=4, sliding_window=WINDOW, **MIXTURE)),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**small(num_experts=4, moe_intermediate_size=32, **MIXTURE)),
    # An expert for everybody beside the chosen ones, which is linear and takes adapters.
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(
        **small(num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=48, **MIXTURE)
    ),
    "olmoe": lambda: hf.OlmoeConfig(**small(num_experts=4, **MIXTURE)),
    "granite-moe": lambda: hf.GraniteMoeConfig(**small(num_local_experts=4, **MIXTURE)),
    # A dense layer, then a mixture whose router chooses groups first.
    "glm4-moe": lambda: hf.Glm4MoeConfig(
        **small(moe_intermediate_size=32, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1,
                n_shared_experts=1, **MIXTURE)
    ),
}  # fmt: skip

_ROUTE = MixtralTopKRouter.forward


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixed_batch_gets_what_transformers_and_peft_compute_alone(name: str, tmp_path: Path) -> None:
    check_golden(make_rig(MIXTURES[name](), tmp_path, WIDE + SHARED.get(name, [])))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_served_in_bf16_too(name: str, tmp_path: Path) -> None:
    # Weights nearer to a trained model's: larger ones make much of rounding.
    config = MIXTURES[name]()
    config.initializer_range = 0.05
    base = load_base(save_base(make_model(config), tmp_path / "base"), "cpu", torch.bfloat16)
    assert base.dtype == torch.bfloat16
    assert not any("experts." in module for module in base.manifest.modules if ".shared_experts." not in module)


def test_a_router_that_rounding_sends_elsewhere_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect, distance, seen = self_check.expect, self_check._distance, []

    def route_otherwise(router: MixtralTopKRouter, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # As if there were a tie for every second row.
        logits, weights, index = _ROUTE(router, rows)
        return logits, weights, torch.where(rows[:, :1] > 0, (index + 1) % router.num_experts, index)

    def expect_then_change(*args: object) -> self_check.Expectation:
        expected = expect(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(MixtralTopKRouter, "forward", route_otherwise)
        return expected

    def note(*args: object) -> float:
        seen.append(distance(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(self_check, "expect", expect_then_change)
    monkeypatch.setattr(self_check, "_distance", note)
    load_base(save_base(make_model(MIXTURES["mixtral"]()), tmp_path / "base"), "cpu", torch.float32)
    packed, with_the_same_experts = seen
    assert packed > 0.1
    assert with_the_same_experts < 1e-4


def test_a_mixture_that_computes_something_else_is_refused_whatever_it_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged = attention.paged_attention_forward

    def without_scaling(*args: Tensor, scaling: float, **kwargs: object) -> object:
        return paged(*args, scaling=2 * scaling, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "paged_attention_forward", without_scaling)
    with pytest.raises(UnsupportedBase, match="packed than alone"):
        load_base(save_base(make_model(MIXTURES["mixtral"]()), tmp_path / "base"), "cpu", torch.bfloat16)
    monkeypatch.undo()
    attention.register()


def _see_all_rows(router: MixtralTopKRouter, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Route as Mixtral does, but by a hair after what the whole batch is like."""
    return _ROUTE(router, rows + 1e-6 * rows.mean(dim=-2, keepdim=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize("are_packed", [True, False])
def test_a_mixture_whose_router_sees_the_neighbours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, are_packed: bool
) -> None:
    folder = save_base(make_model(MIXTURES["mixtral"]()), tmp_path / "base")
    monkeypatch.setattr(MixtralTopKRouter, "forward", _see_all_rows)
    if not are_packed:
        monkeypatch.setattr(base_module, "replace_experts", lambda model: None)
    with pytest.raises(UnsupportedBase, match=r"^this base lets the other prompts of a batch change an answer$"):
        load_base(folder, "cpu", torch.float32)


@pytest.mark.parametrize("name", ["gpt-oss", "mixtral"])
@pytest.mark.parametrize("are_packed", [True, False])
def test_experts_that_round_by_the_number_of_their_rows_are_no_reason_to_refuse(
    name: str, are_packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not are_packed:
        # As on a GPU, where the architecture's own experts stay.
        monkeypatch.setattr(base_module, "replace_experts", lambda model: None)
    has_equal_bits, seen = self_check._has_equal_bits, []

    def note(*args: object) -> bool:
        seen.append(has_equal_bits(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(self_check, "_has_equal_bits", note)
    rig = make_rig(MIXTURES[name](), tmp_path, WIDE)
    assert seen == ([True] if are_packed else [False, True])
    check_golden(rig)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt-oss", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
        ("olmoe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
        # PEFT finds the experts behind these by itself.
        ("mixtral", {"target_modules": "all-linear"}),
        ("qwen3-moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning")
def test_an_adapter_that_peft_trained_on_experts_is_refused_by_name(
    name: str, targets: dict[str, object], tmp_path: Path
) -> None:
    model = make_model(MIXTURES[name]())
    manifest = load_base(save_base(model, tmp_path / "base")).manifest
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **targets)  # type: ignore[arg-type]
    get_peft_model(model, config).save_pretrained(tmp_path / "peft")
    said, weights = (tmp_path / "peft" / file for file in ("adapter_config.json", "adapter_model.safetensors"))
    with pytest.raises(AdapterRefused, match="such as the weights of experts, are not served") as refused:
        validate(said.read_bytes(), weights.read_bytes(), manifest)
    assert refused.value.fields["rule"] == "target_parameters"
    # Nor does it get in when its configuration hides them.
    with pytest.raises(AdapterRefused, match=r"'base_model\.model\.model\.layers\.0\.mlp\.experts\.\S+' belongs to ex"):
        validate(config_json(r=2, target_modules=["q_proj"]), weights.read_bytes(), manifest)


@pytest.mark.parametrize(
    ("module", "rule"),
    [
        # What older architectures had linears for.
        ("model.layers.1.mlp.experts.3.gate_proj", "experts"),
        ("model.layers.1.block_sparse_moe.experts.3.w1", "experts"),
        ("model.layers.1.mlp.router", "tensor_name"),
        ("model.layers.1.mlp.gate", "tensor_name"),
    ],
)
def test_an_adapter_on_one_expert_or_the_router_is_refused_by_name(module: str, rule: str, tmp_path: Path) -> None:
    manifest = load_base(save_base(make_model(MIXTURES["qwen3-moe"]()), tmp_path / "base")).manifest
    shapes = {"model.layers.0.self_attn.q_proj": ModuleShape(64, 64), module: ModuleShape(64, 4)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = raw(np.ones((4, shape.in_features)))
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = raw(np.ones((shape.out_features, 4)))
    said = config_json(target_modules=["model.layers.0.self_attn.q_proj", module])
    with pytest.raises(AdapterRefused) as refused:
        validate(said, write_tensors(tensors, {}), manifest)
    assert refused.value.fields["rule"] == rule
    assert module in refused.value.message
