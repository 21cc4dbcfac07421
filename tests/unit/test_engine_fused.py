"""Which modules get a forward of one pass: those that provably compute the same, and no others."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import CohereConfig, LlamaConfig
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from octavo_kernels.native import load_native
from octavo_kernels.pointwise import NormForm
from octavo_worker.model import fused
from octavo_worker.model.context import StepContext
from octavo_worker.model.fused import fuse
from octavo_worker.model.kv_shape import KvShape
from octavo_worker.model.linear import replace_linears

pytestmark = pytest.mark.skipif(load_native() is None, reason="needs a C++ compiler")

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float32)
CONFIG = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)


def _x(dtype: torch.dtype) -> Tensor:
    return torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(5)).to(dtype)


def _fused(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, int]:
    """Return a copy of ``module`` with linears replaced and fused, and how many modules were."""
    own = copy.deepcopy(module)
    replace_linears(own, None, StepContext(KvShape((None,), 1, 16)))
    return own, len(fuse(own, CPU, dtype))


def _near(got: Tensor, expected: Tensor) -> None:
    got, expected = got.detach(), expected.detach()
    assert float((got - expected).norm() / expected.norm()) < 4 * torch.finfo(expected.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm, Olmo2RMSNorm])
def test_norms_of_every_form_are_recognised(kind: type[nn.Module], dtype: torch.dtype) -> None:
    norm = kind(64)
    nn.init.normal_(norm.weight, std=0.5)
    norm = norm.to(dtype)
    own, num_fused = _fused(nn.ModuleDict({"norm": norm}), dtype)
    assert num_fused == 1
    _near(own["norm"](_x(dtype)), norm(_x(dtype)))


@torch.inference_mode()
def test_a_norm_rounds_where_its_own_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NormForm] = []
    original = fused.pointwise.rms_norm

    def rms_norm(x: Tensor, weight: Tensor, eps: float, form: NormForm) -> Tensor:
        seen.append(form)
        return original(x, weight, eps, form)

    monkeypatch.setattr(fused.pointwise, "rms_norm", rms_norm)
    forms = {LlamaRMSNorm: NormForm.ROUND_THEN_SCALE, Olmo2RMSNorm: NormForm.SCALE_THEN_ROUND}
    for kind, form in {**forms, GemmaRMSNorm: NormForm.SCALE_BY_ONE_PLUS}.items():
        norm = kind(64)
        nn.init.normal_(norm.weight, std=0.5)
        own, _ = _fused(nn.ModuleDict({"norm": norm.to(torch.bfloat16)}), torch.bfloat16)
        own["norm"](_x(torch.bfloat16))
        assert seen[-1] == form


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "is_known"), [("silu", True), ("gelu_pytorch_tanh", True), ("relu", False)])
def test_gated_mlps_with_a_known_activation(activation: str, is_known: bool, dtype: torch.dtype) -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=96, hidden_act=activation)
    mlp = LlamaMLP(config).to(dtype)
    own, num_fused = _fused(nn.ModuleDict({"mlp": mlp}), dtype)
    assert num_fused == int(is_known)
    _near(own["mlp"](_x(dtype)), mlp(_x(dtype)))


class _ScaledMlp(LlamaMLP):
    """Looks like a gated MLP and is none."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


class _ShiftedNorm(LlamaRMSNorm):
    """Looks like a norm and is none."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_only_looks_alike_keeps_its_own_code(dtype: torch.dtype) -> None:
    modules = nn.ModuleDict({"mlp": _ScaledMlp(CONFIG), "norm": _ShiftedNorm(64), "layer_norm": nn.LayerNorm(64)})
    own, num_fused = _fused(modules.to(dtype), dtype)
    assert num_fused == 0
    for name in modules:
        _near(own[name](_x(dtype)), modules[name](_x(dtype)))


class _GatedNorm(LlamaRMSNorm):
    """A norm that may be called with a second tensor."""

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


def test_a_module_that_is_called_with_more_runs_its_own_code() -> None:
    norm = _GatedNorm(64)
    own, num_fused = _fused(nn.ModuleDict({"norm": norm}), torch.float32)
    x = _x(torch.float32)
    assert num_fused == 1
    _near(own["norm"](x), norm(x))
    _near(own["norm"](x, 2 + x), norm(x, 2 + x))
    _near(own["norm"](x, gate=2 + x), norm(x, 2 + x))


def _attended(module: nn.Module, dtype: torch.dtype) -> Tensor:
    angle = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(6))
    embeddings = (angle.cos().to(dtype), angle.sin().to(dtype))
    output: Tensor = module(_x(dtype), position_embeddings=embeddings, attention_mask=None)[0]
    return output


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_attention_turns_by_our_function_and_only_where_it_was_fused(dtype: torch.dtype) -> None:
    CONFIG._attn_implementation = "eager"
    attention = LlamaAttention(CONFIG, 0).to(dtype)
    rotary = modeling_llama.apply_rotary_pos_emb
    own, num_fused = _fused(nn.ModuleDict({"attention": attention}), dtype)
    assert num_fused == 1
    assert modeling_llama.apply_rotary_pos_emb is rotary, "the library itself was changed"
    assert "forward" not in vars(attention)
    _near(_attended(own["attention"], dtype), _attended(attention, dtype))


@torch.inference_mode()
def test_a_rotation_of_neighbouring_elements_is_left_alone() -> None:
    config = CohereConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "eager"
    attention = CohereAttention(config, 0)
    own, num_fused = _fused(nn.ModuleDict({"attention": attention}), torch.float32)
    assert num_fused == 0
    _near(_attended(own["attention"], torch.float32), _attended(attention, torch.float32))


def test_nothing_is_fused_where_there_are_no_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.pointwise, "load_native", lambda: None)
    assert _fused(nn.ModuleDict({"norm": LlamaRMSNorm(64)}), torch.float32)[1] == 0
